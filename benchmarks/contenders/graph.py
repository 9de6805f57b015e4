"""What the contenders share, none of it a server's: one ONNX Runtime session, raw bodies, Pillow's PNG.

It imports nothing of ganserve, so that it also runs in the Python that Triton starts. `GRAPH` names generator.onnx.
"""

import io
import os
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

BATCH = int(os.environ.get("BATCH", "64"))  # requests that a batching server may join
WORKERS = int(os.environ.get("WORKERS", "1"))


class Graph:
    """The session, one thread.

    Attributes:
        dim: numbers in one latent.
        conditional: whether it takes labels.
    """

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["GRAPH"], options, providers=["CPUExecutionProvider"])
        inputs = self.session.get_inputs()
        self.dim: int = inputs[0].shape[1]
        self.conditional = len(inputs) > 1

    def run(self, latents: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """Pixels, uint8 [N, H, W, C]."""
        feeds = {"latents": latents} | ({} if labels is None else {"labels": labels})
        return self.session.run(None, feeds)[0]

    def from_bytes(self, body: bytes) -> tuple[np.ndarray, np.ndarray | None]:
        """Latents and labels of a raw body: float32 [N, dim], and behind them int64 [N]."""
        rows = len(body) // (4 * self.dim + 8 * self.conditional)
        latents = np.frombuffer(body, np.float32, rows * self.dim).reshape(rows, self.dim)
        return latents, np.frombuffer(body, np.int64, rows, latents.nbytes) if self.conditional else None

    def from_json(self, document: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
        """Latents and labels of `{"latents": [[...]], "labels": [...]}`."""
        latents = np.array(document["latents"], np.float32)
        return latents, np.array(document["labels"], np.int64) if self.conditional else None

    def run_each(self, requests: list[tuple[np.ndarray, np.ndarray | None]]) -> list[np.ndarray]:
        """One batch of what several requests ask for, and each one's share of the pixels."""
        latents = np.concatenate([rows for rows, _ in requests])
        labels = np.concatenate([rows for _, rows in requests]) if self.conditional else None
        ends = np.cumsum([len(rows) for rows, _ in requests])
        return np.split(self.run(latents, labels), ends[:-1])


def png(pixels: np.ndarray) -> bytes:
    """One image as Pillow writes it by default."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[0].squeeze(-1) if pixels.shape[-1] == 1 else pixels[0]).save(buffer, "PNG")
    return buffer.getvalue()
