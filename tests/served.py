"""The front door behind real uvicorn in a thread, over either transport: a socket without BentoML."""

import dataclasses
import socket
import threading
import time
from typing import Any

import numpy as np
import uvicorn

from ganserve.api.app import FrontDoor
from ganserve.api.http import Context
from ganserve.api.protocol import protocol_class
from ganserve.batcher import INLINE_MS, Batcher
from ganserve.errors import InferenceError
from tests.connection import Connection

POISON = 6  # the label that `Gate` fails on when told to


class Gate:
    """The engine behind a gate: it can be made to wait, to be dear, and to fail on one label."""

    def __init__(self, engine: Any, *, dear: bool = False, poisoned: bool = False) -> None:
        self._engine, self._dear, self._poisoned = engine, dear, poisoned
        self.cheapest_rows = 64
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.batches: list[int] = []
        self.broken = self.short = False  # every run fails; or returns a row too few

    def cost_ms(self, rows: int) -> float:
        """Cheap or dear."""
        return INLINE_MS * 2 if self._dear else INLINE_MS / 2

    def run(self, rows: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """The engine's pixels, when the gate is open."""
        self.entered.set()
        assert self.open.wait(30)
        self.batches.append(len(rows))
        if self.broken:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered at /home/secret/path")
        if self.short:
            return self._engine.run(rows, labels)[:-1]
        if self._poisoned and POISON in labels:
            raise InferenceError("CUDA failure 700 at /home/secret/path")
        return self._engine.run(rows, labels)

    def prove(self) -> None:
        """What an engine's proof does, on one latent."""
        if len(self.run(np.zeros((1, 16), np.float32), np.zeros(1, np.int64))) != 1:
            raise InferenceError("the session returned 0 rows for 1")


class Served:
    """A front door behind real uvicorn on a port of its own, with a stand-in for BentoML behind it."""

    def __init__(self, context: Context, gate: Gate, transport: str) -> None:
        self.context, self.gate = context, gate
        self.door = FrontDoor(self._bentoml, context.settings)
        self.batcher: Batcher | None = None
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        http = protocol_class(self.door) if transport == "protocol" else "httptools"
        config = uvicorn.Config(self.door, loop="uvloop", http=http, lifespan="on", log_config=None)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    async def _bentoml(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            settings = self.context.settings
            self.batcher = Batcher(
                self.gate,
                max_batch_rows=settings.max_batch_rows,
                max_queue_rows=settings.max_queue_rows,
                deadline_ms=settings.deadline_ms,
                probe=self.gate.prove,
            )
            self.door.open(dataclasses.replace(self.context, batcher=self.batcher))
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.gate.open.set()
            await self.batcher.close()
            await send({"type": "lifespan.shutdown.complete"})
            return
        message = await receive()
        text = f"bentoml {scope['path']} {message['body'].decode()}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
        await send({"type": "http.response.body", "body": text})

    def __enter__(self) -> "Served":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = False
        self._thread.join(20)
        self._socket.close()
        assert not self._thread.is_alive()

    def stop(self) -> None:
        """Tells it to stop, and does not wait."""
        self._server.should_exit = True

    def connections(self) -> list[Any]:
        """The protocol objects of its open connections."""
        return list(self._server.server_state.connections)

    def connect(self) -> Connection:
        """A connection to it."""
        return Connection(self.port)
