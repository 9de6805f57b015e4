"""What one image costs: the shapes in a graph, and the memory and multiply-adds that follow from them.

A file of a few kilobytes can ask for terabytes: a row plus a column is a matrix, and ONNX Runtime works constants out
as it loads. So a graph's shapes are known before it is opened.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from ganserve.errors import ArtifactError
from ganserve.fitness import CUDA_KERNELS, PRODUCTS
from ganserve.onnx_reader import Model, Node, Tensor

Shape = tuple[int, ...]


# Numbers in all tensors of one image, for each value in the image: the packaged generator has 83.
_MAX_NUMBERS_A_VALUE: Final = 2048
_MAX_NUMBERS: Final = 1 << 20  # which any generator may have, however small its images
# Of one tensor. Without these a chain of nodes makes shapes longer and longer, or sizes of millions of digits.
_MAX_RANK: Final = 16
_MAX_SIZE: Final = 1 << 31


def check_cost(model: Model, file: str, image_values: int) -> int:
    """How many numbers a graph works out for one image, if they are no more than a generator's.

    Args:
        model: what the file holds.
        file: its name, for messages.
        image_values: height x width x channels of an image.

    Raises:
        ArtifactError: it makes more; or as of `multiply_adds`.
    """
    known = shapes(model, file)
    numbers = sum(math.prod(known[name]) for node in model.nodes for name in node.outputs)
    limit = max(_MAX_NUMBERS, _MAX_NUMBERS_A_VALUE * image_values)
    if numbers > limit:
        raise ArtifactError(f"{file} works out {numbers:,} numbers for an image, at most {limit:,} are expected")
    return numbers


def multiply_adds(model: Model, file: str) -> int:
    """Multiplications, each with its addition, in the matrix products and convolutions of one image.

    Elementwise operators are left out: they are bound by memory, not by arithmetic.

    Args:
        model: a graph that is fit (ganserve.fitness).
        file: its name, for messages.

    Raises:
        ArtifactError: a node whose shapes do not fit together, or one that is not known here.
    """
    known = shapes(model, file)
    total = 0
    for node in model.nodes:
        if node.operator not in PRODUCTS:
            continue
        (made,), (given, weights) = (known[name] for name in node.outputs), (known[name] for name in node.inputs[:2])
        if node.operator == "ConvTranspose":  # each input cell is spread over the kernel
            total += math.prod(given) * math.prod(weights[1:])
        elif node.operator == "Conv":  # each output cell is a sum over the kernel
            total += math.prod(made) * math.prod(weights[1:])
        else:
            transposed = node.operator == "Gemm" and node.integers.get("transA", (0,))[0]
            total += math.prod(made) * given[0 if transposed else -1]
    return total


def shapes(model: Model, file: str) -> dict[str, Shape]:
    """The shape of every tensor in a graph, for a batch of one.

    Raises:
        ArtifactError: as of `multiply_adds`.
    """
    known: dict[str, Shape] = {name: tensor.shape for name, tensor in model.weights.items()}
    for value in model.inputs:
        known[value.name] = tuple(size if isinstance(size, int) else 1 for size in value.shape)
    for node in model.nodes:
        try:
            if len(node.outputs) != 1 or (node.operator in PRODUCTS and not all(node.inputs[:2])):
                raise ValueError("one output is expected, and of a product both factors")
            given = [known[name] for name in node.inputs if name]
            rule = _RULES.get(node.operator)
            if node.operator in _ELEMENTWISE:
                made = _broadcast(given)
            elif rule is not None:
                made = rule(node, given, model.weights)
            else:
                raise ArtifactError(f"{file}: the shape that {node.operator} makes is not known here")
            if len(made) > _MAX_RANK or not all(0 <= size <= _MAX_SIZE for size in made):
                raise ValueError("an image is smaller than a kernel, or larger than any")
        except (ArithmeticError, IndexError, KeyError, ValueError) as err:  # infinity has no size
            raise ArtifactError(f"{file}: the inputs of {node.operator} do not fit together") from err
        known[node.outputs[0]] = made
    return known


_Constants = Mapping[str, Tensor]


def _integers(constants: _Constants, name: str) -> Shape:
    values = constants[name].integers
    if values is None:
        raise ValueError("whole numbers are expected")
    return values


def _broadcast(given: Sequence[Shape]) -> Shape:
    rank = max(map(len, given))
    columns = zip(*((1,) * (rank - len(shape)) + shape for shape in given), strict=True)
    sizes = [{size for size in column if size != 1} for column in columns]
    if any(len(different) > 1 for different in sizes):
        raise ValueError("sizes differ")
    return tuple(different.pop() if different else 1 for different in sizes)


def _matmul(node: Node, given: Sequence[Shape], constants: _Constants) -> Shape:
    left, right = given[:2]
    if len(right) != 2 or left[-1] != right[0]:
        raise ValueError("sizes differ")
    return *left[:-1], right[1]


def _gemm(node: Node, given: Sequence[Shape], constants: _Constants) -> Shape:
    left, right = (
        shape[::-1] if node.integers.get(name, (0,))[0] else shape
        for shape, name in zip(given[:2], ("transA", "transB"), strict=True)
    )
    return _matmul(node, (left, right), constants)


def _gather(node: Node, given: Sequence[Shape], constants: _Constants) -> Shape:
    table, indices = given
    axis = node.integers.get("axis", (0,))[0] % len(table)
    return *table[:axis], *indices, *table[axis + 1 :]


def _reshape(node: Node, given: Sequence[Shape], constants: _Constants) -> Shape:
    wanted = _integers(constants, node.inputs[1])
    if not node.integers.get("allowzero", (0,))[0]:
        wanted = tuple(given[0][place] if size == 0 else size for place, size in enumerate(wanted))
    rest = math.prod(given[0]) // math.prod(size for size in wanted if size != -1)
    made = tuple(rest if size == -1 else size for size in wanted)
    if math.prod(made) != math.prod(given[0]):
        raise ValueError("sizes differ")
    return made


def _transpose(node: Node, given: Sequence[Shape], constants: _Constants) -> Shape:
    return tuple(given[0][place] for place in node.integers.get("perm", range(len(given[0]))[::-1]))


def _unsqueeze(node: Node, given: Sequence[Shape], constants: _Constants) -> Shape:
    axes = _integers(constants, node.inputs[1])
    rank = len(given[0]) + len(axes)
    old = iter(given[0])
    new = {axis % rank for axis in axes}
    return tuple(1 if place in new else next(old, 1) for place in range(rank))


def _concat(node: Node, given: Sequence[Shape], constants: _Constants) -> Shape:
    axis = node.integers["axis"][0] % len(given[0])
    return *given[0][:axis], sum(shape[axis] for shape in given), *given[0][axis + 1 :]


def _conv(node: Node, given: Sequence[Shape], constants: _Constants) -> Shape:
    images, weights = given[:2]
    sizes = (
        (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, dilation, before, after in _windows(node, images, weights)
    )
    return images[0], weights[0], *sizes


def _conv_transpose(node: Node, given: Sequence[Shape], constants: _Constants) -> Shape:
    images, weights = given[:2]
    extra = node.integers.get("output_padding", (0,) * (len(images) - 2))
    sizes = (
        (size - 1) * stride + dilation * (kernel - 1) + 1 - before - after + more
        for (size, kernel, stride, dilation, before, after), more in zip(
            _windows(node, images, weights), extra, strict=True
        )
    )
    return images[0], weights[1] * node.integers.get("group", (1,))[0], *sizes


def _depth_to_space(node: Node, given: Sequence[Shape], constants: _Constants) -> Shape:
    block = node.integers["blocksize"][0]
    rows, channels, *sizes = given[0]
    if channels % block**2:
        raise ValueError("channels do not make whole blocks")
    return rows, channels // block**2, *(size * block for size in sizes)


def _resize(node: Node, given: Sequence[Shape], constants: _Constants) -> Shape:
    scales = constants[node.inputs[2]].floats
    if scales is None or not all(0 < scale < math.inf for scale in scales):
        raise ValueError("scales are expected")
    return tuple(math.floor(size * scale) for size, scale in zip(given[0], scales, strict=True))


def _slice(node: Node, given: Sequence[Shape], constants: _Constants) -> Shape:
    starts, ends, axes, steps = (_integers(constants, name) for name in node.inputs[1:5])
    made = list(given[0])
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        made[axis] = len(range(made[axis])[start:end:step])
    return tuple(made)


def _windows(node: Node, images: Shape, weights: Shape) -> list[tuple[int, int, int, int, int, int]]:
    """For each spatial dimension: its size, and the kernel's size, stride, dilation and padding before and after."""
    if node.texts.get("auto_pad", "NOTSET") != "NOTSET":
        raise ValueError("padding is computed")
    rank = len(images) - 2
    ones = (1,) * rank
    pads = node.integers.get("pads", (0,) * (2 * rank))
    strides, dilations = node.integers.get("strides", ones), node.integers.get("dilations", ones)
    return list(zip(images[2:], weights[2:], strides, dilations, pads[:rank], pads[rank:], strict=True))


_RULES: Final[Mapping[str, Callable[[Node, Sequence[Shape], _Constants], Shape]]] = {
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
_ELEMENTWISE: Final = CUDA_KERNELS.keys() - _RULES.keys()
