"""One HTTP connection that is never quietly replaced by another: the proof that a server keeps it usable."""

import http.client
import io
import json
from typing import Any, Self

import numpy as np

Answer = tuple[int, dict[str, str], bytes]


class Connection(http.client.HTTPConnection):
    """Fails on the next request when the server has closed it, where other clients open another."""

    auto_open = 0

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port, timeout=30)

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send_request(self, method: str, path: str, body: Any = None, **headers: str) -> None:
        """Sends a request; a dict becomes a JSON body, `content_type="..."` a header."""
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"content_type": "application/json"} | headers
        self.request(method, path, body=body, headers={name.replace("_", "-"): text for name, text in headers.items()})

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Status, headers with lower-case names, and body of one request."""
        self.send_request(method, path, body, **headers)
        response = self.getresponse()
        content = response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, content

    def pixels(self, fields: dict[str, Any]) -> np.ndarray:
        """uint8 [n, H, W, C] of a `/v1/generate` that must succeed."""
        status, _, body = self.ask("POST", "/v1/generate", fields, accept="application/x-npy")
        assert status == 200, body
        pixels: np.ndarray = np.load(io.BytesIO(body), allow_pickle=False)
        return pixels
