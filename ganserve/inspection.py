"""An artifact's graphs from inside: what they are made of, what an image costs, and how long it takes here."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ganserve.artifact import ONNX, ONNX_FLOAT16, ONNX_IMAGES, Artifact
from ganserve.cost import multiply_adds
from ganserve.engine import Engine, Precision
from ganserve.errors import ArtifactError, EngineError

_TIMED_ROWS = (1, 16, 64)


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """One ONNX file.

    Attributes:
        file: its name.
        bytes: of the file.
        weight_bytes: of the weights in it.
        opset: of the standard domain.
        operators: how many nodes of each, the most frequent first.
        multiply_adds: of one image; None where they cannot be told.
        us_per_image: batch -> microseconds an image, on this CPU with one thread; None where it was not timed.
        notes: why something is None.
    """

    file: str
    bytes: int
    weight_bytes: int
    opset: int
    operators: Mapping[str, int]
    multiply_adds: int | None
    us_per_image: Mapping[int, float] | None
    notes: tuple[str, ...]


def inspect_graphs(artifact: Artifact) -> list[GraphFacts]:
    """Every ONNX file of an artifact, read and timed through the engine that serves it.

    Raises:
        ArtifactError: a file is not what the manifest pins, or is not an ONNX file of a generator's.
    """
    return [_inspect(artifact, file) for file in (ONNX, ONNX_FLOAT16, ONNX_IMAGES) if file in artifact.manifest.files]


def _inspect(artifact: Artifact, file: str) -> GraphFacts:
    content, model = artifact.read_onnx(file)
    cost: int | None = None
    times: dict[int, float] | None = None
    notes: list[str] = []
    try:
        cost = multiply_adds(model, file)
    except ArtifactError as err:
        notes.append(str(err))
    try:
        times = _times(artifact, file)
    except EngineError as err:
        notes.append(f"{file} was not timed: {err}")
    return GraphFacts(
        file=file,
        bytes=len(content),
        weight_bytes=sum(tensor.bytes for tensor in model.weights.values()),
        opset=model.opset,
        operators=dict(Counter(node.operator for node in model.nodes).most_common()),
        multiply_adds=cost,
        us_per_image=times,
        notes=tuple(notes),
    )


def _times(artifact: Artifact, file: str) -> dict[int, float]:
    if file == ONNX_IMAGES:
        raise EngineError("its images are for other programs, the engine serves pixels")
    precision: Precision = "float16" if file == ONNX_FLOAT16 else "float32"
    engine = Engine(artifact, device="cpu", precision=precision, max_batch_rows=1)
    return {rows: engine.time_ms(rows) / rows * 1e3 for rows in _TIMED_ROWS}
