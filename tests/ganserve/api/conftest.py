import contextlib
import dataclasses
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ganserve.api.http import Context, Request, Response, Work
from ganserve.artifact import Artifact
from ganserve.engine import Engine
from ganserve.settings import Settings
from tests.artifacts import make_artifact
from tests.connection import Connection
from tests.served import Gate, Served


@pytest.fixture(scope="session")
def artifact(tmp_path_factory) -> Artifact:
    """A conditional artifact of MNIST's shape, 16 latents."""
    return make_artifact(tmp_path_factory.mktemp("api") / "mnist")


@pytest.fixture(scope="session")
def engine(artifact) -> Engine:
    """It, opened."""
    return Engine(artifact, device="cpu")


@pytest.fixture(scope="session")
def unconditional_engine(tmp_path_factory) -> Engine:
    """One that takes no labels."""
    return Engine(make_artifact(tmp_path_factory.mktemp("api") / "plain", num_classes=None), device="cpu")


@pytest.fixture(scope="session")
def context(artifact, engine) -> Context:
    """A server without a batcher, for handlers: all that they ask of it is whether it is ready."""
    idle = types.SimpleNamespace(ready=True, obstacle=None)
    return Context(settings=Settings(), artifact=artifact, engine=engine, batcher=idle)


@pytest.fixture(scope="session")
def unconditional(context, unconditional_engine) -> Context:
    """The same for a model without labels."""
    return dataclasses.replace(context, engine=unconditional_engine)


@pytest.fixture(scope="session")
def answer():
    """Calls a handler and does its work, as a transport would, with the engine in place of the batcher."""

    def answer(handler: Any, request: Request, context: Context) -> Response:
        outcome = handler(request, context)
        if not isinstance(outcome, Work):
            return outcome
        latents, labels = outcome.inputs()
        assert len(latents) == outcome.rows
        return outcome.finish(labels, context.engine.run(latents, labels))

    return answer


@pytest.fixture(scope="module", params=["protocol", "asgi"])
def transport(request) -> str:
    """Every test of this suite runs over both: they must not be told apart."""
    return request.param


@pytest.fixture(scope="module")
def served(context, engine, transport) -> Iterator[Served]:
    """A server with small limits."""
    settings = Settings(max_body_bytes=300_000, max_request_rows=1024)
    with Served(dataclasses.replace(context, settings=settings), Gate(engine), transport) as server:
        yield server


@pytest.fixture
def connection(served) -> Iterator[Connection]:
    """One connection to it."""
    with served.connect() as connection:
        yield connection


@pytest.fixture
def serve(context, engine, transport) -> Iterator[Callable[..., Served]]:
    """Starts servers with settings of their own and a gate in front of their engine."""
    with contextlib.ExitStack() as stack:

        def serve(*, poisoned: bool = False, dear: bool = True, **settings: Any) -> Served:
            gate = Gate(engine, dear=dear, poisoned=poisoned)
            configured = dataclasses.replace(context, settings=Settings(**settings))
            return stack.enter_context(Served(configured, gate, transport))

        yield serve
