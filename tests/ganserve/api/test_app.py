import asyncio
import contextlib
import dataclasses
import gzip
import http.client
import io
import json
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest

from ganserve import latents
from ganserve.api import exchange
from ganserve.api.app import FrontDoor
from ganserve.batcher import Batcher
from ganserve.errors import UnauthorizedError
from ganserve.settings import Settings
from tests.connection import Answer, Connection
from tests.served import POISON


def _problem(answer: Answer, status: int, detail: str = "") -> dict[str, str]:
    """Checks a problem document; gives the headers."""
    found, headers, body = answer
    assert found == status, body
    assert headers["content-type"] == "application/problem+json"
    document = json.loads(body)
    assert document["status"] == status
    assert detail in document["detail"]
    return headers


def _good(connection: Connection, engine: Any) -> None:
    """A good request on this very connection."""
    rows, labels = latents.draw(7, 2, 16, 10)
    assert (connection.pixels({"seed": 7, "n": 2}) == engine.run(rows, labels)).all()


# What is served.


def test_pixels_over_http_are_the_engines_alone_and_in_a_batch(serve, engine):
    """Each of 40 clients gets, bit for bit, what the engine makes of its latents alone, though they shared a batch."""
    server = serve()
    rows, labels = latents.draw(3, 40, 16, 10)
    expected = [engine.run(rows[index : index + 1], labels[index : index + 1]) for index in range(40)]

    def fields(index: int) -> dict[str, Any]:
        return {"latents": rows[index : index + 1].tolist(), "labels": int(labels[index])}

    with server.connect() as connection:
        assert all((connection.pixels(fields(index)) == expected[index]).all() for index in range(40))
        alone = len(server.gate.batches)
    assert server.gate.batches == [1] * alone

    server.gate.open.clear()
    found: dict[int, np.ndarray] = {}

    def client(index: int) -> None:
        with server.connect() as connection:
            found[index] = connection.pixels(fields(index))

    clients = [threading.Thread(target=client, args=(index,)) for index in range(40)]
    for thread in clients:
        thread.start()
    while server.batcher.queue_rows < 30:
        time.sleep(0.005)
    server.gate.open.set()
    for thread in clients:
        thread.join()
    assert max(server.gate.batches) >= 30
    assert all((found[index] == expected[index]).all() for index in range(40))


def test_image_does_not_hang_on_n(connection):
    """Image i of n is image i of n' over HTTP as well, in requests handled inline and in threads."""
    many = connection.pixels({"seed": 5, "n": 1024})
    assert (connection.pixels({"seed": 5, "n": 3}) == many[:3]).all()
    assert (connection.pixels({"seed": 5, "n": 100}) == many[:100]).all()


def test_large_bodies_are_read_as_small_ones(connection, engine):
    """A body that is parsed in a thread gives what the same rows give in small bodies."""
    rows, labels = latents.draw(3, 700, 16, 10)
    fields = {"latents": rows.tolist(), "labels": labels.tolist()}
    assert len(json.dumps(fields)) > exchange.INLINE_BODY_BYTES
    assert (connection.pixels(fields) == engine.run(rows, labels)).all()


def test_bentoml_clients_route_is_the_same(connection):
    """`POST /generate` is answered as `POST /v1/generate`, to the byte."""
    fields = {"seed": 7, "n": 2, "labels": [3]}
    answers = [connection.ask("POST", path, fields) for path in ("/generate", "/v1/generate")]
    assert answers[0][0] == 200
    assert answers[0][2] == answers[1][2]


def test_head_is_get_without_the_body(connection):
    """HEAD has the status and headers of GET, the length included, and no body; the connection goes on."""
    for path in ("/", "/v1/model", "/v1/digits/2026.png?scale=2"):
        get_status, get_headers, get_body = connection.ask("GET", path)
        status, headers, body = connection.ask("HEAD", path)
        assert (status, body) == (get_status, b"")
        measured = {"date": "", "server-timing": "", "x-request-id": ""}
        assert headers | measured == get_headers | measured
        assert int(headers["content-length"]) == len(get_body) > 0


