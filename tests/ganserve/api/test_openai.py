import base64
import dataclasses
import io
import json
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ganserve import imaging, latents
from ganserve.api import openai
from ganserve.api.exchange import is_cheap
from ganserve.api.http import JSON, Request, Response
from ganserve.errors import (
    BodyTooLargeError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotAcceptableError,
    NotFoundError,
    OverloadedError,
    RequestError,
    UnauthorizedError,
    UnsupportedMediaTypeError,
)
from ganserve.settings import Settings


def _request(fields: Any, *, accept: str | None = None, query: str = "", kind: str = JSON) -> Request:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    headers = {"content-type": kind} | ({} if accept is None else {"accept": accept})
    return Request(method="POST", path="/v1/images/generations", query=query, headers=headers, body=body)


def _images(response: Response) -> list[np.ndarray]:
    found = []
    for item in json.loads(response.body)["data"]:
        assert set(item) == {"b64_json"}
        with Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))) as image:
            assert image.format == "PNG"
            found.append(np.asarray(image)[:, :, None])
    return found


def _drawn(context, seed: int, labels: list[int]) -> np.ndarray:
    """What the engine makes of a seed, past all HTTP."""
    return context.engine.run(latents.draw(seed, len(labels), 16)[0], np.array(labels))


def _named(context, *names: str):
    """The server of a model whose classes have these names."""
    manifest = context.engine.manifest.model_copy(update={"labels": names})
    return dataclasses.replace(
        context, engine=types.SimpleNamespace(manifest=manifest, digest="", run=context.engine.run)
    )


# What a prompt means.


@pytest.mark.parametrize(
    "prompt",
    [
        "7",
        "seven",
        "Seven",
        "SEVEN",
        " seven\n",
        "\uff17",
        "\u2466",
        "\u2077",
        "\U0001d7d5",
        "\uff33even",
        "\u017feven",
        "\u3000 7 \t",
    ],
)
def test_prompt_is_one_class(context, answer, prompt):
    """A digit or its English word is that class, in any compatible spelling, case and white space around it."""
    (image,) = _images(answer(openai.generations, _request({"prompt": prompt, "seed": 1}), context))
    assert (image == _drawn(context, 1, [7])[0]).all()


@pytest.mark.parametrize(("word", "label"), [(word, label) for label, word in enumerate(openai.WORDS)])
def test_words_are_digits(context, answer, word, label):
    """Zero to nine are 0 to 9."""
    (image,) = _images(answer(openai.generations, _request({"prompt": word, "seed": 1}), context))
    assert (image == _drawn(context, 1, [label])[0]).all()


def test_n_images_of_a_class_are_the_rows_of_the_seed(context, answer):
    """The images of one class are those that `/v1/generate` gives for the seed and the label."""
    images = _images(answer(openai.generations, _request({"prompt": "three", "n": 4, "seed": 7}), context))
    assert (np.stack(images) == _drawn(context, 7, [3] * 4)).all()


def test_digits_are_one_image_in_a_row(context, answer):
    """A string of digits is one image, the same that `/v1/digits` gives for the seed."""
    (image,) = _images(answer(openai.generations, _request({"prompt": "\uff12026", "seed": 7}), context))
    assert (image == imaging.strip(_drawn(context, 7, [2, 0, 2, 6]))).all()


def test_n_of_digits_are_n_rows_of_digits(context, answer):
    """Each of n images of a string shows the whole string, with latents of its own."""
    images = _images(answer(openai.generations, _request({"prompt": "42", "n": 3, "seed": 7}), context))
    rows = _drawn(context, 7, [4, 2] * 3)
    assert len(images) == 3
    for index, image in enumerate(images):
        assert (image == imaging.strip(rows[2 * index : 2 * index + 2])).all()
    assert (images[0] != images[1]).any()


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " ",
        "a cat",
        "seventeen",
        "seven seven",
        "a seven",
        "7.",
        "-7",
        "+7",
        "2 0 2 6",
        "2,026",
        "0x7",
        "1e3",
        "½",
        "\u0667",
        "VII",
        "\uff17up",
        "7\u200b",
        "\ud800",
        "\x00",
    ],
)
def test_anything_else_is_no_prompt(context, prompt):
    """What is neither a class nor a row of digits is refused with what is accepted, never guessed."""
    with pytest.raises(InvalidRequestError, match=r'prompt must be one digit .*"seven".*"2026"') as caught:
        openai.generations(_request({"prompt": prompt}), context)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "prompt is required and must be a string"),
        ({"prompt": None}, "prompt is required"),
        ({"prompt": 7}, "prompt is required and must be a string"),
        ({"prompt": ["7"]}, "prompt is required and must be a string"),
        ({"prompt": "7" * 65}, "at most 64 characters an image, got 65"),
        ({"prompt": "7" * 1001}, "prompt may have 1000 characters, got 1001"),
        ({"prompt": "x" * 1000}, r"got 'x{64}'\.\.\.$"),
    ],
)
def test_what_is_no_prompt_at_all(context, fields, message):
    """A prompt is a string of limited length, and there must be one."""
    with pytest.raises(InvalidRequestError, match=message):
        openai.generations(_request(fields), context)


