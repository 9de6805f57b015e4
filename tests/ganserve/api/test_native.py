import base64
import dataclasses
import html
import io
import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ganserve import imaging, latents
from ganserve.api import native
from ganserve.api.http import JSON, NPY, PNG, Context, Request, Work, npy_bytes
from ganserve.api.routing import resolve
from ganserve.errors import InvalidRequestError, NotAcceptableError, UnsupportedMediaTypeError
from ganserve.settings import Settings


def _generate(fields: Any = None, *, accept: str | None = None, query: str = "", kind: str = JSON) -> Request:
    body = b"" if fields is None else fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    headers = ({"content-type": kind} if kind else {}) | ({"accept": accept} if accept else {})
    return Request(method="POST", path="/v1/generate", query=query, headers=headers, body=body)


def _npy(array: np.ndarray, *, accept: str = NPY, query: str = "") -> Request:
    stream = io.BytesIO()
    np.save(stream, array)
    return _generate(stream.getvalue(), accept=accept, query=query, kind=NPY)


def _digits(text: str, query: str = "", **headers: str) -> Request:
    return Request(
        method="GET",
        path=f"/v1/digits/{text}.png",
        query=query,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        path_parameters={"text": text},
    )


def _png(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)[:, :, None]


def _images(body: bytes) -> np.ndarray:
    """Pixels of a JSON answer with PNGs."""
    return np.stack([_png(base64.b64decode(image)) for image in json.loads(body)["images"]])


def _drawn(context: Context, seed: int, count: int, labels: list[int] | None = None, truncation: float = 1.0):
    """What the engine makes of a seed, past all HTTP."""
    rows, own = latents.draw(seed, count, 16, context.engine.manifest.num_classes, truncation=truncation)
    return context.engine.run(rows, own if labels is None else np.array(labels))


# POST /v1/generate with a seed.


def test_seeded_request_gives_the_engines_pixels(context, answer):
    """The PNGs of a seeded request decode to exactly what the engine makes of that seed."""
    response = answer(native.generate, _generate({"n": 5, "seed": 7}), context)
    document = json.loads(response.body)
    assert response.status == 200
    assert response.content_type == JSON
    assert set(document) == {"model", "n", "seed", "labels", "images"}
    assert document["model"] == {"name": "mnist", "digest": context.engine.digest}
    assert (document["n"], document["seed"]) == (5, 7)
    assert document["labels"] == latents.draw(7, 5, 16, 10)[1].tolist()
    assert (_images(response.body) == _drawn(context, 7, 5)).all()


def test_pixels_encoding_gives_nested_integers(context, answer):
    """With "encoding": "pixels" the answer has [n][H][W][C] integers in place of PNGs."""
    response = answer(native.generate, _generate({"n": 3, "seed": 7, "encoding": "pixels"}), context)
    document = json.loads(response.body)
    assert "images" not in document
    assert (np.array(document["pixels"]) == _drawn(context, 7, 3)).all()
    assert np.array(document["pixels"]).shape == (3, 28, 28, 1)


def test_image_does_not_hang_on_n(context, answer):
    """Image i of n is image i of n', labels included."""
    few = json.loads(answer(native.generate, _generate({"n": 3, "seed": 9}), context).body)
    many = json.loads(answer(native.generate, _generate({"n": 40, "seed": 9}), context).body)
    assert many["images"][:3] == few["images"]
    assert many["labels"][:3] == few["labels"]


@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({"n": 3, "labels": 4}, [4, 4, 4]),
        ({"n": 3, "labels": [4]}, [4, 4, 4]),
        ({"n": 3, "labels": [1, 2, 3]}, [1, 2, 3]),
        ({"labels": [9, 8, 7, 6]}, [9, 8, 7, 6]),
        ({"labels": 0}, [0]),
    ],
)
def test_labels_are_one_for_all_or_one_each(context, answer, fields, labels):
    """A label is for all rows, a list for one each; without n the list says how many; latents are the seed's own."""
    response = answer(native.generate, _generate({"seed": 7, **fields}), context)
    document = json.loads(response.body)
    assert document["labels"] == labels
    assert document["n"] == len(labels)
    assert (_images(response.body) == _drawn(context, 7, len(labels), labels)).all()


