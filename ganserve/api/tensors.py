"""The body of a V2 inference: a JSON object, and behind it the tensors that are sent as binary data.

Open Inference Protocol, "Inference Request JSON Object" and "Binary Tensor Data Extension". A client in a loop sends
the same JSON object for other binary data again and again, so the plan that was made of it is kept.
"""

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from ganserve.api.http import (
    JSON,
    MAX_JSON_VALUES,
    Labels,
    Latents,
    Pixels,
    Response,
    finite,
    integer,
    parse_json_object,
)
from ganserve.api.repeat import Repeat, numbers_in, tensors
from ganserve.errors import InvalidRequestError

OCTETS = "application/octet-stream"
HEADER_LENGTH = "inference-header-content-length"
MODEL_VERSION = "1"

_FEW_BYTES = 4096
_CACHED_HEADERS = 256
_CACHED_HEADER_BYTES = 1024  # that of one latent has about 250; larger ones are parsed anew each time

_FLOATS: Mapping[str, np.dtype[Any]] = {"FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}
_INTEGERS: Mapping[str, np.dtype[Any]] = {
    f"{prefix}INT{8 * size}": np.dtype(f"<{kind}{size}")
    for prefix, kind in (("", "i"), ("U", "u"))
    for size in (1, 2, 4, 8)
}

_REQUEST_KEYS = frozenset({"id", "model_name", "model_version", "parameters", "inputs", "outputs"})
_INPUT_KEYS = frozenset({"name", "shape", "datatype", "parameters", "data"})
_OUTPUT_KEYS = frozenset({"name", "parameters"})


class Model(NamedTuple):
    """What a request is checked against.

    Attributes:
        name: of the model.
        latent_dim: columns of `latents`.
        num_classes: how many labels there are; None when the model takes none.
        pixel_shape: [H, W, C] of one image.
        max_rows: in one request.
    """

    name: str
    latent_dim: int
    num_classes: int | None
    pixel_shape: tuple[int, int, int]
    max_rows: int


class Tensor(NamedTuple):
    """One input as the JSON object describes it: its values are in `data`, or else in the binary data from `start`."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    data: list[Any] | None
    start: int

    @property
    def size(self) -> int:
        """How many values it has."""
        return self.shape[0] if len(self.shape) == 1 else self.shape[0] * self.shape[1]


class Form(NamedTuple):
    """What the answer looks like.

    Attributes:
        binary: whether the pixels are binary data.
        head: the body up to the pixels.
        headers: that belong to it.
    """

    binary: bool
    head: bytes
    headers: dict[str, str]


class Plan(NamedTuple):
    """What a JSON object asks for, checked against the model.

    Attributes:
        latents: [N, latent_dim].
        labels: [N] or [N, 1]; None if and only if the model takes none.
        binary_bytes: that follow the JSON object.
        form: of the answer.
    """

    latents: Tensor
    labels: Tensor | None
    binary_bytes: int
    form: Form


def read_inference(body: bytes, header_length: str | None, model: Model) -> tuple[Plan, Latents, Labels | None]:
    """What a body asks for, and its tensors.

    Args:
        body: of the request, inflated.
        header_length: the header `Inference-Header-Content-Length`: bytes of the JSON object; None: all.
        model: what is served.

    Returns:
        The plan; float32 [N, latent_dim], finite; int64 [N] in range(num_classes), or None.

    Raises:
        InvalidRequestError: anything about it is not as the protocol or the model wants it.
    """
    if header_length is None:
        start = len(body)
        plan = _plan(body, model)
    else:
        start = _header_bytes(header_length, len(body))
        header = body[:start]
        plan = _cached_plan(header, model) if start <= _CACHED_HEADER_BYTES else _plan(header, model)
    found = len(body) - start
    if found != plan.binary_bytes:
        hint = "" if header_length is not None else f" (the header {HEADER_LENGTH} says where it begins)"
        raise InvalidRequestError(
            f"the inputs need {plan.binary_bytes} bytes of binary data after the JSON object, got {found}{hint}"
        )
    latents = _latents(plan.latents, body, start)
    return plan, latents, None if plan.labels is None else _labels(plan.labels, body, start, model)


def write_inference(form: Form, pixels: Pixels) -> Response:
    """The answer: `pixels`, uint8 [N, H, W, C], in the form that the plan wants."""
    body = b"".join(encode(form, pixels))
    return Response(content_type=OCTETS if form.binary else JSON, headers=form.headers, body=body)


def encode(form: Form, pixels: Pixels) -> tuple[bytes | memoryview, ...]:
    """The answer's body, in pieces."""
    if form.binary:
        return form.head, binary(pixels)
    return form.head, orjson.dumps(pixels.reshape(-1), option=orjson.OPT_SERIALIZE_NUMPY), b"}]}"


def binary(pixels: Pixels) -> bytes | memoryview:
    """The pixels' bytes: a view of many, which need not be copied on their way to the socket, or a copy.

    A few are copied sooner than a view of them is made. And a view keeps the whole batch in memory until the client has
    read it, so it is only made for who has half of that, or more.
    """
    if pixels.nbytes <= _FEW_BYTES or not pixels.flags.c_contiguous:
        return pixels.tobytes()
    if isinstance(pixels.base, np.ndarray) and pixels.base.nbytes > 2 * pixels.nbytes:
        return pixels.tobytes()
    return pixels.reshape(-1).data


def repeat_of(plan: Plan, body: bytes, labels: Labels | None, model: Model) -> Repeat | None:
    """How the next body is read that differs from this one in its tensors alone, if that is worth the while."""
    latents, said = plan.latents, plan.labels
    reader = tensors(model.latent_dim, model.num_classes)
    answer = functools.partial(encode, plan.form)
    before = len(body) - plan.binary_bytes
    if latents.data is None:
        beside = said is None or said.data is not None or (said.dtype == np.int64 and said.start > latents.start)
        if latents.dtype != np.float32 or not beside:
            return None
        elsewhere = None if said is None or said.data is None else labels
        return Repeat(before=before, reader=reader, encode=answer, labels=elsewhere)
    if latents.dtype == np.float16 or plan.binary_bytes:
        return None
    zeroed = _parse(body, model)
    for item in zeroed["inputs"]:
        if item["name"] == "latents":
            item["data"] = [0]
    around = numbers_in(body, b"data", lambda other: _parse(other, model), zeroed)
    if around is None:
        return None
    before, after = around
    return Repeat(before=before, after=after, reader=reader, encode=answer, labels=labels, numbers=latents.size)


def _header_bytes(text: str, body_bytes: int) -> int:
    """`Inference-Header-Content-Length` as a number; one that is given twice arrives as "5, 5"."""
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise InvalidRequestError(f"{HEADER_LENGTH} must be one number of bytes, got {text[:64]!r}")
    length = int(text)
    if not 0 < length <= body_bytes:
        raise InvalidRequestError(f"{HEADER_LENGTH} must be 1 to the body's {body_bytes} bytes, got {length}")
    return length


def _parse(header: bytes, model: Model) -> dict[str, Any]:
    """A JSON object of no more values than a request can need."""
    return parse_json_object(header, max_values=model.max_rows * (model.latent_dim + 1) + MAX_JSON_VALUES)


def _plan(header: bytes, model: Model) -> Plan:
    """The plan of a JSON object."""
    fields = _object(_parse(header, model), "the request", _REQUEST_KEYS)
    identity = fields.get("id")
    if identity is not None and type(identity) is not str:
        raise InvalidRequestError("id must be a string")
    latents, labels, binary_bytes = _inputs(fields.get("inputs"), model)
    binary = _wants_binary(fields)

    rows = latents.shape[0]
    height, width, channels = model.pixel_shape
    told = "" if identity is None else f'"id":{json.dumps(identity)},'
    start = (
        f'{{{told}"model_name":"{model.name}","model_version":"{MODEL_VERSION}","outputs":'
        f'[{{"name":"pixels","datatype":"UINT8","shape":[{rows},{height},{width},{channels}],'
    )
    if binary:
        size = rows * height * width * channels
        head = f'{start}"parameters":{{"binary_data_size":{size}}}}}]}}'.encode()
        return Plan(latents, labels, binary_bytes, Form(True, head, {HEADER_LENGTH: str(len(head))}))
    return Plan(latents, labels, binary_bytes, Form(False, f'{start}"data":'.encode(), {}))


_cached_plan = functools.lru_cache(maxsize=_CACHED_HEADERS)(_plan)


def _inputs(value: Any, model: Model) -> tuple[Tensor, Tensor | None, int]:
    """The latents, the labels, and how many bytes of binary data they need."""
    names = ("latents",) if model.num_classes is None else ("latents", "labels")
    if not isinstance(value, list):
        raise InvalidRequestError(f"inputs must be an array of tensors: {' and '.join(names)}")
    if len(value) > len(names):  # before they are looked at: there may be many
        raise InvalidRequestError(f"inputs must be {' and '.join(names)}, got {len(value)} tensors")
    tensors: dict[str, Tensor] = {}
    start = 0
    for item in value:
        fields = _object(item, "an input", _INPUT_KEYS)
        name = _name(fields, "input", names)
        if name in tensors:
            raise InvalidRequestError(f"input {name} is given twice")
        tensors[name] = tensor = _tensor(fields, name, model, start)
        if tensor.data is None:
            start += tensor.size * tensor.dtype.itemsize
    for name in names:
        if name not in tensors:
            raise InvalidRequestError(f"input {name} is missing; the model takes {' and '.join(names)}")
    latents, labels = tensors["latents"], tensors.get("labels")
    if labels is not None and labels.shape[0] != latents.shape[0]:
        raise InvalidRequestError(f"labels has {labels.shape[0]} rows, latents has {latents.shape[0]}")
    return latents, labels, start


def _tensor(fields: dict[str, Any], name: str, model: Model, start: int) -> Tensor:
    """One input, its datatype and shape checked, and its size if it is binary."""
    datatypes = _FLOATS if name == "latents" else _INTEGERS
    datatype = fields.get("datatype")
    dtype = datatypes.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise InvalidRequestError(f"{name} must have a datatype of {', '.join(datatypes)}, got {_told(datatype)}")
    tensor = Tensor(name, dtype, _shape(fields.get("shape"), name, model), fields.get("data"), start)

    parameters = _parameters(fields, f"input {name}")
    _refuse_shared_memory(parameters, f"input {name}")
    binary_bytes = parameters.get("binary_data_size")
    if binary_bytes is None:
        if not isinstance(tensor.data, list):
            raise InvalidRequestError(f"{name} needs data, an array, or the parameter binary_data_size")
        return tensor
    if tensor.data is not None:
        raise InvalidRequestError(f"{name} has data and binary_data_size: one of the two")
    needed = tensor.size * dtype.itemsize
    if type(binary_bytes) is not int or binary_bytes != needed:
        raise InvalidRequestError(f"binary_data_size of {name} must be {needed}, got {_told(binary_bytes)}")
    return tensor


def _shape(value: Any, name: str, model: Model) -> tuple[int, ...]:
    # Labels also as [N, 1]: MLServer's client makes that of [N].
    wanted = f"[N, {model.latent_dim}]" if name == "latents" else "[N]"
    if not isinstance(value, list) or any(type(size) is not int for size in value):
        raise InvalidRequestError(f"{name} must have a shape {wanted}, an array of integers")
    columns = value[1:]
    if not value or columns not in ([[model.latent_dim]] if name == "latents" else [[], [1]]):
        found = ", ".join(map(_told, value)) if len(value) <= 8 else f"{len(value)} dimensions"
        raise InvalidRequestError(f"{name} must have shape {wanted}, got [{found}]")
    integer(value[0], f"the first dimension of {name}", 1, model.max_rows)
    return tuple(value)


def _wants_binary(fields: dict[str, Any]) -> bool:
    """Whether the one output that there is shall be binary data."""
    binary = _flag(_parameters(fields, "the request"), "binary_data_output", default=False)
    outputs = fields.get("outputs")
    if outputs is None:
        return binary
    if not isinstance(outputs, list):
        raise InvalidRequestError("outputs must be an array")
    if len(outputs) > 1:
        raise InvalidRequestError(f"outputs must be pixels, once, got {len(outputs)} tensors")
    for item in outputs:
        output = _object(item, "an output", _OUTPUT_KEYS)
        name = _name(output, "output", ("pixels",))
        parameters = _parameters(output, f"output {name}")
        _refuse_shared_memory(parameters, f"output {name}")
        if parameters.get("classification"):
            raise InvalidRequestError("classification is not supported: pixels are no classes")
        binary = _flag(parameters, "binary_data", default=binary)
    return binary


def _object(value: Any, what: str, keys: frozenset[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{what} must be a JSON object")
    if not keys >= value.keys():
        unknown = next(key for key in value if key not in keys)
        raise InvalidRequestError(f"{what} has an unknown field {unknown[:64]!r}; known are {', '.join(sorted(keys))}")
    return value


def _told(value: Any) -> str:
    """A value for an error message: never long, and never unfolded, as it may be nested a thousand deep."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    if type(value) is int and abs(value) >= 10**20:
        return f"an integer of {value.bit_length()} bits"
    return json.dumps(value[:64] if isinstance(value, str) else value)


def _name(fields: dict[str, Any], what: str, names: Sequence[str]) -> str:
    name = fields.get("name")
    if not isinstance(name, str) or name not in names:
        raise InvalidRequestError(f"{what} {_told(name)} is none of this model's: {', '.join(names)}")
    return name


def _parameters(fields: dict[str, Any], what: str) -> dict[str, Any]:
    """Parameters; those that nobody here knows are ignored, as the protocol wants it (priority, sequence_id, ...)."""
    parameters = fields.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequestError(f"the parameters of {what} must be a JSON object")
    return parameters


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequestError(f"parameter {name} must be true or false")
    return value


def _refuse_shared_memory(parameters: dict[str, Any], what: str) -> None:
    if any(name.startswith("shared_memory") for name in parameters):
        raise InvalidRequestError(f"{what} is in shared memory, which is not supported: send it in the body")


def _latents(tensor: Tensor, body: bytes, start: int) -> Latents:
    """float32 [N, latent_dim], finite, its own memory: binary data in a body lies at any address."""
    if tensor.data is None:
        values: npt.NDArray[Any] = np.frombuffer(body, tensor.dtype, tensor.size, start + tensor.start)
    else:
        flat = _flat(tensor, tensor.data)
        # Before NumPy sees them: it would take "3" and true for numbers.
        if not {*map(type, flat)} <= {int, float}:
            raise InvalidRequestError("latents must be numbers")
        try:
            values = np.array(flat, dtype=np.float64)
        except OverflowError as err:  # an integer that no float holds
            raise InvalidRequestError("latents must be finite in float32") from err
    if values.dtype == tensor.dtype == np.float32:
        return finite(values.reshape(tensor.shape).astype(np.float32))
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows becomes infinite, and that is refused
        return finite(values.astype(tensor.dtype).astype(np.float32).reshape(tensor.shape))


def _labels(tensor: Tensor, body: bytes, start: int, model: Model) -> Labels:
    """int64 [N], each a class."""
    assert model.num_classes is not None, "the plan has labels only if the model takes them"
    if tensor.data is None:
        values = np.frombuffer(body, tensor.dtype, tensor.size, start + tensor.start)
        flat = values.tolist()  # a few integers: NumPy's own extremes take 3 us
    else:
        flat = _flat(tensor, tensor.data)
        if {*map(type, flat)} != {int}:
            raise InvalidRequestError("labels must be integers")
    limit = model.num_classes - 1
    for extreme in (min(flat), max(flat)):
        integer(extreme, "labels", 0, limit)
    return np.array(flat, dtype=np.int64)


def _flat(tensor: Tensor, data: list[Any]) -> list[Any]:
    """The values in row-major order; they come like that, or nested as the shape says."""
    rows = tensor.shape[0]
    if len(tensor.shape) == 2 and data and isinstance(data[0], list):
        columns = tensor.shape[1]
        if len(data) != rows or any(type(row) is not list or len(row) != columns for row in data):
            raise InvalidRequestError(f"the data of {tensor.name} must be {rows} arrays of {columns} values")
        return list(itertools.chain.from_iterable(data))
    if len(data) != tensor.size:
        raise InvalidRequestError(f"the data of {tensor.name} must have {tensor.size} values, got {len(data)}")
    return data
