"""An ONNX file's structure, read without onnx, without trusting a number in it, and in memory of the file's own size.

ONNX Runtime opens what it is given: it follows external data out of the file, loads libraries' operators, and sees
another format than ONNX in the same bytes. So the bytes are walked here first. This is protobuf's wire format
(protobuf.dev/programming-guides/encoding) and the messages of onnx.proto; a field that is not in the tables below is
refused, because what it means to ONNX Runtime is not known here.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

import numpy as np

from ganserve.errors import ArtifactError

MAX_FIELDS: Final = 200_000  # half a second's work; a generator has thousands
_MAX_RANK: Final = 16
_MAX_VALUES: Final = 64  # of a tensor whose values are kept: shapes, axes and scales, not weights

_VARINT, _I64, _BYTES, _I32 = 0, 1, 2, 5
_Content = int | memoryview
_Value = TypeVar("_Value")


class _Field(NamedTuple):
    """A field's name, the wire types that it comes in (repeated numbers: packed or not), and whether it may repeat."""

    name: str
    wires: tuple[int, ...]
    repeated: bool = False


def _one(name: str, wire: int = _BYTES) -> _Field:
    return _Field(name, (wire,))


def _many(name: str, *wires: int) -> _Field:
    return _Field(name, wires or (_BYTES,), repeated=True)


_FIELDS: Final[Mapping[str, Mapping[int, _Field]]] = {
    "ModelProto": {
        1: _one("ir_version", _VARINT),
        2: _one("producer_name"),
        3: _one("producer_version"),
        4: _one("domain"),
        5: _one("model_version", _VARINT),
        6: _one("doc_string"),
        7: _one("graph"),
        8: _many("opset_import"),
        14: _many("metadata_props"),
    },
    "OperatorSetIdProto": {1: _one("domain"), 2: _one("version", _VARINT)},
    "StringStringEntryProto": {1: _one("key"), 2: _one("value")},
    "GraphProto": {
        1: _many("node"),
        2: _one("name"),
        5: _many("initializer"),
        10: _one("doc_string"),
        11: _many("input"),
        12: _many("output"),
        13: _many("value_info"),
        16: _many("metadata_props"),
    },
    "NodeProto": {
        1: _many("input"),
        2: _many("output"),
        3: _one("name"),
        4: _one("op_type"),
        5: _many("attribute"),
        6: _one("doc_string"),
        7: _one("domain"),
        8: _one("overload"),
        9: _many("metadata_props"),
    },
    "AttributeProto": {
        1: _one("name"),
        2: _one("f", _I32),
        3: _one("i", _VARINT),
        4: _one("s"),
        5: _one("t"),
        7: _many("floats", _I32, _BYTES),
        8: _many("ints", _VARINT, _BYTES),
        9: _many("strings"),
        10: _many("tensors"),
        13: _one("doc_string"),
        20: _one("type", _VARINT),
    },
    "TensorProto": {
        1: _many("dims", _VARINT, _BYTES),
        2: _one("data_type", _VARINT),
        4: _many("float_data", _I32, _BYTES),
        5: _many("int32_data", _VARINT, _BYTES),
        7: _many("int64_data", _VARINT, _BYTES),
        8: _one("name"),
        9: _one("raw_data"),
        10: _many("double_data", _I64, _BYTES),
        11: _many("uint64_data", _VARINT, _BYTES),
        12: _one("doc_string"),
        14: _one("data_location", _VARINT),
        16: _many("metadata_props"),
    },
    "ValueInfoProto": {1: _one("name"), 2: _one("type"), 3: _one("doc_string"), 4: _many("metadata_props")},
    "TypeProto": {1: _one("tensor_type"), 6: _one("denotation")},
    "TypeProto.Tensor": {1: _one("elem_type", _VARINT), 2: _one("shape")},
    "TensorShapeProto": {1: _many("dim")},
    "TensorShapeProto.Dimension": {1: _one("dim_value", _VARINT), 2: _one("dim_param"), 3: _one("denotation")},
}

# Fields of ONNX that no generator has, by the name under which they are refused.
_REFUSED: Final = {
    ("ModelProto", 20): "training graphs",
    ("ModelProto", 25): "functions of its own",
    ("ModelProto", 26): "device configurations",
    ("GraphProto", 14): "quantization annotations",
    ("GraphProto", 15): "sparse weights",
    ("NodeProto", 10): "device configurations",
    ("AttributeProto", 6): "a graph inside a node",
    ("AttributeProto", 11): "graphs inside a node",
    ("AttributeProto", 14): "a type as an attribute",
    ("AttributeProto", 15): "types as attributes",
    ("AttributeProto", 21): "a function's attribute",
    ("AttributeProto", 22): "sparse weights",
    ("AttributeProto", 23): "sparse weights",
    ("TensorProto", 3): "a tensor in segments",
    ("TensorProto", 6): "strings for weights",
    ("TensorProto", 13): "external data: weights outside the file",
    ("TypeProto", 4): "a sequence for an input or output",
    ("TypeProto", 5): "a map for an input or output",
    ("TypeProto", 7): "an opaque type for an input or output",
    ("TypeProto", 8): "a sparse tensor for an input or output",
    ("TypeProto", 9): "an optional input or output",
}


