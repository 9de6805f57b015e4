"""What somebody who wants to do harm sends, on the wire and over both transports.

Each is refused with its status, in the words of the route's protocol, and a good request on the same connection
follows. What a route does with its own fields is tested beside it; here is what every route has to withstand.
"""

import dataclasses
import gzip
import http.client
import io
import json
import os
import socket
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ganserve import latents
from ganserve.settings import Settings
from tests.connection import Connection
from tests.served import Gate, Served

_INFER = "/v2/models/mnist/infer"
# A good body of each route that takes JSON.
_GOOD: dict[str, dict[str, Any]] = {
    "/v1/generate": {"seed": 1},
    "/generate": {"seed": 1},
    "/v1/images/generations": {"prompt": "7"},
    "/v1/interpolate": {"seeds": [1, 2], "label": 3, "steps": 2},
    _INFER: {
        "inputs": [
            {"name": "latents", "shape": [1, 16], "datatype": "FP32", "data": [0.0] * 16},
            {"name": "labels", "shape": [1], "datatype": "INT64", "data": [3]},
        ]
    },
    "/v2/repository/index": {"ready": True},
}
_JSON = {"content_type": "application/json"}


def _refused(
    connection: Connection, engine: Any, status: int, method: str, path: str, body: Any, **headers: str
) -> str:
    """Sends a bad request and then a good one; what the first was told."""
    found, told, content = connection.ask(method, path, body, **headers)
    assert found == status, content
    assert len(content) < 600  # whatever was sent
    assert "set-cookie" not in told
    document = json.loads(content)
    if path.startswith("/v2"):
        assert list(document) == ["error"]
        reason: str = document["error"]
    elif path.startswith(("/v1/images", "/v1/models")):
        assert set(document["error"]) == {"message", "type", "param", "code"}
        reason = document["error"]["message"]
    else:
        assert told["content-type"] == "application/problem+json"
        assert document["status"] == status
        reason = document["detail"]
    rows, labels = latents.draw(7, 2, 16, 10)
    assert (connection.pixels({"seed": 7, "n": 2}) == engine.run(rows, labels)).all()
    return reason


# What is no JSON object.

_TEXTS = {
    "cut short": (b'{"a": ', "not JSON"),
    "no JSON": (b"<xml/>", "not JSON"),
    "no object": (b"[]", "must be a JSON object, got an array"),
    "BOM": (b"\xef\xbb\xbf{}", "BOM"),
    "UTF-16": ("{}".encode("utf-16"), "not UTF-8"),
    "UTF-16 without BOM": ("{}".encode("utf-16-le"), "not JSON"),
    "UTF-32": ("{}".encode("utf-32"), "not UTF-8"),
    "broken UTF-8": (b'{"a": "\xff"}', "not UTF-8"),
    "overlong UTF-8": (b'{"a": "\xc0\xaf"}', "not UTF-8"),
    "trailing data": (b"{} {}", "Extra data"),
    "trailing NUL": (b"{}\0", "Extra data"),
    "duplicate key": (b'{"a": 1, "a": 1}', "'a' is given twice"),
    "duplicate key, escaped": (b'{"a": 1, "\\u0061": 1}', "'a' is given twice"),
    "duplicate key within": (b'{"a": [{"b": 1, "b": 2}]}', "'b' is given twice"),
    "unknown key": (b'{"__proto__": {}}', ""),
    "NaN": (b'{"a": NaN}', "NaN is not JSON"),
    "Infinity": (b'{"a": -Infinity}', "-Infinity is not JSON"),
    "10**5000": (b'{"a": 1' + b"0" * 5000 + b"}", "not JSON"),
    "140,000 values": (b'{"a": [' + b"0," * 140_000 + b"0]}", "values that a request here can need"),
    "28,000 keys": (b"{" + b",".join(b'"%d":0' % key for key in range(28_000)) + b"}", "values that a request here"),
    "arrays 150,000 deep": (b"[" * 150_000, "nested too deep"),
    "arrays 149,000 deep, and closed": (b'{"a": ' + b"[" * 149_000 + b"]" * 149_000 + b"}", "nested too deep"),
    "objects 50,000 deep": (b'{"a":' * 50_000, "nested too deep"),
}


