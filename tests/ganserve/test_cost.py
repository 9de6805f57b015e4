"""Shapes and multiply-adds, with onnx's own shape inference as the oracle."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ganserve.artifact import PRETRAINED
from ganserve.cost import check_cost, multiply_adds, shapes
from ganserve.errors import ArtifactError
from ganserve.fitness import CUDA_KERNELS
from ganserve.onnx_reader import read_model
from tests.artifacts import make_graph


def node(operator: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    """A node whose output is `y`."""
    return helper.make_node(operator, inputs, ["y"], **attributes)


def model_of(
    made: onnx.NodeProto, sizes: dict[str, list[int]], values: Mapping[str, Sequence[float]] | None = None
) -> bytes:
    """A model of one node, from float inputs of these sizes and constant numbers."""
    constants = [
        numpy_helper.from_array(np.array(v, dtype=np.int64 if isinstance(v[0], int) else np.float32), name)
        for name, v in (values or {}).items()
    ]
    graph = helper.make_graph(
        [made],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sizes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


PIXELS = {"x": [1, 6, 7, 5], "w": [6, 4, 3, 3]}
CASES = {
    "Conv": model_of(node("Conv", "x", "w"), {"x": [1, 6, 7, 5], "w": [4, 6, 3, 2]}),
    "Conv, strided": model_of(
        node("Conv", "x", "w", strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2], group=2),
        {"x": [1, 6, 9, 8], "w": [4, 3, 3, 3]},
    ),
    "ConvTranspose": model_of(node("ConvTranspose", "x", "w"), PIXELS),
    "ConvTranspose, strided": model_of(
        node(
            "ConvTranspose",
            "x",
            "w",
            strides=[2, 3],
            pads=[1, 1, 0, 2],
            output_padding=[1, 0],
            group=2,
            dilations=[2, 1],
        ),
        PIXELS,
    ),
    "Gemm": model_of(node("Gemm", "x", "w"), {"x": [1, 5], "w": [5, 7]}),
    "Gemm, transposed": model_of(node("Gemm", "x", "w", transA=1, transB=1), {"x": [5, 1], "w": [7, 5]}),
    "MatMul": model_of(node("MatMul", "x", "w"), {"x": [1, 3, 5], "w": [5, 7]}),
    "Gather": model_of(node("Gather", "x", "i", axis=1), {"x": [3, 6, 2]}, {"i": [0, 1, 2, 3]}),
    "Concat": model_of(node("Concat", "x", "w", axis=-1), {"x": [1, 5], "w": [1, 7]}),
    "Transpose": model_of(node("Transpose", "x", perm=[0, 2, 3, 1]), {"x": [1, 2, 3, 4]}),
    "Transpose, reversed": model_of(node("Transpose", "x"), {"x": [1, 2, 3]}),
    "Unsqueeze": model_of(node("Unsqueeze", "x", "i"), {"x": [2, 3]}, {"i": [-1, 0]}),
    "Reshape": model_of(node("Reshape", "x", "i"), {"x": [1, 24]}, {"i": [0, -1, 3, 2]}),
    "DepthToSpace": model_of(node("DepthToSpace", "x", blocksize=2, mode="CRD"), {"x": [1, 12, 3, 4]}),
    "Resize": model_of(node("Resize", "x", "", "s"), {"x": [1, 2, 5, 3]}, {"s": [1.0, 1.0, 2.0, 1.5]}),
    "Slice": model_of(
        node("Slice", "x", "a", "b", "i", "j"),
        {"x": [1, 2, 9, 7]},
        {"a": [1, -3], "b": [99, -1], "i": [2, -1], "j": [2, 1]},
    ),
    "Add": model_of(node("Add", "x", "w"), {"x": [1, 5, 3], "w": [4, 1, 3]}),
    "Tanh": model_of(node("Tanh", "x"), {"x": [1, 5, 3]}),
    "Clip": model_of(node("Clip", "x", "", "w"), {"x": [1, 5, 3], "w": []}),
}


@pytest.mark.parametrize("content", CASES.values(), ids=CASES.keys())
def test_shapes_are_those_of_onnx(content: bytes) -> None:
    """Each operator's output has the shape that onnx's shape inference gives it."""
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), strict_mode=True).graph.output[0]
    expected = tuple(size.dim_value for size in inferred.type.tensor_type.shape.dim)
    assert shapes(read_model(content, "x.onnx"), "x.onnx")["y"] == expected


def test_every_operator_that_is_fit_is_tried() -> None:
    """What is not among the cases above is computed number by number, as Add and Tanh are."""
    tried = {name.split(",")[0] for name in CASES}
    assert CUDA_KERNELS.keys() - tried == {
        "Cast", "Div", "Identity", "LeakyRelu", "Mul", "PRelu", "Relu", "Round", "Sigmoid", "Sub",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Conv", 4 * 5 * 4 * 6 * 3 * 2),  # each of 4 x 5 x 4 sums over 6 x 3 x 2
        ("ConvTranspose", 6 * 7 * 5 * 4 * 3 * 3),  # each of 6 x 7 x 5 is spread over 4 x 3 x 3
        ("Gemm", 5 * 7),
        ("Gemm, transposed", 5 * 7),
        ("MatMul", 3 * 5 * 7),
        ("Tanh", 0),
    ],
)
def test_multiply_adds_by_hand(name: str, expected: int) -> None:
    """Products and convolutions cost what one counts by hand."""
    assert multiply_adds(read_model(CASES[name], "x.onnx"), "x.onnx") == expected


def test_multiply_adds_of_real_generators() -> None:
    """The packaged generator: a matrix of 64 x 3,920, and two transposed convolutions on 7 x 7 and 14 x 14."""
    content = (PRETRAINED / "generator.onnx").read_bytes()
    first, second = 80 * 7 * 7 * 40 * 16, 40 * 14 * 14 * 1 * 16
    assert multiply_adds(read_model(content, "x.onnx"), "x.onnx") == 64 * 3920 + first + second
    assert multiply_adds(read_model(make_graph(16, 10, 28, 28), "x.onnx"), "x.onnx") == 16 * 784


WRONG = {
    "sizes that differ": model_of(node("Add", "x", "w"), {"x": [1, 5], "w": [1, 7]}),
    "a matrix that does not fit": model_of(node("MatMul", "x", "w"), {"x": [1, 5], "w": [6, 7]}),
    "a shape that does not fit": model_of(node("Reshape", "x", "i"), {"x": [1, 24]}, {"i": [1, 5]}),
    "a shape of nothing": model_of(node("Reshape", "x", "i", allowzero=1), {"x": [1, 24]}, {"i": [-1, 0]}),
    "a shape that is computed": model_of(node("Reshape", "x", "w"), {"x": [1, 24], "w": [2]}),
    "an input from nowhere": model_of(node("Add", "x", "nowhere"), {"x": [1]}),
    "no input": model_of(node("Relu"), {"x": [1]}),
    "a permutation of others": model_of(node("Transpose", "x", perm=[0, 9]), {"x": [1, 2]}),
    "an image smaller than a kernel": model_of(node("Conv", "x", "w"), {"x": [1, 1, 2, 2], "w": [1, 1, 9, 9]}),
    "half a block": model_of(node("DepthToSpace", "x", blocksize=2), {"x": [1, 6, 3, 4]}),
    "endless scales": model_of(node("Resize", "x", "", "s"), {"x": [1, 1]}, {"s": [1.0, float("inf")]}),
    "scales that are computed": model_of(node("Resize", "x", "", "w"), {"x": [1, 1], "w": [2]}),
    "computed padding": model_of(node("Conv", "x", "w", auto_pad="SAME_UPPER"), {"x": [1, 1, 4, 4], "w": [1, 1, 3, 3]}),
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG.keys())
def test_shapes_that_do_not_fit_are_refused(content: bytes) -> None:
    """A graph that cannot be computed is an error of ours, not a crash."""
    with pytest.raises(ArtifactError, match="do not fit together"):
        shapes(read_model(content, "x.onnx"), "x.onnx")


HOSTILE = {
    "a product of nothing": [helper.make_node("MatMul", ["x"], ["y"])],
    "a factor left out": [helper.make_node("MatMul", ["x", "", "w"], ["y"])],
    "two outputs": [helper.make_node("MatMul", ["x", "w"], ["y", "z"])],
    "no output": [helper.make_node("Relu", ["x"], [])],
    "scales beyond numbers": [
        helper.make_node("Resize", [f"x{index}" if index else "x", "", "s"], [f"x{index + 1}"]) for index in range(12)
    ],
    "more and more dimensions": [
        helper.make_node("Unsqueeze", [f"x{index}" if index else "x", "i"], [f"x{index + 1}"]) for index in range(20)
    ],
}


@pytest.mark.parametrize("nodes", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_nodes_are_errors_of_ours(nodes: list[onnx.NodeProto]) -> None:
    """What no export writes is refused by name before anything is worked out from it, neither a crash nor hours."""
    constants = [
        numpy_helper.from_array(np.array([1e30, 1e30], dtype=np.float32), "s"),
        numpy_helper.from_array(np.array([0], dtype=np.int64), "i"),
        numpy_helper.from_array(np.zeros((4, 6), dtype=np.float32), "w"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])]
    graph = helper.make_graph(nodes, "g", inputs, [], constants)
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    with pytest.raises(ArtifactError, match="do not fit together"):
        multiply_adds(read_model(content, "x.onnx"), "x.onnx")


def test_an_unknown_operator_is_named() -> None:
    """An operator that no export writes has no shape here."""
    content = model_of(node("Softmax", "x"), {"x": [1, 4]})
    with pytest.raises(ArtifactError, match="the shape that Softmax makes is not known here"):
        shapes(read_model(content, "x.onnx"), "x.onnx")


def test_a_graph_that_makes_too_much_is_refused() -> None:
    """A row plus a column may be a matrix of terabytes; what a generator makes of an image is let through."""
    content = model_of(node("Add", "x", "w"), {"x": [1 << 20, 1], "w": [1, 1 << 20]})
    with pytest.raises(ArtifactError, match=r"works out 1,099,511,627,776 numbers .* at most 1,605,632 are expected"):
        check_cost(read_model(content, "x.onnx"), "x.onnx", 784)
    packaged = read_model((PRETRAINED / "generator.onnx").read_bytes(), "x.onnx")
    assert check_cost(packaged, "x.onnx", 784) == 65_313