def test_no_body_is_one_random_image(context, answer):
    """An empty POST gives one image and the seed that makes it again, safe in any JSON reader."""
    bodies = [answer(native.generate, request, context).body for request in (_generate(kind=""), _generate({}))]
    first, second = map(json.loads, bodies)
    assert first["n"] == second["n"] == 1
    assert first["seed"] != second["seed"]
    assert 0 <= first["seed"] < 2**53
    again = answer(native.generate, _generate({"seed": first["seed"]}), context)
    assert json.loads(again.body) == first


def test_null_is_missing(context, answer):
    """Null stands for a field that is not there: BentoML's clients send their defaults."""
    nulls = dict.fromkeys(("n", "labels", "truncation", "latents", "encoding"))
    with_nulls = answer(native.generate, _generate({"seed": 3, **nulls}), context)
    assert json.loads(with_nulls.body) == json.loads(answer(native.generate, _generate({"seed": 3}), context).body)


def test_truncation_scales_the_latents(context, answer):
    """Truncation reaches the latents and leaves the labels; 0 gives each label's mean image."""
    response = answer(native.generate, _generate({"n": 4, "seed": 7, "truncation": 0.5}), context)
    assert (_images(response.body) == _drawn(context, 7, 4, truncation=0.5)).all()
    none = _images(answer(native.generate, _generate({"n": 4, "seed": 7, "labels": 3, "truncation": 0}), context).body)
    assert (none == none[0]).all()


@pytest.mark.parametrize("seed", [0, 2**53, 2**64 - 1])
def test_every_seed_is_served(context, answer, seed):
    """Seeds reach from 0 to 2**64 - 1 and come back as they were sent."""
    response = answer(native.generate, _generate({"seed": seed}), context)
    assert json.loads(response.body)["seed"] == seed
    assert (_images(response.body) == _drawn(context, seed, 1)).all()


def test_png_of_one_is_the_image(context, answer):
    """`Accept: image/png` with n = 1 is that image, its seed and label in the headers."""
    response = answer(native.generate, _generate({"seed": 7, "labels": 3}, accept=PNG), context)
    assert response.content_type == PNG
    assert (_png(response.body) == _drawn(context, 7, 1, [3])[0]).all()
    assert response.headers["ganserve-seed"] == "7"
    assert response.headers["ganserve-labels"] == "3"
    assert response.headers["ganserve-model"] == f"mnist {context.engine.digest}"
    assert response.headers["vary"] == "accept"


def test_png_of_many_is_a_contact_sheet(context, answer):
    """`Accept: image/png` with n > 1 is one contact sheet."""
    response = answer(native.generate, _generate({"seed": 7, "n": 5}, accept=PNG), context)
    assert (_png(response.body) == imaging.contact_sheet(_drawn(context, 7, 5))).all()


def test_npy_out_is_the_batch(context, answer):
    """`Accept: application/x-npy` is uint8 [n, H, W, C] as NumPy reads it."""
    response = answer(native.generate, _generate({"seed": 7, "n": 5}, accept=NPY), context)
    assert response.content_type == NPY
    pixels = np.load(io.BytesIO(response.body), allow_pickle=False)
    assert pixels.dtype == np.uint8
    assert (pixels == _drawn(context, 7, 5)).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 0}, "n must be 1 to 1024, got 0"),
        ({"n": -1}, "n must be 1 to 1024, got -1"),
        ({"n": 1025}, "n must be 1 to 1024, got 1025"),
        ({"n": 10**400}, "n must be 1 to 1024, got an integer of 1329 bits"),
        ({"n": 1.5}, "n must be an integer, got a number"),
        ({"n": True}, "n must be an integer, got a boolean"),
        ({"n": "3"}, "n must be an integer, got a string"),
        ({"n": [3]}, "n must be an integer, got an array"),
        ({"seed": -1}, "seed must be 0 to 18446744073709551615, got -1"),
        ({"seed": 2**64}, "seed must be 0 to 18446744073709551615"),
        ({"seed": 1e19}, "seed must be an integer, got a number"),
        ({"seed": "7"}, "seed must be an integer, got a string"),
        ({"truncation": -0.1}, "truncation must be 0 to 2"),
        ({"truncation": 2.1}, "truncation must be 0 to 2"),
        ({"truncation": "1"}, "truncation must be a number, got a string"),
        ({"truncation": False}, "truncation must be a number, got a boolean"),
        ({"labels": 10}, "labels must be 0 to 9, got 10"),
        ({"labels": -1}, "labels must be 0 to 9, got -1"),
        ({"labels": [3, 10]}, "labels must be 0 to 9, got 10"),
        ({"labels": "3"}, "labels must be an integer, got a string"),
        ({"labels": [3.5]}, "labels must be an integer, got a number"),
        ({"labels": [True]}, "labels must be an integer, got a boolean"),
        ({"labels": [[3]]}, "labels must be an integer, got an array"),
        ({"labels": {}}, "labels must be an integer, got an object"),
        ({"labels": []}, "labels must be one for all or one for each of 1 rows, got 0"),
        ({"n": 3, "labels": [1, 2]}, "labels must be one for all or one for each of 3 rows, got 2"),
        ({"labels": [0] * 1025}, "n must be 1 to 1024, got 1025"),
        ({"encoding": "jpeg"}, "encoding must be one of png, pixels"),
        ({"encoding": ["png"]}, "encoding must be one of png, pixels"),
        ({"N": 3}, "unknown field 'N'; known are n, seed, labels, truncation, encoding"),
        ({"colour": None}, "unknown field 'colour'"),
        ({"x" * 5000: 1}, "unknown field 'x{64}'"),
    ],
)
def test_bad_seeded_request_is_400(context, fields, message):
    """Every field that is malformed, unknown or out of its range is refused with its name and range."""
    with pytest.raises(InvalidRequestError, match=message):
        native.generate(_generate(fields), context)


