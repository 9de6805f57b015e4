"""What a client is owed: its requests are begun as far as there is room, and answered in their order.

`_waiting` holds the requests of ours that are not answered yet; uvicorn's `pipeline` holds its own. Ours never overtake
uvicorn's: while one of its cycles is open, every request goes to it. Where a handler and its rows are cheap, all is
done in the callbacks of the parser and of the batcher; what is dear has a task. All answers whose turn it is are one
write.
"""

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from ganserve.api.connection import Connection
from ganserve.api.exchange import (
    INLINE_BODY_BYTES,
    finish,
    is_cheap,
    make_request,
    new_request_id,
    respond,
    tell,
    work_off,
)
from ganserve.api.http import Context, Labels, Response, Work
from ganserve.api.remembered import Head
from ganserve.api.routing import resolve
from ganserve.api.wire import serialized
from ganserve.batcher import Ticket

MAX_PIPELINED = 64  # unanswered requests on one connection; more are not parsed, then left in the socket
MAX_PIPELINED_ROWS = 256  # the same for images: a client that reads nothing is owed these and one more request's

# Of a request whose head never came: only its place in the queue is needed.
NO_HEAD = Head(resolve("GET", "/")._replace(template="unknown"))


class Exchange(Protocol):
    """One of our requests on a connection, until its answer is written: what the queue knows of it."""

    head: Head
    keep_alive: bool
    response: Response | None
    arrived_at: float  # only where there is an access log

    @property
    def rows(self) -> int:
        """How many were asked for, once that is known."""

    @property
    def held_bytes(self) -> int:
        """Of the body, until the answer is written."""

    @property
    def undo(self) -> Callable[[], object] | None:
        """Called if the client leaves: what stops the work."""


class HandledExchange:
    """One that a handler answers."""

    __slots__ = ("arrived_at", "body", "head", "held_bytes", "keep_alive", "response", "rows", "undo")

    # Of one that is parsed: its first piece, and all others in one, as there may be millions.
    body: list[bytes | bytearray]

    def __init__(self, head: Head) -> None:
        self.head = head
        self.keep_alive = head.keep_alive
        self.held_bytes = 0
        self.response: Response | None = None
        self.rows = 0
        self.arrived_at = 0.0
        self.undo: Callable[[], object] | None = None


