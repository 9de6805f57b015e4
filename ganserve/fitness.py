"""Whether an ONNX graph is fit for a GPU: for CUDA graphs, in one piece, on tensor cores.

A CUDA graph is a recording of kernels: nothing in it may wait for the CPU to decide a shape or a branch, and no node
may run on the CPU between two that do not.
"""

from collections.abc import Sequence
from typing import Final

from ganserve.artifact import GraphSpec
from ganserve.errors import ExportError
from ganserve.onnx_reader import Model, Node

OPSETS = range(17, 27)  # every one of them is exported, proven and run by the tests
TENSOR_CORE_MULTIPLE = 8  # float16 channels that tensor cores take without padding

PRODUCTS: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})  # whose second input is weights

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
# of opset 22 got theirs only in 2026 (microsoft/onnxruntime #26393, #27710, #27754); 1.31 has them for all `OPSETS`.
CUDA_KERNELS: Final = {
    "Add": 14,
    "Cast": 19,
    "Clip": 13,
    "Concat": 13,
    "Conv": 11,
    "ConvTranspose": 11,
    "DepthToSpace": 13,
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
    "Resize": 19,
    "Round": 11,
    "Sigmoid": 13,
    "Slice": 13,
    "Sub": 14,
    "Tanh": 13,
    "Transpose": 13,
    "Unsqueeze": 13,
}

# Operator -> its versions after that one, up to the last of `OPSETS`; the others have none.
NEWER_VERSIONS: Final = {
    "Cast": (21, 23, 24, 25),
    "Conv": (22,),
    "ConvTranspose": (22,),
    "Identity": (21, 23, 24, 25),
    "Reshape": (21, 23, 24, 25),
    "Round": (22,),
    "Transpose": (21, 23, 24, 25),
    "Unsqueeze": (21, 23, 24, 25),
}


def fitness(file: str, model: Model) -> GraphSpec:
    """What a GPU makes of a graph.

    Args:
        file: for messages: the file's name.
        model: what the file holds.

    Raises:
        ExportError: its opset is none of `OPSETS`; it has a node that CUDA graphs forbid or that CUDA has no kernel
            for; or it falls apart into islands.
    """
    if model.opset not in OPSETS:
        raise ExportError(f"{file}: opset must be {OPSETS[0]} to {OPSETS[-1]}, got {model.opset}")
    operators = {node.operator for node in model.nodes}
    waiting = sorted(operators & HOST_OPERATORS)
    if waiting:
        raise ExportError(f"{file}: {', '.join(waiting)} need the CPU between kernels, which no CUDA graph can hold")
    homeless = sorted(operators - CUDA_KERNELS.keys())
    if homeless:
        raise ExportError(f"{file}: {', '.join(homeless)} are not among the operators known to have CUDA kernels")
    islands = compute_islands(model.nodes)
    if islands != 1:
        raise ExportError(f"{file}: the graph falls apart into {islands} islands, one is expected")
    newer = {
        name: max((version for version in NEWER_VERSIONS.get(name, ()) if version <= model.opset), default=None)
        for name in operators
    }
    channels = _channels(model)
    return GraphSpec(
        opset=model.opset,
        nodes=len(model.nodes),
        compute_islands=islands,
        newer_kernels=tuple(f"{name}-{version}" for name, version in sorted(newer.items()) if version is not None),
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


def compute_islands(nodes: Sequence[Node]) -> int:
    """Groups of nodes that no tensor connects."""
    group = list(range(len(nodes)))

    def root(index: int) -> int:
        while group[index] != index:
            group[index] = group[group[index]]  # nodes in reverse make long chains: halved, none is walked twice
            index = group[index]
        return index

    makers = {name: index for index, node in enumerate(nodes) for name in node.outputs}
    for index, node in enumerate(nodes):
        for name in node.inputs:
            if name in makers:
                group[root(index)] = root(makers[name])
    return len({root(index) for index in range(len(nodes))})


def _channels(model: Model) -> tuple[int, ...]:
    """The channels in and out of every matrix product and convolution, in order: what tensor cores multiply."""
    channels: list[int] = []
    for node in model.nodes:
        weight = model.weights.get(node.inputs[1]) if node.operator in PRODUCTS and len(node.inputs) > 1 else None
        if weight is None:
            continue
        transposed = node.operator == "Conv" or any(node.integers.get("transB", ()))
        channels += reversed(weight.shape[:2]) if transposed else weight.shape[:2]
    return tuple(channels)
