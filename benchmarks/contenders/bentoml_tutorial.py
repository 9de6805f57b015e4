"""The same graph served as BentoML's tutorials do it: an API method calls the session, behind all its middlewares."""

import os
from typing import Any

import bentoml
import numpy as np
import onnxruntime

from ganserve import latents
from ganserve.artifact import ONNX, open_artifact


@bentoml.service(http={"host": "127.0.0.1"}, logging={"access": {"enabled": False}})
class Tutorial:
    """Images of a seed, one session call a request."""

    def __init__(self) -> None:
        from pathlib import Path

        artifact = open_artifact(Path(os.environ["GANSERVE_ARTIFACT"]))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.manifest = artifact.manifest
        self.session = onnxruntime.InferenceSession(artifact.read(ONNX), options, providers=["CPUExecutionProvider"])

    @bentoml.api
    def generate(self, n: int, seed: int) -> dict[str, Any]:
        """Pixels uint8 [n, H, W, C] as nested lists."""
        rows, labels = latents.draw(seed, n, self.manifest.latent.dim, self.manifest.num_classes)
        feeds: dict[str, np.ndarray] = {"latents": rows} | ({} if labels is None else {"labels": labels})
        return {"pixels": self.session.run(None, feeds)[0].tolist()}