class Answering(Connection):
    """A connection whose requests of ours are answered, one after the other."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """A client connected, and is owed nothing."""
        self._waiting: deque[Exchange] = deque()
        self._owed_rows = 0  # of those in the queue that have begun
        self._held: deque[tuple[HandledExchange, bytes]] = deque()  # those that have not, with their bodies
        super().connection_made(transport)

    def _begin(self, exchange: HandledExchange, body: bytes) -> None:
        """Runs the handler here if that is cheap, else in a task."""
        context, head = self.door.context, exchange.head
        assert context is not None, "claimed, so the door is open"
        try:
            limit = self.door.settings.max_body_bytes
            request = make_request(head.match, head.method, head.path, head.query, head.mapping, body, limit)
            if len(request.body) > INLINE_BODY_BYTES:  # inflated
                self._owe(exchange, MAX_PIPELINED_ROWS)  # nobody knows yet
                self._in_task(exchange, respond(head.match, request, context))
                return
            outcome = head.match.handler(request, context)
            if isinstance(outcome, Response):
                self._answer(exchange, outcome)
                return
            self._owe(exchange, outcome.rows)
            if head.body_bytes and head.body_bytes == len(body) and request.body is body:
                head.learn(body, outcome)
            if is_cheap(outcome):
                self._queue(exchange, outcome, context)
            else:
                self._in_task(exchange, work_off(outcome, context))
        except Exception as err:  # whatever it is, the client gets an answer and the connection lives
            self._answer(exchange, tell(err, head.path))

    def _owe(self, exchange: HandledExchange, rows: int) -> None:
        """Images take memory from when they are computed until the client has read them."""
        exchange.rows = rows
        self._owed_rows += rows

    def _owes_enough(self) -> bool:
        """Whether the next request of this connection has to wait until the client has read some more."""
        return self._owed_rows >= MAX_PIPELINED_ROWS or self.flow.write_paused

    def _begin_held(self) -> None:
        """Begins what had to wait, as far as there is room."""
        while self._held and not self._owes_enough():
            self._begin(*self._held.popleft())

    def _queue(self, exchange: HandledExchange, work: Work, context: Context) -> None:
        """Puts the rows into the batch of this turn of the loop."""
        latents, labels = work.inputs()
        done: Callable[[Ticket], object] = functools.partial(self._done, exchange, work, labels, context)
        ticket = context.batcher.submit(latents, labels, done)
        exchange.undo = functools.partial(context.batcher.cancel, ticket)

    def _done(
        self, exchange: Exchange, work: Work, labels: Labels | None, context: Context, ticket: Ticket
    ) -> Response:
        """The batcher calls it, never before `_queue` has returned: pixels, or why there are none."""
        try:
            response = finish(work, labels, ticket, context)
        except Exception as err:  # as in _begin
            response = tell(err, exchange.head.path)
        self._answer(exchange, response)
        return response

    def _in_task(self, exchange: HandledExchange, answering: Any) -> None:
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
                self._answer(exchange, task.result() if error is None else tell(error, exchange.head.path))

        task.add_done_callback(done)

    def _answer(self, exchange: Exchange, response: Response) -> None:
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
            self._owed_rows -= exchange.rows
            if exchange.held_bytes:
                self._let_go(exchange)
            keep_alive = exchange.keep_alive and response.headers.get("connection") != "close"
            method, identity = exchange.head.method, exchange.head.identity or new_request_id()
            defaults = self.server_state.default_headers
            try:
                pieces.append(serialized(response, method, identity, defaults, keep_alive=keep_alive))
            except Exception as err:  # an answer that cannot be written: this request has left the queue
                response = tell(err, exchange.head.path)
                pieces.append(serialized(response, method, identity, defaults, keep_alive=keep_alive))
            self.server_state.total_requests += 1
            self.door.count(exchange.head.match.template, response.status)
            if self.door.access_log is not None:
                self._log(exchange, identity, response)
        self._was_active = True
        self.transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if not keep_alive:
            self._closing = True
            self.transport.close()
            return
        if not self._waiting and self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        self._begin_held()
        if self._stash:
            self._feed_soon()

    def _log(self, exchange: Exchange, identity: str, response: Response | None) -> None:
        """A line for the access log; without a response, the client left before it."""
        assert self.door.access_log is not None, "asked before"
        head = exchange.head
        self.door.access_log.write(
            identity=identity,
            method=None if head is NO_HEAD else head.method,
            route=head.match.template,
            status=None if response is None else response.status,
            sent_bytes=0 if response is None or head.method == "HEAD" else len(response.body),
            started_at=exchange.arrived_at or time.perf_counter(),
            rows=0 if response is None else response.rows,
            client=None if self.client is None else self.client[0],
        )

    def _let_go(self, exchange: Exchange) -> None:
        """Its body is held no longer."""
        if isinstance(exchange, HandledExchange) and exchange.held_bytes:
            exchange.body.clear()
            self.door.bodies.remove(exchange.held_bytes)
            exchange.held_bytes = 0

    # What the connection's life is to the queue.

    def _blocked(self) -> bool:
        """Or enough answers are owed: then the request that is arriving is the last one."""
        enough = len(self._waiting) + len(self.pipeline) >= MAX_PIPELINED or bool(self._held)
        return super()._blocked() or (enough and not self._in_message)

    def _idle(self) -> bool:
        """Nor is one of ours."""
        return not self._waiting and super()._idle()

    def resume_writing(self) -> None:
        """The client has caught up: what it asked for is begun."""
        super().resume_writing()
        self._begin_held()

    def shutdown(self) -> None:
        """The server is stopping: what was accepted is answered, then the connection closes."""
        for _ in range(len(self._held)):  # the last in the queue, not begun: the client asks again where it is told to
            self._let_go(self._waiting.pop())
        self._held.clear()
        if self._uvicorns_turn() or self.pipeline or not self._waiting:
            super().shutdown()  # it looks at its last cycle, which is the last of all
        else:
            self._waiting[-1].keep_alive = False
        self._closing = True

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: what it asked for is not computed."""
        for exchange in self._waiting:
            if exchange.undo is not None:
                exchange.undo()
            self._let_go(exchange)
            if self.door.access_log is not None:
                self._log(exchange, exchange.head.identity or new_request_id(), None)
        self._waiting.clear()
        self._held.clear()
        super().connection_lost(exc)
