"""The walker of ONNX files; onnx itself writes what it reads and is the oracle of what it says."""

import contextlib
import pickle
import tracemalloc
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ganserve.artifact import PRETRAINED
from ganserve.errors import ArtifactError
from ganserve.onnx_reader import MAX_FIELDS, read_model
from tests.artifacts import make_graph

GRAPH = make_graph(4, 3, 8, 8)


def changed(change) -> bytes:
    """The small graph after `change(model)`."""
    model = onnx.load_from_string(GRAPH)
    change(model)
    return model.SerializeToString()


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(number: int, content: bytes) -> bytes:
    """A field of bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


@contextlib.contextmanager
def memory_peak() -> Iterator[Callable[[], int]]:
    """What gives, afterwards, the most bytes that Python held at once in the block."""
    found: list[int] = []
    tracemalloc.start()
    try:
        yield lambda: found[0]
        found.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


# What it says is what onnx says.


@pytest.mark.parametrize("content", [GRAPH, (PRETRAINED / "generator.onnx").read_bytes()], ids=["small", "pretrained"])
def test_it_says_what_onnx_says(content: bytes) -> None:
    """Opset, metadata, nodes, inputs, outputs and weights of a real file are those that onnx reads."""
    model, expected = read_model(content, "x.onnx"), onnx.load_from_string(content)
    assert model.opset == expected.opset_import[0].version
    assert model.ir_version == expected.ir_version
    assert model.metadata == {entry.key: entry.value for entry in expected.metadata_props}
    assert [(node.operator, list(node.inputs), list(node.outputs)) for node in model.nodes] == [
        (node.op_type, list(node.input), list(node.output)) for node in expected.graph.node
    ]
    for node, other in zip(model.nodes, expected.graph.node, strict=True):
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in other.attribute}
        whole = {k: (v,) if isinstance(v, int) else tuple(v) for k, v in attributes.items() if _whole(v)}
        assert dict(node.integers) == whole
    for values, others in ((model.inputs, expected.graph.input), (model.outputs, expected.graph.output)):
        assert [(value.name, value.shape) for value in values] == [
            (other.name, tuple(d.dim_param or d.dim_value for d in other.type.tensor_type.shape.dim))
            for other in others
        ]
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in expected.graph.initializer}
    assert {name: (t.dtype, t.shape, t.bytes) for name, t in model.weights.items()} == {
        name: (array.dtype.name, array.shape, array.nbytes) for name, array in arrays.items()
    }
    for name, tensor in model.weights.items():
        if tensor.dtype == "int64":
            assert tensor.integers == tuple(arrays[name].ravel().tolist())


def _whole(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, list) and all(isinstance(each, int) for each in value))


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int32", "uint8", "int64", "uint64", "bool"])
@pytest.mark.parametrize("raw", [True, False])
def test_numbers_are_counted_in_every_form(dtype: str, raw: bool) -> None:
    """A tensor's bytes are its shape's, whether its numbers are raw or in a field of their own type."""
    values = np.array([[0, 1, 200], [3, 4, 127]]).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor = helper.make_tensor("w", kind, (2, 3), values.tobytes() if raw else values.ravel().tolist(), raw=raw)
    content = changed(lambda model: model.graph.initializer.append(tensor))
    found = read_model(content, "x.onnx").weights["w"]
    assert (found.dtype, found.shape, found.bytes) == (dtype, (2, 3), values.nbytes)


def test_precision_is_that_of_most_bytes() -> None:
    """Halving the weights makes it float16; scales that stay float32 do not hide it."""
    assert read_model(GRAPH, "x.onnx").precision == "float32"

    def halve(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and len(tensor.dims):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))

    assert read_model(changed(halve), "x.onnx").precision == "float16"


# What is refused.


def external(model: onnx.ModelProto, *, location: bool = True) -> None:
    """Moves a weight's numbers out of the file."""
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    if location:
        tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def claims(dims: list[int]):
    """A weight that claims a shape and holds nothing of it."""

    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return change


