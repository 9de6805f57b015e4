"""HTTP without a framework: our routes answered inside uvicorn's own protocol class.

An ASGI request costs a task, a scope, and two round trips through `send`: several times what a digit costs. This
subclass of uvicorn's httptools protocol answers our routes in the parser's callbacks: the request is parsed when its
last byte is there, its rows join the batch of this turn of the loop, and the answer is one write. Everything else goes
to uvicorn as ever, and from there to the front door: BentoML's paths, unknown ones, `Expect`, upgrades, whatever
follows one of these on the same connection. Both ways lead to the same handlers and give the same answers.

Per connection, requests are answered in their order. `_waiting` holds those of ours that are not answered yet;
uvicorn's `pipeline` holds its own. Ours never overtake uvicorn's: while one of its cycles is open, every request goes
to it.
"""

import asyncio
import functools
import logging
from collections import deque
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE, STATUS_LINE, HttpToolsProtocol

from ganserve.api.app import FrontDoor
from ganserve.api.exchange import (
    INLINE_BODY_BYTES,
    check_announced,
    check_token,
    finish,
    is_cheap,
    make_request,
    request_id,
    respond,
    tell,
    work_off,
)
from ganserve.api.http import Context, Labels, Response, Work
from ganserve.api.routing import BENTOML_PATHS, Match, resolve
from ganserve.batcher import Ticket
from ganserve.errors import BodyTooLargeError, RequestError, SlowRequestError

logger = logging.getLogger(__name__)

MAX_PIPELINED = 64  # unanswered requests on one connection; more are left in the socket
_WATCH_S = 1.0  # how often a connection is looked at for being idle or slow
_NEEDED = ("on_message_begin", "on_headers_complete", "on_body", "on_message_complete", "_start_asgi_task", "shutdown")


class _Busy:
    """Stands in for a uvicorn cycle that is not complete: what comes next has to queue up behind it."""

    response_complete = False


