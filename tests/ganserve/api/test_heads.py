"""Heads of requests that RFC 9112 does not let pass, over both transports: status, and what becomes of the connection.

Some never reach us: the parser refuses them with a 400 of its own and closes. Where the transports differ, it says so.
"""

import socket

import pytest

_BODY = b'{"seed":1}'
_CHUNKS = b"a\r\n" + _BODY + b"\r\n0\r\n\r\n"
_POST = b" HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
_GET = b" HTTP/1.1\r\n"
_NEXT = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"


def _first_answer(port: int, data: bytes) -> tuple[int, bytes, bool]:
    """Status and body of the first answer to `data`, and whether a good request behind it is answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw, raw.makefile("rb") as file:
        raw.sendall(data)
        status = int(file.readline().split()[1])
        length = 0
        while (line := file.readline()) != b"\r\n":
            name, _, value = line.lower().partition(b": ")
            if name == b"content-length":
                length = int(value)
        body = file.read(length)
        try:
            raw.sendall(_NEXT)
            return status, body, file.readline().startswith(b"HTTP/1.1 200")
        except OSError:  # reset, as it had not been read
            return status, body, False


@pytest.mark.parametrize("path", [b"/v1/generate", b"/livez", b"/nope"])
@pytest.mark.parametrize(
    ("head", "status", "told"),
    [
        (b" HTTP/2.0\r\nhost: x\r\n\r\n", 505, b"HTTP/2.0"),
        (b" HTTP/0.9\r\nhost: x\r\n\r\n", 505, b"HTTP/0.9"),
        (b"\r\n\r\n", 505, b"HTTP/0.9"),
        (b" HTTP/1.2\r\nhost: x\r\n\r\n", 400, b""),
        (b" HTTP/3.0\r\nhost: x\r\n\r\n", 400, b""),
        (_POST + b"transfer-encoding: gzip, chunked\r\n\r\n" + _CHUNKS, 501, b"chunked, once"),
        (_POST + b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n" + _CHUNKS, 501, b"chunked, once"),
        (_POST + b"transfer-encoding: chunked, gzip\r\n\r\n" + _CHUNKS, 400, b""),
        (_POST + b"transfer-encoding: chunked\r\ncontent-length: 10\r\n\r\n" + _CHUNKS, 400, b""),
        (_POST + b"content-length: 10\r\ntransfer-encoding: chunked\r\n\r\n" + _CHUNKS, 400, b""),
        (_POST + b"content-length: 10\r\ncontent-length: 11\r\n\r\n" + _BODY, 400, b""),
        (b" HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + _CHUNKS, 400, b"no Transfer-Encoding"),
        (_POST + b"x-folded: a\r\n b\r\n\r\n", 400, b""),
        (b" HTTP/1.1\r\nhost : x\r\n\r\n", 400, b""),
        (b" HTTP/1.1\nhost: x\n\n", 400, b""),
    ],
)
def test_what_cannot_be_understood_is_refused_and_closed(served, path, head, status, told):
    """Another version, another framing, a folded header: refused, and nothing that follows is taken for a request."""
    method = b"GET " if head == b"\r\n\r\n" else b"POST "  # HTTP/0.9 has no other
    found, body, lives = _first_answer(served.port, method + path + head)
    assert (found, lives) == (status, False)
    assert told in body


@pytest.mark.parametrize("path", [b"/v1/model", b"/livez", b"/nope"])
@pytest.mark.parametrize(
    "head",
    [
        _GET + b"\r\n",
        _GET + b"host: a\r\nhost: b\r\n\r\n",
        _GET + b"host: a\r\nhost: a\r\n\r\n",
        _GET + b"host: a b\r\n\r\n",
        _GET + b"host: a/b\r\n\r\n",
        _GET + b"host: user@a\r\n\r\n",
        _GET + b"host: a:port\r\n\r\n",
    ],
)
def test_one_host_is_needed(served, path, head):
    """No `Host`, two, or one that is none: 400 on every path (RFC 9112, section 3.2); the connection lives."""
    assert _first_answer(served.port, b"GET " + path + head)[::2] == (400, True)


@pytest.mark.parametrize("host", [b"", b"localhost", b"a.example:3000", b"127.0.0.1:80", b"[::1]:3000", b"x_y-z"])
def test_hosts_are_hosts(served, host):
    """Names, addresses, ports and the empty host are good ones."""
    assert _first_answer(served.port, b"GET /v1/model HTTP/1.1\r\nhost: " + host + b"\r\n\r\n")[::2] == (200, True)


def test_http_1_0_needs_no_host(served):
    """The old protocol has no `Host`; its connection ends as ever."""
    assert _first_answer(served.port, b"GET /v1/model HTTP/1.0\r\n\r\n")[::2] == (200, False)


def test_the_preface_of_http_2_is_refused(served):
    """A client that speaks HTTP/2 without asking gets the parser's 400, in HTTP/1.1, and the end."""
    assert _first_answer(served.port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[::2] == (400, False)


def test_a_body_that_ends_with_the_connection_is_no_request(served, transport):
    """`Transfer-Encoding` without chunked at its end: 501 by the protocol class, whose parser stops uvicorn at 400."""
    head = b"POST /v1/generate" + _POST + b"transfer-encoding: gzip\r\n\r\n"
    assert _first_answer(served.port, head)[::2] == (501 if transport == "protocol" else 400, False)


@pytest.mark.parametrize("path", [b"/v1/model", b"/v2", b"/livez"])
@pytest.mark.parametrize(
    "headers",
    [
        b"".join(b"h%d: v\r\n" % index for index in range(101)),
        b"h: " + b"v" * 70_000 + b"\r\n",
        b"".join(b"h%d: %s\r\n" % (index, b"v" * 1000) for index in range(70)),
    ],
    ids=["many", "a long one", "many long ones"],
)
def test_large_heads_are_refused_and_closed(served, path, headers):
    """More than 100 headers or 64 KiB: 431 by either transport, and nothing that follows is read."""
    found, body, lives = _first_answer(served.port, b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n")
    assert (found, lives) == (431, False)
    assert body.startswith(b'{"error":' if path == b"/v2" else b'{"type": "about:blank"')


def test_a_long_target_is_refused_and_closed(served, transport):
    """A path or query of 70,000 bytes is 431 as well; uvicorn's own parser of URLs stops it with a 400."""
    status = 431 if transport == "protocol" else 400
    for target in (b"/v1/digits/" + b"1" * 70_000 + b".png", b"/v1/model?x=" + b"1" * 70_000):
        assert _first_answer(served.port, b"GET " + target + b" HTTP/1.1\r\nhost: x\r\n\r\n")[::2] == (status, False)


@pytest.mark.parametrize(("path", "told"), [(b"/v2/models/mnist/infer", b'{"error":'), (b"/v1/generate", b'{"type": ')])
def test_a_last_refusal_is_in_the_words_of_its_protocol(served, transport, path, told):
    """Where the parser gives up, the protocol class tells it as the route would, and uvicorn in plain text."""
    head = b"POST " + path + b" HTTP/1.1\r\nhost: x\r\nbad header: x\r\n\r\n"
    status, body, lives = _first_answer(served.port, head)
    assert (status, lives) == (400, False)
    assert body.startswith(told if transport == "protocol" else b"Invalid HTTP request")
