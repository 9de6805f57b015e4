"""One request, from its parsed head and whole body to its answer: what both transports share."""

import asyncio
import hmac
import itertools
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence

from ganserve.api.http import Context, Labels, Request, Response, Work, inflate
from ganserve.api.routing import Match, protocol_of
from ganserve.batcher import Ticket
from ganserve.errors import (
    BodyTooLargeError,
    HeadTooLargeError,
    HTTPVersionError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    TransferCodingError,
    UnauthorizedError,
)

logger = logging.getLogger(__name__)

# Up to here, parsing bodies, drawing latents and encoding answers is done on the loop: everybody waits for as long.
# What takes longer goes to a thread.
INLINE_US = 500.0
INLINE_BODY_BYTES = 1 << 16

MAX_HEAD_BYTES = 1 << 16  # the request line and the headers, or the trailers
MAX_HEADERS = 100

_REQUEST_ID = re.compile(rb"[!-~]{1,128}")  # nothing that could end a header
# RFC 3986, section 3.2.2 and 3.2.3: a name, an IPv4 address or an IPv6 one in brackets, and perhaps a port; or nothing.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(:[0-9]*)?")
_PROCESS = secrets.token_hex(6)
_request_numbers = itertools.count(1)


class Bodies:
    """What a worker holds of the bodies of requests that are not answered yet, of all its connections together."""

    def __init__(self, limit: int) -> None:
        """None yet.

        Args:
            limit: bytes in all, beyond which no large body grows. Small ones are always held: those of all connections
                that there may be are not that much.
        """
        self._limit = limit
        self.held_bytes = 0

    def add(self, size: int, of: int) -> None:
        """Holds `size` more bytes of a body that has `of` with them.

        Raises:
            OverloadedError: it is a large one, and there is no room. The bytes count all the same, until `remove`.
        """
        self.held_bytes += size
        if self.held_bytes > self._limit and of > INLINE_BODY_BYTES:
            raise OverloadedError("too many large bodies are arriving or wait for their answers")

    def remove(self, size: int) -> None:
        """A request is answered, or will not be: its body is gone."""
        self.held_bytes -= size


