"""What no list of bad requests has thought of: the parsers of binary bodies against bytes of all kinds.

Property: any bytes give work whose rows are what they should be, or a `RequestError` that is the client's fault.
Anything else would be a 500, or pixels of something that nobody sent.
"""

import copy
import dataclasses
import io
import json
from typing import Any

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ganserve import latents
from ganserve.api import native, openinference
from ganserve.api.http import Request, Response, Work
from ganserve.errors import RequestError
from tests.ganserve.api.inference import PATH, document, request

ROWS, LABELS = latents.draw(5, 2, 16, 10)
# Seconds, not minutes: 500 examples of each test. No deadline: the machine may be busy.
_BOUNDED = settings(
    max_examples=500, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _holds(handler: Any, asked: Request, context: Any) -> None:
    """The property; work is taken to the end of what precedes inference, and its rows are what they should be."""
    try:
        outcome = handler(asked, context)
    except RequestError as err:
        outcome = openinference.error(err)
    if isinstance(outcome, Response):
        assert 400 <= outcome.status < 500
        assert len(outcome.body) < 2000
        assert list(json.loads(outcome.body)) == ["error"]
        return
    assert isinstance(outcome, Work)
    rows, labels = outcome.inputs()
    assert rows.dtype == np.float32
    assert rows.shape == (outcome.rows, 16)
    assert 1 <= outcome.rows <= 1024
    assert np.isfinite(rows).all()
    assert labels.dtype == np.int64
    assert labels.shape == (outcome.rows,)
    assert ((labels >= 0) & (labels < 10)).all()
    assert outcome.finish(labels, np.zeros((outcome.rows, 28, 28, 1), dtype=np.uint8)).status == 200


def _mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """`content` with some bytes replaced, a piece cut out, doubled, or something put in."""

    @st.composite
    def mutate(draw: Any) -> bytes:
        found = bytearray(content)
        for _ in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, len(found)))
            stop = min(start + draw(st.sampled_from([0, 1, 2, 4, 8, 64])), len(found))
            new = draw(st.one_of(st.binary(max_size=8), st.just(bytes(found[start:stop]) * 2)))
            found[start:stop] = new
        return bytes(found)

    return mutate()


_JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 16, 128, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400)]),
    st.floats(allow_nan=False),
    st.sampled_from(["", "latents", "labels", "pixels", "FP16", "FP32", "FP64", "INT8", "UINT64", "BYTES", "\ud800"]),
    st.sampled_from([[], {}, [[]], [{}], [1, 16], [2, 16], [2, 1], [2], ["2", 16], [[2, 16]], [2**63 - 1, 100]]),
    st.recursive(st.just(0.5), lambda inner: st.lists(inner, max_size=3), max_leaves=20),
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in items for found in _paths(item, (*path, key)))]


@st.composite
def _documents(draw: Any) -> tuple[dict[str, Any], bool]:
    """An inference in which a few places hold something else, and whether its tensors are binary."""
    binary = draw(st.booleans())
    asked = document(
        ROWS,
        LABELS,
        binary=binary,
        id="x",
        parameters={"binary_data_output": True},
        outputs=[{"name": "pixels", "parameters": {"binary_data": False}}],
    )
    asked = json.loads(json.dumps(asked))
    for _ in range(draw(st.integers(1, 3))):
        places = [path for path in _paths(asked) if path and path[-1] not in range(2, 30)]
        path = draw(st.sampled_from(places))
        parent = asked
        for key in path[:-1]:
            parent = parent[key]
        if draw(st.booleans()):
            parent[path[-1]] = copy.deepcopy(draw(_JUNK))  # the next change may be inside it
        elif isinstance(parent, dict):
            del parent[path[-1]]
        else:
            parent.append(parent[path[-1]])
    return asked, binary


_VALID = request(document(ROWS, LABELS, binary=True), ROWS, LABELS)
_NPY = io.BytesIO()
np.save(_NPY, ROWS)


@_BOUNDED
@given(_documents())
def test_any_document_is_work_or_the_clients_fault(context, found):
    """A V2 request in which some values are junk."""
    asked, binary = found
    _holds(openinference.infer, request(asked, *((ROWS, LABELS) if binary else ())), context)


@_BOUNDED
@given(_mutated(_VALID.body), st.one_of(st.none(), st.integers(-1, 600).map(str), st.text(max_size=5)))
@example(_VALID.body, "0")
def test_any_bytes_are_work_or_the_clients_fault(context, body, length):
    """A V2 body whose bytes are damaged, under a header length that may be, too."""
    length = _VALID.headers["inference-header-content-length"] if length is None else length
    headers = {"inference-header-content-length": length}
    _holds(openinference.infer, dataclasses.replace(_VALID, body=body, headers=headers), context)


@_BOUNDED
@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(0, 300).map(str)))
def test_any_noise_is_the_clients_fault(context, body, length):
    """Bytes that never were a V2 body."""
    headers = {} if length is None else {"inference-header-content-length": length}
    asked = Request(method="POST", path=PATH, headers=headers, body=body, path_parameters={"model": "mnist"})
    _holds(openinference.infer, asked, context)


@_BOUNDED
@given(st.one_of(_mutated(_NPY.getvalue()), st.binary(max_size=200)))
def test_any_npy_is_work_or_the_clients_fault(context, body):
    """An npy body that is damaged, or never was one."""
    headers = {"content-type": "application/x-npy", "accept": "application/x-npy"}
    asked = Request(method="POST", path="/v1/generate", query="labels=1", headers=headers, body=body)
    _holds(native.generate, asked, context)
