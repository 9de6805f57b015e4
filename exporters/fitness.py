"""Whether an ONNX graph is fit for a GPU: for CUDA graphs, in one piece, on tensor cores.

A CUDA graph is a recording of kernels: nothing in it may wait for the CPU to decide a shape or a branch, and no node
may run on the CPU between two that do not.
"""

from collections.abc import Sequence
from typing import Final

import onnx

from ganserve.artifact import GraphSpec
from ganserve.errors import ExportError

TENSOR_CORE_MULTIPLE = 8  # float16 channels that tensor cores take without padding

# Operators whose result, or whose next node, the CPU has to look at.
HOST_OPERATORS: Final = frozenset(
    {
        "Compress",
        "If",
        "Loop",
        "NonZero",
        "Range",
        "Scan",
        "Shape",
        "Size",
        "Unique",
        "ConstantOfShape",
        "SplitToSequence",
    }
)

# Operator -> its newest version (ONNX: "since version") that can be counted on to have a CUDA kernel: opset 20's. A
# kernel that is registered for version 11 is not found for the same operator of version 22, and ConvTranspose and Round
# of opset 22 got theirs only in 2026 (microsoft/onnxruntime #26393, #27710, #27754).
CUDA_KERNELS: Final = {
    "Add": 14,
    "Cast": 19,
    "Clip": 13,
    "Concat": 13,
    "Conv": 11,
    "ConvTranspose": 11,
    "Div": 14,
    "Gather": 13,
    "Gemm": 13,
    "Identity": 19,
    "LeakyRelu": 16,
    "MatMul": 13,
    "Mul": 14,
    "PRelu": 16,
    "Relu": 14,
    "Reshape": 19,
    "Round": 11,
    "Sigmoid": 13,
    "Sub": 14,
    "Tanh": 13,
    "Transpose": 13,
    "Unsqueeze": 13,
}


def fitness(file: str, content: bytes) -> GraphSpec:
    """What a GPU makes of a graph.

    Args:
        file: for messages: the file's name.
        content: a serialized ONNX model of the standard domain.

    Raises:
        ExportError: it has a node that CUDA graphs forbid or that CUDA has no kernel for, or falls apart into islands.
    """
    model = onnx.load_model_from_string(content)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    operators = [node.op_type for node in model.graph.node]
    waiting = sorted(set(operators) & HOST_OPERATORS)
    if waiting:
        raise ExportError(f"{file}: {', '.join(waiting)} need the CPU between kernels, which no CUDA graph can hold")
    homeless = sorted(set(operators) - CUDA_KERNELS.keys())
    if homeless:
        raise ExportError(f"{file}: {', '.join(homeless)} are not among the operators known to have CUDA kernels")
    islands = compute_islands(model.graph.node)
    if islands != 1:
        raise ExportError(f"{file}: the graph falls apart into {islands} islands, one is expected")
    versions = {name: onnx.defs.get_schema(name, opset).since_version for name in set(operators)}
    channels = _channels(model.graph)
    return GraphSpec(
        opset=opset,
        nodes=len(operators),
        compute_islands=islands,
        newer_kernels=tuple(
            f"{name}-{version}" for name, version in sorted(versions.items()) if version > CUDA_KERNELS[name]
        ),
        channels=channels,
        unaligned_channels=tuple(count for count in channels if count % TENSOR_CORE_MULTIPLE),
    )


def describe(spec: GraphSpec) -> str:
    """A line about a graph that is fit."""
    kernels = "CUDA has its kernels"
    if spec.newer_kernels:
        kernels = f"{', '.join(spec.newer_kernels)} have CUDA kernels in newer ONNX Runtimes only"
    total, unaligned = len(spec.channels), len(spec.unaligned_channels)
    aligned = f"{total - unaligned} of {total} channel counts are multiples of {TENSOR_CORE_MULTIPLE}"
    others = f" (not: {', '.join(map(str, spec.unaligned_channels))})" if unaligned else ""
    return f"fit for CUDA graphs in one piece; {kernels}; {aligned}{others}"


def compute_islands(nodes: Sequence[onnx.NodeProto]) -> int:
    """Groups of nodes that no tensor connects."""
    group = list(range(len(nodes)))

    def root(index: int) -> int:
        while group[index] != index:
            index = group[index]
        return index

    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    for index, node in enumerate(nodes):
        for name in node.input:
            if name in makers:
                group[root(index)] = root(makers[name])
    return len({root(index) for index in range(len(nodes))})


def _channels(graph: onnx.GraphProto) -> tuple[int, ...]:
    """The channels in and out of every matrix product and convolution, in order: what tensor cores multiply."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    channels: list[int] = []
    for node in graph.node:
        weight = shapes.get(node.input[1]) if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") else None
        if weight is None:
            continue
        transposed = node.op_type == "Conv" or any(entry.name == "transB" and entry.i for entry in node.attribute)
        channels += reversed(weight[:2]) if transposed else weight[:2]
    return tuple(channels)