def test_etag_and_304_over_http(connection):
    """The ETag of a digit image, sent back, is a 304 without a body, and the connection goes on."""
    _, headers, body = connection.ask("GET", "/v1/digits/42.png?seed=1")
    status, again, nothing = connection.ask("GET", "/v1/digits/42.png?seed=1", If_None_Match=headers["etag"])
    assert (status, nothing) == (304, b"")
    assert "content-length" not in again  # it would be that of the image
    assert again["etag"] == headers["etag"]
    assert connection.ask("GET", "/v1/digits/42.png?seed=1", If_None_Match='"x"')[2] == body


def test_pipelined_requests_are_answered_in_order(served):
    """Three requests in one packet get three answers, in their order."""
    wanted = [f"GET /v1/digits/{text}.png HTTP/1.1\r\nhost: x\r\n\r\n" for text in ("1", "22", "333")]
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
        raw.sendall("".join(wanted).encode())
        received = b""
        while received.count(b"IEND") < 3:
            received += raw.recv(1 << 16)
    answers = received.split(b"HTTP/1.1 200 OK")[1:]
    widths = [int.from_bytes(answer.partition(b"IHDR")[2][:4], "big") for answer in answers]
    assert widths == [28, 56, 84]


# What is refused, and then a good request on the same connection.


