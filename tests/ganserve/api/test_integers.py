"""What counts as an integer, on every route that asks for one.

To JSON Schema (2020-12, section 4.2.3), the language of `/openapi.json`, 3.0 is the integer 3. The tensors of the Open
Inference Protocol are typed values instead: there an INT64 or a size is written as one.
"""

import copy
import json
from typing import Any

import pytest

_JSON = {"content_type": "application/json"}
_LATENTS: dict[str, Any] = {"name": "latents", "datatype": "FP32", "shape": [1, 16], "data": [0.0] * 16}
_LABELS: dict[str, Any] = {"name": "labels", "datatype": "INT64", "shape": [1], "data": [3]}
_INFER = "/v2/models/mnist/infer"


def _with(place: str, text: str) -> tuple[str, bytes]:
    """A route, and a body for it with the JSON `text` at a place."""
    path, _, name = place.partition(" ")
    fields: dict[str, Any]
    if path == _INFER:
        inputs = copy.deepcopy([_LATENTS, _LABELS])
        if name == "shape":
            inputs[0]["shape"][0] = "@"
        else:
            inputs[1]["data"] = ["@"]
        fields = {"inputs": inputs}
    else:
        others = {"/v1/images/generations": {"prompt": "7"}, "/v1/interpolate": {"seeds": [1, 2], "label": 3}}
        value = ["@"] if name == "labels" else [1, "@"] if name == "seeds" else "@"
        fields = others.get(path, {}) | {name: value}
    return path, json.dumps(fields).replace('"@"', text).encode()


_PLACES = [
    "/v1/generate n",
    "/v1/generate seed",
    "/v1/generate labels",
    "/generate n",
    "/generate seed",
    "/generate labels",
    "/v1/images/generations n",
    "/v1/interpolate steps",
    "/v1/interpolate seeds",
    "/v1/interpolate label",
]
_TENSORS = [f"{_INFER} shape", f"{_INFER} labels"]


_NONE = ["true", "false", '"3"', "1.5", "[1]", "{}", "-1", "-1.0", "1" + "0" * 400, "-1" + "0" * 400, "1e400", "1e39"]


@pytest.mark.parametrize("place", _PLACES + _TENSORS)
def test_what_is_no_integer_is_refused_everywhere(connection, place):
    """Booleans, strings, fractions, containers, -1 to 10**400: 400 on every route, and the connection lives."""
    for text in _NONE:
        path, body = _with(place, text)
        assert connection.ask("POST", path, body, **_JSON)[0] == 400, text
        path, body = _with(place, "1" if "shape" in place else "3")
        assert connection.ask("POST", path, body, **_JSON)[0] == 200


@pytest.mark.parametrize("place", _PLACES)
def test_a_whole_number_is_an_integer(connection, place):
    """3.0 is taken for 3 on every JSON route."""
    path, body = _with(place, "3.0")
    assert connection.ask("POST", path, body, **_JSON)[0] == 200


@pytest.mark.parametrize("place", _TENSORS)
def test_tensors_are_typed(connection, place):
    """In a tensor, 1.0 is a floating-point number, and no INT64 and no size."""
    path, body = _with(place, "1.0")
    assert connection.ask("POST", path, body, **_JSON)[0] == 400
