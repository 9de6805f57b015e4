"""HTTP without a framework: our routes answered inside uvicorn's own protocol class.

An ASGI request costs a task, a scope, and two round trips through `send`: several times what a digit costs. This
subclass of uvicorn's httptools protocol answers our routes in the parser's callbacks: the request is parsed when its
last byte is there, its rows join the batch of this turn of the loop, and the answer is one write. Everything else goes
to uvicorn as ever, and from there to the front door: BentoML's paths, unknown ones, `Expect`, upgrades, whatever
follows one of these on the same connection. Both ways lead to the same handlers and give the same answers.

A client in a loop sends the same head again and again, to the byte. So the head of a request that came in one piece is
remembered with what the parser made of it, and the next request that starts with it is not parsed: its body follows.
And where the handler says which bytes of the body are tensors (`ganserve.api.repeat`), a body with the same bytes
around them goes straight to the batcher, and its answer straight to the socket.

Per connection, requests are answered in their order. `_waiting` holds those of ours that are not answered yet;
uvicorn's `pipeline` holds its own. Ours never overtake uvicorn's: while one of its cycles is open, every request goes
to it.
"""

import asyncio
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE, STATUS_LINE, HttpToolsProtocol

from ganserve.api.app import FrontDoor
from ganserve.api.exchange import (
    INLINE_BODY_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    check_announced,
    check_head,
    check_token,
    finish,
    given_request_id,
    header_mapping,
    is_cheap,
    make_request,
    new_request_id,
    respond,
    server_timing,
    tell,
    work_off,
)
from ganserve.api.http import Context, Labels, Latents, Response, Work
from ganserve.api.repeat import Repeat
from ganserve.api.routing import BENTOML_PATHS, Match, resolve
from ganserve.batcher import Ticket
from ganserve.errors import (
    BodyTooLargeError,
    HeadTooLargeError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    SlowRequestError,
)

logger = logging.getLogger(__name__)
# uvicorn warns of each request that is no HTTP: whoever sends them would decide how long the log is.
_uvicorn_logger = logging.getLogger(f"{__name__}.uvicorn")
_uvicorn_logger.setLevel(logging.ERROR)

MAX_PIPELINED = 64  # unanswered requests on one connection; more are not parsed, then left in the socket
MAX_PIPELINED_ROWS = 256  # the same for images: a client that reads nothing is owed these and one more request's
_JOINED_BYTES = 16384  # of an answer: more are not copied to be one piece
_SLICE_BYTES = 2048  # parsed at once: a request, or a few dozen of the smallest
_MESSAGES_A_TURN = 16  # requests of one connection in one turn of the loop: then others have theirs
_REMEMBERED_HEADS, _REMEMBERED_HEAD_BYTES = 256, 2048
_REMEMBERED_BODIES, _LEARNED_BODIES = 16, 256  # kinds of them behind one head: at once, and ever
_WATCH_S = 1.0  # how often a connection is looked at for being idle or slow
_NEEDED = ("on_message_begin", "on_headers_complete", "on_body", "on_message_complete", "_start_asgi_task", "shutdown")


class _Busy:
    """Stands in for a uvicorn cycle that is not complete: what comes next has to queue up behind it."""

    response_complete = False


class _Flow(FlowControl):
    """uvicorn's flow control decides whether requests are parsed; the protocol decides whether bytes are read."""

    def __init__(self, transport: asyncio.Transport, on_change: Callable[[], None]) -> None:
        super().__init__(transport)
        self._on_change = on_change

    def pause_reading(self) -> None:
        """Somebody has enough for now."""
        if not self.read_paused:
            self.read_paused = True
            self._on_change()

    def resume_reading(self) -> None:
        """Whoever had enough wants more."""
        if self.read_paused:
            self.read_paused = False
            self._on_change()