def test_row_limit_holds_however_rows_are_asked_for(context):
    """A list of many labels without n is refused before a latent is drawn, one of a million before it is read."""
    with pytest.raises(InvalidRequestError, match="n must be 1 to 1024, got 20000"):
        native.generate(_generate({"labels": [0] * 20_000}), context)
    with pytest.raises(InvalidRequestError, match="more than the 27408 values"):
        native.generate(_generate({"labels": [0] * 1_000_000}), context)


# POST /v1/generate with latents.


def test_latents_give_the_engines_pixels(context, answer):
    """Latents that the client brings give exactly what the engine makes of them, with no seed in the answer."""
    rows, labels = latents.draw(3, 4, 16, 10)
    response = answer(native.generate, _generate({"latents": rows.tolist(), "labels": labels.tolist()}), context)
    document = json.loads(response.body)
    assert (document["n"], document["seed"], document["labels"]) == (4, None, labels.tolist())
    assert (_images(response.body) == context.engine.run(rows, labels)).all()


def test_one_label_is_broadcast_over_latents(context, answer):
    """One label, alone or in a list, is for all latents; integers are numbers too."""
    rows = [[0] * 16, [1] * 16]
    expected = context.engine.run(np.array(rows, dtype=np.float32), np.array([5, 5]))
    for labels in (5, [5]):
        response = answer(native.generate, _generate({"latents": rows, "labels": labels}), context)
        assert (_images(response.body) == expected).all()


_ROW = [0.0] * 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "1 to 1024 latents a request, got 0"),
        ([_ROW] * 1025, "1 to 1024 latents a request, got 1025"),
        (_ROW, "latents must be an array of arrays of 16 numbers"),
        ("latents", "latents must be an array of arrays"),
        (3, "latents must be an array of arrays"),
        ({"0": _ROW}, "latents must be an array of arrays"),
        ([_ROW, 3], "latents must be an array of arrays"),
        ([[]], r"latents must have shape \[N, 16\]; row 0 has 0 values"),
        ([_ROW[:15]], r"latents must have shape \[N, 16\]; row 0 has 15 values"),
        ([_ROW, [*_ROW, 0.0]], r"latents must have shape \[N, 16\]; row 1 has 17 values"),
        ([[_ROW] * 16], "latents must be numbers; row 0 has something else"),
        ([[*_ROW[:15], "3"]], "latents must be numbers; row 0"),
        ([[*_ROW[:15], True]], "latents must be numbers; row 0"),
        ([[*_ROW[:15], None]], "latents must be numbers; row 0"),
        ([_ROW, [*_ROW[:15], 1e39]], "latents must be finite in float32; row 1 is not"),
        ([[*_ROW[:15], -3.5e38]], "latents must be finite in float32; row 0 is not"),
        ([[*_ROW[:15], 10**400]], "latents must be finite in float32"),
    ],
)
def test_bad_latents_are_400(context, given, message):
    """Latents of the wrong width, rank, type or size, ragged, empty or not finite in float32 are refused."""
    with pytest.raises(InvalidRequestError, match=message):
        native.generate(_generate({"latents": given, "labels": 0}), context)