def test_prompts_are_the_models_own_classes(context, answer):
    """Classes are named as the manifest names them, several words and odd case included; digits mean nothing then."""
    fashion = _named(context, "T-shirt/top", "Ankle boot", "Bag")
    for prompt, label in (("t-shirt/TOP", 0), (" ankle   boot ", 1), ("bag", 2)):
        (image,) = _images(answer(openai.generations, _request({"prompt": prompt, "seed": 1}), fashion))
        assert (image == _drawn(context, 1, [label])[0]).all()
    for prompt in ("zero", "0", "ankleboot"):
        with pytest.raises(InvalidRequestError, match="prompt must be one of T-shirt/top, Ankle boot, Bag; got"):
            openai.generations(_request({"prompt": prompt}), fashion)


def test_letters_stand_in_a_row_too(context, answer):
    """Any classes of one character can be written in a row; case counts where both cases are classes."""
    letters = _named(context, "A", "a", "B", "Nil")
    (image,) = _images(answer(openai.generations, _request({"prompt": "aAb", "seed": 1}), letters))
    assert (image == imaging.strip(_drawn(context, 1, [1, 0, 2]))).all()
    (nil,) = _images(answer(openai.generations, _request({"prompt": "nil", "seed": 1}), letters))
    assert (nil == _drawn(context, 1, [3])[0]).all()
    with pytest.raises(InvalidRequestError, match="one of A, a, B, Nil, or a row of those of one character"):
        openai.generations(_request({"prompt": "c"}), letters)


def test_what_could_mean_two_classes_means_none():
    """A spelling that two classes share is no spelling of either."""
    assert openai.spellings(("Cat", "CAT", "Dog")) == {"Cat": 0, "CAT": 1, "Dog": 2, "dog": 2}


def test_many_classes_are_not_all_listed(context):
    """With a thousand classes the message names twenty."""
    with pytest.raises(InvalidRequestError, match=r"c19 and 980 more; got 'x'$"):
        openai.generations(_request({"prompt": "x"}), _named(context, *(f"c{index}" for index in range(1000))))


def test_unconditional_model_has_no_prompts(unconditional):
    """A model without labels cannot be told what to make."""
    with pytest.raises(InvalidRequestError, match="this model takes no labels"):
        openai.generations(_request({"prompt": "7"}), unconditional)


# The other fields.


def test_answer_is_openais(context, answer):
    """The answer has the time, the images, and what they are; the seed that makes them again is in a header."""
    response = answer(openai.generations, _request({"prompt": "7"}), context)
    document = json.loads(response.body)
    assert set(document) == {"created", "data", "output_format", "size"}
    assert type(document["created"]) is int
    assert (document["output_format"], document["size"]) == ("png", "28x28")
    again = answer(
        openai.generations, _request({"prompt": "7", "seed": int(response.headers["ganserve-seed"])}), context
    )
    assert json.loads(again.body)["data"] == document["data"]
    other = answer(openai.generations, _request({"prompt": "7"}), context)
    assert json.loads(other.body)["data"] != document["data"]


