"""mosec: a Rust front, one Python worker a route, dynamic batching.

`max_wait_time` is mosec's least, one millisecond: its default of ten makes every request of a few clients wait for
companions that do not come.
"""

import json
from typing import Any

from graph import BATCH, WORKERS, Graph, png
from mosec import Runtime, Server, Worker


class Binary(Worker):
    """Raw bytes in, raw bytes out."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        self.graph = Graph()

    def deserialize(self, data: bytes) -> Any:
        """The latents and labels of one request."""
        return self.graph.from_bytes(data)

    def forward(self, data: list[Any]) -> list[Any]:
        """A batch of requests."""
        return self.graph.run_each(data)

    def serialize(self, data: Any) -> bytes:
        """One request's answer."""
        return data.tobytes()


class Json(Binary):
    """Numbers in, numbers out."""

    resp_mime_type = "application/json"

    def deserialize(self, data: bytes) -> Any:
        """The latents and labels of one request."""
        return self.graph.from_json(json.loads(data))

    def serialize(self, data: Any) -> bytes:
        """One request's answer."""
        return json.dumps({"pixels": data.ravel().tolist()}).encode()


class Png(Binary):
    """Raw bytes in, one PNG out."""

    resp_mime_type = "image/png"

    def serialize(self, data: Any) -> bytes:
        """One request's answer."""
        return png(data)


if __name__ == "__main__":
    server = Server()
    routes = {"/binary": Binary, "/json": Json, "/png": Png}
    server.register_runtime(
        {
            route: [Runtime(worker, num=WORKERS, max_batch_size=BATCH, max_wait_time=1)]
            for route, worker in routes.items()
        }
    )
    server.run()
