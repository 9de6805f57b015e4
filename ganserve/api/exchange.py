"""One request, from its parsed head and whole body to its answer: what both transports share."""

import asyncio
import logging
from collections.abc import Iterable

from ganserve.api.http import Context, Labels, Request, Response, Work, inflate
from ganserve.api.routing import Match, protocol_of
from ganserve.batcher import Ticket
from ganserve.errors import BodyTooLargeError, RequestError

logger = logging.getLogger(__name__)

# Up to here, drawing latents or encoding answers takes less than handing it to a thread and back is worth.
INLINE_ROWS = 16
INLINE_BODY_BYTES = 1 << 16


def make_request(
    match: Match,
    method: str,
    path: str,
    query: bytes,
    raw_headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
    limit: int,
) -> Request:
    """A request as handlers see it, its body inflated.

    Args:
        match: its route.
        method: upper case.
        path: percent-decoded.
        query: as it came.
        raw_headers: names in lower case.
        body: whole, as it came.
        limit: bytes of the inflated body.

    Raises:
        RequestError: the body's encoding is unknown or damaged, or it inflates to too much.
    """
    headers: dict[str, str] = {}
    for name, value in raw_headers:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
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


def check_announced(raw_headers: Iterable[tuple[bytes, bytes]], limit: int) -> None:
    """Refuses a body that is too large before it is read.

    Raises:
        BodyTooLargeError: its `Content-Length` is above `limit`.
    """
    for name, value in raw_headers:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > limit:
            raise BodyTooLargeError(f"the body may have {limit} bytes, {value[:20].decode()} are announced")


async def respond(match: Match, request: Request, context: Context) -> Response:
    """The answer to a request, whatever it costs; cancelling it takes its rows out of the queue.

    Raises:
        RequestError: the request is wrong, the queue is full, the deadline passed, or the rows failed.
    """
    large = len(request.body) > INLINE_BODY_BYTES
    outcome = await asyncio.to_thread(match.handler, request, context) if large else match.handler(request, context)
    return await work_off(outcome, context) if isinstance(outcome, Work) else outcome


async def work_off(work: Work, context: Context) -> Response:
    """Takes work through the batcher to its answer.

    Raises:
        RequestError: as `respond`.
    """
    large = work.rows > INLINE_ROWS
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
    return await asyncio.to_thread(finish, work, labels, ticket) if large else finish(work, labels, ticket)


def finish(work: Work, labels: Labels | None, ticket: Ticket) -> Response:
    """The answer of a ticket that is done.

    Raises:
        RequestError: the queue is full, the deadline passed, or the rows failed.
    """
    if isinstance(ticket.error, RequestError):
        raise ticket.error
    if ticket.pixels is None:
        raise RequestError("inference failed on this request; the server's log has the details")
    return work.finish(labels, ticket.pixels)


def tell(error: Exception, path: str) -> Response:
    """An error in the words of the path's protocol; a fault of ours is explained to the log, not to the client."""
    if not isinstance(error, RequestError):
        logger.error("unexpected error path=%r", path, exc_info=error)
        error = RequestError("internal error; the server's log has the details")
    return protocol_of(path).error(error)
