"""The model.py that Triton's python backend runs: whole batches, pixels or PNG by the model's name."""

import numpy as np
import triton_python_backend_utils as triton
from graph import Graph, png


class TritonPythonModel:
    """One instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Once, before the first batch."""
        self.graph = Graph()
        self.png = args["model_name"] == "png"

    def execute(self, requests: list) -> list:
        """A batch of requests, joined by Triton's dynamic batcher."""
        given = []
        for request in requests:
            labels = triton.get_input_tensor_by_name(request, "labels") if self.graph.conditional else None
            latents = triton.get_input_tensor_by_name(request, "latents").as_numpy()
            given.append((latents, None if labels is None else labels.as_numpy().ravel()))
        return [
            triton.InferenceResponse([triton.Tensor("pixels", self.output(pixels))])
            for pixels in self.graph.run_each(given)
        ]

    def output(self, pixels: np.ndarray) -> np.ndarray:
        """One request's answer."""
        return np.array([[png(pixels)]], dtype=np.object_) if self.png else pixels