_JSON = {"content_type": "application/json"}
_NPY = {"content_type": "application/x-npy"}


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "detail"),
    [
        ("POST", "/v1/generate", b'{"n": 0}', _JSON, 400, "n must be"),
        ("POST", "/v1/generate", b"{", _JSON, 400, "not JSON"),
        ("POST", "/v1/generate", b"[" * 150_000, _JSON, 400, "nested too deep"),
        ("POST", "/v1/generate", b'{"n": 1' + b"0" * 400 + b"}", _JSON, 400, "bits"),
        ("POST", "/v1/generate", b'{"n": 1' + b"0" * 5000 + b"}", _JSON, 400, "not JSON"),
        ("POST", "/v1/generate", b'{"seed": 1, "seed": 1}', _JSON, 400, "given twice"),
        ("POST", "/v1/generate", b'{"latents": [[NaN]], "labels": 0}', _JSON, 400, "NaN is not JSON"),
        ("POST", "/v1/generate?x=%ff", b"{}", _JSON, 400, "malformed"),
        ("POST", "/generate", b'{"n": "3"}', _JSON, 400, "n must be an integer, got a string"),
        ("POST", "/generate", b'{"m": 3}', _JSON, 400, "unknown field"),
        ("POST", "/v1/generate?labels=1", b"\x93NUMPY", _NPY, 400, "not an npy array"),
        ("GET", "/v1/digits/2x.png", None, {}, 400, "not one of"),
        ("GET", "/v1/digits/%D9%A3.png", None, {}, 400, "'٣' is not one"),
        ("GET", "/v1/digits/%00.png", None, {}, 400, "is not one"),
        ("GET", "/v1/digits/%ff.png", None, {}, 400, "is not one"),
        ("GET", "/v1/digits/..%5c..%5cetc.png", None, {}, 400, "is not one"),
        ("GET", "/v1/digits/{text}.png", None, {}, 400, "is not one"),
        ("GET", "/v1/digits/../../../etc/passwd", None, {}, 404, "no such route"),
        ("GET", "/v1/digits/%2e%2e%2f%2e%2e%2fetc%2fpasswd.png", None, {}, 404, "no such route"),
        ("GET", "/v1/digits/1/2.png", None, {}, 404, "no such route"),
        ("GET", "/v1/digits/.png", None, {}, 404, "no such route"),
        ("GET", "/v1/digits/1.jpg", None, {}, 404, "no such route"),
        ("GET", "//v1/model", None, {}, 404, "no such route"),
        ("GET", "/v1/model/", None, {}, 404, "no such route"),
        ("POST", "/nowhere", b"{}", _JSON, 404, "no such route"),
        ("GET", "/v1/generate", None, {}, 405, "POST"),
        ("DELETE", "/v1/model", None, {}, 405, "GET, HEAD"),
        ("POST", "/v1/digits/1.png", b"{}", _JSON, 405, "GET, HEAD"),
        ("PUT", "/generate", b"{}", _JSON, 405, "POST"),
        ("OPTIONS", "/", None, {}, 405, "GET, HEAD"),
        ("POST", "/v1/generate", b"{}", _JSON | {"accept": "image/jpeg"}, 406, "image/png"),
        ("POST", "/v1/generate", b"x" * 600_000, _JSON, 413, "600000 are announced"),
        ("POST", "/livez", b"x" * 600_000, _JSON, 413, "600000 are announced"),
        ("POST", "/v1/generate", b"\x80\x04.", {"content_type": "application/vnd.bentoml+pickle"}, 415, "send"),
        ("POST", "/generate", b"\x80\x04.", {"content_type": "application/vnd.bentoml+pickle"}, 415, "send"),
        ("POST", "/v1/generate", b"{}", _JSON | {"content_encoding": "br"}, 415, "'br'"),
        ("POST", "/v1/generate", b"{}", _JSON | {"content_encoding": "gzip"}, 400, "not gzip"),
        (
            "POST",
            "/v1/generate",
            gzip.compress(b" " * 600_000, mtime=0),
            _JSON | {"content_encoding": "gzip"},
            413,
            "inflates",
        ),
    ],
)
def test_refused_and_then_a_good_request(connection, engine, method, path, body, headers, status, detail):
    """A bad request gets its status as a problem document, and the same connection serves a good one afterwards."""
    _problem(connection.ask(method, path, body, **headers), status, detail)
    _good(connection, engine)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/v1/model", "GET, HEAD"),
        ("GET", "/v1/generate", "POST"),
        ("HEAD", "/v1/generate", "POST"),
        ("PATCH", "/v1/digits/1.png", "GET, HEAD"),
    ],
)
def test_405_lists_the_methods(connection, method, path, allow):
    """A 405 says in `Allow` what the route answers, to HEAD as well."""
    status, headers, _ = connection.ask(method, path)
    assert (status, headers["allow"]) == (405, allow)


def test_chunked_body_over_the_limit_is_413(connection, engine):
    """A body whose length nobody announced is stopped at the limit."""
    chunks = (b"x" * 50_000 for _ in range(20))
    _problem(connection.ask("POST", "/v1/generate", chunks, **_JSON), 413, "may have 300000 bytes; it is larger")
    _good(connection, engine)


def test_chunked_body_within_the_limit_is_read(connection, engine):
    """A chunked body is as good as another."""
    rows, labels = latents.draw(7, 1, 16, 10)
    chunks = iter([b'{"se', b'ed": ', b"7}"])
    status, _, body = connection.ask("POST", "/v1/generate", chunks, accept="application/x-npy", **_JSON)
    assert status == 200
    assert (np.load(io.BytesIO(body)) == engine.run(rows, labels)).all()