def test_1e400_is_not_a_latent(context):
    """A number that JSON has and float64 has not is refused, not clipped."""
    body = json.dumps({"latents": [_ROW], "labels": 0}).replace("0.0", "1e400", 1)
    with pytest.raises(InvalidRequestError, match="latents must be finite in float32; row 0 is not"):
        native.generate(_generate(body.encode()), context)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "labels are required with latents: the model is conditional"),
        ({"labels": None}, "labels are required with latents"),
        ({"labels": [1, 2]}, "labels must be one for all or one for each of 1 rows, got 2"),
        ({"labels": 0, "seed": 1}, "unknown field 'seed' together with latents"),
        ({"labels": 0, "n": 1}, "unknown field 'n' together with latents"),
        ({"labels": 0, "truncation": 1}, "unknown field 'truncation' together with latents"),
    ],
)
def test_what_does_not_go_with_latents_is_400(context, fields, message):
    """Latents come with labels, one or as many, and without anything that only a seed has."""
    with pytest.raises(InvalidRequestError, match=message):
        native.generate(_generate({"latents": [_ROW], **fields}), context)


# POST /v1/generate with npy.


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_in_npy_out(context, answer, order):
    """Latents as npy, labels in the query: the same pixels, in either order of the array."""
    rows, labels = latents.draw(3, 4, 16, 10)
    request = _npy(np.asarray(rows, order=order), query=f"labels={','.join(map(str, labels))}")
    response = answer(native.generate, request, context)
    assert (np.load(io.BytesIO(response.body)) == context.engine.run(rows, labels)).all()
    assert "ganserve-seed" not in response.headers


def test_npy_in_json_out(context, answer):
    """An npy body can be answered as JSON, PNGs or pixels, one label for all."""
    rows, _ = latents.draw(3, 2, 16)
    for encoding in ("png", "pixels"):
        response = answer(native.generate, _npy(rows, accept=JSON, query=f"labels=3&encoding={encoding}"), context)
        pixels = _images(response.body) if encoding == "png" else np.array(json.loads(response.body)["pixels"])
        assert (pixels == context.engine.run(rows, np.array([3, 3]))).all()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "labels are required with latents"),
        ("labels=", "labels must be an integer, got ''"),
        ("labels=3,", "labels must be an integer, got ''"),
        ("labels=3.0", "labels must be an integer"),
        ("labels=10", "labels must be 0 to 9, got 10"),
        ("labels=-1", "labels must be 0 to 9, got -1"),
        ("labels=1,2,3", "labels must be one for all or one for each of 2 rows, got 3"),
        ("labels=1&labels=2", "query parameter 'labels' is given twice"),
        ("labels=1&seed=3", "unknown query parameter 'seed'; this route knows labels, encoding"),
        ("labels=1&encoding=png", "encoding is for application/json answers; Accept asks for application/x-npy"),
        (f"labels={'1,' * 5000}1", "labels must be"),
    ],
)
def test_bad_npy_query_is_400(context, query, message):
    """The query of an npy body is as strict as a JSON body."""
    with pytest.raises(InvalidRequestError, match=message):
        native.generate(_npy(np.zeros((2, 16), np.float32), query=query), context)


def test_npy_row_limit(context):
    """The row limit holds for npy as well."""
    with pytest.raises(InvalidRequestError, match="1 to 1024 latents a request, got 1025"):
        native.generate(_npy(np.zeros((1025, 16), np.float32), query="labels=1"), context)


# POST /v1/generate, the envelope.


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "application/vnd.bentoml+pickle",
        "application/python-pickle",
        "",
    ],
)
def test_other_bodies_are_415(context, kind):
    """A body that is neither JSON nor npy, pickles above all, is refused unread."""
    with pytest.raises(UnsupportedMediaTypeError, match=f"send {JSON} or {NPY}, got"):
        native.generate(_generate(b"\x80\x04.", kind=kind), context)


def test_json_with_charset_is_json(context, answer):
    """Parameters of the content type do not matter: JSON is UTF-8."""
    request = _generate({"seed": 1}, kind="application/json; charset=utf-8")
    assert answer(native.generate, request, context).status == 200


def test_unacceptable_is_406(context):
    """A client that wants a JPEG is told what there is."""
    with pytest.raises(NotAcceptableError, match="application/json, image/png, application/x-npy"):
        native.generate(_generate({}, accept="image/jpeg"), context)