class _Head:
    """What the parser made of a request's head; it does not change, and may serve many requests."""

    __slots__ = (
        "after",
        "before",
        "body_bytes",
        "identity",
        "keep_alive",
        "learned",
        "mapping",
        "match",
        "method",
        "path",
        "query",
        "repeats",
    )

    def __init__(
        self,
        match: Match,
        method: str = "GET",
        path: str = "/",
        query: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = (),
        *,
        keep_alive: bool = True,
    ) -> None:
        self.match = match
        self.method = method
        self.path = path
        self.query = query
        self.mapping = header_mapping(headers)
        self.identity = given_request_id(headers)
        self.keep_alive = keep_alive
        self.body_bytes = 0  # of the body that follows a remembered head
        self.before = self.after = 0  # bytes of that body: what is between them are tensors
        self.repeats: dict[bytes, _Repeated] = {}  # by those bytes
        self.learned = 0  # how often something was put there

    def learn(self, body: bytes, work: Work) -> None:
        """Keeps what `work` knows of the next body like this one, if anything."""
        if work.repeat is None or self.learned == _LEARNED_BODIES or not is_cheap(work):
            return
        self.learned += 1
        repeat = work.repeat()
        if repeat is None:
            return
        if (repeat.before, repeat.after) != (self.before, self.after) or len(self.repeats) >= _REMEMBERED_BODIES:
            self.repeats.clear()
            self.before, self.after = repeat.before, repeat.after
        around = body[: repeat.before] + body[len(body) - repeat.after :]
        self.repeats[around] = _Repeated(repeat, work)


class _Repeated:
    """How bodies of one kind are answered, with no handler."""

    __slots__ = ("first_lines", "reader", "repeat", "rows", "work")

    def __init__(self, repeat: Repeat, work: Work) -> None:
        self.repeat = repeat
        self.reader, self.rows = repeat.reader, work.rows
        # Not the body that it came of, which `inputs` and `repeat` know.
        self.work = Work(rows=work.rows, inputs=_no_inputs, finish=work.finish, row_us=work.row_us)
        self.first_lines: bytes | None = None  # of the answer, once there was one


def _no_inputs() -> tuple[Latents, Labels | None]:
    raise AssertionError("a repeated request's rows are read by the batcher")


class _Exchange:
    """One of our requests on a connection, until its answer is written."""

    __slots__ = ("arrived_at", "body", "head", "held_bytes", "keep_alive", "response", "rows", "undo")

    # Of one that is parsed: its first piece, and all others in one, as there may be millions.
    body: list[bytes | bytearray]

    def __init__(self, head: _Head) -> None:
        self.head = head
        self.keep_alive = head.keep_alive
        self.held_bytes = 0  # of the body, until the answer is written
        self.response: Response | None = None
        self.rows = 0  # that were asked for, once that is known
        self.arrived_at = 0.0  # only where there is an access log
        self.undo: Any = None  # called if the client leaves: what stops the work


class _Repetition(Ticket):
    """An exchange whose request came before but for its tensors, and its place in the batcher: one object for both."""

    __slots__ = ("arrived_at", "context", "head", "keep_alive", "protocol", "repeated", "response")

    held_bytes = 0  # its body was never held

    def __init__(
        self, protocol: "FastProtocol", context: Context, head: _Head, repeated: _Repeated, source: bytes
    ) -> None:
        super().__init__(repeated.rows, source=source, reader=repeated.reader)
        self.protocol = protocol
        self.context = context
        self.head = head
        self.repeated = repeated
        self.keep_alive = head.keep_alive
        self.response: Response | None = None
        self.arrived_at = 0.0

    def notify(self) -> None:
        """The batcher is done with it."""
        self.protocol._repeat_done(self)

    def undo(self) -> None:
        """The client left."""
        self.context.batcher.cancel(self)


