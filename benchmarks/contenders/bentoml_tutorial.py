"""BentoML as its tutorials do it: an API method calls the session, behind all the middlewares. JSON in."""

import sys
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from PIL.Image import Image, fromarray

sys.path.insert(0, str(Path(__file__).parent))
from graph import Graph


@bentoml.service(http={"host": "127.0.0.1"}, logging={"access": {"enabled": False}})
class Tutorial:
    """One session call a request."""

    def __init__(self) -> None:
        self.graph = Graph()

    def _run(self, latents: list[list[float]], labels: list[int] | None) -> np.ndarray:
        return self.graph.run(*self.graph.from_json({"latents": latents, "labels": labels}))

    @bentoml.api(route="/json")
    def as_json(self, latents: list[list[float]], labels: list[int] | None = None) -> dict[str, Any]:
        """Numbers in, numbers out."""
        return {"pixels": self._run(latents, labels).ravel().tolist()}

    @bentoml.api(route="/png")
    def as_png(self, latents: list[list[float]], labels: list[int] | None = None) -> Image:
        """Numbers in, one PNG out."""
        return fromarray(self._run(latents, labels)[0].squeeze(-1))
