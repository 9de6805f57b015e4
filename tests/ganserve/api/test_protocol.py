"""What only the protocol class does: order, partial reads, and a connection's life. Each test is over raw sockets."""

import contextlib
import gzip
import http.client
import io
import json
import socket
import sys
import time

import numpy as np
import pytest
import uvicorn
from uvicorn.protocols.http import auto

from ganserve import latents
from ganserve.api import answering, exchange, protocol
from ganserve.api.app import FrontDoor
from ganserve.settings import Settings
from tests.served import Gate, Served


@pytest.fixture(scope="module")
def transport() -> str:
    """The protocol class, but for where a test asks for the other."""
    return "protocol"


class Raw:
    """A socket that reads whole answers."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends these bytes."""
        self.socket.sendall(data)

    def answer(self, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """The next answer."""
        status = self.file.readline()
        assert status, "the connection was closed"
        headers = {}
        while (line := self.file.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        code = int(status.split()[1])
        length = 0 if head or code in (100, 304) else int(headers["content-length"])
        return code, headers, self.file.read(length)

    def closed(self) -> bool:
        """Whether the server closes the connection, with nothing more to read."""
        return self.file.read() == b""


def generate(seed: int, *, headers: str = "") -> bytes:
    """A request for the pixels of one image."""
    body = json.dumps({"seed": seed}).encode()
    head = "POST /v1/generate HTTP/1.1\r\nhost: x\r\naccept: application/x-npy\r\ncontent-type: application/json\r\n"
    return f"{head}{headers}content-length: {len(body)}\r\n\r\n".encode() + body


def is_seed(body: bytes, seed: int, engine) -> bool:
    """Whether an answer has the image of a seed."""
    rows, labels = latents.draw(seed, 1, 16, 10)
    return bool((np.load(io.BytesIO(body)) == engine.run(rows, labels)).all())


def test_it_is_the_protocol_that_answers(served):
    """These tests talk to the protocol class: our routes never reach the ASGI door."""
    with Raw(served.port) as raw:
        door, called = served.door, []
        original = FrontDoor.__call__

        async def noting(self, scope, receive, send):
            called.append(scope["path"])
            await original(self, scope, receive, send)

        FrontDoor.__call__ = noting
        try:
            for path in (b"/v1/model", b"/nope"):
                raw.send(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n")
                raw.answer()
        finally:
            FrontDoor.__call__ = original
    assert called == ["/nope"]
    assert door.context is not None


def test_pipelined_requests_are_answered_in_order(served, engine):
    """Forty requests sent at once, cheap and dear, ours and BentoML's, are answered in the order in which they came."""
    other = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    missing = b"GET /nope HTTP/1.1\r\nhost: x\r\n\r\n"
    many = b'{"n":64,"seed":1}'
    dear = (
        b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\naccept: application/x-npy\r\n"
        b"content-length: %d\r\n\r\n" % len(many) + many
    )
    with Raw(served.port) as raw:
        kinds = ["seed", "other", "seed", "missing", "dear"] * 8
        text = {"other": other, "missing": missing, "dear": dear}
        raw.send(b"".join(text.get(kind) or generate(index) for index, kind in enumerate(kinds)))
        for index, kind in enumerate(kinds):
            status, _, body = raw.answer()
            if kind == "seed":
                assert is_seed(body, index, engine)
            elif kind == "other":
                assert body.startswith(b"bentoml /livez")
            elif kind == "missing":
                assert status == 404
            else:
                assert np.load(io.BytesIO(body)).shape == (64, 28, 28, 1)


def test_more_than_may_be_pipelined_is_answered_all_the_same(served, engine):
    """Three hundred requests in one write are all answered, in order, though reading stops at `MAX_PIPELINED`."""
    with Raw(served.port) as raw:
        raw.send(b"".join(generate(index) for index in range(300)))
        for index in range(300):
            assert is_seed(raw.answer()[2], index, engine)


def test_requests_may_come_byte_by_byte(served, engine):
    """A request that arrives one byte at a time is the request that it is."""
    with Raw(served.port) as raw:
        for byte in generate(5):
            raw.send(bytes([byte]))
        assert is_seed(raw.answer()[2], 5, engine)


def test_chunked_bodies_are_read(served, engine):
    """A body in chunks, each of one byte, is the body that it is; one too large is 413, and the connection lives."""
    body = b'{"seed":6}'
    head = (
        b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\naccept: application/x-npy\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    chunks = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body) + b"0\r\n\r\n"
    with Raw(served.port) as raw:
        raw.send(head + chunks)
        assert is_seed(raw.answer()[2], 6, engine)
        raw.send(head + b"100000\r\n" + b"x" * 0x100000 + b"\r\n0\r\n\r\n")
        assert raw.answer()[0] == 413
        raw.send(generate(7))
        assert is_seed(raw.answer()[2], 7, engine)


def test_a_body_in_many_chunks_is_no_larger_than_it_is(served, engine):
    """What is kept of a body of 100,000 chunks is its bytes, not an object for each chunk; then it is read as ever."""
    body = json.dumps({"seed": 6}).encode().ljust(200_000)
    head = (
        b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\naccept: application/x-npy\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    with Raw(served.port) as raw:
        raw.send(head + b"".join(b"2\r\n%b\r\n" % body[start : start + 2] for start in range(0, len(body), 2)))
        give_up_at = time.monotonic() + 10
        while served.door.bodies.held_bytes < len(body) and time.monotonic() < give_up_at:
            time.sleep(0.01)
        (connection,) = (found for found in served.connections() if found._waiting)
        assert sum(map(sys.getsizeof, connection._waiting[0].body)) < 2 * len(body)
        raw.send(b"0\r\n\r\n")
        assert is_seed(raw.answer()[2], 6, engine)
    assert served.door.bodies.held_bytes == 0


def test_the_old_protocol_closes(served, engine):
    """HTTP/1.0 is answered and closed, and so is `Connection: close`; the answer says it."""
    with Raw(served.port) as raw:
        raw.send(b"GET /v1/model HTTP/1.0\r\n\r\n")
        assert raw.answer()[1]["connection"] == "close"
        assert raw.closed()
    with Raw(served.port) as raw:
        raw.send(generate(8, headers="connection: close\r\n"))
        _, headers, body = raw.answer()
        assert headers["connection"] == "close"
        assert is_seed(body, 8, engine)
        assert raw.closed()


def test_expectations_are_met(served, engine):
    """`Expect: 100-continue` gets its 100 before the body is sent, and 413 in place of it if the body is too large."""
    whole = generate(9, headers="expect: 100-continue\r\n")
    head, body = whole[: whole.index(b"\r\n\r\n") + 4], whole[whole.index(b"\r\n\r\n") + 4 :]
    with Raw(served.port) as raw:
        raw.send(head)
        assert raw.answer()[0] == 100
        raw.send(body)
        assert is_seed(raw.answer()[2], 9, engine)
        raw.send(
            b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n"
            b"content-length: 100000000\r\n\r\n"
        )
        assert raw.answer()[0] == 413


def test_head_has_no_body(served):
    """HEAD is answered with GET's length and no body, and the next answer follows at once."""
    with Raw(served.port) as raw:
        raw.send(b"HEAD /v1/model HTTP/1.1\r\nhost: x\r\n\r\nGET /v1/model HTTP/1.1\r\nhost: x\r\n\r\n")
        _, head, _ = raw.answer(head=True)
        _, get, body = raw.answer()
        assert head["content-length"] == get["content-length"] == str(len(body))


@pytest.mark.parametrize("sent", [b"", b"GET /v1/mo", b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-le"])
def test_slow_heads_end(serve, sent):
    """A connection that says nothing, or not a whole head, is ended in time; a half one is told why."""
    server = serve(header_timeout_ms=200.0)
    with Raw(server.port) as raw:
        raw.send(sent)
        started = time.monotonic()
        if sent:
            status, headers, body = raw.answer()
            assert (status, headers["connection"]) == (408, "close")
            assert b"the head did not arrive within 200 ms" in body
        assert raw.closed()
        assert time.monotonic() - started < 20.0  # the keep-alive is 5 s, and nobody looks more than once a second


def test_the_first_answers_outlive_the_last_slow_head(serve, engine):
    """An answer that is owed is written before a connection ends for its next, unfinished request."""
    server = serve(header_timeout_ms=200.0)
    with Raw(server.port) as raw:
        raw.send(generate(3) + b"GET /v1/mo")
        assert is_seed(raw.answer()[2], 3, engine)
        assert raw.answer()[0] == 408
        assert raw.closed()


def test_connections_are_limited(serve):
    """Beyond the limit a connection is told 503 and closed; when another ends, there is room again."""
    server = serve(max_connections=3)
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(Raw(server.port)) for _ in range(3)]
        for raw in kept:
            raw.send(b"GET /v1/model HTTP/1.1\r\nhost: x\r\n\r\n")
            assert raw.answer()[0] == 200
        with Raw(server.port) as refused:
            assert refused.answer()[0] == 503
            assert refused.closed()
        kept[0].send(b"GET /v1/model HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        kept[0].answer()
        assert kept[0].closed()
        with Raw(server.port) as raw:
            raw.send(b"GET /v1/model HTTP/1.1\r\nhost: x\r\n\r\n")
            assert raw.answer()[0] == 200


def test_a_client_that_leaves_takes_its_rows_along(serve):
    """Rows of a closed connection are taken out of the queue before they are computed."""
    server = serve(dear=True)
    server.gate.open.clear()
    with Raw(server.port) as first:
        first.send(generate(1))
        assert server.gate.entered.wait(5)
        with Raw(server.port) as second:
            second.send(b"".join(generate(index) for index in range(5)))
            give_up_at = time.monotonic() + 5
            while server.batcher.queue_rows < 5 and time.monotonic() < give_up_at:
                time.sleep(0.01)
            assert server.batcher.queue_rows == 5
        while server.batcher.queue_rows and time.monotonic() < give_up_at:
            time.sleep(0.01)
        assert server.batcher.queue_rows == 0
        server.gate.open.set()
        assert first.answer()[0] == 200
    assert sum(server.gate.batches) == 1


def test_slow_readers_are_not_read_from(serve):
    """A client that asks and does not read is not read from for ever: what is owed to it stays bounded."""
    server = serve(dear=False)
    request = b'{"n":1024,"seed":1}'
    whole = (
        b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\naccept: application/x-npy\r\n"
        b"content-length: %d\r\n\r\n" % len(request) + request
    )
    with Raw(server.port) as raw:
        raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.socket.settimeout(2)
        sent = 0
        with contextlib.suppress(TimeoutError):
            for _ in range(20_000):  # 3 MB of requests for 16 GB of pixels
                raw.send(whole)
                sent += 1
        time.sleep(0.5)
        computed = sum(server.gate.batches) / 1024
        assert computed < 30  # what fits into the sockets, and the next: not the 64 that may be pipelined
    with Raw(server.port) as raw:
        raw.send(b"GET /v1/model HTTP/1.1\r\nhost: x\r\n\r\n")
        assert raw.answer()[0] == 200


def test_large_requests_are_computed_one_after_the_other(serve, monkeypatch):
    """Of a pipeline of large requests one is under way; small ones are not held up by what they could ask for."""
    server = serve(dear=True)
    server.gate.open.clear()
    asked, submit = [], server.batcher.submit

    def counting(latents, labels, done):
        asked.append(len(latents))
        return submit(latents, labels, done)

    monkeypatch.setattr(server.batcher, "submit", counting)

    def ask(rows):
        body = b'{"n":%d,"seed":1}' % rows
        head = (
            b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\naccept: application/x-npy\r\n"
        )
        return head + b"content-length: %d\r\n\r\n" % len(body) + body

    def wait_for(rows):
        give_up_at = time.monotonic() + 5
        while sum(asked) < rows and time.monotonic() < give_up_at:
            time.sleep(0.01)
        time.sleep(0.2)  # and no more than these
        assert sum(asked) == rows

    with Raw(server.port) as large, Raw(server.port) as small:
        large.send(ask(300) * 5)
        wait_for(300)
        small.send(ask(1) * 60)
        wait_for(360)
        server.gate.open.set()
        answers = [large.answer() for _ in range(5)]
        assert [status for status, *_ in answers] == [200] * 5
        assert len({body for *_, body in answers}) == 1
        assert [small.answer()[0] for _ in range(60)] == [200] * 60


def test_nonsense_is_400(served, caplog):
    """What is no HTTP is a 400, the end of the connection, and no line in the log; others are not disturbed."""
    with Raw(served.port) as raw, Raw(served.port) as other:
        raw.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        assert raw.answer()[0] == 400
        assert raw.closed()
        other.send(b"GET /v1/model HTTP/1.1\r\nhost: x\r\n\r\n")
        assert other.answer()[0] == 200
    assert not caplog.records


def test_both_transports_say_the_same(context, engine):
    """The same requests get the same statuses, headers and bodies over the protocol class and over ASGI."""
    requests = [
        ("GET", "/v1/model", b""),
        ("GET", "/v1/digits/2026.png?seed=3", b""),
        ("GET", "/v1/digits/20x6.png", b""),
        ("HEAD", "/v1/digits/1.png", b""),
        ("POST", "/v1/generate", b'{"seed":4,"n":3}'),
        ("POST", "/v1/generate", b'{"seed":4,"n":-3}'),
        ("POST", "/v1/generate", b"{"),
        ("DELETE", "/v1/generate", b""),
        ("GET", "/%76%31/model", b""),
        ("GET", "/nope", b""),
        ("GET", "/v2/nope", b""),
    ]
    said = []
    for transport in ("protocol", "asgi"):
        with Served(context, Gate(engine), transport) as server:
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            answers = []
            for method, path, body in requests:
                headers = {"x-request-id": "1"} | ({"content-type": "application/json"} if body else {})
                connection.request(method, path, body=body or None, headers=headers)
                response = connection.getresponse()
                told = {name.lower(): value for name, value in response.getheaders()}
                told = {name: value for name, value in told.items() if name not in ("date", "server-timing")}
                answers.append((response.status, told, response.read()))
            connection.close()
        said.append(answers)
    for request, ours, asgi in zip(requests, *said, strict=True):
        assert ours == asgi, request


def test_another_uvicorn_is_served_as_asgi(monkeypatch, caplog, context):
    """Where uvicorn is not one that the class was written against, it is left alone, and the log says so in a line."""
    before = auto.AutoHTTPProtocol
    monkeypatch.setattr(uvicorn, "__version__", "1.0.0")

    async def app(scope, receive, send):
        """Never called."""

    protocol.install(FrontDoor(app, Settings()))
    assert auto.AutoHTTPProtocol is before
    assert "serving as plain ASGI" in caplog.text


def test_small_bodies_that_inflate_to_large_ones_are_read_in_a_thread(served, engine, monkeypatch):
    """What counts is the size of the inflated body: a few hundred bytes may be much to parse."""
    body = json.dumps({"seed": 7}).encode().ljust(exchange.INLINE_BODY_BYTES + 1)
    packed = gzip.compress(body)
    assert len(packed) < 1000
    dear = []
    respond = answering.respond

    def counting(match, request, context):
        dear.append(len(request.body))
        return respond(match, request, context)

    monkeypatch.setattr(answering, "respond", counting)
    head = generate(7, headers="content-encoding: gzip\r\n").partition(b"\r\n\r\n")[0]
    head = head.replace(b"content-length: 11", b"content-length: %d" % len(packed))
    with Raw(served.port) as raw:
        raw.send(head + b"\r\n\r\n" + packed)
        assert is_seed(raw.answer()[2], 7, engine)
    assert dear == [len(body)]


# What a hostile client may try.


def head_of(path: str, *headers: str) -> bytes:
    """A GET with these headers."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: x", *headers, "", ""]).encode()


@pytest.mark.parametrize(
    "endless",
    [
        head_of("/v1/model")[:-2] + b"".join(b"h%d: v\r\n" % index for index in range(200)),
        head_of("/v1/model")[:-2] + b"h: " + b"v" * 200_000,
        b"GET /" + b"v" * 200_000,
        generate(1).replace(b"content-length: 11", b"transfer-encoding: chunked").partition(b"{")[0]
        + b"2\r\n{}\r\n0\r\n"
        + b"".join(b"h%d: v\r\n" % index for index in range(30_000)),
    ],
    ids=["many headers", "a long value", "a long path", "trailers"],
)
def test_endless_heads_end(served, endless):
    """A head or trailers without an end are refused with 431 long before they fill the memory."""
    with Raw(served.port) as raw:
        with contextlib.suppress(ConnectionError):
            raw.send(endless)
        status, headers, _ = raw.answer()
        assert (status, headers["connection"]) == (431, "close")


def test_trailers_are_no_headers(served):
    """What comes after a chunked body is not taken for a header."""
    with Raw(served.port) as raw:
        raw.send(
            b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
            b"content-type: application/json\r\nx-request-id: trailer\r\n\r\n"
        )
        status, headers, _ = raw.answer()
        assert status == 415
        assert headers["x-request-id"] != "trailer"


def test_what_is_owed_comes_before_a_last_refusal(serve, engine):
    """Nonsense behind a request that is still being computed is refused after that request's answer."""
    server = serve(dear=True)
    server.gate.open.clear()
    with Raw(server.port) as raw:
        raw.send(generate(4) + b"NONSENSE\r\n\r\n")
        assert server.gate.entered.wait(5)
        server.gate.open.set()
        assert is_seed(raw.answer()[2], 4, engine)
        assert raw.answer()[0] == 400
        assert raw.closed()


def test_upgrades_wait_their_turn(serve, engine):
    """A websocket upgrade behind a request that is being computed is answered after it, as the plain GET that it is."""
    server = serve(dear=True)
    server.gate.open.clear()
    upgrade = head_of("/nope", "connection: upgrade", "upgrade: websocket", "sec-websocket-key: eA==")
    with Raw(server.port) as raw:
        raw.send(generate(4) + upgrade)
        assert server.gate.entered.wait(5)
        server.gate.open.set()
        assert is_seed(raw.answer()[2], 4, engine)
        assert raw.answer()[0] == 404


@pytest.mark.parametrize("target", [b"OPTIONS * HTTP/1.1", b"CONNECT a:80 HTTP/1.1", b"GET http://a HTTP/1.1"])
def test_odd_targets_are_answered(served, target):
    """Targets that are no paths get an answer of the 400s, whatever it is, and no others suffer."""
    with Raw(served.port) as raw:
        raw.send(target + b"\r\nhost: x\r\n\r\n")
        assert 400 <= raw.answer()[0] < 500
    with Raw(served.port) as raw:
        raw.send(head_of("/v1/model"))
        assert raw.answer()[0] == 200


def test_one_client_cannot_take_every_turn(served):
    """While one client has thousands of requests in the pipe, another is answered, and what is owed stays bounded."""
    with Raw(served.port) as greedy, Raw(served.port) as other:
        greedy.socket.settimeout(3)
        with contextlib.suppress(TimeoutError):
            greedy.send(head_of("/v1/model") * 5000)
        other.send(head_of("/v1/model"))
        assert other.answer()[0] == 200
        # A slice that is being parsed may hold a few dozen more.
        assert max(len(connection._waiting) for connection in served.connections()) <= answering.MAX_PIPELINED + 68
        unread = sum(len(piece) for connection in served.connections() for piece in connection._stash)
        assert unread < 5000 * len(head_of("/v1/model"))


def test_stopping_answers_what_was_accepted(serve, engine):
    """A server that is told to stop answers every request that it has, ours and BentoML's, and takes no new ones."""
    server = serve(dear=True)
    server.gate.open.clear()
    with Raw(server.port) as raw:
        raw.send(generate(1) + head_of("/livez") + head_of("/v1/model"))
        assert server.gate.entered.wait(5)
        server.stop()
        time.sleep(0.3)
        with contextlib.suppress(ConnectionError):
            raw.send(generate(2))
        server.gate.open.set()
        assert is_seed(raw.answer()[2], 1, engine)
        assert raw.answer()[2].startswith(b"bentoml /livez")
        assert raw.answer()[0] == 200
        assert raw.closed()


# A head that came before is not parsed again.


def remembered(served) -> dict[bytes, object]:
    """The heads that the protocol class knows."""
    return served._server.config.http_protocol_class.heads


@pytest.mark.parametrize("split", [None, -1, -5, 40])
def test_a_remembered_head_gives_each_body_its_own_answer(served, engine, split):
    """Requests with one head and different bodies get their own images, whole, in two reads, or two in one read."""
    with Raw(served.port) as raw:
        for seed in (10, 20, 30, 40):
            request = generate(seed)
            if split is not None:
                raw.send(request[:split])
                time.sleep(0.02)
                request = request[split:]
            raw.send(request)
            assert is_seed(raw.answer()[2], seed, engine)
        raw.send(generate(50) + generate(60))
        assert is_seed(raw.answer()[2], 50, engine)
        assert is_seed(raw.answer()[2], 60, engine)
    head = generate(10).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert split is not None or head in remembered(served)


def test_a_remembered_head_before_a_wrong_body_is_a_400_and_the_connection_lives(served, engine):
    """Only the head is remembered: a body is judged every time."""
    with Raw(served.port) as raw:
        for _ in range(2):
            raw.send(generate(10))
            assert is_seed(raw.answer()[2], 10, engine)
            raw.send(generate(10)[:-3] + b"x0}")
            assert raw.answer()[0] == 400


def test_bytes_behind_a_remembered_request_belong_to_the_next_one(served, engine):
    """A request that is followed by half of another is answered, and so is the other when it is complete."""
    with Raw(served.port) as raw:
        for _ in range(3):
            both = generate(11) + generate(12)
            raw.send(both[:-7])
            assert is_seed(raw.answer()[2], 11, engine)
            raw.send(both[-7:])
            assert is_seed(raw.answer()[2], 12, engine)


def test_what_differs_from_request_to_request_is_not_remembered(served, engine):
    """A chunked body's length is not in its head, and a request's id is its own."""
    known = set(remembered(served))
    chunked = generate(1).replace(b"content-length: 11", b"transfer-encoding: chunked").partition(b"{")[0]
    with Raw(served.port) as raw:
        for seed in (1, 2):
            body = json.dumps({"seed": seed}).encode()
            raw.send(chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            assert is_seed(raw.answer()[2], seed, engine)
        for identity in ("first", "second"):
            raw.send(generate(3, headers=f"x-request-id: {identity}\r\n"))
            assert raw.answer()[1]["x-request-id"] == identity
    assert set(remembered(served)) == known


def test_remembered_heads_are_bounded(served):
    """A thousand different heads, and one that is too long, do not fill the memory."""
    with Raw(served.port) as raw:
        for index in range(1000):
            raw.send(f"GET /v1/model HTTP/1.1\r\nhost: x\r\nx-number: {index}\r\n\r\n".encode())
            assert raw.answer()[0] == 200
        raw.send(b"GET /v1/model HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 4000 + b"\r\n\r\n")
        assert raw.answer()[0] == 200
    assert 0 < len(remembered(served)) <= 256
    assert max(map(len, remembered(served))) <= 2048


def test_a_remembered_head_waits_for_bentoml_to_answer_first(served, engine):
    """A request whose head is known does not overtake one of BentoML's on the same connection."""
    with Raw(served.port) as raw:
        raw.send(generate(5))
        raw.answer()
        for _ in range(20):
            raw.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            raw.send(generate(5))
            assert raw.answer()[2].startswith(b"bentoml /livez")
            assert is_seed(raw.answer()[2], 5, engine)


def test_a_remembered_head_with_close_ends_the_connection(served, engine):
    """`Connection: close` is part of what is remembered."""
    for _ in range(3):
        with Raw(served.port) as raw:
            raw.send(generate(5, headers="connection: close\r\n"))
            assert is_seed(raw.answer()[2], 5, engine)
            assert raw.closed()
