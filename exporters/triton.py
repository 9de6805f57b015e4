"""A Triton model repository of an artifact: the same bytes, for NVIDIA's server."""

import json
from importlib import resources
from pathlib import Path

from exporters.package import check_package, write_package
from ganserve import cuda
from ganserve.artifact import GOLDEN, ONNX, ONNX_FLOAT16, Artifact
from ganserve.engine import GOLDEN_DIFFERING_SHARE

CONFIG = "config.pbtxt"
VERSION = "1"
MAX_BATCH_ROWS = 256
PREFERRED_ROWS = (8, 64)
WARM_UP_ROWS = (1, 8, 64)
_MODEL = "model.py"


def path_beside(artifact: Path) -> Path:
    """Where the model repository of an artifact goes: beside it, since an artifact holds nothing but itself."""
    return artifact.with_name(f"{artifact.name}-triton")


def check(path: Path, *, replace: bool) -> None:
    """Whether a repository may be written to `path`.

    Raises:
        ExportError: something is there that must stay.
    """
    names = (CONFIG, _MODEL, ONNX, ONNX_FLOAT16, GOLDEN)
    check_package(path, holds=lambda file: file.rpartition("/")[2] in names, replace=replace)


def write(artifact: Artifact, path: Path, *, replace: bool = False) -> list[str]:
    """Writes the model repository: `<name>/config.pbtxt`, and in `<name>/1/` the model and what it opens.

    The python backend is in every build of Triton, and its model checks digests and golden images as ganserve does.

    Args:
        artifact: verified as it is read.
        path: the repository's directory.
        replace: whether a repository that is there gives way.

    Returns:
        The files, relative to `path`.

    Raises:
        ArtifactError: a file of the artifact is not what was exported.
        ExportError: something is at `path` already, or the disk said no.
    """
    check(path, replace=replace)
    folder = f"{artifact.manifest.name}/{VERSION}"
    opened = [name for name in (ONNX, ONNX_FLOAT16, GOLDEN) if name in artifact.manifest.files]
    files = {
        f"{artifact.manifest.name}/{CONFIG}": config_pbtxt(artifact).encode(),
        f"{folder}/{_MODEL}": resources.files("exporters").joinpath("triton_model.py").read_bytes(),
        **{f"{folder}/{name}": artifact.read(name) for name in opened},
    }
    write_package(path, files, replace=replace)
    return sorted(files)


def config_pbtxt(artifact: Artifact) -> str:
    """Triton's ModelConfig of an artifact, in protobuf's text format."""
    manifest = artifact.manifest
    inputs = [("latents", "TYPE_FP32", manifest.latent.dim)]
    if manifest.num_classes is not None:
        inputs.append(("labels", "TYPE_INT64", 1))
    given = ",\n".join(f'  {{ name: "{name}" data_type: {kind} dims: [ {size} ] }}' for name, kind, size in inputs)
    shape = ", ".join(map(str, manifest.pixel_shape))
    rows = ", ".join(map(str, PREFERRED_ROWS))
    warm_up = ",\n".join(_warm_up(count, inputs) for count in WARM_UP_ROWS)
    parameters = {
        "artifact": artifact.digest,
        "float32": f"{ONNX} {manifest.files[ONNX].sha256}",
        "golden": f"{GOLDEN} {manifest.files[GOLDEN].sha256}",
        "golden_differing_share": json.dumps(GOLDEN_DIFFERING_SHARE),
        "threads": "1",
        "precision": "float32",
        # The rows of a batch vary here, and a CUDA graph is one of fixed shapes.
        "cuda_options": json.dumps(cuda.provider_options() | {"enable_cuda_graph": "0"}, sort_keys=True),
    }
    if ONNX_FLOAT16 in manifest.files:
        parameters["float16"] = f"{ONNX_FLOAT16} {manifest.files[ONNX_FLOAT16].sha256}"
    entries = "\n".join(
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
        for key, value in sorted(parameters.items())
    )
    return f"""# Written by ganserve from the artifact {artifact.digest}.
name: "{manifest.name}"
backend: "python"
max_batch_size: {MAX_BATCH_ROWS}
input [
{given}
]
output [
  {{ name: "pixels" data_type: TYPE_UINT8 dims: [ {shape} ] }}
]
# A batch is what queued up while the one before it ran: an idle server adds no waiting.
dynamic_batching {{ preferred_batch_size: [ {rows} ] max_queue_delay_microseconds: 0 }}
# On a GPU where there is one.
instance_group [ {{ kind: KIND_AUTO count: 1 }} ]
model_warmup [
{warm_up}
]
{entries}
"""


def _warm_up(rows: int, inputs: list[tuple[str, str, int]]) -> str:
    data = " ".join(
        f'inputs {{ key: "{name}" value {{ data_type: {kind} dims: [ {size} ] zero_data: true }} }}'
        for name, kind, size in inputs
    )
    return f'  {{ name: "{rows} rows" batch_size: {rows} {data} }}'
