"""The front door: one ASGI application that owns every path, and hands BentoML the few that are BentoML's."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from ganserve.api.access import AccessLog
from ganserve.api.exchange import (
    Bodies,
    check_announced,
    check_head,
    check_head_size,
    check_token,
    given_request_id,
    header_mapping,
    make_request,
    new_request_id,
    respond,
    tell,
)
from ganserve.api.http import Context, Response
from ganserve.api.routing import BENTOML_PATHS, HEALTH_PATHS, resolve, template_of
from ganserve.errors import (
    BodyTooLargeError,
    OverloadedError,
    SlowRequestError,
)
from ganserve.settings import Settings

logger = logging.getLogger(__name__)

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[Mapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


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
        self.settings = settings
        self.token = None if settings.token is None else settings.token.get_secret_value().encode()
        self.bodies = Bodies(settings.max_bodies_bytes)
        self.context: Context | None = None
        self.access_log = AccessLog() if settings.access_log else None

    def open(self, context: Context) -> None:
        """From now on requests are answered with this context."""
        self.context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3."""
        if scope["type"] == "lifespan":
            await self._bentoml(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, _while_connected(send))
        else:
            await send({"type": "websocket.close", "code": 1003, "reason": "this server speaks HTTP"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        identity = given_request_id(scope["headers"]) or new_request_id()
        if self.access_log is None:
            await self._respond(scope, receive, send, identity)
            return
        started_at = time.perf_counter()
        status: int | None = None
        sent_bytes = 0

        async def noting(message: Mapping[str, Any]) -> None:
            nonlocal status, sent_bytes
            status = message.get("status", status)
            sent_bytes += len(message.get("body", b""))
            await send(message)

        rows = 0
        try:
            rows = await self._respond(scope, receive, noting, identity)
        finally:
            self.access_log.write(
                identity=identity,
                method=scope["method"],
                route=scope["path"] if scope["path"] in BENTOML_PATHS else template_of(scope["path"]),
                status=status,
                sent_bytes=sent_bytes,
                started_at=started_at,
                rows=rows,
                client=scope["client"][0] if scope.get("client") else None,
            )

    async def _respond(self, scope: Scope, receive: Receive, send: Send, identity: str) -> int:
        """Answers; how many rows went through the session for it."""
        try:
            response = await self._answer(scope, receive, send)
        except _Disconnected:
            return 0
        except Exception as err:  # whatever it is, the client gets an answer and the connection lives
            response = tell(err, scope["path"])
        if response is None:
            return 0
        head = scope["method"] == "HEAD"
        try:
            messages = _messages(response, identity, head=head)
        except Exception as err:  # an answer that cannot be written
            response = tell(err, scope["path"])
            messages = _messages(response, identity, head=head)
        self.count(template_of(scope["path"]), response.status)
        with contextlib.suppress(_Disconnected):
            for message in messages:
                await send(message)
        return response.rows

    def count(self, route: str, status: int) -> None:
        """One request was answered; `route` is a template or "unknown", never a path."""
        if self.context is not None and self.context.metrics is not None:
            self.context.metrics.answered(route, status)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """The answer, or None when BentoML has given it."""
        path = scope["path"]
        check_head_size(len(path) + len(scope["query_string"]), scope["headers"])
        check_head(scope.get("http_version", "1.1"), scope["headers"])
        if path not in HEALTH_PATHS:
            check_token(scope["headers"], self.token)
        if path in BENTOML_PATHS:
            async with self._body(scope, receive) as body:
                if path == "/readyz" and self.context is not None and self.context.batcher.obstacle is not None:
                    raise OverloadedError(self.context.batcher.obstacle)  # BentoML would not tell why
                try:
                    await self._bentoml(scope, _replay(body, receive), send)
                except _Disconnected:
                    pass
                except Exception:  # Starlette raises what it has answered with a 500
                    logger.exception("BentoML's application failed path=%r", path)
            return None
        match = resolve(scope["method"], path)
        if self.context is None:
            raise OverloadedError("the server is starting")
        async with self._body(scope, receive) as body:
            headers = header_mapping((name.lower(), value) for name, value in scope["headers"])
            limit = self.settings.max_body_bytes
            request = make_request(match, scope["method"], path, scope["query_string"], headers, body, limit)
            answering = asyncio.ensure_future(respond(match, request, self.context))
            watcher = asyncio.ensure_future(receive())  # the body is complete: next comes the end of the connection
            try:
                await asyncio.wait((answering, watcher), return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    raise _Disconnected
                return answering.result()
            finally:
                answering.cancel()
                watcher.cancel()

    @contextlib.asynccontextmanager
    async def _body(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """The whole body, within the limits of size and time, held while the block lasts.

        Raises:
            BodyTooLargeError: larger than `max_body_bytes`, announced or found while reading.
            OverloadedError: it is a large one, and too many are held.
            SlowRequestError: not complete within `body_timeout_ms`.
        """
        limit = self.settings.max_body_bytes
        check_announced(scope["headers"], limit)
        pieces: list[bytes] = []
        size = 0
        more = True
        try:
            try:
                async with asyncio.timeout(self.settings.body_timeout_ms / 1e3):
                    while more:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise _Disconnected
                        piece = message.get("body", b"")
                        size += len(piece)
                        self.bodies.add(len(piece), size)
                        if size > limit:
                            raise BodyTooLargeError(f"the body may have {limit} bytes; it is larger")
                        pieces.append(piece)
                        more = message.get("more_body", False)
            except TimeoutError as err:
                raise SlowRequestError(f"the body did not arrive within {self.settings.body_timeout_ms:g} ms") from err
            yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            self.bodies.remove(size)


def _while_connected(send: Send) -> Send:
    """`send` that tells a client that has just left from a fault of ours: uvloop has one exception for both."""

    async def sending(message: Mapping[str, Any]) -> None:
        try:
            await send(message)
        except RuntimeError as err:
            if "the handler is closed" not in str(err):
                raise
            await asyncio.sleep(0)  # the server hears of it in this turn of the loop
            raise _Disconnected from err

    return sending


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


def _messages(response: Response, identity: str, *, head: bool) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.items()]
    headers.append((b"x-request-id", identity.encode("ascii")))
    if response.server_timing is not None:
        headers.append((b"server-timing", response.server_timing.encode("ascii")))
    if response.content_type is not None:
        headers.append((b"content-type", response.content_type.encode("latin-1")))
    if response.status != 304:  # a 304's length would be that of the representation it does not send
        headers.append((b"content-length", b"%d" % len(response.body)))
    return (
        {"type": "http.response.start", "status": response.status, "headers": headers},
        {"type": "http.response.body", "body": b"" if head else response.body},
    )