@pytest.mark.parametrize("path", _GOOD)
def test_what_is_no_json_object(connection, engine, path):
    """Whatever is not one strict JSON object with known keys is a 400 on every route that takes one."""
    assert connection.ask("POST", path, _GOOD[path])[0] == 200
    for name, (text, reason) in _TEXTS.items():
        assert reason in _refused(connection, engine, 400, "POST", path, text, **_JSON), name


# What is of another type, or packed.

_BOMBS = {"gzip": gzip.compress(bytes(50_000_000)), "deflate": zlib.compress(bytes(50_000_000))}


@pytest.mark.parametrize("path", _GOOD)
@pytest.mark.parametrize(
    "kind",
    [
        "application/vnd.bentoml+pickle",
        "application/python-pickle",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain",
        "application/json+x",
    ],
)
def test_what_is_of_another_type_is_415(connection, engine, path, kind):
    """Pickles, forms and text are refused by their type, on every route and whatever is in them."""
    for body in (b"\x80\x04.", json.dumps(_GOOD[path]).encode()):
        _refused(connection, engine, 415, "POST", path, body, content_type=kind)


@pytest.mark.parametrize("path", _GOOD)
def test_what_is_packed_is_unpacked_with_care(connection, engine, path):
    """A bomb, a body that ends early or goes on, a damaged one, and encodings that nobody here knows."""
    good = json.dumps(_GOOD[path]).encode()
    packed = {"gzip": gzip.compress(good), "deflate": zlib.compress(good)}
    for coding, body in packed.items():
        assert connection.ask("POST", path, body, content_encoding=coding, **_JSON)[0] == 200
        for content, status, reason in (
            (_BOMBS[coding], 413, "inflates to more"),
            (body[:-1], 400, "ends early"),
            (body[: len(body) // 2], 400, "ends early"),
            (body + b"x", 400, "goes on after its end"),
            (body + body, 400, "goes on after its end"),
            (b"\xff" + body[1:], 400, coding),
            (good, 400, coding),
            (b"", 400, "ends early"),
        ):
            given = {"content_encoding": coding, **_JSON}
            assert reason in _refused(connection, engine, status, "POST", path, content, **given)
    for coding in ("br", "zstd", "compress", "x-gzip", "gzip, gzip", "gzip, br", "identity, gzip"):
        _refused(connection, engine, 415, "POST", path, packed["gzip"], content_encoding=coding, **_JSON)


# Latents, in each way to bring them.

_VALUES = {
    "1e400": "finite in float32",
    "-1e400": "finite in float32",
    "1e39": "finite in float32",
    "3.4028236e38": "finite in float32",
    "1" + "0" * 400: "finite in float32",
    "NaN": "not JSON",
    "Infinity": "not JSON",
    "true": "must be numbers",
    '"3"': "must be numbers",
    "null": "must be numbers",
    "[0]": "must be numbers",
    "{}": "must be numbers",
}
_ROWS = {
    "wrong width": "[[0,0,0]]",
    "one too many": f"[[{','.join('0' * 17)}]]",
    "wrong rank": f"[{','.join('0' * 16)}]",
    "rank 3": f"[[[{','.join('0' * 16)}]]]",
    "ragged": f"[[{','.join('0' * 16)}],[{','.join('0' * 15)}]]",
    "empty": "[]",
    "an empty row": "[[]]",
    "a string": '"AAAA"',
    "a number": "5",
    "an object": '{"0": 0}',
}


def _with_latents(path: str, text: str) -> bytes:
    """A body in which `text` stands for the latents."""
    fields: dict[str, Any] = {"latents": "@", "labels": [3]}
    if path == "/v1/interpolate":
        fields = {"latents": "@", "label": 3}
    elif path == _INFER:
        fields = {"inputs": [{**_GOOD[_INFER]["inputs"][0], "data": "@"}, _GOOD[_INFER]["inputs"][1]]}
    return json.dumps(fields).replace('"@"', text).encode()


@pytest.mark.parametrize("path", ["/v1/generate", "/generate", "/v1/interpolate", _INFER])
def test_latents_that_are_none(connection, engine, path):
    """Of the wrong width, rank or type, ragged, empty or not finite in float32: 400 on every route that takes them."""
    good = f"[{','.join('0' * 16)}]"
    pair = f"[{good},{good}]" if path == "/v1/interpolate" else f"[{good}]"
    assert connection.ask("POST", path, _with_latents(path, pair), **_JSON)[0] == 200
    for value, reason in _VALUES.items():
        text = pair.removesuffix("0]]") + value + "]]"
        assert reason in _refused(connection, engine, 400, "POST", path, _with_latents(path, text), **_JSON), value
    for name, text in _ROWS.items():
        if path == _INFER and name == "wrong rank":
            continue  # flat data is what the protocol has
        _refused(connection, engine, 400, "POST", path, _with_latents(path, text), **_JSON)


class _Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def _npy_of(shape: str, descr: str = "'<f4'", *, fortran: str = "False", size: int = 64) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(size)


@pytest.mark.parametrize("path", ["/v1/generate", "/generate"])
def test_npy_that_is_none(connection, engine, tmp_path, path):
    """Objects, other magic, shapes that no memory holds, cut short in either order: 400, and nothing is unpickled."""
    trap = np.array([[_Trap(str(tmp_path / "sprung"))]], dtype=object)
    good = _npy(np.zeros((1, 16), np.float32))
    for fortran in (np.zeros((3, 16), np.float32, order="F"), np.zeros((3, 16), np.float32)):
        asked = {"content_type": "application/x-npy", "accept": "application/x-npy"}
        assert connection.ask("POST", f"{path}?labels=3", _npy(fortran), **asked)[0] == 200
    for body, reason in (
        (_npy(trap), "must be float32, got object"),
        (b"\x80\x04.", "not an npy array"),
        (b"", "not an npy array"),
        (good.replace(b"\x93NUMPY", b"\x93NUMPX"), "not an npy array"),
        (b"PK\x03\x04" + good, "not an npy array"),
        (good[:-1], "needs 64 bytes after its header, got 63"),
        (good[:100], "not an npy array"),
        (good[:6], "not an npy array"),
        (good + b"\0", "needs 64 bytes after its header, got 65"),
        (_npy(np.zeros((3, 16), np.float32, order="F"))[:-4], "needs 192 bytes"),
        (_npy(np.zeros((16, 3), np.float32, order="F")), "must have shape [N, 16], got [16, 3]"),
        (_npy_of("(9223372036854775807, 16)"), "1 to 1024 latents a request, got 9223372036854775807"),
        (_npy_of("(9223372036854775807, 100)"), "must have shape [N, 16]"),
        (_npy_of("(1152921504606846977, 16)"), "1 to 1024 latents"),  # 64 bytes, modulo 2**64
        (_npy_of(f"({10**400}, 16)"), "an integer of 1329 bits"),
        (_npy_of("(-1, 16)"), "1 to 1024 latents a request, got -1"),
        (_npy_of("(0, 16)", size=0), "1 to 1024 latents a request, got 0"),
        (_npy_of("(True, 16)"), "must have shape [N, 16], got [True, 16]"),
        (_npy_of("(1.0, 16)"), "not an npy array"),
        (_npy_of("('1', 16)"), "not an npy array"),
        (_npy_of("(16,)"), "must have shape [N, 16], got [16]"),
        (_npy_of("(1, 16)", "'<f8'", size=128), "must be float32, got float64"),
        (_npy_of("(1, 16)", "'>f4'"), "must be float32, got >f4"),
        (_npy_of("(1, 16)", "'<i4'"), "must be float32, got int32"),
        (_npy_of("(1, 16)", fortran="1"), "not an npy array"),
        (_npy_of("__import__('os').abort()"), "not an npy array"),
        (_npy_of("(" * 9000), "not an npy array"),
        (b"\x93NUMPY\x01\x00\xff\xff" + good[10:], "not an npy array"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + good[10:], "not an npy array"),
        (b"\x93NUMPY\x03\x00" + good[8:], ""),
        (_npy(np.full((1, 16), np.nan, np.float32)), "finite in float32; row 0 is not"),
        (_npy(np.full((1, 16), np.inf, np.float32)), "finite in float32; row 0 is not"),
    ):
        asked = {"content_type": "application/x-npy"}
        assert reason in _refused(connection, engine, 400, "POST", f"{path}?labels=3", body, **asked)
    assert not list(tmp_path.iterdir())


# Names, and what might become a header.


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("/v1/models/%2e%2e", 404),
        ("/v1/models/mnist%0d%0aset-cookie:%20x=1", 404),
        ("/v1/models/mnist%00", 404),
        ("/v1/models/" + "m" * 5000, 404),
        ("/v1/digits/1%0d%0aset-cookie:%20x=1.png", 400),
        ("/v1/digits/..%2f..%2fetc%2fpasswd", 404),
        ("/v1/digits/1.png?seed=1%0d%0aset-cookie:%20x=1", 400),
        ("/v1/digits/1.png?seed=1.0", 400),
        ("/v1/digits/1.png?seed=true", 400),
        ("/v1/digits/1.png?seed=-1", 400),
        ("/v1/digits/1.png?seed=1" + "0" * 400, 400),
        ("/v1/digits/1.png?scale=0", 400),
        ("/v1/digits/1.png?scale=1e3", 400),
        ("/v1/digits/1.png?truncation=1e400", 400),
        ("/v1/digits/1.png?truncation=nan", 400),
        ("/v1/digits/" + "1" * 65 + ".png", 400),
        ("/v1/digits/" + "1" * 30_000 + ".png", 400),
        ("/../../etc/passwd", 404),
        ("/%2e%2e/%2e%2e/etc/passwd", 404),
        ("/static_content/../../etc/passwd", 404),
        ("/v1/model;x=1", 404),
    ],
)
def test_paths_lead_nowhere(connection, engine, path, status):
    """Traversal, control characters, long names and numbers that are none: an error that repeats little of them."""
    _refused(connection, engine, status, "GET", path, None)