class FastProtocol(HttpToolsProtocol):
    """See the module. `door` and the remembered heads belong to the class that `protocol_class` makes."""

    door: ClassVar[FrontDoor]
    heads: ClassVar[dict[bytes, _Head]]
    _defaults_of: ClassVar[list[tuple[bytes, bytes]] | None] = None  # uvicorn's own headers, and they serialised
    _defaults: ClassVar[bytes] = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """A client connected."""
        super().connection_made(transport)
        self.logger = _uvicorn_logger
        self.flow = _Flow(transport, self._reading_changed)
        self._waiting: deque[_Exchange | _Repetition] = deque()
        self._owed_rows = 0  # of those in the queue that have begun
        self._held: deque[tuple[_Exchange, bytes]] = deque()  # those that have not, with their bodies
        self._receiving: _Exchange | None = None
        self._stash: deque[memoryview] = deque()  # what was read and is not parsed yet
        self._feed_handle: asyncio.Handle | None = None
        self._stopped_reading = False
        self._closing = False  # no further request is answered
        # Of the message that is arriving:
        self._in_message = self._in_head = self._ignored = False
        self._message_bytes = self._body_bytes = 0
        self._announced_bytes = 0  # of the body of one of ours: as far as that goes, no other request begins
        self._messages = 0
        self._whole: bytes | None = None  # what was read first of the request that is arriving, if it starts there
        self._early: bytes | None = None  # a known head, whose body has still to come
        self._started_at = self._active_at = self._drained_at = self.loop.time()
        self._was_active = False  # since it was looked at
        self._undrained_bytes = 0
        self._watch_timer = self.loop.call_later(_WATCH_S, self._watch)
        if self.door.context is not None:
            self.door.context.batcher.newcomer()
        if len(self.connections) > self.door.settings.max_connections:
            transport.write(_TOO_MANY)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left: what it asked for is not computed."""
        self._closing = True
        self._watch_timer.cancel()
        self._stash.clear()
        for exchange in self._waiting:
            if exchange.undo is not None:
                exchange.undo()
            self._let_go(exchange)
            if self.door.access_log is not None:
                self._log(exchange, exchange.head.identity or new_request_id(), None)
        self._waiting.clear()
        self._held.clear()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes of one or several requests: parsed in slices, as far as there is room for their answers."""
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self._early is not None:
            data, self._early = self._early + data, None
        at_start = not (self._waiting or self._in_message or self._stash or self._closing)
        if at_start and (self.cycle is None or self.cycle.response_complete) and not self.flow.read_paused:
            end = data.find(b"\r\n\r\n") + 4
            head = self.heads.get(data[:end])
            if head is not None and len(data) == end + head.body_bytes:
                if head.repeats and self._repeat(head, data, end):
                    return
                exchange = _Exchange(head)
                if self.door.access_log is not None:
                    exchange.arrived_at = time.perf_counter()
                self._waiting.append(exchange)
                self._begin(exchange, data[end:])
                return
            if head is not None and len(data) == end:  # many clients write the head first
                self._early = data
                return
        if at_start:
            self._whole = data if len(data) <= INLINE_BODY_BYTES + _REMEMBERED_HEAD_BYTES else None
        elif self._in_head or not self._in_message or len(self._whole or b"") > _REMEMBERED_HEAD_BYTES:
            self._whole = None
        self._stash.append(memoryview(data))
        self._feed()

    def _remember(self, head: _Head) -> None:
        """Keeps the head of the request that has just arrived, if it came in one piece, alone or with all its body."""
        whole, self._whole = self._whole, None
        if whole is None or self._stash or self._messages != 1 or head.identity is not None:
            return
        end, body_bytes = whole.find(b"\r\n\r\n") + 4, self._body_bytes
        alone = len(whole) == end and self._announced_bytes == body_bytes  # not chunked, for example
        if end > _REMEMBERED_HEAD_BYTES or not (alone or len(whole) == end + body_bytes):
            return
        if len(self.heads) >= _REMEMBERED_HEADS:
            self.heads.clear()
        head.body_bytes = self._body_bytes
        self.heads[whole[:end]] = head

    def _feed(self) -> None:
        """Parses what was read, until too much is owed to this client or it is the turn of others."""
        self._feed_handle = None
        self._messages = 0
        while self._stash and self._messages < _MESSAGES_A_TURN and not self._blocked():
            if self.transport.is_closing() or (self._closing and not self._in_message):
                self._stash.clear()
                return
            piece = self._stash.popleft()
            size = max(_SLICE_BYTES, self._announced_bytes - self._body_bytes) if self._receiving else _SLICE_BYTES
            if len(piece) > size:
                self._stash.appendleft(piece[size:])
                piece = piece[:size]
            self._message_bytes += len(piece)
            super().data_received(piece)  # type: ignore[arg-type]  # the parser takes any buffer
            # Heads and trailers, and a value without an end of which the parser tells nothing; chunks cost up to 6
            # bytes for each of the body.
            if self._in_message and self._message_bytes > MAX_HEAD_BYTES + 6 * self._body_bytes:
                self._refuse(HeadTooLargeError(f"a request's head may have {MAX_HEAD_BYTES} bytes"))
        if self._stash and not self._blocked():
            self._feed_soon()
        self._set_reading(not self._stash and not self.flow.read_paused)

    def _reading_changed(self) -> None:
        """The flow control was told to pause, or to go on."""
        if self.flow.read_paused:
            self._set_reading(False)
        else:
            self._feed_soon()

    def _feed_soon(self) -> None:
        if self._feed_handle is None and not self.transport.is_closing():
            self._feed_handle = self.loop.call_soon(self._feed)

    def _blocked(self) -> bool:
        """Whether nothing more may be parsed now: uvicorn or a slow reader says so, or enough answers are owed."""
        enough = len(self._waiting) + len(self.pipeline) >= MAX_PIPELINED or bool(self._held)
        return self.flow.read_paused or self.flow.write_paused or (enough and not self._in_message)

    def _set_reading(self, wanted: bool) -> None:
        if wanted == self._stopped_reading and not self.transport.is_closing():
            self._stopped_reading = not wanted
            if wanted:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    # The parser's callbacks, in the order in which it calls them.

    def on_message_begin(self) -> None:
        """A request's first byte. uvicorn's scope is only made if the request becomes uvicorn's."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._receiving = None
        self._in_message, self._in_head, self._ignored = True, True, self._closing
        self._message_bytes = self._body_bytes = self._announced_bytes = 0
        self._started_at = self._active_at = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers, which come after the body, are not headers (RFC 9110, section 6.5.1)."""
        if not self._in_head:
            return
        if len(self.headers) < MAX_HEADERS:
            super().on_header(name, value)
        else:
            self._refuse(HeadTooLargeError(f"a request may have {MAX_HEADERS} headers"))

    def on_headers_complete(self) -> None:
        """The head is there: ours or uvicorn's?"""
        self._in_head = False
        self._started_at = self.loop.time()
        if self._ignored or self._closing:
            self._ignored = True
            return
        exchange = self._claim()
        if exchange is None:
            self._hand_over()
            return
        if self.door.access_log is not None:
            exchange.arrived_at = time.perf_counter()
        exchange.body = []
        self._receiving = exchange
        self._waiting.append(exchange)
        try:
            check_head(self.parser.get_http_version(), self.headers)
            check_token(self.headers, self.door.token)
            check_announced(self.headers, self.door.settings.max_body_bytes)
        except RequestError as err:
            self._answer(exchange, tell(err, exchange.head.path))
        else:
            length = exchange.head.mapping.get("content-length", "")
            self._announced_bytes = int(length) if length.isdecimal() else 0

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._body_bytes += len(body)
        exchange = self._receiving
        if self._ignored or (exchange is not None and exchange.response is not None):
            return  # refused already: the rest is read and forgotten, so that the connection lives
        if exchange is None:
            super().on_body(body)
            return
        limit = self.door.settings.max_body_bytes
        if self._body_bytes > limit:
            error = BodyTooLargeError(f"the body may have {limit} bytes; it is larger")
            self._let_go(exchange)
            self._answer(exchange, tell(error, exchange.head.path))
            return
        if len(exchange.body) == 2:
            exchange.body[1] += body
        else:
            exchange.body.append(bytearray(body) if exchange.body else body)
        exchange.held_bytes += len(body)
        try:
            self.door.bodies.add(len(body), exchange.held_bytes)
        except OverloadedError as err:
            self._let_go(exchange)
            self._answer(exchange, tell(err, exchange.head.path))

    def _let_go(self, exchange: _Exchange | _Repetition) -> None:
        """Its body is held no longer."""
        if isinstance(exchange, _Exchange) and exchange.held_bytes:
            exchange.body.clear()
            self.door.bodies.remove(exchange.held_bytes)
            exchange.held_bytes = 0

    def on_message_complete(self) -> None:
        """The whole request is there."""
        self._in_message = False
        self._messages += 1
        self._active_at = self.loop.time()
        exchange, self._receiving = self._receiving, None
        if self._ignored:
            return
        if exchange is None:
            super().on_message_complete()
        elif exchange.response is None:
            self._remember(exchange.head)
            body = bytes(exchange.body[0]) if len(exchange.body) == 1 else b"".join(exchange.body)
            exchange.body.clear()
            if self._held or self._owes_enough():
                self._held.append((exchange, body))
            else:
                self._begin(exchange, body)

    def on_response_complete(self) -> None:
        """Uvicorn has answered one of its requests."""
        super().on_response_complete()
        self._active_at = self.loop.time()
        self._feed_soon()

    def _should_upgrade(self) -> bool:
        """Nothing here speaks websocket: an upgrade is an ordinary request, answered in its turn."""
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """Anybody can ask for an upgrade: nothing for the log."""

    def send_400_response(self, msg: str) -> None:
        """The parser cannot go on: what is owed is answered first."""
        self._refuse(InvalidRequestError(msg))

    def _refuse(self, error: RequestError) -> None:
        """Ends the connection with a last answer, behind those that are owed."""
        if self._closing:
            return
        self._closing = self._ignored = True
        exchange, self._receiving = self._receiving, None
        if exchange is not None and exchange.response is not None:
            self.transport.close()  # it was answered already, and its rest is not what it should be
        elif self._uvicorns_turn() or self.pipeline:
            if self._in_message and not self._in_head:
                self.transport.close()  # uvicorn waits for a body that will not come
            else:
                self.cycle.keep_alive = False
        else:
            if exchange is None:
                exchange = _Exchange(_NO_HEAD)
                self._waiting.append(exchange)
            exchange.keep_alive = False
            self._answer(exchange, tell(error, self.url.decode("latin-1") if self._in_message else "/"))

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
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        return _Exchange(_Head(match, method, path, query, self.headers, keep_alive=keep_alive))

    def _hand_over(self) -> None:
        """Makes the request uvicorn's, behind those of ours that are not answered yet."""
        url, headers, expect_100_continue = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect_100_continue
        self.headers.extend(headers)
        previous = self.cycle
        if self._waiting:
            self.cycle = _Busy()  # type: ignore[assignment]  # all that on_headers_complete looks at
        try:
            super().on_headers_complete()
        except Exception:  # a URL that it cannot parse
            self.cycle = previous
            raise
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # the parser takes what follows an upgrade for another protocol

    def _begin(self, exchange: _Exchange, body: bytes) -> None:
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

    def _owe(self, exchange: _Exchange, rows: int) -> None:
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

    def _queue(self, exchange: _Exchange, work: Work, context: Context) -> None:
        """Puts the rows into the batch of this turn of the loop."""
        latents, labels = work.inputs()
        done: Callable[[Ticket], object] = functools.partial(self._done, exchange, work, labels, context)
        ticket = context.batcher.submit(latents, labels, done)
        exchange.undo = functools.partial(context.batcher.cancel, ticket)

    def _done(
        self, exchange: _Exchange | _Repetition, work: Work, labels: Labels | None, context: Context, ticket: Ticket
    ) -> Response:
        """The batcher calls it, never before `_queue` has returned: pixels, or why there are none."""
        try:
            response = finish(work, labels, ticket, context)
        except Exception as err:  # as in _begin
            response = tell(err, exchange.head.path)
        self._answer(exchange, response)
        return response

    def _repeat(self, head: _Head, data: bytes, start: int) -> bool:
        """Puts the tensors of a body, `data` from `start` on, into the batch; false if it is for the handler."""
        begin, end = start + head.before, len(data) - head.after
        repeated = head.repeats.get(data[start:begin] + data[end:])
        context = self.door.context
        if repeated is None or context is None:
            return False
        source = repeated.repeat.source(data[begin:end])
        if source is None:
            return False
        repetition = _Repetition(self, context, head, repeated, source)
        if self.door.access_log is not None:
            repetition.arrived_at = time.perf_counter()
        self._waiting.append(repetition)
        self._owed_rows += repetition.rows
        try:
            context.batcher.enqueue(repetition)
        except RequestError as err:
            self._answer(repetition, tell(err, head.path))
        return True

    def _repeat_done(self, repetition: "_Repetition") -> None:
        """As `_done`, and the answer is written at once where nothing else is to be done on this connection."""
        waiting, pixels, repeated, context = self._waiting, repetition.pixels, repetition.repeated, repetition.context
        first_lines = repeated.first_lines
        alone = len(waiting) == 1 and not self._stash and not self.pipeline and repetition.keep_alive
        if first_lines is None or pixels is None or not alone or self.transport.is_closing():
            response = self._done(repetition, repeated.work, repeated.repeat.labels, context, repetition)
            if response.status == 200:
                repeated.first_lines = _first_lines_of(response)
            return
        started_at = time.perf_counter()
        pieces = repeated.repeat.encode(pixels)
        encode_s = time.perf_counter() - started_at
        identity = new_request_id()
        timing = server_timing(repetition, encode_s)
        size = sum(map(len, pieces))
        last = f"server-timing: {timing}\r\ncontent-length: {size}\r\nx-request-id: {identity}\r\n\r\n"
        lines = (first_lines, self._default_lines(), last.encode("ascii"))
        waiting.clear()
        self._owed_rows -= repetition.rows
        self._was_active = True
        if size > _JOINED_BYTES:
            self.transport.writelines((b"".join(lines), *pieces))
        else:
            self.transport.write(b"".join((*lines, *pieces)))
        self.server_state.total_requests += 1
        if context.metrics is not None:
            context.metrics.answered(repetition.head.match.template, 200)
            context.metrics.encoded(encode_s)
        if self.door.access_log is not None:
            self._log(repetition, identity, Response(body=b"".join(pieces), rows=repetition.rows))

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
                self._answer(exchange, task.result() if error is None else tell(error, exchange.head.path))

        task.add_done_callback(done)

    def _answer(self, exchange: _Exchange | _Repetition, response: Response) -> None:
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
            identity = exchange.head.identity or new_request_id()
            try:
                pieces.append(self._serialized(exchange, response, identity, keep_alive=keep_alive))
            except Exception as err:  # an answer that cannot be written: this request has left the queue
                response = tell(err, exchange.head.path)
                pieces.append(self._serialized(exchange, response, identity, keep_alive=keep_alive))
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

    def _log(self, exchange: _Exchange | _Repetition, identity: str, response: Response | None) -> None:
        """A line for the access log; without a response, the client left before it."""
        assert self.door.access_log is not None, "asked before"
        head = exchange.head
        self.door.access_log.write(
            identity=identity,
            method=None if head is _NO_HEAD else head.method,
            route=head.match.template,
            status=None if response is None else response.status,
            sent_bytes=0 if response is None or head.method == "HEAD" else len(response.body),
            started_at=exchange.arrived_at or time.perf_counter(),
            rows=0 if response is None else response.rows,
            client=None if self.client is None else self.client[0],
        )

    def _serialized(
        self, exchange: _Exchange | _Repetition, response: Response, identity: str, *, keep_alive: bool
    ) -> bytes:
        """Status line, headers and body, as uvicorn would write them."""
        head, body = exchange.head, response.body
        timing = "" if response.server_timing is None else f"server-timing: {response.server_timing}\r\n"
        # A 304's length would be that of the representation it does not send.
        length = f"content-length: {len(body)}\r\n" if response.status != 304 else ""
        close = "" if keep_alive or "connection" in response.headers else "connection: close\r\n"
        last = f"{timing}{length}{close}x-request-id: {identity}\r\n\r\n"
        first = _first_lines_of(response)
        lines = (first, self._default_lines(), last.encode("ascii"))
        return b"".join((*lines, b"" if head.method == "HEAD" else body))

    def _default_lines(self) -> bytes:
        """Uvicorn's own headers: the date."""
        defaults = self.server_state.default_headers
        if defaults is not FastProtocol._defaults_of:  # uvicorn makes a new list every second
            FastProtocol._defaults = b"".join([b"%b: %b\r\n" % header for header in defaults])
            FastProtocol._defaults_of = defaults
        return FastProtocol._defaults

    def _uvicorns_turn(self) -> bool:
        """Whether a request that uvicorn handles is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    # The connection's life.

    def _watch(self) -> None:
        """Once a second: ends a connection that is idle, whose request does not arrive, or that does not read."""
        self._watch_timer = self.loop.call_later(_WATCH_S, self._watch)
        now, settings = self.loop.time(), self.door.settings
        if self._early is not None:  # for longer than a client needs between two writes: time counts from here on
            self._stash.append(memoryview(self._early))
            self._early = None
            self._feed()
        if self._was_active:
            self._active_at, self._was_active = now, False
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent < self._undrained_bytes:
            self._drained_at = now
        self._undrained_bytes = unsent
        if now - self._drained_at > settings.body_timeout_ms / 1e3:
            self.transport.abort()  # close() would wait for the client to read
        elif unsent or self._stash or self.flow.read_paused or self.transport.is_closing():
            return  # busy, or ending already
        elif self._in_message:
            limit_ms = settings.header_timeout_ms if self._in_head else settings.body_timeout_ms
            if now - self._started_at > limit_ms / 1e3:
                self._give_up(limit_ms)
        elif now - self._active_at > self.timeout_keep_alive and not self._waiting and not self._uvicorns_turn():
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Uvicorn's own timer: `_watch` knows better, whether or not a request is arriving."""

    def _give_up(self, limit_ms: float) -> None:
        """Tells a client that is too slow so, and closes: what it sends next could be anything."""
        exchange, what = self._receiving, "head" if self._in_head else "body"
        error = SlowRequestError(f"the {what} did not arrive within {limit_ms:g} ms")
        if exchange is None and self._uvicorns_turn():
            return  # the front door has a time-out for its bodies
        self._closing = self._ignored = True
        if exchange is None and not self._waiting and self._in_head:
            exchange = _Exchange(_NO_HEAD)
            self._waiting.append(exchange)
        if exchange is not None and exchange.response is None:
            self._answer(exchange, tell(error, exchange.head.path))
        if not self.transport.is_closing():
            self.transport.close()

    def pause_writing(self) -> None:
        """The client reads too slowly: nothing more is parsed or read until it has caught up."""
        super().pause_writing()
        self._set_reading(False)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._begin_held()
        self._feed_soon()

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


def _first_lines_of(response: Response) -> bytes:
    return _first_lines(response.status, response.content_type, tuple(response.headers.items()))


@functools.lru_cache(maxsize=256)
def _first_lines(status: int, content_type: str | None, headers: tuple[tuple[str, str], ...]) -> bytes:
    """The status line and the headers that many answers have alike."""
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    if content_type is not None:
        lines.append(f"content-type: {content_type}\r\n")
    head = "".join(lines).encode("latin-1")
    assert not HEADER_VALUE_RE.search(head.replace(b"\r\n", b"")), "a header value with a control character"
    return STATUS_LINE[status] + head


# Of a request whose head never came: only its place in the queue is needed.
_NO_HEAD = _Head(resolve("GET", "/")._replace(template="unknown"))
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 1\r\n"
    b"content-length: 20\r\nconnection: close\r\n\r\ntoo many connections"
)


def protocol_class(door: FrontDoor) -> type[FastProtocol]:
    """The protocol whose connections belong to `door`."""
    return type("FastProtocol", (FastProtocol,), {"door": door, "heads": {}})


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
