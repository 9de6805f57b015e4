"""The life of a connection: from its first byte to its end, within the limits that a client has.

What is read is parsed in slices, as far as there is room: nothing is read while uvicorn, a reader that is too slow or
the requests that are not answered yet say so. Once a second the connection is looked at: it ends where the client is
idle, does not send what it began, or does not read.

Nothing here knows what is asked for. uvicorn's httptools protocol feeds its parser, and subclasses take it from there:
they keep what is known of the message that is arriving up to date, and say what is owed to the client.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ganserve.api.app import FrontDoor
from ganserve.api.exchange import MAX_HEAD_BYTES
from ganserve.errors import HeadTooLargeError, RequestError

# uvicorn warns of each request that is no HTTP: whoever sends them would decide how long the log is.
_uvicorn_logger = logging.getLogger(f"{__name__}.uvicorn")
_uvicorn_logger.setLevel(logging.ERROR)

_SLICE_BYTES = 2048  # parsed at once: a request, or a few dozen of the smallest
_MESSAGES_A_TURN = 16  # requests of one connection in one turn of the loop: then others have theirs
_WATCH_S = 1.0  # how often a connection is looked at for being idle or slow
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\nretry-after: 1\r\n"
    b"content-length: 20\r\nconnection: close\r\n\r\ntoo many connections"
)


class Connection(HttpToolsProtocol, ABC):
    """A client's connection. `door` belongs to the class that `protocol_class` makes."""

    door: ClassVar[FrontDoor]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """A client connected."""
        super().connection_made(transport)
        self.logger = _uvicorn_logger
        self.flow = _Flow(transport, self._reading_changed)
        self._stash: deque[memoryview] = deque()  # what was read and is not parsed yet
        self._feed_handle: asyncio.Handle | None = None
        self._stopped_reading = False
        self._closing = False  # no further request is answered
        # Of the message that is arriving:
        self._in_message = self._in_head = self._ignored = False
        self._message_bytes = self._body_bytes = 0
        self._announced_bytes = 0  # of the body of one of ours: as far as that goes, no other request begins
        self._messages = 0  # that were complete, since parsing went on
        self._started_at = self._active_at = self._drained_at = self.loop.time()
        self._was_active = False  # since it was looked at
        self._undrained_bytes = 0
        self._watch_timer = self.loop.call_later(_WATCH_S, self._watch)
        if self.door.context is not None:
            self.door.context.batcher.newcomer()
        if len(self.connections) > self.door.settings.max_connections:
            transport.write(_TOO_MANY)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Some bytes of one or several requests: parsed in slices, as far as there is room for their answers."""
        self._stash.append(memoryview(data))
        self._feed()

    def _feed(self) -> None:
        """Parses what was read, until too much is owed to this client or it is the turn of others."""
        self._feed_handle = None
        self._messages = 0
        while self._stash and self._messages < _MESSAGES_A_TURN and not self._blocked():
            if self.transport.is_closing() or (self._closing and not self._in_message):
                self._stash.clear()
                return
            piece = self._stash.popleft()
            size = max(_SLICE_BYTES, self._announced_bytes - self._body_bytes)
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

    def _feed_soon(self) -> None:
        if self._feed_handle is None and not self.transport.is_closing():
            self._feed_handle = self.loop.call_soon(self._feed)

    def _blocked(self) -> bool:
        """Whether nothing more may be parsed now: uvicorn or a slow reader says so."""
        return self.flow.read_paused or self.flow.write_paused

    def _reading_changed(self) -> None:
        """The flow control was told to pause, or to go on."""
        if self.flow.read_paused:
            self._set_reading(False)
        else:
            self._feed_soon()

    def _set_reading(self, wanted: bool) -> None:
        if wanted == self._stopped_reading and not self.transport.is_closing():
            self._stopped_reading = not wanted
            if wanted:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def pause_writing(self) -> None:
        """The client reads too slowly: nothing more is parsed or read until it has caught up."""
        super().pause_writing()
        self._set_reading(False)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._feed_soon()

    def _watch(self) -> None:
        """Once a second: ends a connection that is idle, whose request does not arrive, or that does not read."""
        self._watch_timer = self.loop.call_later(_WATCH_S, self._watch)
        now, settings = self.loop.time(), self.door.settings
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
        elif now - self._active_at > self.timeout_keep_alive and self._idle():
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Uvicorn's own timer: `_watch` knows better, whether or not a request is arriving."""

    def _idle(self) -> bool:
        """Whether no answer is owed."""
        return not self._uvicorns_turn()

    def _uvicorns_turn(self) -> bool:
        """Whether a request that uvicorn handles is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    @abstractmethod
    def _give_up(self, limit_ms: float) -> None:
        """Ends it where a message does not arrive within its time; a subclass knows how to tell the client."""

    @abstractmethod
    def _refuse(self, error: RequestError) -> None:
        """Ends it where a message is not what it should be; a subclass knows how to tell the client."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left."""
        self._closing = True
        self._watch_timer.cancel()
        self._stash.clear()
        self.pipeline.clear()
        super().connection_lost(exc)


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
