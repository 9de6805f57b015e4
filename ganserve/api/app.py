"""The front door: one ASGI application that owns every path, and hands BentoML the few that are BentoML's."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ganserve.api.http import Context, Request, Response, Work, inflate
from ganserve.api.routing import BENTOML_PATHS, protocol_of, resolve
from ganserve.batcher import Ticket
from ganserve.errors import (
    BodyTooLargeError,
    OverloadedError,
    RequestError,
    SlowRequestError,
)
from ganserve.settings import Settings

logger = logging.getLogger(__name__)

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]

# Up to here, drawing latents or encoding answers takes less than handing it to a thread and back is worth.
_INLINE_ROWS = 16
_INLINE_BODY_BYTES = 1 << 16


class _Disconnected(Exception):
    """The client went away: there is nobody to answer."""


class FrontDoor:
    """Routes, reads bodies within their limits, runs handlers' work, and turns every error into an answer."""

    def __init__(self, bentoml: ASGIApp, settings: Settings) -> None:
        """A door that is closed until `open`.

        Args:
            bentoml: BentoML's own application; it gets the lifespan and `BENTOML_PATHS`.
            settings: body limits and time-outs.
        """
        self._bentoml = bentoml
        self._settings = settings
        self._context: Context | None = None

    def open(self, context: Context) -> None:
        """From now on requests are answered with this context."""
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3."""
        if scope["type"] == "lifespan":
            await self._bentoml(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003, "reason": "this server speaks HTTP"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer(scope, receive, send)
        except _Disconnected:
            return
        except RequestError as err:
            response = protocol_of(scope["path"]).error(err)
        except Exception:  # whatever it is, the client gets an answer and the connection lives
            logger.exception("unexpected error path=%r", scope["path"])
            fault = RequestError("internal error; the server's log has the details")
            response = protocol_of(scope["path"]).error(fault)
        if response is not None:
            await _send(response, send, head=scope["method"] == "HEAD")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """The answer, or None when BentoML has given it."""
        path = scope["path"]
        if path in BENTOML_PATHS:
            body = await self._read_body(scope, receive)
            try:
                await self._bentoml(scope, _replay(body, receive), send)
            except Exception:  # Starlette raises what it has answered with a 500
                logger.exception("BentoML's application failed path=%r", path)
            return None
        route = resolve(scope["method"], path)
        if self._context is None:
            raise OverloadedError("the server is starting")
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        request = Request(
            method=scope["method"],
            path=path,
            query=scope["query_string"].decode("latin-1"),
            headers=headers,
            body=inflate(await self._read_body(scope, receive), headers, limit=self._settings.max_body_bytes),
            path_parameters=route.parameters,
        )
        context = self._context
        large = len(request.body) > _INLINE_BODY_BYTES
        outcome = await asyncio.to_thread(route.handler, request, context) if large else route.handler(request, context)
        return await self._run(outcome, context, receive) if isinstance(outcome, Work) else outcome

    async def _run(self, work: Work, context: Context, receive: Receive) -> Response:
        """Takes work through the batcher; drops it when the client goes away.

        Raises:
            RequestError: the queue is full, the deadline passed, or the rows failed.
        """
        large = work.rows > _INLINE_ROWS
        latents, labels = await asyncio.to_thread(work.inputs) if large else work.inputs()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake(_: Ticket) -> None:
            if not waiter.done():
                waiter.set_result(None)

        ticket = context.batcher.submit(latents, labels, wake)
        watcher = asyncio.ensure_future(receive())  # the body is complete: what comes next is the end of the connection
        try:
            await asyncio.wait((waiter, watcher), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watcher.cancel()
            context.batcher.cancel(ticket)  # a no-op when it is done
        if isinstance(ticket.error, RequestError):
            raise ticket.error
        if ticket.error is not None:
            raise RequestError("inference failed on this request; the server's log has the details")
        if ticket.pixels is None:
            raise _Disconnected
        if large:
            return await asyncio.to_thread(work.finish, labels, ticket.pixels)
        return work.finish(labels, ticket.pixels)

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, within the limits of size and time.

        Raises:
            BodyTooLargeError: larger than `max_body_bytes`, announced or found while reading.
            SlowRequestError: not complete within `body_timeout_ms`.
        """
        limit = self._settings.max_body_bytes
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced[:20]) > limit:
            raise BodyTooLargeError(f"the body may have {limit} bytes, {announced[:20].decode()} are announced")
        pieces: list[bytes] = []
        size = 0
        more = True
        try:
            async with asyncio.timeout(self._settings.body_timeout_ms / 1e3):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Disconnected
                    piece = message.get("body", b"")
                    size += len(piece)
                    if size > limit:
                        raise BodyTooLargeError(f"the body may have {limit} bytes; it is larger")
                    pieces.append(piece)
                    more = message.get("more_body", False)
        except TimeoutError as err:
            raise SlowRequestError(f"the body did not arrive within {self._settings.body_timeout_ms:g} ms") from err
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that has been read already, then whatever comes."""
    given = False

    async def replay() -> Mapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _send(response: Response, send: Send, *, head: bool) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
    if response.content_type is not None:
        headers.append((b"content-type", response.content_type.encode("latin-1")))
    if response.status != 304:  # a 304's length would be that of the representation it does not send
        headers.append((b"content-length", b"%d" % len(response.body)))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else response.body})
