"""What counts as an integer, on every route that asks for one.

To JSON Schema (2020-12, section 4.2.3), the language of `/openapi.json`, 3.0 is the integer 3. The tensors of the Open
Inference Protocol are typed values instead: there an INT64 or a size is written as one.
"""

import copy
import json

import pytest

_LATENTS = {"name": "latents", "datatype": "FP32", "shape": [1, 16], "data": [0.0] * 16}
_LABELS = {"name": "labels", "datatype": "INT64", "shape": [1], "data": [3]}
_INFER = "/v2/models/mnist/infer"


def _with(place: str, value) -> tuple[str, dict]:
    """A route, and a body for it with `value` at a place."""
    path, _, name = place.partition(" ")
    if path != _INFER:
        others = {"/v1/images/generations": {"prompt": "7"}, "/v1/interpolate": {"seeds": [1, 2], "label": 3}}
        fields = others.get(path, {})
        return path, fields | {name: [value] if name == "labels" else [1, value] if name == "seeds" else value}
    inputs = copy.deepcopy([_LATENTS, _LABELS])
    if name == "shape":
        inputs[0]["shape"][0] = value
    else:
        inputs[1]["data"] = [value]
    return path, {"inputs": inputs}


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


@pytest.mark.parametrize("place", _PLACES + _TENSORS)
@pytest.mark.parametrize("value", [True, False, "3", 1.5, [1], {}], ids=json.dumps)
def test_what_is_no_integer_is_refused_everywhere(connection, place, value):
    """Booleans, strings, fractions and containers are 400 on every route, and the connection lives."""
    path, body = _with(place, value)
    assert connection.ask("POST", path, body)[0] == 400
    path, body = _with(place, 3 if "shape" not in place else 1)
    assert connection.ask("POST", path, body)[0] == 200


@pytest.mark.parametrize("place", _PLACES)
def test_a_whole_number_is_an_integer(connection, place):
    """3.0 is taken for 3 on every JSON route."""
    path, body = _with(place, 3.0)
    assert connection.ask("POST", path, body)[0] == 200


@pytest.mark.parametrize("place", _TENSORS)
def test_tensors_are_typed(connection, place):
    """In a tensor, 1.0 is a floating-point number, and no INT64 and no size."""
    path, body = _with(place, 1.0)
    assert connection.ask("POST", path, body)[0] == 400