@pytest.mark.parametrize(
    ("prompt", "size", "scale"),
    [
        ("7", "auto", 1),
        ("7", "28x28", 1),
        ("7", "56x56", 2),
        ("7", "448x448", 16),
        ("42", "auto", 1),
        ("42", "56x28", 1),
        ("2026", "224x56", 2),
    ],
)
def test_size_is_that_of_the_picture(context, answer, prompt, size, scale):
    """A size is that of the whole image: the picture's own or an integer multiple, each pixel a square."""
    response = answer(openai.generations, _request({"prompt": prompt, "size": size, "seed": 1}), context)
    (image,) = _images(response)
    own = imaging.strip(_drawn(context, 1, [int(digit) for digit in prompt]))
    assert (image == own.repeat(scale, axis=0).repeat(scale, axis=1)).all()
    assert json.loads(response.body)["size"] == f"{image.shape[1]}x{image.shape[0]}"


@pytest.mark.parametrize(
    ("prompt", "size"),
    [
        ("7", "1024x1024"),
        ("7", "56x28"),
        ("7", "0x0"),
        ("7", "476x476"),
        ("7", "028x028"),
        ("7", "28X28"),
        ("7", "28"),
        ("7", "28x28\n"),
        ("7", "\uff12\uff18x\uff12\uff18"),
        ("7", "9" * 400 + "x28"),
        ("7", 28),
        ("7", True),
        ("7", ["28x28"]),
        ("42", "28x28"),
        ("42", "56x56"),
    ],
)
def test_other_sizes_are_refused(context, prompt, size):
    """What is no multiple of the picture's own size is refused with sizes that are."""
    width = 28 * len(prompt)
    with pytest.raises(
        InvalidRequestError, match=f'size must be "auto" or a multiple .* {width}x28, up to 16'
    ) as caught:
        openai.generations(_request({"prompt": prompt, "size": size}), context)
    assert caught.value.param == "size"


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"n": 0}, "n must be 1 to 10, got 0", "n"),
        ({"n": 11}, "n must be 1 to 10, got 11", "n"),
        ({"n": "2"}, "n must be an integer, got a string", "n"),
        ({"n": True}, "n must be an integer, got a boolean", "n"),
        ({"seed": -1}, "seed must be 0 to 18446744073709551615, got -1", "seed"),
        ({"model": 7}, "model must be a string", "model"),
        ({"user": 7}, "user must be a string", "user"),
        ({"response_format": "url"}, "response_format can only be b64_json here", "response_format"),
        ({"stream": True}, "stream can only be false here", "stream"),
        ({"stream": 0}, "stream can only be false here", "stream"),
        ({"quality": "hd"}, "quality can only be auto or standard here", "quality"),
        ({"quality": ["auto"]}, "quality can only be auto or standard here", "quality"),
        ({"background": "transparent"}, "background can only be auto or opaque here", "background"),
        ({"output_format": "jpeg"}, "output_format can only be png here", "output_format"),
        ({"output_compression": 50}, "output_compression can only be 100 here", "output_compression"),
        ({"partial_images": 1}, "partial_images can only be 0 here", "partial_images"),
        ({"style": "vivid"}, "style has no meaning for this model: leave it out", "style"),
        ({"frame_count": 4}, "frame_count has no meaning", "frame_count"),
        ({"colour": "red"}, "unknown field 'colour'; known are prompt, model, n, seed, size", "colour"),
        ({"x" * 5000: 1}, "unknown field 'x{64}'", "x" * 64),
    ],
)
def test_bad_field_is_400(context, fields, message, param):
    """A field that is wrong, unknown, or would be ignored although it asks for something, is refused by its name."""
    with pytest.raises(InvalidRequestError, match=message) as caught:
        openai.generations(_request({"prompt": "7"} | fields), context)
    assert caught.value.param == param


def test_what_is_the_case_anyway_is_accepted(context, answer):
    """Options at the values that describe what is done anyway change nothing, and null is as good as leaving out."""
    plain = json.loads(answer(openai.generations, _request({"prompt": "7", "seed": 1}), context).body)["data"]
    for name, values in openai.HARMLESS.items():
        for value in (*values, None):
            response = answer(openai.generations, _request({"prompt": "7", "seed": 1, name: value}), context)
            assert json.loads(response.body)["data"] == plain
    others = {"model": "mnist", "user": "u", "safety_identifier": "s", "n": None, "size": None, "style": None}
    response = answer(openai.generations, _request({"prompt": "7", "seed": 1, **others}), context)
    assert json.loads(response.body)["data"] == plain