def test_encoding_is_for_json_only(context):
    """An encoding with a PNG answer is a contradiction."""
    with pytest.raises(InvalidRequestError, match="encoding is for application/json answers"):
        native.generate(_generate({"encoding": "pixels"}, accept=PNG), context)


def test_json_body_takes_no_query(context):
    """A seed in the query of a JSON request would be ignored, so it is refused."""
    with pytest.raises(InvalidRequestError, match="unknown query parameter 'seed'"):
        native.generate(_generate({}, query="seed=3"), context)


# A model without labels.


def test_unconditional_model_answers_without_labels(unconditional, answer):
    """An unconditional model takes seeds and latents, and its labels are null."""
    seeded = answer(native.generate, _generate({"n": 2, "seed": 7}), unconditional)
    assert json.loads(seeded.body)["labels"] is None
    assert (_images(seeded.body) == _drawn(unconditional, 7, 2)).all()
    rows, _ = latents.draw(3, 2, 16)
    brought = answer(native.generate, _generate({"latents": rows.tolist()}), unconditional)
    assert (_images(brought.body) == unconditional.engine.run(rows)).all()
    npy = answer(native.generate, _npy(rows), unconditional)
    assert "ganserve-labels" not in npy.headers
    assert (np.load(io.BytesIO(npy.body)) == unconditional.engine.run(rows)).all()


@pytest.mark.parametrize(
    "request_",
    [
        _generate({"labels": 3}),
        _generate({"labels": [3]}),
        _generate({"latents": [_ROW], "labels": 3}),
        _npy(np.zeros((1, 16), np.float32), query="labels=3"),
    ],
)
def test_unconditional_model_refuses_labels(unconditional, request_):
    """Labels for a model that takes none are refused, however they come."""
    with pytest.raises(InvalidRequestError, match="this model takes no labels"):
        native.generate(request_, unconditional)


def test_unconditional_model_writes_no_digits(unconditional):
    """Without labels there are no digits to write."""
    with pytest.raises(InvalidRequestError, match="it cannot write digits"):
        native.digits(_digits("3"), unconditional)


# GET /v1/digits/{text}.png


def test_digits_are_written_in_order(context, answer):
    """The digits of the text stand side by side, drawn from seed 0 with the text's labels."""
    response = answer(native.digits, _digits("2026"), context)
    assert response.content_type == PNG
    assert (_png(response.body) == imaging.strip(_drawn(context, 0, 4, [2, 0, 2, 6]))).all()
    assert response.headers["cache-control"] == "public, no-cache"


def test_digits_take_seed_scale_and_truncation(context, answer):
    """Seed, scale and truncation do what they say."""
    response = answer(native.digits, _digits("31", "seed=7&scale=3&truncation=0.5"), context)
    small = imaging.strip(_drawn(context, 7, 2, [3, 1], truncation=0.5))
    assert (_png(response.body) == small.repeat(3, axis=0).repeat(3, axis=1)).all()


def test_digits_are_deterministic(context, answer):
    """The same URL gives the same bytes and the same ETag."""
    first, second = (answer(native.digits, _digits("2026", "seed=7"), context) for _ in range(2))
    assert first == second


def test_etag_changes_with_everything_that_changes_the_image(context, answer, artifact):
    """Text, seed, scale, truncation and the artifact each change the ETag; the spelling of a number does not."""
    requests = [
        _digits("20"),
        _digits("21"),
        _digits("20", "seed=1"),
        _digits("20", "scale=2"),
        _digits("20", "truncation=0.9"),
        _digits("200"),
    ]
    tags = [answer(native.digits, request, context).headers["etag"] for request in requests]
    assert len(set(tags)) == len(tags)
    assert answer(native.digits, _digits("20", "seed=00&scale=1&truncation=1.0"), context).headers["etag"] == tags[0]


@pytest.mark.parametrize("form", ["{}", "W/{}", '"x", {}', '"x" ,W/{} , "y"', "*"])
def test_known_etag_is_304_without_running_the_model(context, form):
    """If-None-Match with the ETag, in any of its forms, is a 304 with the same headers, and no work at all."""
    fresh = native.digits(_digits("20"), context)
    assert isinstance(fresh, Work)
    etag = fresh.finish(None, np.zeros((2, 28, 28, 1), np.uint8)).headers["etag"]
    response = native.digits(_digits("20", if_none_match=form.format(etag)), context)
    assert not isinstance(response, Work)
    assert (response.status, response.body, response.content_type) == (304, b"", None)
    assert response.headers == {"etag": etag, "cache-control": "public, no-cache"}