class _Type(NamedTuple):
    """An element type's name, its size, and the field that holds its numbers where `raw_data` does not."""

    name: str
    bytes: int
    field: str


_FLOAT, _INT64 = 1, 7
_TYPES: Final = {
    1: _Type("float32", 4, "float_data"),
    2: _Type("uint8", 1, "int32_data"),
    3: _Type("int8", 1, "int32_data"),
    4: _Type("uint16", 2, "int32_data"),
    5: _Type("int16", 2, "int32_data"),
    6: _Type("int32", 4, "int32_data"),
    7: _Type("int64", 8, "int64_data"),
    9: _Type("bool", 1, "int32_data"),
    10: _Type("float16", 2, "int32_data"),
    11: _Type("float64", 8, "double_data"),
    12: _Type("uint32", 4, "uint64_data"),
    13: _Type("uint64", 8, "uint64_data"),
    16: _Type("bfloat16", 2, "int32_data"),
}


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Weights in the file: as many bytes as their shape claims; and the values of a short int64 or float32 tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    integers: tuple[int, ...] | None = None
    floats: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Value:
    """An input or output; a string in `shape` is a dimension that varies, None one of which nothing is said."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One operator of the standard domain. Attributes: whole numbers and lists of them, and texts."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Model:
    """What an ONNX file holds: one graph of standard operators, with its weights."""

    ir_version: int
    opset: int
    metadata: Mapping[str, str]
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    weights: Mapping[str, Tensor]

    @property
    def precision(self) -> str:
        """The element type of most of the weights' bytes, shapes and other whole numbers apart."""
        held: dict[str, int] = {}
        for tensor in (*self.weights.values(), *(tensor for node in self.nodes for tensor in node.tensors)):
            if "float" in tensor.dtype:
                held[tensor.dtype] = held.get(tensor.dtype, 0) + tensor.bytes
        return max(held, key=lambda dtype: held[dtype], default="float32")


def read_model(content: bytes, file: str) -> Model:
    """The structure of an ONNX file.

    Args:
        content: the file.
        file: its name, for messages.

    Raises:
        ArtifactError: it is not ONNX, or holds what no generator does: weights outside the file, a tensor that claims
            more than it holds, an operator that is not of the standard domain, functions, graphs inside nodes.
    """
    foreign = _foreign(content)
    if foreign is not None:
        raise ArtifactError(f"{file} is not an ONNX model: it is {foreign}")
    return _Walk(file).model(memoryview(content))


def _foreign(content: bytes) -> str | None:
    """What else a file is by its first bytes, in words."""
    if not content:
        return "empty"
    if content.startswith(b"PK\x03\x04"):
        return "a zip archive, as TorchScript is"
    if content.startswith(tuple(bytes((0x80, protocol)) for protocol in range(2, 6))):
        return "a Python pickle"
    # ONNX Runtime looks for this mark before it parses protobuf, and the same bytes could be both.
    return "in ONNX Runtime's own format" if content[4:8] == b"ORTM" else None


