import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ganserve import imaging, latents
from ganserve.api.http import GIF, JSON, NPY, PNG, Request
from ganserve.api.interpolate import interpolate
from ganserve.errors import InvalidRequestError, NotAcceptableError, UnsupportedMediaTypeError
from ganserve.settings import Settings
from tests.ganserve.test_imaging import frames

_ROW = [0.0] * 16


def _request(fields: Any, *, accept: str | None = None, query: str = "", kind: str = JSON) -> Request:
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    headers = {"content-type": kind} | ({} if accept is None else {"accept": accept})
    return Request(method="POST", path="/v1/interpolate", query=query, headers=headers, body=body)


def _way(context, start: np.ndarray, end: np.ndarray, steps: int, label: int | None) -> np.ndarray:
    """What the engine makes of the way, past all HTTP."""
    return context.engine.run(
        latents.slerp(start, end, steps), None if label is None else np.full(steps, label, dtype=np.int64)
    )


def _seeded(seed: int) -> np.ndarray:
    return latents.draw(seed, 1, 16)[0][0]


def _npy(body: bytes) -> np.ndarray:
    return np.load(io.BytesIO(body), allow_pickle=False)


def test_default_is_an_animation(context, answer):
    """Without wishes it is a GIF of 16 frames, each the engine's pixels, 80 ms long."""
    response = answer(interpolate, _request({"seeds": [1, 2], "label": 3}), context)
    assert response.content_type == GIF
    assert response.headers["vary"] == "accept"
    assert response.headers["ganserve-model"] == f"mnist {context.engine.digest}"
    read, durations = frames(response.body)
    assert (read == _way(context, _seeded(1), _seeded(2), 16, 3)).all()
    assert durations == [80] * 16


def test_npy_strip_and_gif_are_the_same_pixels(context, answer):
    """The three forms show the same images, in the same order."""
    fields = {"seeds": [7, 2**64 - 1], "label": 5, "steps": 6}
    expected = _way(context, _seeded(7), _seeded(2**64 - 1), 6, 5)
    assert (_npy(answer(interpolate, _request(fields, accept=NPY), context).body) == expected).all()
    with Image.open(io.BytesIO(answer(interpolate, _request(fields, accept=PNG), context).body)) as strip:
        assert (np.asarray(strip)[:, :, None] == imaging.strip(expected)).all()
    assert (frames(answer(interpolate, _request(fields, accept=GIF), context).body)[0] == expected).all()


def test_ends_are_the_images_of_generate(context, answer):
    """The first and last image are those that `/v1/generate` gives for the two seeds and the label."""
    pixels = _npy(answer(interpolate, _request({"seeds": [1, 2], "label": 3, "steps": 2}, accept=NPY), context).body)
    assert (pixels[0] == context.engine.run(_seeded(1)[None], np.array([3]))[0]).all()
    assert (pixels[1] == context.engine.run(_seeded(2)[None], np.array([3]))[0]).all()


def test_latents_are_ends_too(context, answer):
    """Two latents that the client brings do as well as two seeds."""
    ends = [_seeded(1).tolist(), _seeded(2).tolist()]
    by_latents = answer(interpolate, _request({"latents": ends, "label": 3}), context)
    assert by_latents.body == answer(interpolate, _request({"seeds": [1, 2], "label": 3}), context).body


def test_truncation_scales_the_ends(context, answer):
    """Truncation is that of the two seeds' latents."""
    fields = {"seeds": [1, 2], "label": 3, "steps": 5, "truncation": 0.5}
    half = np.float32(0.5)
    pixels = _npy(answer(interpolate, _request(fields, accept=NPY), context).body)
    assert (pixels == _way(context, _seeded(1) * half, _seeded(2) * half, 5, 3)).all()


def test_truncation_to_nothing_stands_still(context, answer):
    """With truncation 0 both ends are the mean image, and so is every frame; there are as many as ever."""
    response = answer(interpolate, _request({"seeds": [1, 2], "label": 3, "steps": 5, "truncation": 0}), context)
    read, _ = frames(response.body)
    assert len(read) == 5
    assert (read == read[0]).all()


def test_duration_is_that_of_a_frame(context, answer):
    """Each frame is shown for `duration_ms`."""
    fields = {"seeds": [1, 2], "label": 3, "steps": 3, "duration_ms": 250}
    assert frames(answer(interpolate, _request(fields), context).body)[1] == [250] * 3


def test_null_is_missing(context, answer):
    """Null stands for a field that is not there."""
    nulls = dict.fromkeys(("latents", "steps", "truncation", "duration_ms"))
    fields = {"seeds": [1, 2], "label": 3}
    assert answer(interpolate, _request(fields | nulls), context) == answer(interpolate, _request(fields), context)


