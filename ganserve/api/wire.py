"""An answer as bytes: its lines as uvicorn would write them, and its body.

What many answers have alike is serialised once: the lines of status and headers (`first_lines`), then uvicorn's own
headers (`default_lines`). What differs from one to the next comes last.
"""

import functools

from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE, STATUS_LINE

from ganserve.api.http import Response

RawHeaders = list[tuple[bytes, bytes]]

_defaults_of: RawHeaders | None = None
_defaults = b""


def serialized(response: Response, method: str, identity: str, defaults: RawHeaders, *, keep_alive: bool) -> bytes:
    """All of an answer.

    Args:
        response: what it says.
        method: the request's; there is no body after HEAD.
        identity: the request's.
        defaults: uvicorn's own headers.
        keep_alive: false if the client has to know that this is the last one.
    """
    body = response.body
    timing = "" if response.server_timing is None else f"server-timing: {response.server_timing}\r\n"
    # A 304's length would be that of the representation it does not send.
    length = f"content-length: {len(body)}\r\n" if response.status != 304 else ""
    close = "" if keep_alive or "connection" in response.headers else "connection: close\r\n"
    last = f"{timing}{length}{close}x-request-id: {identity}\r\n\r\n"
    lines = (first_lines(response), default_lines(defaults), last.encode("ascii"))
    return b"".join((*lines, b"" if method == "HEAD" else body))


def first_lines(response: Response) -> bytes:
    """The status line, and the headers that do not differ."""
    return _first_lines(response.status, response.content_type, tuple(response.headers.items()))


@functools.lru_cache(maxsize=256)
def _first_lines(status: int, content_type: str | None, headers: tuple[tuple[str, str], ...]) -> bytes:
    lines = [f"{name}: {value}\r\n" for name, value in headers]
    if content_type is not None:
        lines.append(f"content-type: {content_type}\r\n")
    head = "".join(lines).encode("latin-1")
    assert not HEADER_VALUE_RE.search(head.replace(b"\r\n", b"")), "a header value with a control character"
    return STATUS_LINE[status] + head


def default_lines(defaults: RawHeaders) -> bytes:
    """Uvicorn's own headers: the date."""
    global _defaults_of, _defaults
    if defaults is not _defaults_of:  # uvicorn makes a new list every second
        _defaults = b"".join([b"%b: %b\r\n" % header for header in defaults])
        _defaults_of = defaults
    return _defaults
