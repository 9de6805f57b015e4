"""Which handler answers a path, and in which protocol's words errors are told."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from ganserve.api import native
from ganserve.api.http import Handler, Protocol
from ganserve.errors import MethodNotAllowedError, NotFoundError

# The first whose prefix matches a path tells its errors; the native one has them all.
PROTOCOLS: tuple[Protocol, ...] = (native.PROTOCOL,)
# Answered by BentoML's application behind the front door.
BENTOML_PATHS = frozenset({"/livez", "/readyz", "/healthz", "/metrics", "/docs.json", "/schema.json"})

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


def protocol_of(path: str) -> Protocol:
    """The protocol in whose words this path's errors are told, whether or not there is such a route."""
    return next(protocol for protocol in PROTOCOLS if path.startswith(protocol.prefixes))


def _find(path: str) -> tuple[str, Mapping[str, str]]:
    if path in ROUTES and "{" not in path:
        return path, {}
    for pattern, template in _PATTERNS:
        if match := pattern.fullmatch(path):
            return template, match.groupdict()
    raise NotFoundError("no such route; GET / lists them")