def test_another_model_is_404(context):
    """Asking for a model that is not served is OpenAI's `model_not_found`, with the name of the one that is."""
    with pytest.raises(NotFoundError, match="there is no model 'gpt-image-2'; this server has 'mnist'") as caught:
        openai.generations(_request({"prompt": "7", "model": "gpt-image-2"}), context)
    assert json.loads(openai.error(caught.value).body)["error"]["code"] == "model_not_found"


def test_rows_of_the_server_are_the_limit(context):
    """The rows of n images of a string are n times its digits, and the server's limit holds for them."""
    small = dataclasses.replace(context, settings=Settings(max_request_rows=8))
    with pytest.raises(InvalidRequestError, match="n x digits may be 8 on this server, got 12"):
        openai.generations(_request({"prompt": "2026", "n": 3}), small)
    with pytest.raises(InvalidRequestError, match="at most 8 characters an image, got 9"):
        openai.generations(_request({"prompt": "123456789"}), small)


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/form-data; boundary=x"])
def test_other_bodies_are_415(context, kind):
    """A body that is not JSON is refused unread."""
    with pytest.raises(UnsupportedMediaTypeError, match=f"send {JSON}, got"):
        openai.generations(_request(b"x", kind=kind), context)


def test_envelope_is_strict(context):
    """A query, and an answer that is not JSON, are refused on every route."""
    for handler in (openai.generations, openai.models, openai.model):
        request = _request({"prompt": "7"}, query="n=2")
        request = dataclasses.replace(request, path_parameters={"model": "mnist"})
        with pytest.raises(InvalidRequestError, match="unknown query parameter 'n'"):
            handler(request, context)
        with pytest.raises(NotAcceptableError, match="Accept was 'image/png'"):
            handler(dataclasses.replace(request, query="", headers={**request.headers, "accept": "image/png"}), context)


# Models.


def test_models_are_the_one_that_is_served(context):
    """The list has one model, named and dated as its manifest; it can be asked for by name."""
    expected = {"id": "mnist", "object": "model", "created": 1767225600, "owned_by": "ganserve"}
    listed = openai.models(Request(method="GET", path="/v1/models"), context)
    assert json.loads(listed.body) == {"object": "list", "data": [expected]}
    one = Request(method="GET", path="/v1/models/mnist", path_parameters={"model": "mnist"})
    assert json.loads(openai.model(one, context).body) == expected


def test_model_that_is_not_served_is_404(context):
    """Another name is a 404."""
    request = Request(method="GET", path="/v1/models/x", path_parameters={"model": "x"})
    with pytest.raises(NotFoundError, match="there is no model 'x'"):
        openai.model(request, context)


# Errors.


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (InvalidRequestError("why", param="n"), 400, "invalid_request_error", "n", None),
        (InvalidRequestError("why"), 400, "invalid_request_error", None, None),
        (UnauthorizedError("why"), 401, "invalid_request_error", None, "invalid_api_key"),
        (NotFoundError("why"), 404, "invalid_request_error", None, None),
        (NotFoundError("why", param="model"), 404, "invalid_request_error", "model", "model_not_found"),
        (MethodNotAllowedError("why", allowed=("GET",)), 405, "invalid_request_error", None, None),
        (BodyTooLargeError("why"), 413, "invalid_request_error", None, None),
        (RequestError("why"), 500, "server_error", None, None),
        (OverloadedError("why"), 503, "server_error", None, None),
    ],
)
def test_error_has_openais_shape(error, status, kind, param, code):
    """Every error is {"error": {message, type, param, code}} with its status and headers, and is not cached."""
    response = openai.error(error)
    assert (response.status, response.content_type) == (status, JSON)
    assert json.loads(response.body) == {"error": {"message": "why", "type": kind, "param": param, "code": code}}
    assert response.headers == {**error.headers, "cache-control": "no-store"}


def test_large_pictures_are_dear(context):
    """Many or large pictures are too dear for the event loop; one of the model's own size is not."""
    cheap = openai.generations(_request({"prompt": "7"}), context)
    assert is_cheap(cheap)
    for fields in ({"n": 10, "size": "112x112"}, {"size": "448x448"}, {"prompt": "31415926535897932384"}):
        assert not is_cheap(openai.generations(_request({"prompt": "7"} | fields), context))
