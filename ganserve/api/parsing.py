"""Requests as the parser tells of them: each is ours or uvicorn's, and is refused where it is not what it should be.

Ours are the routes of `ganserve.api.routing`; a request of theirs is begun when its last byte is there. Everything else
goes to uvicorn as ever, and from there to the front door: BentoML's paths, unknown ones, `Expect`, upgrades, whatever
follows one of these on the same connection. Both ways lead to the same handlers and give the same answers.
"""

import asyncio
import time

from ganserve.api.answering import NO_HEAD, Answering, HandledExchange
from ganserve.api.exchange import MAX_HEADERS, check_announced, check_head, check_token, tell
from ganserve.api.remembered import Head
from ganserve.api.routing import BENTOML_PATHS, resolve
from ganserve.errors import (
    BodyTooLargeError,
    HeadTooLargeError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    SlowRequestError,
)


class _Busy:
    """Stands in for a uvicorn cycle that is not complete: what comes next has to queue up behind it."""

    response_complete = False


class Parsing(Answering):
    """A connection whose requests are parsed. The callbacks are in the order in which the parser calls them."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """A client connected, and has sent nothing."""
        self._receiving: HandledExchange | None = None  # if what is arriving is one of ours
        super().connection_made(transport)

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

    def _claim(self) -> HandledExchange | None:
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
        return HandledExchange(Head(match, method, path, query, self.headers, keep_alive=keep_alive))

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
        self._announced_bytes = 0  # whatever else comes is parsed by the slice
        if exchange is not None and exchange.response is not None:
            self.transport.close()  # it was answered already, and its rest is not what it should be
        elif self._uvicorns_turn() or self.pipeline:
            if self._in_message and not self._in_head:
                self.transport.close()  # uvicorn waits for a body that will not come
            else:
                self.cycle.keep_alive = False
        else:
            if exchange is None:
                exchange = HandledExchange(NO_HEAD)
                self._waiting.append(exchange)
            exchange.keep_alive = False
            self._answer(exchange, tell(error, self.url.decode("latin-1") if self._in_message else "/"))

    def _give_up(self, limit_ms: float) -> None:
        """Tells a client that is too slow so, and closes: what it sends next could be anything."""
        exchange, what = self._receiving, "head" if self._in_head else "body"
        error = SlowRequestError(f"the {what} did not arrive within {limit_ms:g} ms")
        if exchange is None and self._uvicorns_turn():
            return  # the front door has a time-out for its bodies
        self._closing = self._ignored = True
        if exchange is None and not self._waiting and self._in_head:
            exchange = HandledExchange(NO_HEAD)
            self._waiting.append(exchange)
        if exchange is not None and exchange.response is None:
            self._answer(exchange, tell(error, exchange.head.path))
        if not self.transport.is_closing():
            self.transport.close()
