"""LitServe with batching as its documentation shows it: decode_request, batch, predict, unbatch, encode_response.

Its requests are JSON or forms, so latents come as numbers in every contract.
"""

import os
from typing import Any

import litserve
import numpy as np
from fastapi import Response
from graph import BATCH, Graph, png


class Json(litserve.LitAPI):
    """Numbers in, numbers out."""

    def setup(self, device: str) -> None:
        """Runs in the worker."""
        self.graph = Graph()

    def decode_request(self, request: dict) -> Any:
        """The latents and labels of one request."""
        return self.graph.from_json(request)

    def batch(self, inputs: list[Any]) -> list[Any]:
        """The requests of one batch; `predict` joins their rows."""
        return inputs

    def predict(self, x: list[Any]) -> list[np.ndarray]:
        """A batch of requests."""
        return self.graph.run_each(x)

    def unbatch(self, output: list[np.ndarray]) -> list[np.ndarray]:
        """One answer a request."""
        return output

    def encode_response(self, output: np.ndarray) -> dict:
        """One request's answer."""
        return {"pixels": output.ravel().tolist()}


class Png(Json):
    """Numbers in, one PNG out."""

    def encode_response(self, output: np.ndarray) -> Response:
        """One request's answer."""
        return Response(png(output), media_type="image/png")


class Binary(Json):
    """Numbers in, raw bytes out."""

    def encode_response(self, output: np.ndarray) -> Response:
        """One request's answer."""
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    routes = {"/binary": Binary, "/json": Json, "/png": Png}
    apis = [api(max_batch_size=BATCH, batch_timeout=0.001, api_path=route) for route, api in routes.items()]
    server = litserve.LitServer(apis, accelerator="cpu", timeout=30)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="error")
