"""HTTP without a framework: our routes answered inside uvicorn's own protocol class.

An ASGI request costs a task, a scope, and two round trips through `send`: several times what a digit costs. This
subclass of uvicorn's httptools protocol answers our routes in the parser's callbacks: the request is parsed when its
last byte is there (`parsing`), its rows join the batch of this turn of the loop, and the answer is one write
(`answering`), all within the limits of its connection (`connection`).

Here is what need not be done for a request that came before (`remembered`). Where its head is known, it is not parsed:
its body follows. Where what is around its tensors is known too, no handler is asked: they go straight to the batcher,
and the answer straight to the socket.
"""

import asyncio
import logging
import time
from typing import ClassVar

import uvicorn
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ganserve.api.answering import HandledExchange
from ganserve.api.app import FrontDoor
from ganserve.api.exchange import INLINE_BODY_BYTES, new_request_id, server_timing, tell
from ganserve.api.http import Context, Response
from ganserve.api.parsing import Parsing
from ganserve.api.remembered import MAX_REMEMBERED_BYTES, Head, Heads, Repeated
from ganserve.api.wire import default_lines, first_lines
from ganserve.batcher import Ticket
from ganserve.errors import RequestError

logger = logging.getLogger(__name__)

_JOINED_BYTES = 16384  # of an answer: more are not copied to be one piece
_NEEDED = ("on_message_begin", "on_headers_complete", "on_body", "on_message_complete", "_start_asgi_task", "shutdown")


class Repetition(Ticket):
    """An exchange whose request came before but for its tensors, and its place in the batcher: one object for both."""

    __slots__ = ("arrived_at", "context", "head", "keep_alive", "protocol", "repeated", "response")

    held_bytes = 0  # its body was never held

    def __init__(
        self, protocol: "FastProtocol", context: Context, head: Head, repeated: Repeated, source: bytes
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


class FastProtocol(Parsing):
    """A connection that knows what came before. `heads` belongs to the class that `protocol_class` makes."""

    heads: ClassVar[Heads]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """A client connected."""
        self._whole: bytes | None = None  # what was read first of the request that is arriving, if it starts there
        self._early: bytes | None = None  # a known head, whose body has still to come
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Some bytes of one or several requests: parsed, unless it is one of those that came before."""
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
                exchange = HandledExchange(head)
                if self.door.access_log is not None:
                    exchange.arrived_at = time.perf_counter()
                self._waiting.append(exchange)
                self._begin(exchange, data[end:])
                return
            if head is not None and len(data) == end:  # many clients write the head first
                self._early = data
                return
        if at_start:
            self._whole = data if len(data) <= INLINE_BODY_BYTES + MAX_REMEMBERED_BYTES else None
        elif self._in_head or not self._in_message or len(self._whole or b"") > MAX_REMEMBERED_BYTES:
            self._whole = None
        super().data_received(data)

    def _watch(self) -> None:
        """A head without its body, for longer than a client needs between two writes, is parsed: its time counts."""
        if self._early is not None:
            early, self._early = self._early, None
            self._whole = None  # what follows is not the whole of what was read first
            super().data_received(early)
        super()._watch()

    def on_message_complete(self) -> None:
        """The whole request is there: its head is remembered before it begins, so that it learns of the body."""
        exchange, received = self._receiving, self._whole
        self._whole = None  # whoever answers it
        if exchange is not None and exchange.response is None and not self._ignored:
            first = not self._stash and self._messages == 0
            if received is not None and first and exchange.head.identity is None:
                self.heads.keep(exchange.head, received, self._body_bytes)
        super().on_message_complete()

    def _repeat(self, head: Head, data: bytes, start: int) -> bool:
        """Puts the tensors of a body, `data` from `start` on, into the batch; false if it is for the handler."""
        begin, end = start + head.before, len(data) - head.after
        repeated = head.repeats.get(data[start:begin] + data[end:])
        context = self.door.context
        if repeated is None or context is None:
            return False
        source = repeated.repeat.source(data[begin:end])
        if source is None:
            return False
        repetition = Repetition(self, context, head, repeated, source)
        if self.door.access_log is not None:
            repetition.arrived_at = time.perf_counter()
        self._waiting.append(repetition)
        self._owed_rows += repetition.rows
        try:
            context.batcher.enqueue(repetition)
        except RequestError as err:
            self._answer(repetition, tell(err, head.path))
        return True

    def _repeat_done(self, repetition: Repetition) -> None:
        """As `_done`, and the answer is written at once where nothing else is to be done on this connection."""
        waiting, pixels, repeated, context = self._waiting, repetition.pixels, repetition.repeated, repetition.context
        first = repeated.first_lines
        alone = len(waiting) == 1 and not self._stash and not self.pipeline and repetition.keep_alive
        if first is None or pixels is None or not alone or self.transport.is_closing():
            response = self._done(repetition, repeated.work, repeated.repeat.labels, context, repetition)
            if response.status == 200:
                repeated.first_lines = first_lines(response)
            return
        started_at = time.perf_counter()
        pieces = repeated.repeat.encode(pixels)
        encode_s = time.perf_counter() - started_at
        identity = new_request_id()
        timing = server_timing(repetition, encode_s)
        size = sum(map(len, pieces))
        last = f"server-timing: {timing}\r\ncontent-length: {size}\r\nx-request-id: {identity}\r\n\r\n"
        lines = (first, default_lines(self.server_state.default_headers), last.encode("ascii"))
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


def protocol_class(door: FrontDoor) -> type[FastProtocol]:
    """The protocol whose connections belong to `door`."""
    return type("FastProtocol", (FastProtocol,), {"door": door, "heads": Heads()})


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