def test_lying_content_length_is_no_way_in(served):
    """A content-length of 30 digits is a 400 or 413, and the server lives."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
        raw.sendall(b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: " + b"9" * 30 + b"\r\n\r\n")
        assert raw.recv(100).split()[1] in (b"400", b"413")
    with served.connect() as connection:
        assert connection.ask("GET", "/v1/model")[0] == 200


def test_slow_body_is_408_and_the_end_of_the_connection(serve):
    """A body that does not arrive in time is a 408; the rest may never come, so the connection ends."""
    server = serve(body_timeout_ms=150.0)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{")
        response = http.client.HTTPResponse(raw)
        response.begin()
        assert response.status == 408
        assert response.getheader("connection") == "close"
        assert json.loads(response.read())["detail"] == "the body did not arrive within 150 ms"
        assert raw.recv(1) == b""
    with server.connect() as connection:
        assert connection.ask("GET", "/v1/model")[0] == 200


def test_full_queue_is_503_with_retry_after(serve, engine):
    """A request that does not fit into the queue is a 503 at once, with the time to come back."""
    server = serve(max_queue_rows=4, max_request_rows=4)
    server.gate.open.clear()
    with server.connect() as running, server.connect() as waiting, server.connect() as refused:
        running.send_request("POST", "/v1/generate", {"seed": 1})
        assert server.gate.entered.wait(10)
        waiting.send_request("POST", "/v1/generate", {"n": 4})
        while server.batcher.queue_rows < 4:
            time.sleep(0.005)
        headers = _problem(refused.ask("POST", "/v1/generate", {"n": 1}), 503, "the queue is full: 4 rows wait")
        assert int(headers["retry-after"]) >= 1
        server.gate.open.set()
        assert running.getresponse().status == waiting.getresponse().status == 200
        _good(refused, engine)


def test_rows_that_do_not_fit_are_not_drawn(serve, monkeypatch):
    """A large request that the queue has no room for is refused before its latents are made, which takes a while."""
    server = serve(max_queue_rows=1000, max_request_rows=1000)
    server.gate.open.clear()
    drawn, draw = [], latents.draw

    def counting(seed, count, *rest, **options):
        drawn.append(count)
        return draw(seed, count, *rest, **options)

    monkeypatch.setattr(latents, "draw", counting)
    with server.connect() as running, server.connect() as waiting, server.connect() as refused:
        running.send_request("POST", "/v1/generate", {"seed": 1})
        assert server.gate.entered.wait(10)
        waiting.send_request("POST", "/v1/generate", {"n": 900})
        while server.batcher.queue_rows < 900:
            time.sleep(0.005)
        for _ in range(3):
            _problem(refused.ask("POST", "/v1/generate", {"n": 999}), 503, "the queue is full: 900 rows wait, 999 more")
        assert drawn == [1, 900]
        assert server.batcher.counters.rejected_full == 3
        server.gate.open.set()
        assert running.getresponse().status == waiting.getresponse().status == 200


def test_deadline_is_504(serve, engine):
    """A request that is not done by its deadline is a 504, and its rows leave the queue."""
    server = serve(deadline_ms=150.0)
    server.gate.open.clear()
    with server.connect() as first, server.connect() as second:
        first.send_request("POST", "/v1/generate", {"seed": 1})
        assert server.gate.entered.wait(10)
        _problem(second.ask("POST", "/v1/generate", {"n": 5}), 504, "not done within 150 ms")
        assert first.getresponse().status == 504
        assert server.batcher.queue_rows == 0
        server.gate.open.set()
        _good(second, engine)
    assert server.gate.batches == [1, 2]  # the five were never computed


def test_poisoned_request_is_an_opaque_500(serve, engine, caplog):
    """A request that the model fails on is a 500 without our secrets, which the log has; 39 neighbours get pixels."""
    server = serve(poisoned=True)
    server.gate.open.clear()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(40)]
        for index, connection in enumerate(connections):
            fields = {"seed": index, "labels": POISON if index == 5 else index % POISON}
            connection.send_request("POST", "/v1/generate", fields, accept="application/x-npy")
            if index == 0:
                assert server.gate.entered.wait(10)
        while server.batcher.queue_rows < 39:
            time.sleep(0.005)
        server.gate.open.set()
        answers = [connection.getresponse() for connection in connections]
        bodies = [answer.read() for answer in answers]
        assert [answer.status for answer in answers] == [500 if index == 5 else 200 for index in range(40)]
        for index, body in enumerate(bodies):
            if index != 5:
                alone = engine.run(latents.draw(index, 1, 16)[0], np.array([index % POISON]))
                assert (np.load(io.BytesIO(body)) == alone).all()
        assert b"secret" not in bodies[5]
        assert json.loads(bodies[5])["title"] == "Internal Server Error"
        assert json.loads(bodies[5])["detail"].startswith("inference failed on this request")
        _good(connections[5], engine)
    assert "/home/secret/path" in caplog.text


# Clients that go away.


def test_disconnected_clients_rows_are_dropped(serve):
    """When a client closes its connection, its rows leave the queue and are not computed."""
    server = serve()
    server.gate.open.clear()
    with server.connect() as running:
        running.send_request("POST", "/v1/generate", {"seed": 1})
        assert server.gate.entered.wait(10)
        with server.connect() as leaving:
            leaving.send_request("POST", "/v1/generate", {"n": 7})
            while server.batcher.queue_rows < 7:
                time.sleep(0.005)
        while server.batcher.queue_rows:
            time.sleep(0.005)
        assert server.batcher.counters.cancelled == 1
        server.gate.open.set()
        assert running.getresponse().status == 200
    assert server.gate.batches == [1]


def test_client_that_leaves_within_its_body_is_nothing(served, caplog):
    """A connection that ends in the middle of a body costs no log line and no work."""
    before = served.batcher.counters.rows
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw:
        raw.sendall(b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{")
        time.sleep(0.05)
    with served.connect() as connection:
        assert connection.ask("GET", "/v1/model")[0] == 200
    assert served.batcher.counters.rows == before
    assert not caplog.records


# The door itself, driven by hand.


class _Call:
    """One ASGI call with a scripted client."""

    def __init__(self, door: FrontDoor, method: str, path: str, messages: list[dict[str, Any]], **headers: str) -> None:
        self.sent: list[dict[str, Any]] = []
        self._messages = messages
        self._door = door
        self._scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [
                (name.replace("_", "-").encode(), value.encode()) for name, value in {"host": "x", **headers}.items()
            ],
        }

    async def _receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    async def run(self) -> None:
        """Until the door returns."""
        await asyncio.wait_for(self._door(self._scope, self._receive, self._send), 10)

    @property
    def status(self) -> int:
        """Of the answer."""
        return self.sent[0]["status"]

    @property
    def body(self) -> bytes:
        """Of the answer."""
        return b"".join(message.get("body", b"") for message in self.sent)


_COMPLETE = {"type": "http.request", "body": b"", "more_body": False}


async def _no_bentoml(scope, receive, send) -> None:
    raise AssertionError("not for BentoML")


def test_door_is_closed_until_it_is_opened(context):
    """Before the engine is proven, every route of ours is a 503 with Retry-After; unknown ones are 404 all the same."""

    async def scenario():
        door = FrontDoor(_no_bentoml, context.settings)
        call = _Call(door, "GET", "/v1/model", [_COMPLETE])
        await call.run()
        assert call.status == 503
        assert (b"retry-after", b"1") in call.sent[0]["headers"]
        call = _Call(door, "GET", "/nowhere", [_COMPLETE])
        await call.run()
        assert call.status == 404

    asyncio.run(scenario())


def test_door_itself_sends_no_body_to_head(context):
    """The door leaves the body of HEAD out by itself, and keeps the length, whatever the server does with it."""

    async def scenario():
        door = FrontDoor(_no_bentoml, context.settings)
        door.open(context)
        get, head = (_Call(door, method, "/", [dict(_COMPLETE)], x_request_id="1") for method in ("GET", "HEAD"))
        await get.run()
        await head.run()
        assert (head.status, head.body) == (200, b"")
        assert head.sent[0] == get.sent[0]
        assert (b"content-length", b"%d" % len(get.body)) in head.sent[0]["headers"]

    asyncio.run(scenario())


def test_fault_of_ours_is_an_opaque_500(context, caplog):
    """An unexpected exception is a 500 that says nothing of it; the log has it whole."""

    async def scenario():
        door = FrontDoor(_no_bentoml, context.settings)
        door.open(dataclasses.replace(context, artifact=None))  # which /v1/model does not expect
        call = _Call(door, "GET", "/v1/model", [_COMPLETE])
        await call.run()
        assert call.status == 500
        assert json.loads(call.body)["detail"] == "internal error; the server's log has the details"

    asyncio.run(scenario())
    assert "AttributeError" in caplog.text


def test_body_that_dribbles_is_timed_as_a_whole(context):
    """The time limit is for the whole body: a byte now and then does not stretch it."""

    async def scenario():
        door = FrontDoor(_no_bentoml, Settings(body_timeout_ms=100.0))
        door.open(context)
        call = _Call(door, "POST", "/v1/generate", [])

        async def dribble() -> dict[str, Any]:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b" ", "more_body": True}

        call._receive = dribble
        await call.run()
        assert call.status == 408

    asyncio.run(scenario())


def test_client_that_leaves_gets_no_answer(context):
    """A disconnect within the body ends the call without an answer."""

    async def scenario():
        door = FrontDoor(_no_bentoml, context.settings)
        door.open(context)
        part = {"type": "http.request", "body": b"{", "more_body": True}
        call = _Call(door, "POST", "/v1/generate", [part, {"type": "http.disconnect"}])
        await call.run()
        assert call.sent == []

    asyncio.run(scenario())


def test_repeated_headers_are_one_list(context, engine):
    """Two `Accept` headers are one list, as HTTP has it."""

    async def scenario():
        door = FrontDoor(_no_bentoml, context.settings)
        batcher = Batcher(engine, max_batch_rows=8, max_queue_rows=8, deadline_ms=5000.0)
        door.open(dataclasses.replace(context, batcher=batcher))
        call = _Call(door, "POST", "/v1/generate", [_COMPLETE])
        call._scope["headers"] = [(b"host", b"x"), (b"Accept", b"text/html"), (b"accept", b"image/png")]
        await call.run()
        assert call.status == 200
        assert (b"content-type", b"image/png") in call.sent[0]["headers"]
        await batcher.close()

    asyncio.run(scenario())


def test_bentoml_gets_its_paths_with_their_bodies(served):
    """The paths that are BentoML's are answered by it, within our body limit; nothing else reaches it."""
    with served.connect() as connection:
        for path in ("/livez", "/readyz", "/healthz", "/metrics", "/docs.json", "/schema.json"):
            status, _, body = connection.ask("POST", path, b"body")
            assert (status, body) == (200, f"bentoml {path} body".encode())
        assert connection.ask("GET", "/static_content/x")[0] == 404