def test_unconditional_model_takes_no_label(unconditional, answer):
    """A model without labels is asked without one, and refuses one."""
    response = answer(interpolate, _request({"seeds": [1, 2], "steps": 4}, accept=NPY), unconditional)
    assert (_npy(response.body) == _way(unconditional, _seeded(1), _seeded(2), 4, None)).all()
    with pytest.raises(InvalidRequestError, match="this model takes no label"):
        interpolate(_request({"seeds": [1, 2], "label": 3}), unconditional)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "send seeds, an array of two integers, or latents, an array of two latents"),
        ({"seeds": None}, "send seeds"),
        ({"seeds": 1}, "send seeds"),
        ({"seeds": []}, "send seeds"),
        ({"seeds": [1]}, "send seeds"),
        ({"seeds": [1, 2, 3]}, "send seeds"),
        ({"seeds": [1, -1]}, "seeds must be 0 to 18446744073709551615, got -1"),
        ({"seeds": [2**64, 1]}, "seeds must be 0 to 18446744073709551615"),
        ({"seeds": [1, "2"]}, "seeds must be an integer, got a string"),
        ({"seeds": [1, True]}, "seeds must be an integer, got a boolean"),
        ({"seeds": [1, 2], "label": None}, "label is required: the model is conditional"),
        ({"seeds": [1, 2], "label": 10}, "label must be 0 to 9, got 10"),
        ({"seeds": [1, 2], "label": -1}, "label must be 0 to 9, got -1"),
        ({"seeds": [1, 2], "label": [3, 4]}, "label must be an integer, got an array"),
        ({"seeds": [1, 2], "labels": 3}, "unknown field 'labels'; known are seeds, label, steps"),
        ({"seeds": [1, 2], "steps": 1}, "steps must be 2 to 1024, got 1"),
        ({"seeds": [1, 2], "steps": 1025}, "steps must be 2 to 1024, got 1025"),
        ({"seeds": [1, 2], "steps": 10**400}, "steps must be 2 to 1024, got an integer of 1329 bits"),
        ({"seeds": [1, 2], "truncation": 2.1}, "truncation must be 0 to 2"),
        ({"seeds": [1, 2], "duration_ms": 19}, "duration_ms must be 20 to 10000, got 19"),
        ({"seeds": [1, 2], "duration_ms": 25}, "duration_ms must be a multiple of 10, got 25"),
        ({"latents": [_ROW]}, "an array of two latents"),
        ({"latents": [_ROW] * 3}, "an array of two latents"),
        ({"latents": [_ROW, _ROW[1:]]}, r"latents must have shape \[N, 16\]; row 1 has 15 values"),
        ({"latents": [_ROW, [*_ROW[1:], "0"]]}, "latents must be numbers; row 1"),
        ({"latents": [_ROW, [*_ROW[1:], 1e39]]}, "latents must be finite in float32; row 1 is not"),
        ({"latents": [_ROW, _ROW], "truncation": 1}, "unknown field 'truncation' together with latents"),
        ({"latents": [_ROW, _ROW], "seeds": [1, 2]}, "unknown field 'seeds' together with latents"),
    ],
)
def test_bad_request_is_400(context, fields, message):
    """What is malformed, missing, unknown or out of its range is refused with its name and range."""
    with pytest.raises(InvalidRequestError, match=message):
        interpolate(_request({"label": 3} | fields), context)


def test_steps_are_rows(context, answer):
    """The limit of rows is that of steps, also of those that nobody asked for."""
    small = dataclasses.replace(context, settings=Settings(max_request_rows=4))
    fields = {"seeds": [1, 2], "label": 3}
    assert len(_npy(answer(interpolate, _request(fields, accept=NPY), small).body)) == 4
    with pytest.raises(InvalidRequestError, match="steps must be 2 to 4, got 5"):
        interpolate(_request(fields | {"steps": 5}), small)


def test_duration_is_for_animations(context):
    """A duration with a strip would do nothing, so it is refused."""
    with pytest.raises(InvalidRequestError, match="duration_ms is for image/gif answers; Accept asks for image/png"):
        interpolate(_request({"seeds": [1, 2], "label": 3, "duration_ms": 50}, accept=PNG), context)


def test_unacceptable_is_406(context):
    """A client that wants JSON is told what there is."""
    with pytest.raises(NotAcceptableError, match="image/gif, image/png, application/x-npy"):
        interpolate(_request({"seeds": [1, 2], "label": 3}, accept=JSON), context)


@pytest.mark.parametrize("kind", ["", "text/plain", NPY])
def test_other_bodies_are_415(context, kind):
    """A body that is not JSON is refused unread."""
    with pytest.raises(UnsupportedMediaTypeError, match=f"send {JSON}, got"):
        interpolate(_request(b"x", kind=kind), context)


def test_query_is_refused(context):
    """Fields in the query would be ignored, so they are refused."""
    with pytest.raises(InvalidRequestError, match="unknown query parameter 'steps'"):
        interpolate(_request({"seeds": [1, 2], "label": 3}, query="steps=3"), context)