def header_mapping(raw_headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers as handlers see them: `raw_headers` have lower-case names, and repeated ones are joined by a comma."""
    headers: dict[str, str] = {}
    for name, value in raw_headers:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def make_request(
    match: Match,
    method: str,
    path: str,
    query: bytes,
    headers: Mapping[str, str],
    body: bytes,
    limit: int,
) -> Request:
    """A request as handlers see it, its body inflated.

    Args:
        match: its route.
        method: upper case.
        path: percent-decoded.
        query: as it came.
        headers: as `header_mapping` makes them.
        body: whole, as it came.
        limit: bytes of the inflated body.

    Raises:
        RequestError: the body's encoding is unknown or damaged, or it inflates to too much.
    """
    if "content-encoding" in headers:
        body = inflate(body, headers, limit=limit)
    return Request(
        method=method,
        path=path,
        query=query.decode("latin-1"),
        headers=headers,
        body=body,
        path_parameters=match.parameters,
    )


def check_head(version: str, raw_headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuses what the parser lets through and RFC 9112 does not.

    Raises:
        HTTPVersionError: neither HTTP/1.0 nor HTTP/1.1.
        InvalidRequestError: in HTTP/1.1 not exactly one `Host` (section 3.2), or one that is no host; or
            `Transfer-Encoding` in HTTP/1.0 (section 6.1).
        TransferCodingError: another transfer coding than chunked alone (section 6.1).
    """
    if version not in ("1.0", "1.1"):
        raise HTTPVersionError(f"this server speaks HTTP/1.1, the request is HTTP/{version}")
    hosts, codings = [], []
    for name, value in raw_headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
    if len(hosts) != 1 and (hosts or version == "1.1"):
        raise InvalidRequestError(f"one Host header is required, got {len(hosts) or 'none'}")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise InvalidRequestError("the Host header is not a host")
    if not codings:
        return
    if version == "1.0":
        raise InvalidRequestError("HTTP/1.0 has no Transfer-Encoding")
    if b",".join(codings).strip().lower() != b"chunked":
        raise TransferCodingError("the only transfer coding that this server knows is chunked, once")


def check_head_size(target_bytes: int, raw_headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuses a head that is too large, where it was read whole; the protocol class stops before that.

    Raises:
        HeadTooLargeError: more than `MAX_HEADERS` headers, or than `MAX_HEAD_BYTES` with the target.
    """
    if len(raw_headers) > MAX_HEADERS:
        raise HeadTooLargeError(f"a request may have {MAX_HEADERS} headers")
    if target_bytes + sum(len(name) + len(value) + 4 for name, value in raw_headers) > MAX_HEAD_BYTES:
        raise HeadTooLargeError(f"a request's head may have {MAX_HEAD_BYTES} bytes")


def check_announced(raw_headers: Iterable[tuple[bytes, bytes]], limit: int) -> None:
    """Refuses a body that is too large before it is read.

    Raises:
        BodyTooLargeError: its `Content-Length` is above `limit`.
    """
    for name, value in raw_headers:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > limit:
            raise BodyTooLargeError(f"the body may have {limit} bytes, {value[:20].decode()} are announced")


def check_token(raw_headers: Iterable[tuple[bytes, bytes]], token: bytes | None) -> None:
    """Refuses a request without the bearer token (RFC 6750), in a time that does not tell how much of it was right.

    Raises:
        UnauthorizedError: there is a token, and the request does not have it.
    """
    if token is None:
        return
    given = [value for name, value in raw_headers if name == b"authorization"]
    scheme, _, credentials = (given[0] if len(given) == 1 else b"").partition(b" ")
    if not hmac.compare_digest(credentials, token) or scheme.lower() != b"bearer":
        raise UnauthorizedError("this server needs a bearer token: Authorization: Bearer ...")


def given_request_id(raw_headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The client's own `X-Request-ID`, if it has a plain one."""
    for name, value in raw_headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return None


def new_request_id() -> str:
    """One that no other request of this server has."""
    return f"{_PROCESS}-{next(_request_numbers):x}"


async def respond(match: Match, request: Request, context: Context) -> Response:
    """The answer to a request, whatever it costs; cancelling it takes its rows out of the queue.

    Raises:
        RequestError: the request is wrong, the queue is full, the deadline passed, or the rows failed.
    """
    large = len(request.body) > INLINE_BODY_BYTES
    outcome = await asyncio.to_thread(match.handler, request, context) if large else match.handler(request, context)
    return await work_off(outcome, context) if isinstance(outcome, Work) else outcome


def is_cheap(work: Work) -> bool:
    """Whether its latents and its answer may be made on the loop."""
    return work.rows * work.row_us <= INLINE_US


async def work_off(work: Work, context: Context) -> Response:
    """Takes work through the batcher to its answer.

    Raises:
        RequestError: as `respond`.
    """
    large = not is_cheap(work)
    if large:
        context.batcher.check_room(work.rows)  # at once: rows that nobody takes need not be drawn
    latents, labels = await asyncio.to_thread(work.inputs) if large else work.inputs()
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: Ticket) -> None:
        if not waiter.done():
            waiter.set_result(None)

    ticket = context.batcher.submit(latents, labels, wake)
    try:
        await waiter
    finally:
        context.batcher.cancel(ticket)  # a no-op when it is done
    if large:
        return await asyncio.to_thread(finish, work, labels, ticket, context)
    return finish(work, labels, ticket, context)


def finish(work: Work, labels: Labels | None, ticket: Ticket, context: Context) -> Response:
    """The answer of a ticket that is done, with `Server-Timing` (W3C) in milliseconds.

    Raises:
        RequestError: the queue is full, the deadline passed, or the rows failed.
    """
    if isinstance(ticket.error, RequestError):
        raise ticket.error
    if ticket.pixels is None:
        raise RequestError("inference failed on this request; the server's log has the details")
    started_at = time.perf_counter()
    response = work.finish(labels, ticket.pixels)
    encode_s = time.perf_counter() - started_at
    if context.metrics is not None:
        context.metrics.encoded(encode_s)
    response.rows = work.rows
    response.server_timing = server_timing(ticket, encode_s)
    return response


def server_timing(ticket: Ticket, encode_s: float) -> str:
    """The header's value (W3C Server Timing): where the time of a request went, in milliseconds."""
    queue, infer, encode = _ms(ticket.queue_s), _ms(ticket.inference_s), _ms(encode_s)
    return f'queue;dur={queue}, infer;dur={infer}, encode;dur={encode}, batch;desc="{ticket.batch_rows} rows"'


def _ms(seconds: float) -> str:
    """Milliseconds to the microsecond. Those below ten are looked up: making one is a tenth of what a request costs."""
    us = round(seconds * 1e6)
    return _TEXTS_OF_US[us] if us < 10_000 else f"{us / 1e3:.3f}"


_TEXTS_OF_US = [f"{us / 1e3:.3f}" for us in range(10_000)]


def tell(error: Exception, path: str) -> Response:
    """An error in the words of the path's protocol; a fault of ours is explained to the log, not to the client."""
    if not isinstance(error, RequestError):
        logger.error("unexpected error path=%r", path, exc_info=error)
        error = RequestError("internal error; the server's log has the details")
    return protocol_of(path).error(error)
