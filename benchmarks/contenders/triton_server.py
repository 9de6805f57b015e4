"""NVIDIA Triton, the real tritonserver out of the nvidia-pytriton wheel, with its python backend.

It runs in an environment of its own, made with a Python that is linked as Debian's is (Triton's stub finds no pyenv):

    /usr/bin/python3 -m venv .venv/triton
    .venv/triton/bin/pip install nvidia-pytriton onnxruntime pillow
"""

import os
import shutil
import sys
from pathlib import Path

import pytriton
from graph import BATCH, Graph

CONFIG = """
backend: "python"
max_batch_size: {batch}
input [{inputs}]
output [{{ name: "pixels" data_type: {type} dims: {dims} }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
"""


def main(scratch: Path, port: str) -> None:
    """Writes the model repository and becomes tritonserver."""
    graph = Graph()
    inputs = [f'{{ name: "latents" data_type: TYPE_FP32 dims: [{graph.dim}] }}']
    if graph.conditional:
        inputs.append('{ name: "labels" data_type: TYPE_INT64 dims: [1] }')
    shape = graph.session.get_outputs()[0].shape[1:]
    for name, kind, dims in (("pixels", "TYPE_UINT8", shape), ("png", "TYPE_STRING", [1])):
        model = scratch / "models" / name
        (model / "1").mkdir(parents=True)
        # A request of 64 rows has to fit.
        config = CONFIG.format(batch=max(BATCH, 64), inputs=", ".join(inputs), type=kind, dims=dims)
        (model / "config.pbtxt").write_text(config)
        shutil.copy(Path(__file__).with_name("triton_model.py"), model / "1" / "model.py")
        shutil.copy(Path(__file__).with_name("graph.py"), model / "1" / "graph.py")

    packages = Path(pytriton.__file__).parents[1]
    triton = packages / "pytriton" / "tritonserver"
    shutil.copytree(triton / "backends", scratch / "backends")
    stub = triton / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(stub / "triton_python_backend_stub", scratch / "backends" / "python")
    command = [
        *(str(triton / "bin" / "tritonserver"), f"--model-repository={scratch}/models"),
        *(f"--backend-directory={scratch}/backends", "--http-address=127.0.0.1", f"--http-port={port}"),
        *("--allow-grpc=false", "--allow-metrics=false", "--disable-auto-complete-config"),
        f"--backend-config=python,shm-region-prefix-name=bench{os.getpid()}",
    ]
    libraries = [str(packages / "nvidia_pytriton.libs"), os.environ.get("LD_LIBRARY_PATH", "")]
    # The stub embeds a Python that takes its packages from the environment whose `python3` comes first.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"LD_LIBRARY_PATH": ":".join(filter(None, libraries)), "PATH": path}
    os.execve(command[0], command, {**os.environ, **environment})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