class _Walk:
    """One pass over a file; every length is compared with what is left before anything is done with it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.fields_left = MAX_FIELDS

    def fault(self, text: str) -> ArtifactError:
        return ArtifactError(f"{self.file} {text}")

    def model(self, content: memoryview) -> Model:
        opsets: dict[str, int] = {}
        metadata: dict[str, str] = {}
        graph: memoryview | None = None
        ir_version = 0
        for name, value in self.fields("ModelProto", content):
            if name == "ir_version":
                ir_version = _integer(value)
            elif name == "opset_import":
                domain, version = self.opset(_bytes(value))
                self.once(opsets, domain, version, "opset")
            elif name == "metadata_props":
                self.once(metadata, *self.entry(_bytes(value)), "metadata")
            elif name == "graph":
                graph = _bytes(value)
        if graph is None:
            raise self.fault("is not an ONNX model: it has no graph")
        if list(opsets) != [""]:
            raise self.fault(
                f"needs operators of {', '.join(repr(domain) for domain in opsets) or 'no domain'}; "
                "the standard domain alone is expected"
            )
        return self.graph(graph, ir_version=ir_version, opset=opsets[""], metadata=metadata)

    def graph(self, content: memoryview, *, ir_version: int, opset: int, metadata: Mapping[str, str]) -> Model:
        nodes: list[Node] = []
        inputs: list[Value] = []
        outputs: list[Value] = []
        weights: dict[str, Tensor] = {}
        for name, value in self.fields("GraphProto", content):
            if name == "node":
                nodes.append(self.node(_bytes(value)))
            elif name == "initializer":
                tensor = self.tensor(_bytes(value))
                self.once(weights, tensor.name, tensor, "weight")
            elif name == "input":
                inputs.append(self.value(_bytes(value)))
            elif name == "output":
                outputs.append(self.value(_bytes(value)))
            elif name == "value_info":
                self.value(_bytes(value))
            elif name == "metadata_props":
                self.entry(_bytes(value))
        return Model(
            ir_version=ir_version,
            opset=opset,
            metadata=metadata,
            nodes=tuple(nodes),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            weights=weights,
        )

    def node(self, content: memoryview) -> Node:
        operator, domain = "", ""
        inputs: list[str] = []
        outputs: list[str] = []
        integers: dict[str, tuple[int, ...]] = {}
        texts: dict[str, str] = {}
        tensors: list[Tensor] = []
        for name, value in self.fields("NodeProto", content):
            if name == "input":
                inputs.append(self.text(value))
            elif name == "output":
                outputs.append(self.text(value))
            elif name == "op_type":
                operator = self.text(value)
            elif name == "domain":
                domain = _standard(self.text(value))
            elif name == "attribute":
                self.attribute(_bytes(value), integers, texts, tensors)
            elif name == "metadata_props":
                self.entry(_bytes(value))
        if domain:
            raise self.fault(f"has an operator {operator!r} of {domain!r}; the standard domain alone is expected")
        return Node(
            operator=operator,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            integers=integers,
            texts=texts,
            tensors=tuple(tensors),
        )

    def attribute(
        self,
        content: memoryview,
        integers: dict[str, tuple[int, ...]],
        texts: dict[str, str],
        tensors: list[Tensor],
    ) -> None:
        attribute = ""
        numbers: list[int] | None = None
        text: str | None = None
        for name, value in self.fields("AttributeProto", content):
            if name == "name":
                attribute = self.text(value)
            elif name in ("i", "ints"):
                numbers = (numbers or []) + self.integers(value)
            elif name == "s":
                text = bytes(_bytes(value)).decode(errors="replace")  # bytes to ONNX; those that are read are words
            elif name in ("t", "tensors"):
                tensors.append(self.tensor(_bytes(value)))
        if numbers is not None:
            self.once(integers, attribute, tuple(numbers), "attribute")
        if text is not None:
            self.once(texts, attribute, text, "attribute")

    def tensor(self, content: memoryview) -> Tensor:
        tensor, data_type = "", 0
        shape: list[int] = []
        raw: memoryview | None = None
        held: dict[str, int] = {}  # numbers in each typed field
        for name, value in self.fields("TensorProto", content):
            if name == "name":
                tensor = self.text(value)
            elif name == "data_type":
                data_type = _integer(value)
            elif name == "dims":
                shape += self.integers(value)
            elif name == "raw_data":
                raw = _bytes(value)
            elif name == "data_location" and value != 0:
                raise self.fault(f"holds {_REFUSED['TensorProto', 13]}")
            elif name.endswith("_data"):
                held[name] = held.get(name, 0) + _count(name, value)
        if data_type not in _TYPES:
            raise self.fault(f"has a tensor {tensor!r} of type {data_type}, which no generator has")
        if len(shape) > _MAX_RANK or any(size < 0 for size in shape):
            raise self.fault(f"has a tensor {tensor!r} with a shape that none can have")
        dtype = _TYPES[data_type]
        claimed = math.prod(shape) * dtype.bytes
        found = len(raw) if raw is not None else held.pop(dtype.field, 0) * dtype.bytes
        if held or claimed != found:
            raise self.fault(f"has a tensor {tensor!r} that claims {claimed:,} bytes and holds {found:,}")
        short = raw if raw is not None and math.prod(shape) <= _MAX_VALUES else None
        return Tensor(
            name=tensor,
            dtype=dtype.name,
            shape=tuple(shape),
            bytes=claimed,
            integers=tuple(np.frombuffer(short, "<i8").tolist()) if short is not None and data_type == _INT64 else None,
            floats=tuple(np.frombuffer(short, "<f4").tolist()) if short is not None and data_type == _FLOAT else None,
        )

    def value(self, content: memoryview) -> Value:
        value_name, dtype = "", "nothing"
        shape: tuple[int | str | None, ...] = ()
        for name, value in self.fields("ValueInfoProto", content):
            if name == "name":
                value_name = self.text(value)
            elif name == "metadata_props":
                self.entry(_bytes(value))
            elif name == "type":
                for kind, tensor_type in self.fields("TypeProto", _bytes(value)):
                    if kind == "tensor_type":
                        dtype, shape = self.tensor_type(_bytes(tensor_type))
        return Value(name=value_name, dtype=dtype, shape=shape)

    def tensor_type(self, content: memoryview) -> tuple[str, tuple[int | str | None, ...]]:
        dtype = "nothing"
        shape: list[int | str | None] = []
        for name, value in self.fields("TypeProto.Tensor", content):
            if name == "elem_type":
                kind = _integer(value)
                dtype = _TYPES[kind].name if kind in _TYPES else f"type {kind}"
            elif name == "shape":
                shape += [self.dimension(_bytes(size)) for _, size in self.fields("TensorShapeProto", _bytes(value))]
        return dtype, tuple(shape)

    def dimension(self, content: memoryview) -> int | str | None:
        found: int | str | None = None
        for name, value in self.fields("TensorShapeProto.Dimension", content):
            if name == "dim_value":
                found = _integer(value)
            elif name == "dim_param":
                found = self.text(value)
        return found

    def opset(self, content: memoryview) -> tuple[str, int]:
        values = dict(self.fields("OperatorSetIdProto", content))
        return _standard(self.text(values.get("domain", memoryview(b"")))), _integer(values.get("version", 0))

    def entry(self, content: memoryview) -> tuple[str, str]:
        values = dict(self.fields("StringStringEntryProto", content))
        empty = memoryview(b"")
        return self.text(values.get("key", empty)), self.text(values.get("value", empty))

    def fields(self, message: str, content: memoryview) -> Iterator[tuple[str, _Content]]:
        """Each field's name and its content, in order: a signed number, or the bytes."""
        known = _FIELDS[message]
        seen: set[int] = set()
        position, end = 0, len(content)
        while position < end:
            self.spend()
            tag, position = self.varint(content, position)
            number, wire = tag >> 3, tag & 7
            entry = known.get(number)
            if entry is None and (message, number) in _REFUSED:
                raise self.fault(f"holds {_REFUSED[message, number]}")
            if entry is None or wire not in entry.wires:
                raise self.fault(f"is not an ONNX model: field {number} of {message} has wire type {wire}")
            if number in seen and not entry.repeated:
                raise self.fault(f"is not an ONNX model: {message} has {entry.name} twice")
            seen.add(number)
            if wire == _VARINT:
                value, position = self.varint(content, position)
                yield entry.name, value - (1 << 64) if value >> 63 else value
                continue
            if wire == _BYTES:
                length, position = self.varint(content, position)
            else:
                length = 8 if wire == _I64 else 4
            if length > end - position:
                raise self.fault(
                    f"is not an ONNX model: {message}.{entry.name} claims {length:,} bytes, {end - position:,} are left"
                )
            yield entry.name, content[position : position + length]
            position += length

    def varint(self, content: memoryview, position: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= len(content):
                raise self.fault("is not an ONNX model: it ends inside a number")
            byte = content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (1 << 64) - 1, position
        raise self.fault("is not an ONNX model: a number has more than ten bytes")

    def integers(self, value: _Content) -> list[int]:
        """One number, or those that are packed into these bytes."""
        if isinstance(value, int):
            return [value]
        numbers: list[int] = []
        position = 0
        while position < len(value):
            self.spend()
            number, position = self.varint(value, position)
            numbers.append(number - (1 << 64) if number >> 63 else number)
        return numbers

    def text(self, value: _Content) -> str:
        try:
            return bytes(_bytes(value)).decode()
        except UnicodeDecodeError as err:
            raise self.fault("is not an ONNX model: a name is not UTF-8") from err

    def once(self, known: dict[str, _Value], key: str, value: _Value, kind: str) -> None:
        if key in known:
            raise self.fault(f"has {kind} {key!r} twice")
        known[key] = value

    def spend(self) -> None:
        self.fields_left -= 1
        if self.fields_left < 0:
            raise self.fault(f"has more than {MAX_FIELDS:,} fields, which no generator has")


def _standard(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain  # two names of one domain


def _integer(value: _Content) -> int:
    assert isinstance(value, int), "the table says that it is a number"
    return value


def _bytes(value: _Content) -> memoryview:
    assert isinstance(value, memoryview), "the table says that these are bytes"
    return value


def _count(name: str, value: _Content) -> int:
    """How many numbers a typed field's content holds, packed or alone."""
    if isinstance(value, int):
        return 1
    if name == "float_data":
        return len(value) // 4
    if name == "double_data":
        return len(value) // 8
    return int(np.count_nonzero(np.frombuffer(value, dtype=np.uint8) < 0x80))  # each varint's last byte
