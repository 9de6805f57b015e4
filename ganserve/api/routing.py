"""Which handler answers a path, and in which protocol's words errors are told."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from ganserve.api import interpolate, native, openai, openapi, openinference
from ganserve.api.http import Handler, Protocol
from ganserve.errors import MethodNotAllowedError, NotFoundError

# The first whose prefix matches a path tells its errors; the native one has them all.
PROTOCOLS: tuple[Protocol, ...] = (
    openinference.PROTOCOL,
    openai.PROTOCOL,
    interpolate.PROTOCOL,
    openapi.PROTOCOL,
    native.PROTOCOL,
)
# Answered by BentoML's application behind the front door.
BENTOML_PATHS = frozenset({"/livez", "/readyz", "/healthz", "/metrics", "/docs.json", "/schema.json"})
# Of these, the ones that need no token: whoever watches the server need not be able to use it.
HEALTH_PATHS = frozenset({"/livez", "/readyz", "/healthz"})

# template -> method -> handler. A parameter matches anything but a slash.
ROUTES: Mapping[str, Mapping[str, Handler]] = {
    template: methods for protocol in PROTOCOLS for template, methods in protocol.routes.items()
}
_PATTERNS = [
    (re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(template))), template)
    for template in ROUTES
    if "{" in template
]


class Match(NamedTuple):
    """A route that was found: its template is a label for metrics, the path never is."""

    template: str
    handler: Handler
    parameters: Mapping[str, str]


def resolve(method: str, path: str) -> Match:
    """The route of a path; HEAD is answered by GET's handler.

    Raises:
        NotFoundError: no such route.
        MethodNotAllowedError: the route has other methods.
    """
    template, parameters = _find(path)
    methods = ROUTES[template]
    handler = methods.get("GET" if method == "HEAD" else method)
    if handler is None:
        allowed = tuple(sorted({*methods, *(("HEAD",) if "GET" in methods else ())}))
        raise MethodNotAllowedError(f"this route answers {', '.join(allowed)}", allowed=allowed)
    return Match(template, handler, parameters)


def template_of(path: str) -> str:
    """A path's template, or "unknown": a label for metrics, of which there are only so many."""
    try:
        return _find(path)[0]
    except NotFoundError:
        return "unknown"


def protocol_of(path: str) -> Protocol:
    """The protocol in whose words this path's errors are told, whether or not there is such a route."""
    speaking = (protocol for protocol in PROTOCOLS if path.startswith(protocol.prefixes))
    return next(speaking, native.PROTOCOL)  # not every target is a path: OPTIONS * is HTTP too


def _find(path: str) -> tuple[str, Mapping[str, str]]:
    if path in ROUTES and "{" not in path:
        return path, {}
    for pattern, template in _PATTERNS:
        if match := pattern.fullmatch(path):
            return template, match.groupdict()
    raise NotFoundError(protocol_of(path).no_route)