def test_headers_are_not_handed_on(connection, engine):
    """No header of a request becomes one of its answer, but for an id of plain characters."""
    for name in ("x_request_id", "accept", "accept_encoding", "content_type", "if_none_match", "origin"):
        for value in ("\xff\xfe", "a\tb", "a" * 2000, "<script>", "a, b;c=d"):
            _, told, _ = connection.ask("GET", "/v1/digits/1.png", **{name: value})
            plain_id = (name, value) == ("x_request_id", "<script>")
            assert any(value in text for text in told.values()) is plain_id
    assert connection.ask("GET", "/v1/model", x_request_id="a" * 128)[1]["x-request-id"] == "a" * 128
    _refused(connection, engine, 406, "POST", "/v1/generate", {}, accept="text/" + "x" * 3000)


@pytest.mark.parametrize("header", [b"x-request-id: a\rset-cookie: x=1", b"x-request-id: a\0b", b"a b: c", b": x"])
def test_headers_that_are_none(served, header):
    """What could be read as another header is a 400 or is not repeated; the next client is served."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
        raw.sendall(b"GET /v1/model HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + header + b"\r\n\r\n")
        received = b""
        while piece := raw.recv(1 << 16):
            received += piece
    assert received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 200"))
    assert b"set-cookie" not in received
    with served.connect() as connection:
        assert connection.ask("GET", "/v1/model")[0] == 200


# Bodies at the limit.

_LIMIT = 3000


@pytest.fixture(scope="module")
def small(context, engine, transport) -> Iterator[Any]:
    """A server whose bodies may have 3,000 bytes."""
    settings = Settings(max_body_bytes=_LIMIT)
    with Served(dataclasses.replace(context, settings=settings), Gate(engine), transport) as server:
        yield server


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/images/generations", _INFER, "/livez"])
@pytest.mark.parametrize("size", [_LIMIT - 1, _LIMIT, _LIMIT + 1])
def test_bodies_at_the_limit(small, engine, path, size):
    """Up to the limit a body is read, one byte above it is 413: announced, in chunks, byte by byte, inflated."""
    body = json.dumps(_GOOD.get(path, {})).encode().ljust(size)
    packed = gzip.compress(body)
    status = 200 if size <= _LIMIT else 413
    forms: list[tuple[Any, dict[str, str]]] = [
        (body, {}),
        (iter([body]), {}),
        (iter([body[:1000], body[1000:]]), {}),
        ((body[index : index + 1] for index in range(size)), {}),
    ]
    if path != "/livez":  # BentoML's own, which does not look at its body
        forms += [(packed, {"content_encoding": "gzip"}), (iter([packed]), {"content_encoding": "gzip"})]
    with small.connect() as connection:
        for content, headers in forms:
            assert connection.ask("POST", path, content, **_JSON, **headers)[0] == status
            rows, labels = latents.draw(7, 2, 16, 10)
            assert (connection.pixels({"seed": 7, "n": 2}) == engine.run(rows, labels)).all()


def test_bodies_of_all_clients_are_bounded(serve, engine):
    """Large bodies that do not end fill a room; the next is 503 at once, and small ones are served all the while."""
    server = serve(max_body_bytes=300_000, max_bodies_bytes=700_000)
    head = b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 290000\r\n\r\n"
    body = json.dumps({"seed": 7, "n": 2}).encode().ljust(290_000)
    rows, labels = latents.draw(7, 2, 16, 10)
    expected = engine.run(rows, labels)

    def held_is(size: int) -> None:
        give_up_at = time.monotonic() + 10
        while server.door.bodies.held_bytes != size:
            assert time.monotonic() < give_up_at, server.door.bodies.held_bytes
            time.sleep(0.005)

    with server.connect() as first, server.connect() as second, server.connect() as third, server.connect() as other:
        for client in (first, second):
            client.sock.sendall(head + body[:-1])
        held_is(2 * 289_999)
        third.sock.sendall(head + body[:200_000])
        response = http.client.HTTPResponse(third.sock, method="POST")
        response.begin()
        assert (response.status, response.getheader("retry-after")) == (503, "1")
        assert "too many large bodies" in json.loads(response.read())["detail"]
        held_is(2 * 289_999)
        assert (other.pixels({"seed": 7, "n": 2}) == expected).all()
        third.sock.sendall(body[200_000:])  # the rest is read and forgotten: the connection lives
        assert (third.pixels({"seed": 7, "n": 2}) == expected).all()
        first.close()
        held_is(289_999)
        status, _, content = third.ask("POST", "/v1/generate", body, accept="application/x-npy", **_JSON)
        assert status == 200
        assert (np.load(io.BytesIO(content)) == expected).all()
        second.sock.sendall(body[-1:])
        response = http.client.HTTPResponse(second.sock, method="POST")
        response.begin()
        assert response.status == 200
        held_is(0)


def test_a_body_that_is_announced_too_large_is_not_waited_for(small):
    """413 comes when the head is there: nobody has to send 9 GB to be told."""
    with socket.create_connection(("127.0.0.1", small.port), timeout=10) as raw:
        raw.sendall(b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000000\r\n\r\n")
        assert raw.recv(12) == b"HTTP/1.1 413"
