import pytest

from ganserve.api.routing import BENTOML_PATHS, PROTOCOLS, ROUTES, protocol_of, resolve
from ganserve.errors import MethodNotAllowedError, NotFoundError


def test_routes_resolve():
    """Every route resolves to its handler with its parameters, HEAD with GET's; a template is not a path."""
    for template, methods in ROUTES.items():
        path = template.replace("{text}", "12")
        for method, handler in methods.items():
            found = resolve(method, path)
            assert found.handler is handler
            assert found.template == template
    assert resolve("HEAD", "/v1/digits/1.2.png.png").parameters == {"text": "1.2.png"}
    with pytest.raises(NotFoundError, match="no such route"):
        resolve("GET", "/v1")
    with pytest.raises(MethodNotAllowedError, match="this route answers POST") as caught:
        resolve("HEAD", "/generate")
    assert caught.value.allowed == ("POST",)


def test_no_route_is_claimed_twice():
    """No two protocols have the same route, and none has one that is BentoML's."""
    templates = [template for protocol in PROTOCOLS for template in protocol.routes]
    assert len(templates) == len(set(templates))
    assert not BENTOML_PATHS & set(templates)


@pytest.mark.parametrize("path", ["/", "/v1/generate", "/nope", "/v1/digits/1/2.png"])
def test_every_path_has_a_protocol(path):
    """Whatever the path, there is a protocol to tell its errors."""
    assert protocol_of(path) in PROTOCOLS
