"""What a handler sees of HTTP and what it gives back, and the strict parsing that all handlers share.

A handler is a pure function of (request, context). It answers at once with a `Response`, or with the `Work` that has to
be done first; whoever called it runs the work through the batcher. So one set of handlers serves every transport.
"""

import codecs
import functools
import io
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt

from ganserve.artifact import Artifact
from ganserve.batcher import Batcher
from ganserve.engine import Engine
from ganserve.errors import (
    BodyTooLargeError,
    InvalidRequestError,
    NotAcceptableError,
    RequestError,
    UnsupportedMediaTypeError,
)
from ganserve.metrics import Metrics
from ganserve.settings import Settings

if TYPE_CHECKING:
    from ganserve.api.repeat import Repeat

JSON = "application/json"
NPY = "application/x-npy"
PNG = "image/png"
GIF = "image/gif"
HTML = "text/html; charset=utf-8"
PROBLEM = "application/problem+json"

MAX_JSON_VALUES = 10_000  # of a body beside its latents and labels
_MAX_NPY_HEADER_BYTES = 10_000  # NumPy's own limit; two dimensions need about 100
MIN_DEFLATED_BYTES = 1200  # what is smaller travels in one packet anyway

_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)

Latents = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Context:
    """What answers need of the server; `metrics` is None where nobody counts. One is equal to itself alone."""

    settings: Settings
    artifact: Artifact
    engine: Engine
    batcher: Batcher
    metrics: Metrics | None = None


# Made anew for every request, and nobody changes one: but frozen ones take three times as long to make.
@dataclass(kw_only=True, slots=True)
class Request:
    """One HTTP request whose body is complete and within its limits.

    `path_parameters` are those of the route's template; `headers` have lower-case names, repeated ones joined by a
    comma.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    path_parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class Response:
    """One complete HTTP answer; `content-length` is added when it is sent.

    `server_timing` is the value of that header (W3C), apart from the `headers` that many answers share; `rows` is how
    many went through the batcher for it.
    """

    status: int = 200
    content_type: str | None = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    server_timing: str | None = None
    rows: int = 0


@dataclass(kw_only=True, slots=True)
class Work:
    """Rows that have to go through the batcher before there is an answer.

    Attributes:
        rows: how many.
        inputs: makes the latents and labels; cheap for few rows, so the caller decides where to run it.
        finish: makes the answer of the labels and the pixels.
        row_us: what the two take for a row, roughly: 4 to draw a latent, 10 to make a PNG, next to nothing to copy.
        repeat: says, if asked, which bytes of the body are tensors and how the next such body is answered.
    """

    rows: int
    inputs: Callable[[], tuple[Latents, Labels | None]]
    finish: Callable[[Labels | None, Pixels], Response]
    row_us: float = 30.0
    repeat: "Callable[[], Repeat | None] | None" = None


Handler = Callable[[Request, Context], Response | Work]


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """Routes that speak alike.

    Attributes:
        prefixes: paths that start with one of them are this protocol's, whether or not there is such a route.
        routes: template -> method -> handler. A `{parameter}` matches anything but a slash.
        error: an error in this protocol's words.
        no_route: what to tell of a path that is this protocol's and no route.
    """

    prefixes: tuple[str, ...]
    routes: Mapping[str, Mapping[str, Handler]]
    error: Callable[[RequestError], Response]
    no_route: str = "no such route; GET / lists them"


def json_response(document: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return Response(status=status, body=body, headers=headers or {})


def problem(error: RequestError) -> Response:
    """RFC 9457 problem details."""
    document = {"type": "about:blank", "title": error.title, "status": error.status, "detail": str(error)}
    return Response(
        status=error.status,
        content_type=PROBLEM,
        headers={**error.headers, "cache-control": "no-store"},
        body=json.dumps(document).encode(),
    )


def inflate(body: bytes, headers: Mapping[str, str], *, limit: int) -> bytes:
    """The body without its `Content-Encoding`: gzip (RFC 1952), deflate (RFC 1950, or bare RFC 1951) or identity.

    Args:
        body: as it came.
        headers: of the request.
        limit: bytes of the result; inflating stops there, whatever the body claims.

    Raises:
        UnsupportedMediaTypeError: another encoding, or several.
        BodyTooLargeError: it inflates to more.
        InvalidRequestError: it is not of that encoding, ends early, or goes on after its end.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return body
    if encoding not in ("gzip", "deflate"):
        raise UnsupportedMediaTypeError(f"content-encoding must be gzip, deflate or identity, got {encoding[:64]!r}")
    bare = encoding == "deflate" and (len(body) < 2 or body[0] & 0x0F != 8 or int.from_bytes(body[:2], "big") % 31)
    inflater = zlib.decompressobj(wbits=31 if encoding == "gzip" else -15 if bare else 15)
    try:
        content = inflater.decompress(body, limit + 1)
    except zlib.error as err:
        raise InvalidRequestError(f"the body is not {encoding}: {err}") from err
    if len(content) > limit:
        raise BodyTooLargeError(f"the body may have {limit} bytes; it inflates to more")
    if not inflater.eof:
        raise InvalidRequestError(f"the {encoding} body ends early")
    if inflater.unused_data:
        raise InvalidRequestError(f"the {encoding} body goes on after its end")
    return content