class _Exchange:
    """One of our requests on a connection, until its answer is written."""

    __slots__ = (
        "body",
        "head_only",
        "headers",
        "keep_alive",
        "match",
        "method",
        "path",
        "query",
        "response",
        "size",
        "undo",
    )

    def __init__(self, match: Match, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.match = match
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.head_only = method == "HEAD"
        self.keep_alive = True
        self.body: list[bytes] = []
        self.size = 0
        self.response: Response | None = None
        self.undo: Any = None  # called if the client leaves: what stops the work


class FastProtocol(HttpToolsProtocol):
    """See the module. `door` belongs to the class that `protocol_class` makes."""

    door: ClassVar[FrontDoor]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """A client connected."""
        super().connection_made(transport)
        self._waiting: deque[_Exchange] = deque()
        self._receiving: _Exchange | None = None
        self._closing = False
        self._started_at: float | None = None  # when the request began that is still arriving
        self._active_at = self.loop.time()
        settings = self.door.settings
        if len(self.connections) > settings.max_connections:
            transport.write(_TOO_MANY)
            transport.close()
        self._watch_timer = self.loop.call_later(_WATCH_S, self._watch)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: what it asked for is not computed."""
        self._watch_timer.cancel()
        for exchange in self._waiting:
            if exchange.undo is not None:
                exchange.undo()
        self._waiting.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes of one or several requests."""
        self._active_at = self.loop.time()
        super().data_received(data)

    # The parser's callbacks, in the order in which it calls them.

    def on_message_begin(self) -> None:
        """A request's first byte. uvicorn's scope is only made if the request becomes uvicorn's."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._receiving = None
        self._started_at = self._active_at

    def on_headers_complete(self) -> None:
        """The head is there: ours or uvicorn's?"""
        exchange = self._claim()
        if exchange is None:
            self._hand_over()
            return
        self._receiving = exchange
        self._waiting.append(exchange)
        try:
            check_token(self.headers, self.door.token)
            check_announced(self.headers, self.door.settings.max_body_bytes)
        except RequestError as err:
            self._answer(exchange, tell(err, exchange.path))
        if len(self._waiting) >= MAX_PIPELINED:
            self.flow.pause_reading()

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        exchange = self._receiving
        if exchange is None:
            super().on_body(body)
            return
        if exchange.response is not None:
            return  # refused already: the rest is read and forgotten, so that the connection lives
        exchange.size += len(body)
        limit = self.door.settings.max_body_bytes
        if exchange.size > limit:
            error = BodyTooLargeError(f"the body may have {limit} bytes; it is larger")
            self._answer(exchange, tell(error, exchange.path))
            return
        exchange.body.append(body)

    def on_message_complete(self) -> None:
        """The whole request is there."""
        self._started_at = None
        exchange, self._receiving = self._receiving, None
        if exchange is None:
            super().on_message_complete()
        elif exchange.response is None:
            self._begin(exchange)

    # Ours, from claim to answer.

    def _claim(self) -> _Exchange | None:
        """The exchange, if this request is one of ours and uvicorn has none open on this connection."""
        if self._uvicorns_turn():
            return None
        url = self.url
        if self.expect_100_continue or b"%" in url or b"#" in url or not url.startswith(b"/"):
            return None
        if self.door.context is None or self.parser.should_upgrade():
            return None
        raw_path, _, query = url.partition(b"?")
        method, path = self.parser.get_method().decode("ascii"), raw_path.decode("latin-1")
        if path in BENTOML_PATHS:
            return None
        try:
            match = resolve(method, path)
        except RequestError:
            return None  # the front door tells it
        exchange = _Exchange(match, method, path, query, self.headers)
        exchange.keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        return exchange

    def _hand_over(self) -> None:
        """Makes the request uvicorn's, behind those of ours that are not answered yet."""
        self._started_at = None  # from here on the front door has the time-outs
        url, headers, expect_100_continue = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect_100_continue
        self.headers.extend(headers)
        if self._waiting:
            self.cycle = _Busy()  # type: ignore[assignment]  # all that on_headers_complete looks at
        super().on_headers_complete()

    def _begin(self, exchange: _Exchange) -> None:
        """Runs the handler here if that is cheap, else in a task."""
        context = self.door.context
        assert context is not None, "claimed, so the door is open"
        body = exchange.body[0] if len(exchange.body) == 1 else b"".join(exchange.body)
        exchange.body.clear()
        try:
            request = make_request(
                exchange.match,
                exchange.method,
                exchange.path,
                exchange.query,
                exchange.headers,
                body,
                self.door.settings.max_body_bytes,
            )
            if len(body) > INLINE_BODY_BYTES:
                self._in_task(exchange, respond(exchange.match, request, context))
                return
            outcome = exchange.match.handler(request, context)
            if isinstance(outcome, Response):
                self._answer(exchange, outcome)
            elif is_cheap(outcome):
                self._queue(exchange, outcome, context)
            else:
                self._in_task(exchange, work_off(outcome, context))
        except Exception as err:  # whatever it is, the client gets an answer and the connection lives
            self._answer(exchange, tell(err, exchange.path))

    def _queue(self, exchange: _Exchange, work: Work, context: Context) -> None:
        """Puts the rows into the batch of this turn of the loop."""
        latents, labels = work.inputs()
        done = functools.partial(self._done, exchange, work, labels, context)
        ticket = context.batcher.submit(latents, labels, done)
        exchange.undo = functools.partial(context.batcher.cancel, ticket)

    def _done(self, exchange: _Exchange, work: Work, labels: Labels | None, context: Context, ticket: Ticket) -> None:
        """The batcher calls it, never before `_queue` has returned: pixels, or why there are none."""
        exchange.undo = None
        try:
            response = finish(work, labels, ticket, context)
        except Exception as err:  # as in _begin
            response = tell(err, exchange.path)
        self._answer(exchange, response)

    def _in_task(self, exchange: _Exchange, answering: Any) -> None:
        """Awaits what is too dear for a parser callback."""
        task: asyncio.Task[Response] = self.loop.create_task(answering)
        self.tasks.add(task)  # type: ignore[arg-type]  # uvicorn waits for these when it stops, and wants no result
        exchange.undo = task.cancel

        def done(task: "asyncio.Task[Response]") -> None:
            self.tasks.discard(task)
            exchange.undo = None
            if not task.cancelled():
                error = task.exception()
                assert error is None or isinstance(error, Exception)
                self._answer(exchange, task.result() if error is None else tell(error, exchange.path))

        task.add_done_callback(done)

    def _answer(self, exchange: _Exchange, response: Response) -> None:
        """The answer is known; it is written when all before it are."""
        exchange.response = response
        if self._waiting and self._waiting[0] is exchange:
            self._flush()

    def _flush(self) -> None:
        """Writes every answer whose turn it is, in one piece."""
        if self.transport.is_closing():
            return
        pieces: list[bytes] = []
        keep_alive = True
        while keep_alive and self._waiting and (response := self._waiting[0].response) is not None:
            exchange = self._waiting.popleft()
            keep_alive = exchange.keep_alive and response.headers.get("connection") != "close"
            if self._closing and not self._waiting:
                keep_alive = False
            pieces.append(self._serialized(exchange, response, keep_alive=keep_alive))
            self.server_state.total_requests += 1
            self.door.count(exchange.match.template, response.status)
        self._active_at = self.loop.time()
        self.transport.write(b"".join(pieces))
        if not keep_alive:
            self.transport.close()
        elif not self._waiting and self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif len(self._waiting) < MAX_PIPELINED and not self.flow.write_paused:
            self.flow.resume_reading()

    def _serialized(self, exchange: _Exchange, response: Response, *, keep_alive: bool) -> bytes:
        """Status line, headers and body, as uvicorn would write them."""
        lines = [f"{name}: {value}\r\n" for name, value in response.headers.items()]
        lines.append(f"x-request-id: {request_id(exchange.headers)}\r\n")
        if response.content_type is not None:
            lines.append(f"content-type: {response.content_type}\r\n")
        if response.status != 304:  # a 304's length would be that of the representation it does not send
            lines.append(f"content-length: {len(response.body)}\r\n")
        if not keep_alive and "connection" not in response.headers:
            lines.append("connection: close\r\n")
        lines.append("\r\n")
        head = "".join(lines).encode("latin-1")
        assert not HEADER_VALUE_RE.search(head.replace(b"\r\n", b"")), "a header value with a control character"
        defaults = b"".join(b"%b: %b\r\n" % header for header in self.server_state.default_headers)
        return b"".join((STATUS_LINE[response.status], defaults, head, b"" if exchange.head_only else response.body))

    def _uvicorns_turn(self) -> bool:
        """Whether a request that uvicorn handles is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    # The connection's life.

    def _watch(self) -> None:
        """Once a second: closes a connection that is idle, or whose request does not arrive."""
        now = self.loop.time()
        settings = self.door.settings
        if self._started_at is not None:
            limit_ms = settings.header_timeout_ms if self._receiving is None else settings.body_timeout_ms
            if now - self._started_at > limit_ms / 1e3:
                self._give_up(limit_ms)
                return
        elif now - self._active_at > self.timeout_keep_alive and not self._waiting and not self._uvicorns_turn():
            self.transport.close()
            return
        self._watch_timer = self.loop.call_later(_WATCH_S, self._watch)

    def _give_up(self, limit_ms: float) -> None:
        """Tells a client that is too slow so, and closes: what it sends next could be anything."""
        exchange, what = self._receiving, "head" if self._receiving is None else "body"
        error = SlowRequestError(f"the {what} did not arrive within {limit_ms:g} ms")
        if exchange is None and not self._waiting and not self._uvicorns_turn():
            exchange = _Exchange(_NO_MATCH, "GET", "/", b"", [])
            self._waiting.append(exchange)
        if exchange is not None and exchange.response is None:
            self._answer(exchange, tell(error, exchange.path))
        if not self.transport.is_closing():
            self.transport.close()

    def pause_writing(self) -> None:
        """The client reads too slowly: nothing more is read from it until it has caught up."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if len(self._waiting) < MAX_PIPELINED:
            self.flow.resume_reading()

    def shutdown(self) -> None:
        """The server is stopping: what was accepted is answered, then the connection closes."""
        if self._waiting:
            self._closing = True
        else:
            super().shutdown()


_NO_MATCH = resolve("GET", "/")  # of a request whose head never came: only its place in the queue is needed
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 1\r\n"
    b"content-length: 20\r\nconnection: close\r\n\r\ntoo many connections"
)


def protocol_class(door: FrontDoor) -> type[FastProtocol]:
    """The protocol whose connections belong to `door`."""
    return type("FastProtocol", (FastProtocol,), {"door": door})


def install(door: FrontDoor) -> None:
    """Makes uvicorn use `protocol_class` for servers that are configured from here on, as BentoML's workers are.

    Where uvicorn is not what this class was written against, nothing changes but speed: every route is answered as
    ASGI.
    """
    missing = [name for name in _NEEDED if not hasattr(HttpToolsProtocol, name)]
    known = (0, 30) <= tuple(map(int, uvicorn.__version__.split(".")[:2])) < (1, 0)
    if missing or not known or not issubclass(auto.AutoHTTPProtocol, HttpToolsProtocol):
        logger.warning("uvicorn %s is not one that the fast protocol knows: serving as plain ASGI", uvicorn.__version__)
        return
    auto.AutoHTTPProtocol = protocol_class(door)
