import sys
from collections.abc import Callable
from types import FrameType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ganserve.errors import ExportError
from ganserve.fitness import CUDA_KERNELS, NEWER_VERSIONS, OPSETS, compute_islands, describe, fitness
from ganserve.onnx_reader import Model, Node, read_model
from tests.artifacts import make_graph


def graph_of(*nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("y",), opset: int = 20) -> Model:
    """A model of these nodes, from `x` float32 [batch, 4] and a weight `w` [4, 6]."""
    weight = numpy_helper.from_array(np.zeros((4, 6), dtype=np.float32), "w")
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return read_model(model.SerializeToString(), "generator.onnx")


@pytest.mark.parametrize("operator", ["Shape", "NonZero", "Loop", "If"])
def test_nodes_that_wait_for_the_cpu_are_refused(operator: str) -> None:
    """A node that CUDA graphs cannot hold is an error that names it."""
    with pytest.raises(ExportError, match=f"{operator} need the CPU between kernels"):
        fitness("generator.onnx", graph_of(helper.make_node(operator, ["x"], ["y"])))


def test_nodes_without_a_cuda_kernel_are_refused() -> None:
    """An operator that is not known to have a CUDA kernel would cut the graph into pieces."""
    with pytest.raises(ExportError, match="StringNormalizer are not among the operators"):
        fitness("generator.onnx", graph_of(helper.make_node("StringNormalizer", ["x"], ["y"])))


def test_two_islands_are_refused() -> None:
    """A graph in two parts that no tensor connects is an error with their number; joined, it is one."""
    parts = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Tanh", ["x"], ["b"])]
    with pytest.raises(ExportError, match="2 islands"):
        fitness("generator.onnx", graph_of(*parts, outputs=("a", "b")))
    joined = graph_of(*parts, helper.make_node("Add", ["a", "b"], ["y"]))
    assert fitness("generator.onnx", joined).compute_islands == 1


def test_channels_are_those_of_products() -> None:
    """Channels in and out of a matrix product are told, and which are no multiple of eight."""
    spec = fitness("generator.onnx", graph_of(helper.make_node("MatMul", ["x", "w"], ["y"])))
    assert spec.channels == (4, 6)
    assert spec.unaligned_channels == (4, 6)
    assert "0 of 2 channel counts are multiples of 8 (not: 4, 6)" in describe(spec)


def test_a_product_without_weights_has_no_channels() -> None:
    """A product that lacks its second factor is for the checks of shapes to refuse: here it is no crash."""
    assert fitness("generator.onnx", graph_of(helper.make_node("MatMul", ["x"], ["y"]))).channels == ()


@pytest.mark.parametrize("opset", [0, -5, 16, 1 << 62])
def test_other_opsets_are_refused(opset: int) -> None:
    """An opset that nobody tested, or that there is not, is an error that says which there are."""
    with pytest.raises(ExportError, match=f"opset must be 17 to 26, got {opset}"):
        fitness("generator.onnx", graph_of(helper.make_node("Relu", ["x"], ["y"]), opset=opset))


def test_islands_are_counted_in_one_pass() -> None:
    """A chain of 20,000 nodes in reverse order takes no longer for it: a step or two for each node."""
    count = 20_000
    chain = [Node(operator="Relu", inputs=(f"x{index + 1}",), outputs=(f"x{index}",)) for index in range(count)]
    lines = 0

    def traced(frame: FrameType, event: str, argument: object) -> Callable[..., object]:
        nonlocal lines
        lines += event == "line"
        return traced

    before = sys.gettrace()
    sys.settrace(traced)
    try:
        assert compute_islands(chain) == 1
    finally:
        sys.settrace(before)
    assert lines < 50 * count


def test_kernels_of_newer_releases_are_named() -> None:
    """An operator that opset 22 changed is named: older CUDA providers have no kernel for it."""
    node = helper.make_node("Round", ["x"], ["y"])
    assert fitness("generator.onnx", graph_of(node, opset=20)).newer_kernels == ()
    spec = fitness("generator.onnx", graph_of(node, opset=22))
    assert spec.newer_kernels == ("Round-22",)
    assert "Round-22 have CUDA kernels in newer ONNX Runtimes only" in describe(spec)


def test_every_kernel_is_an_operator() -> None:
    """The table names operators of the standard and versions that they have had."""
    versions = {(schema.name, schema.since_version) for schema in onnx.defs.get_all_schemas_with_history()}
    assert CUDA_KERNELS.items() <= versions


def test_newer_versions_are_all_there_are() -> None:
    """Of each operator in the table, the versions above the one with a kernel are those of the standard."""
    newer: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        kernel = CUDA_KERNELS.get(schema.name) if schema.domain == "" else None
        if kernel is not None and kernel < schema.since_version <= OPSETS[-1]:
            newer.setdefault(schema.name, set()).add(schema.since_version)
    assert {name: set(versions) for name, versions in NEWER_VERSIONS.items()} == newer


def test_any_small_graph_is_fit() -> None:
    """The graphs that the other tests are made with pass."""
    assert fitness("generator.onnx", read_model(make_graph(16, 10, 28, 28), "generator.onnx")).opset == 20