def test_bentoml_that_raises_after_its_answer_is_logged_once(context, caplog):
    """Starlette answers 500 and raises: the client has that answer, not two."""

    async def starlette(scope, receive, send):
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"oops"})
        raise ValueError("a bug of theirs")

    async def scenario():
        call = _Call(FrontDoor(starlette, context.settings), "GET", "/readyz", [_COMPLETE])
        await call.run()
        assert [message["type"] for message in call.sent] == ["http.response.start", "http.response.body"]

    asyncio.run(scenario())
    assert "a bug of theirs" in caplog.text


@pytest.mark.parametrize("path", ["/v1/model", "/readyz", "/nope"])
def test_client_that_leaves_before_its_answer_is_no_fault(context, caplog, path):
    """Uvloop raises where the connection has just ended: nothing for the log, on our routes and on BentoML's."""

    async def scenario():
        async def bentoml(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def gone(message):
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

        door = FrontDoor(bentoml, context.settings)
        door.open(context)
        call = _Call(door, "GET", path, [_COMPLETE])
        call._send = gone
        await call.run()

    asyncio.run(scenario())
    assert not caplog.records


def test_websockets_are_turned_away(context):
    """A WebSocket is closed: this server speaks HTTP."""

    async def scenario():
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await FrontDoor(_no_bentoml, context.settings)({"type": "websocket"}, None, send)
        assert sent == [{"type": "websocket.close", "code": 1003, "reason": "this server speaks HTTP"}]

    asyncio.run(scenario())


def test_lifespan_is_bentomls(context):
    """BentoML's own start and stop run as they would without us."""
    seen: list[str] = []

    async def bentoml(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(FrontDoor(bentoml, context.settings)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]


# Who may ask, and what a request is called.


def test_token_is_needed_everywhere_but_for_health(serve, engine):
    """With a token set, requests without it, with another, or with it under another scheme are 401; health is not."""
    server = serve(token="correct-horse-battery")
    bearer = {"authorization": "Bearer correct-horse-battery"}
    wrong = [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer correct-horse-batterz"},
        {"authorization": "Basic correct-horse-battery"},
    ]
    with server.connect() as connection:
        for headers in wrong:
            for method, path in (("GET", "/v1/model"), ("POST", "/v1/generate"), ("GET", "/metrics"), ("GET", "/nope")):
                answer = connection.ask(method, path, **headers)
                assert _problem(answer, 401, "bearer token")["www-authenticate"] == "Bearer"
        assert connection.ask("GET", "/readyz")[0] == 200
        assert connection.ask("GET", "/v1/model", **bearer)[0] == 200
        assert connection.ask("GET", "/metrics", **bearer)[0] == 200


def test_tokens_are_compared_in_constant_time(monkeypatch):
    """Whatever is given for a token is compared by the function that takes as long for any: no early way out."""
    compared = []
    monkeypatch.setattr(exchange.hmac, "compare_digest", lambda *both: compared.append(both) or both[0] == both[1])
    token = b"correct-horse-battery"
    for given in (b"", b"Basic x", b"Bearer correct-horse-batterz", b"Bearer \xff", b"Bearer"):
        with pytest.raises(UnauthorizedError):
            exchange.check_token([(b"authorization", given)], token)
    exchange.check_token([(b"authorization", b"Bearer correct-horse-battery")], token)
    assert [both[1] for both in compared] == [token] * 6


def test_requests_have_an_identity(connection):
    """A plain `X-Request-ID` comes back; in place of none, or of one that is not plain, comes one of the server's."""
    assert connection.ask("GET", "/v1/model", x_request_id="abc-123")[1]["x-request-id"] == "abc-123"
    assert connection.ask("GET", "/nope", x_request_id="abc-123")[1]["x-request-id"] == "abc-123"
    own = {
        connection.ask("GET", "/v1/model", **headers)[1]["x-request-id"] for headers in ({}, {"x_request_id": "a b"})
    }
    assert len(own) == 2
    assert "a b" not in own


def test_a_stuck_session_is_unready_and_recovers(serve, engine):
    """While the session hangs the server is not ready, and requests end at their deadline; then all is well again."""
    server = serve(dear=True, deadline_ms=200.0)
    server.gate.open.clear()
    with server.connect() as connection:
        _problem(connection.ask("POST", "/v1/generate", {"seed": 1}), 504, "200 ms")
        status, _, body = connection.ask("GET", "/v2/health/ready")
        assert status == 503
        assert json.loads(body) == {"ready": False, "reason": json.loads(body)["reason"]}
        assert "the session hangs" in json.loads(body)["reason"]
        _problem(connection.ask("GET", "/readyz"), 503, "the session hangs")
        _problem(connection.ask("POST", "/v1/generate", {"seed": 2}), 504, "200 ms")
        server.gate.open.set()
        _good(connection, engine)
        assert connection.ask("GET", "/v2/health/ready")[0] == 200
