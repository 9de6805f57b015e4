"""The model.py of a Triton model repository: a generator on ONNX Runtime in Triton's python backend.

It runs in Triton's own Python, which needs numpy and onnxruntime and has no ganserve. Like ganserve's server it opens
only the bytes that were exported, and is not ready before it has made the golden images.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """One instance: one session, on the CPU or on the GPU that its instance group says."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the graph and proves it; a failure here keeps the model from becoming ready."""
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        self.inputs = [entry["name"] for entry in config["input"]]
        self.output = config["output"][0]["name"]
        on_gpu = args["model_instance_kind"] == "GPU"
        precision = parameters["precision"]
        graph = _verified(folder, parameters, precision)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["threads"])
        options.inter_op_num_threads = 1
        provider: Any = "CPUExecutionProvider"
        if on_gpu:
            # Without this, a GPU that does not work is a CPU, and nobody hears of it.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            chosen = {"device_id": args["model_instance_device_id"], **json.loads(parameters["cuda_options"])}
            provider = ("CUDAExecutionProvider", chosen)
        # By itself ONNX Runtime would go on on the CPU when a GPU fails, and only print it.
        self.session = onnxruntime.InferenceSession(graph, options, providers=[provider], enable_fallback=0)
        allowed = json.loads(parameters["golden_differing_share"])[precision]
        self._check_golden(_verified(folder, parameters, "golden"), allowed)

    def execute(self, requests: list[Any]) -> list[Any]:
        """A batch of requests, joined by Triton's dynamic batcher: one run, and to each its own rows."""
        given = [
            [triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs] for request in requests
        ]
        counts = [len(tensors[0]) for tensors in given]
        feeds = {name: np.concatenate([tensors[i] for tensors in given]) for i, name in enumerate(self.inputs)}
        pixels = np.split(self._run(feeds), np.cumsum(counts)[:-1])
        return [triton.InferenceResponse([triton.Tensor(self.output, rows)]) for rows in pixels]

    def _run(self, feeds: dict[str, Any]) -> Any:
        if "labels" in feeds:
            feeds["labels"] = feeds["labels"].reshape(-1)  # Triton's rows have one label each, the graph's are one
        return self.session.run([self.output], feeds)[0]

    def _check_golden(self, content: bytes, allowed: float) -> None:
        with np.load(io.BytesIO(content), allow_pickle=False) as golden:
            expected = golden["pixels"].astype(np.int16)
            found = self._run({name: golden[name] for name in self.inputs}).astype(np.int16)
        distance = np.abs(found - expected)
        share = np.count_nonzero(distance) / distance.size
        if distance.max() > 1 or share > allowed:
            raise triton.TritonModelException(
                f"golden images differ by up to {distance.max()} grey levels on {share:.2%} of the pixels"
            )


def _verified(folder: Path, parameters: dict[str, str], name: str) -> bytes:
    """A file of the version's folder, if its digest is the config's."""
    file, digest = parameters[name].split(" ")
    content = (folder / file).read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise triton.TritonModelException(f"{file} is not what was exported: its SHA-256 is not that of config.pbtxt")
    return content