@pytest.mark.parametrize("header", ['"other"', "", "w/x", '"x", "y"'])
def test_other_etags_get_the_image(context, header):
    """An ETag of something else does not match."""
    assert isinstance(native.digits(_digits("20", if_none_match=header), context), Work)


@pytest.mark.parametrize(
    ("text", "query", "message"),
    [
        ("2a", "", "'a' is not one of the characters that this model writes: 0123456789"),
        ("-1", "", "'-' is not one"),
        ("٣", "", "'٣' is not one"),
        ("²", "", "'²' is not one"),
        ("1\n", "", r"'\\n' is not one"),
        ("..", "", r"'\.' is not one"),
        ("\0", "", "is not one"),
        ("{text}", "", "'{' is not one"),
        ("1" * 65, "", "at most 64 digits an image, got 65"),
        ("1", "seed=-1", "seed must be 0 to"),
        ("1", "seed=1.0", "seed must be an integer"),
        ("1", "seed=٣", "seed must be an integer"),
        ("1", "seed=18446744073709551616", "seed must be 0 to"),
        ("1", "scale=0", "scale must be 1 to 16, got 0"),
        ("1", "scale=17", "scale must be 1 to 16, got 17"),
        ("1", "truncation=nan", "truncation must be a number"),
        ("1", "truncation=3", "truncation must be 0 to 2"),
        ("1", "size=3", "unknown query parameter 'size'; this route knows seed, scale, truncation"),
        ("1", "seed=1&seed=1", "query parameter 'seed' is given twice"),
    ],
)
def test_bad_digits_are_400(context, text, query, message):
    """What the model cannot write, and parameters out of their range, are refused."""
    with pytest.raises(InvalidRequestError, match=message):
        native.digits(_digits(text, query), context)


def test_digits_keep_the_row_limit(context):
    """Where a request may have fewer rows than a text digits, the row limit counts: it could never be queued."""
    tight = dataclasses.replace(context, settings=Settings(max_request_rows=3, max_queue_rows=3))
    assert isinstance(native.digits(_digits("123"), tight), Work)
    with pytest.raises(InvalidRequestError, match="at most 3 digits an image, got 4"):
        native.digits(_digits("1234"), tight)


# GET /v1/model and /


def test_model_says_what_is_served(context, answer, artifact):
    """`/v1/model` is the manifest's summary."""
    response = answer(native.model, Request(method="GET", path="/v1/model"), context)
    assert json.loads(response.body) == {
        "name": "mnist",
        "version": "1",
        "digest": artifact.digest,
        "latent_dim": 16,
        "num_classes": 10,
        "image": {"height": 28, "width": 28, "channels": 1},
        "provider": "CPUExecutionProvider",
        "quality": None,
        "artifact": str(artifact.path),
    }


def test_model_takes_no_query(context):
    """A query that does nothing is refused."""
    with pytest.raises(InvalidRequestError, match="this route knows none"):
        native.model(Request(method="GET", path="/v1/model", query="x=1"), context)


def test_page_names_the_routes_and_loads_nothing_from_elsewhere(context, answer):
    """`/` shows a sheet of digits and names the routes; its policy lets it load nothing from anywhere else."""
    response = answer(native.page, Request(method="GET", path="/"), context)
    assert response.content_type == "text/html; charset=utf-8"
    page = response.body.decode()
    for route in ("/v1/generate", "/v1/digits/{text}.png", "/v1/interpolate", "/v1/images/generations", "/v2"):
        assert route in page
    loaded = [
        html.unescape(source) for source in re.findall(r'(?:src|href|action|data|url)\s*[=(]\s*"?([^" )>]*)', page)
    ]
    assert loaded
    for source in loaded:  # each is a route of this server, and answers
        path, _, query = source.partition("?")
        match = resolve("GET", path)
        asked = Request(method="GET", path=path, query=query, path_parameters=match.parameters)
        assert answer(match.handler, asked, context).status == 200
    assert any(source.startswith("/v1/digits/") for source in loaded)
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "http://" not in page.replace("http://127.0.0.1", "").replace("http://localhost", "")
    assert "https://" not in page
    assert response.headers["content-security-policy"].startswith("default-src 'none'")


def test_npy_bytes_round_trip(context):
    """The largest answer, 1,024 images, is one npy array."""
    pixels = _drawn(context, 1, 1024)
    assert (np.load(io.BytesIO(npy_bytes(pixels))) == pixels).all()