def deflate(response: Response, accept_encoding: str | None) -> Response:
    """The answer as gzip (RFC 1952) or deflate (RFC 1950), if `Accept-Encoding` likes one and it is worth it."""
    if len(response.body) < MIN_DEFLATED_BYTES or not compresses(accept_encoding):
        return response
    assert accept_encoding is not None, "else nothing is compressed"
    coding = _coding(accept_encoding)
    # Level 1: pixels of digits are mostly runs of black, which every level finds.
    deflater = zlib.compressobj(1, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    return replace(
        response,
        headers={**response.headers, "content-encoding": coding, "vary": "accept-encoding"},
        body=deflater.compress(response.body) + deflater.flush(),
    )


def compresses(accept_encoding: str | None) -> bool:
    """Whether an answer to somebody who accepts these content codings is compressed, if it is large enough."""
    return accept_encoding is not None and _coding(accept_encoding) != "identity"


@functools.lru_cache(maxsize=64)  # a client says the same in every request
def _coding(accept_encoding: str) -> str:
    """The content coding that `Accept-Encoding` likes best (RFC 9110, section 12.5.3): gzip, deflate or identity."""
    quality: dict[str, float] = {}
    for item in accept_encoding.split(","):
        coding, *parameters = (part.strip().lower() for part in item.split(";"))
        quality.setdefault(coding, _weight(parameters))
    rest = quality.get("*", 0.0)
    best = max(("gzip", "deflate"), key=lambda coding: quality.get(coding, rest))
    liked = quality.get(best, rest)
    # Identity is accepted unless it is refused; where it is named, it may be liked better.
    return best if liked > 0.0 and liked >= quality.get("identity", 0.0) else "identity"


def media_type(request: Request) -> str:
    """The body's media type without its parameters, lower case; empty if the header is missing."""
    return _media_type(request.headers.get("content-type", ""))


@functools.lru_cache(maxsize=64)
def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def negotiate(request: Request, offered: tuple[str, ...]) -> str:
    """The offered media type that `Accept` likes best (RFC 9110, section 12.5.1); ties go to the first offered.

    Raises:
        NotAcceptableError: it likes none of them.
    """
    accept = request.headers.get("accept") or "*/*"
    chosen = _preferred(accept, offered)
    if chosen is None:
        raise NotAcceptableError(f"this route answers with {', '.join(offered)}; Accept was {accept[:256]!r}")
    return chosen


@functools.lru_cache(maxsize=256)  # a client says the same in every request
def _preferred(accept: str, offered: tuple[str, ...]) -> str | None:
    quality = dict.fromkeys(offered, 0.0)
    precision = dict.fromkeys(offered, -1)
    for item in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = _weight(parameters)
        for candidate in offered:
            # The most precise range that matches decides: "image/*;q=0, image/png" accepts PNG.
            match = {"*/*": 0, f"{candidate.partition('/')[0]}/*": 1, candidate: 2}.get(media_range, -1)
            if match > precision[candidate]:
                precision[candidate], quality[candidate] = match, weight
    best = max(offered, key=lambda candidate: quality[candidate])
    return best if quality[best] > 0.0 else None


def _weight(parameters: Sequence[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                weight = float(value)
            except ValueError:
                return 0.0
            return weight if 0.0 <= weight <= 1.0 else 0.0
    return 1.0


def parse_query(request: Request, allowed: Sequence[str]) -> dict[str, str]:
    """The query's parameters, each at most once.

    Raises:
        InvalidRequestError: unknown, repeated, or not UTF-8.
    """
    try:
        pairs = parse_qsl(
            request.query,
            keep_blank_values=True,
            strict_parsing=bool(request.query),
            errors="strict",
            max_num_fields=32,
        )
    except ValueError as err:
        raise InvalidRequestError(f"the query string is malformed: {err}") from err
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in allowed:
            raise InvalidRequestError(
                f"unknown query parameter {name[:64]!r}; this route knows {', '.join(allowed) or 'none'}"
            )
        if name in values:
            raise InvalidRequestError(f"query parameter {name!r} is given twice")
        values[name] = value
    return values


def parse_json_object(body: bytes, *, max_values: int = MAX_JSON_VALUES) -> dict[str, Any]:
    """A JSON object, strictly: UTF-8 without BOM, no duplicate keys, no NaN.

    Args:
        body: the text.
        max_values: how many it may have, by its commas. Reading millions of them takes a second, in which Python lets
            nobody else run, thread or not.

    Raises:
        InvalidRequestError: it is not that.
    """
    if body.count(b",") > max_values:
        raise InvalidRequestError(f"the body has more than the {max_values} values that a request here can need")
    if body.startswith(codecs.BOM_UTF8):
        raise InvalidRequestError("the body is not JSON: it starts with a BOM")
    try:
        # Stripped here: the decoder passes over white space around the object ten times as slowly.
        document = _JSON_DECODER.decode(body.strip(b" \t\n\r").decode("utf-8"))
    except RecursionError as err:
        raise InvalidRequestError("the body is nested too deep") from err
    except UnicodeDecodeError as err:
        raise InvalidRequestError(f"the body is not UTF-8: {err.reason} at byte {err.start}") from err
    except ValueError as err:  # JSONDecodeError, and integers of thousands of digits
        raise InvalidRequestError(f"the body is not JSON: {err}") from err
    if not isinstance(document, dict):
        raise InvalidRequestError(f"the body must be a JSON object, got {_kind(document)}")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise InvalidRequestError(f"key {name[:64]!r} is given twice")
        document[name] = value
    return document


def _no_constant(text: str) -> NoReturn:
    raise InvalidRequestError(f"{text} is not JSON")


# json.loads would make a new one at every call.
_JSON_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def integer(value: Any, name: str, low: int, high: int) -> int:
    """`value` as an integer in [low, high]: not a boolean or string that looks like one.

    JSON has one kind of number, and to JSON Schema (2020-12, section 4.2.3) 3.0 is the integer 3; so it is here, as far
    as a float tells one integer from the next.

    Raises:
        InvalidRequestError: it is not that.
    """
    if type(value) is float and value.is_integer() and abs(value) <= 2**53:
        value = int(value)
    if type(value) is not int:
        raise InvalidRequestError(f"{name} must be an integer, got {_kind(value)}", param=name)
    if not low <= value <= high:
        raise InvalidRequestError(f"{name} must be {low} to {high}, got {_short(value)}", param=name)
    return value


def number(value: Any, name: str, low: float, high: float) -> float:
    """`value` as a finite number in [low, high].

    Raises:
        InvalidRequestError: it is not that.
    """
    if type(value) not in (int, float):
        raise InvalidRequestError(f"{name} must be a number, got {_kind(value)}", param=name)
    if not low <= value <= high:  # false for NaN, and safe for integers that no float holds
        raise InvalidRequestError(f"{name} must be {low:g} to {high:g}, got {_short(value)}", param=name)
    return float(value)


def query_integer(text: str, name: str, low: int, high: int) -> int:
    """An integer of a query string: ASCII digits and at most a sign.

    Raises:
        InvalidRequestError: it is not that.
    """
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 32):
        raise InvalidRequestError(f"{name} must be an integer, got {text[:64]!r}")
    return integer(int(text), name, low, high)


def query_number(text: str, name: str, low: float, high: float) -> float:
    """A finite number of a query string.

    Raises:
        InvalidRequestError: it is not that.
    """
    # Python's float() would also take other scripts' digits, underscores, blanks around it, "nan" and "inf".
    if not _NUMBER.fullmatch(text):
        raise InvalidRequestError(f"{name} must be a number, got {text[:64]!r}")
    return number(float(text), name, low, high)


def parse_npy(body: bytes, *, columns: int, max_rows: int) -> Latents:
    """A float32 [n, columns] array in NumPy's .npy format, finite, with 1 <= n <= max_rows.

    Nothing is allocated before the header has been checked, and no pickle is ever loaded.

    Raises:
        InvalidRequestError: it is not that.
    """
    shape, fortran, dtype, offset = _npy_header(body)
    if dtype != np.dtype("<f4"):
        raise InvalidRequestError(f"latents must be float32, got {str(dtype)[:64]}")
    if len(shape) != 2 or shape[1] != columns or type(shape[0]) is not int:  # to NumPy's parser, True is an integer
        raise InvalidRequestError(f"latents must have shape [N, {columns}], got {_short(list(shape))}")
    if not 1 <= shape[0] <= max_rows:
        raise InvalidRequestError(f"1 to {max_rows} latents a request, got {_short(shape[0])}")
    expected, found = shape[0] * shape[1] * 4, len(body) - offset
    if found != expected:
        raise InvalidRequestError(f"the array needs {expected} bytes after its header, got {found}")
    latents: Latents = np.frombuffer(body, dtype="<f4", offset=offset).reshape(shape, order="F" if fortran else "C")
    return finite(np.ascontiguousarray(latents))


def npy_start(body: bytes) -> int | None:
    """Where the content of a good npy body starts, if it is in C order."""
    _, fortran, _, offset = _npy_header(body)
    return None if fortran else offset


def finite(latents: Latents) -> Latents:
    """`latents`, if every value is finite: the graph would turn a NaN into black pixels without a word.

    Raises:
        InvalidRequestError: the first row that is not.
    """
    good = np.isfinite(latents)
    if b"\0" in good.tobytes():  # less than half the time of good.all() for one row
        row = int(np.nonzero(~good.all(axis=1))[0][0])
        raise InvalidRequestError(f"latents must be finite in float32; row {row} is not")
    return latents


def npy_bytes(array: Pixels) -> bytes:
    """`array` in NumPy's .npy format."""
    return _npy_head(array.shape) + array.tobytes()


def _npy_header(body: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran order, dtype, and where the content starts.

    Raises:
        InvalidRequestError: it is no .npy header, or of a version that is not supported.
    """
    # Magic, version, and the length of what follows: two bytes in version 1, four in version 2 (NumPy's NEP 1).
    start = 10 if body[6:7] == b"\x01" else 12
    length = int.from_bytes(body[8:start], "little")
    if length > _MAX_NPY_HEADER_BYTES:
        raise InvalidRequestError(f"the body is not an npy array: a header of {length} bytes")
    shape, fortran, dtype = _parse_npy_header(body[: start + length])
    return shape, fortran, dtype, start + length


@functools.lru_cache(maxsize=256)  # a client sends the same shape again and again, and parsing it takes 20 us
def _parse_npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    stream = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(stream)
    except Exception as err:  # the header is a Python literal: NumPy's parser fails in many ways on a hostile one
        raise InvalidRequestError(f"the body is not an npy array: {type(err).__name__}") from err
    raise InvalidRequestError(f"npy format version {version[0]}.{version[1]} is not supported")


@functools.lru_cache(maxsize=256)
def _npy_head(shape: tuple[int, ...]) -> bytes:
    """The header of a uint8 array."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _kind(value: Any) -> str:
    """What JSON calls the type of a value."""
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
    }
    return names.get(type(value), "null")


def _short(value: Any) -> str:
    """A value for an error message, never long: clients send integers of 400 digits."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"an integer of {value.bit_length()} bits"
    text = str(value)
    return text if len(text) <= 64 else f"{text[:61]}..."