def constant(tensor: TensorProto):
    """The same tensor as a node's attribute, where a weight can hide."""
    return lambda model: model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def outside() -> TensorProto:
    """A tensor whose numbers lie outside."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    return tensor


def hidden_location(model: onnx.ModelProto) -> None:
    """Says that the data is outside, without saying where."""
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def body() -> onnx.GraphProto:
    """A graph for a node to hold."""
    return helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "body", [], [])


HOSTILE = {
    "external data": (external, "holds external data"),
    "external data, unmarked": (lambda model: external(model, location=False), "holds external data"),
    "external data, nowhere": (hidden_location, "holds external data"),
    "external data in a constant": (constant(outside()), "holds external data"),
    "2^40 numbers": (claims([1 << 40]), r"tensor 'W' that claims 4,398,046,511,104 bytes and holds 1,024"),
    "more than 64 bits": (
        claims([1 << 62, 1 << 62]),
        r"tensor 'W' that claims 85,070,591,730,[0-9,]* bytes and holds 1,024",
    ),
    "a negative size": (claims([-1]), "a shape that none can have"),
    "a hundred dimensions": (claims([1] * 100), "a shape that none can have"),
    "2^40 numbers in a constant": (
        constant(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40])),
        "claims 4,398,046,511,104 bytes and holds 0",
    ),
    "fewer numbers than bytes": (claims([4, 63]), "claims 1,008 bytes and holds 1,024"),
    "strings": (
        lambda model: model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"x"])),
        "strings for weights",
    ),
    "a type that there is not": (
        lambda model: setattr(model.graph.initializer[0], "data_type", 99),
        "of type 99, which no generator has",
    ),
    "a foreign operator": (
        lambda model: setattr(model.graph.node[0], "domain", "com.microsoft"),
        "operator 'MatMul' of 'com.microsoft'",
    ),
    "a foreign opset": (
        lambda model: model.opset_import.append(helper.make_opsetid("evil.example", 1)),
        "needs operators of '', 'evil.example'",
    ),
    "two opsets": (
        lambda model: model.opset_import.append(helper.make_opsetid("ai.onnx", 17)),
        "has opset '' twice",
    ),
    "no opset": (lambda model: model.ClearField("opset_import"), "needs operators of no domain"),
    "a function": (
        lambda model: model.functions.append(helper.make_function("x", "f", [], [], [], [])),
        "holds functions of its own",
    ),
    "a graph in a node": (
        lambda model: model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=body())),
        "holds a graph inside a node",
    ),
    "training": (lambda model: model.training_info.add(), "holds training graphs"),
    "sparse weights": (lambda model: model.graph.sparse_initializer.add(), "holds sparse weights"),
    "one weight twice": (
        lambda model: model.graph.initializer.append(model.graph.initializer[0]),
        "has weight 'W' twice",
    ),
    "no graph": (lambda model: model.ClearField("graph"), "it has no graph"),
}


@pytest.mark.parametrize(("change", "fault"), HOSTILE.values(), ids=HOSTILE.keys())
def test_what_no_generator_has_is_refused(change, fault: str) -> None:
    """Each thing that could reach out of the file, or claims more than it holds, is refused by name."""
    with pytest.raises(ArtifactError, match=rf"^x\.onnx .*{fault}"):
        read_model(changed(change), "x.onnx")


def torchscript() -> bytes:
    """The start of a zip archive, as torch.jit.save writes one."""
    return b"PK\x03\x04\x00\x00\x08\x08\x00\x00" + b"\0" * 100


FOREIGN = {
    "empty": (b"", "it is empty"),
    "TorchScript": (torchscript(), "it is a zip archive, as TorchScript is"),
    "pickle": (pickle.dumps([1, 2]), "it is a Python pickle"),
    "text": (b"not a graph", "field 13 of ModelProto has wire type 6"),
    "zeros": (bytes(1000), "field 0 of ModelProto has wire type 0"),
    "truncated": (GRAPH[:-1], "are left"),
    "ten gigabytes": (varint(7 << 3 | 2) + varint(10 << 30) + b"x", "graph claims 10,737,418,240 bytes, 1 are left"),
    "an endless number": (b"\x08" + b"\xff" * 100, "more than ten bytes"),
    "half a number": (b"\x08\xff", "ends inside a number"),
    "two graphs": (GRAPH + message(7, b""), "ModelProto has graph twice"),
    "an unknown field": (GRAPH + message(99, b""), "field 99 of ModelProto"),
    "a group": (GRAPH + b"\x3b\x3c", "field 7 of ModelProto has wire type 3"),
    "a name that is no text": (GRAPH + message(14, message(1, b"\xff")), "a name is not UTF-8"),
}


@pytest.mark.parametrize(("content", "fault"), FOREIGN.values(), ids=FOREIGN.keys())
def test_what_is_not_onnx_is_refused(content: bytes, fault: str) -> None:
    """What is not ONNX, or stops in the middle, is said to be that."""
    with pytest.raises(ArtifactError, match=rf"^x\.onnx is not an ONNX model: .*{fault}"):
        read_model(content, "x.onnx")


def test_the_other_format_of_onnx_runtime_is_refused() -> None:
    """Bytes that are protobuf and carry the mark of ONNX Runtime's own format, which it looks for first."""
    content = message(2, b"xxORTM") + GRAPH
    onnx.load_from_string(content)  # protobuf sees a producer's name
    with pytest.raises(Exception, match="verification failed"):  # and ONNX Runtime a flat buffer
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with pytest.raises(ArtifactError, match="it is in ONNX Runtime's own format"):
        read_model(content, "x.onnx")


def test_millions_of_fields_are_refused_soon() -> None:
    """Megabytes of nothing but fields are refused after the first of them, without memory for any of them."""
    content = message(8, b"\x10\x14") + message(7, message(16, b"") * (2 * MAX_FIELDS))
    with memory_peak() as peak, pytest.raises(ArtifactError, match=f"more than {MAX_FIELDS:,} fields"):
        read_model(content, "x.onnx")
    assert peak() < 1 << 20


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject) -> None:
    """Whatever is changed in a file, it is a model or an ArtifactError: never another exception."""
    content = bytearray(GRAPH[:200] + GRAPH[-300:] if data.draw(st.booleans()) else GRAPH)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ArtifactError):
        read_model(bytes(content), "x.onnx")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_noise_is_refused(content: bytes) -> None:
    """Noise is no model."""
    with pytest.raises(ArtifactError, match=r"^x\.onnx "):
        read_model(content, "x.onnx")


def test_a_view_keeps_nothing_of_the_weights() -> None:
    """Reading a file of eight megabytes takes kilobytes: its weights are looked at, not copied."""
    weights = numpy_helper.from_array(np.zeros((2, 1 << 20), np.float32), "big")
    content = changed(lambda model: model.graph.initializer.append(weights))
    with memory_peak() as peak:
        assert read_model(content, "x.onnx").weights["big"].bytes == 8 << 20
    assert peak() < 1 << 18
