import gzip
import io
import json
import tracemalloc
import zlib

import numpy as np
import pytest

from ganserve import errors
from ganserve.api import http
from ganserve.api.http import Request, inflate
from ganserve.errors import (
    BodyTooLargeError,
    InvalidRequestError,
    NotAcceptableError,
    RequestError,
    UnsupportedMediaTypeError,
)

OFFERED = (http.JSON, http.PNG, http.NPY)


def _request(**headers: str) -> Request:
    return Request(method="POST", path="/", headers={name.replace("_", "-"): value for name, value in headers.items()})


# Accept.


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, http.JSON),
        ("", http.JSON),
        ("*/*", http.JSON),
        ("application/json", http.JSON),
        ("image/png", http.PNG),
        ("IMAGE/PNG", http.PNG),
        ("image/*", http.PNG),
        ("application/*", http.JSON),
        ("application/x-npy", http.NPY),
        ("image/png;q=0.5, application/x-npy;q=0.8", http.NPY),
        ("image/png; q=0.8 , application/x-npy ; q=0.5", http.PNG),
        ("image/png;q=1.0, */*;q=0.1", http.PNG),
        ("text/html, image/png;q=0.1", http.PNG),
        ("*/*, image/png", http.JSON),  # all are liked as much: the first that is offered
        ("image/*, application/json;q=0", http.PNG),
        ("*/*;q=0.5, application/json;q=0, image/png;q=0.1", http.NPY),
        ("application/json;q=0, */*", http.PNG),
        ("image/*;q=0, image/png", http.PNG),  # the more precise range decides
        ("image/png;q=0.5;q=0.9, application/x-npy;q=0.7", http.NPY),
        ("image/png;q=2, application/x-npy", http.NPY),  # a weight above 1 is none
        ("image/png;q=nan, application/x-npy;q=0.1", http.NPY),
        ("image/png;q=, application/x-npy;q=0.1", http.NPY),
        ("image/png;charset=utf-8;q=0.9", http.PNG),
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", http.JSON),  # Java's URLConnection
        ("text/html,application/xhtml+xml,image/avif,image/webp,image/png,*/*;q=0.8", http.PNG),  # a browser
    ],
)
def test_accept_is_negotiated(accept, chosen):
    """The media type that `Accept` likes best is taken; ties go to the first that is offered."""
    request = _request() if accept is None else _request(accept=accept)
    assert http.negotiate(request, OFFERED) == chosen


@pytest.mark.parametrize("accept", ["text/html", "image/jpeg", "*/*;q=0", "png", "image", ",", "application/json;q=0"])
def test_nothing_acceptable_is_406(accept):
    """When `Accept` likes nothing of what is offered, the answer is a 406 that lists it."""
    with pytest.raises(NotAcceptableError, match="application/json, image/png, application/x-npy"):
        http.negotiate(_request(accept=accept), OFFERED)


@pytest.mark.parametrize(
    ("header", "kind"),
    [("application/json", "application/json"), ("Application/JSON; charset=utf-8", "application/json"), ("", "")],
)
def test_media_type_has_no_parameters(header, kind):
    """A media type is compared without case and parameters."""
    assert http.media_type(_request(content_type=header)) == kind


# Query strings.


def _query(query: str, *allowed: str) -> dict[str, str]:
    return http.parse_query(Request(method="GET", path="/", query=query), allowed)


def test_query_is_decoded():
    """Percent signs and pluses are decoded; an empty value is a value."""
    assert _query("a=1%202&b=x+y&c=", "a", "b", "c") == {"a": "1 2", "b": "x y", "c": ""}
    assert _query("", "a") == {}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("b=1", "unknown query parameter 'b'; this route knows a"),
        ("a=1&a=2", "query parameter 'a' is given twice"),
        ("a", "query string is malformed"),
        ("a=%ff", "query string is malformed"),
        ("&".join(["a=1"] * 100), "query string is malformed"),
    ],
)
def test_bad_query_is_400(query, message):
    """Unknown, repeated, valueless, undecodable and too many parameters are refused."""
    with pytest.raises(InvalidRequestError, match=message):
        _query(query, "a")


def test_route_without_parameters_says_so():
    """A route that knows no parameters says "none", and a long name is not repeated whole."""
    with pytest.raises(InvalidRequestError, match="this route knows none") as caught:
        _query(f"{'x' * 5000}=1")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("7", 7), ("-7", -7), ("007", 7)])
def test_query_integers(text, value):
    """ASCII digits with at most a sign."""
    assert http.query_integer(text, "x", -10, 10) == value


@pytest.mark.parametrize("text", ["", "-", "--1", "+1", "1.0", "1e1", " 1", "1_0", "٣", "³", "0x1", "9" * 40, "1\n"])
def test_what_is_no_query_integer(text):
    """What Python's int() would take, or would take long over, is refused."""
    with pytest.raises(InvalidRequestError, match="x must be an integer"):
        http.query_integer(text, "x", -10, 10)


def test_query_integer_out_of_range():
    """A number out of its range is named with the range."""
    with pytest.raises(InvalidRequestError, match="x must be 0 to 10, got 11"):
        http.query_integer("11", "x", 0, 10)


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1.0), ("0.5", 0.5), (".5", 0.5), ("1.", 1.0), ("5e-1", 0.5), ("-0", 0.0)]
)
def test_query_numbers(text, value):
    """Plain decimal notation, with an exponent or without."""
    assert http.query_number(text, "x", 0.0, 2.0) == value


@pytest.mark.parametrize("text", ["", ".", "nan", "inf", "Infinity", "1_0", " 1", "1 ", "٣", "1,5", "0x1", "1e", "1\n"])
def test_what_is_no_query_number(text):
    """What Python's float() would take beyond that is refused."""
    with pytest.raises(InvalidRequestError, match="x must be a number"):
        http.query_number(text, "x", 0.0, 2.0)


@pytest.mark.parametrize("text", ["1e999", "-1", "2.1", "9" * 400])
def test_query_number_out_of_range(text):
    """A number that is out of range, or that no float holds, is refused."""
    with pytest.raises(InvalidRequestError, match="x must be 0 to 2, got"):
        http.query_number(text, "x", 0.0, 2.0)


# JSON.


def test_json_object_is_read():
    """UTF-8 JSON with any white space around it."""
    assert http.parse_json_object(' {"a": [1, 2.5, "é", null, true]} \n'.encode()) == {"a": [1, 2.5, "é", None, True]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{}x", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b'{"a": 01}', "not JSON"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": [Infinity]}', "Infinity is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1, "a": 1}', "key 'a' is given twice"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "key 'b' is given twice"),
        (b'{"a": 1, "\\u0061": 2}', "key 'a' is given twice"),
        (b"[]", "must be a JSON object, got an array"),
        (b"null", "must be a JSON object, got null"),
        (b"true", "must be a JSON object, got a boolean"),
        (b"3", "must be a JSON object, got an integer"),
        (b'"x"', "must be a JSON object, got a string"),
        (b"\xef\xbb\xbf{}", "not JSON"),  # a byte order mark
        ("{}".encode("utf-16"), "not UTF-8"),
        ("{}".encode("utf-16-le"), "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8: invalid start byte at byte 7"),
        (b'{"a": "\n"}', "not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 150_000, "nested too deep"),
        (b'{"a":' * 150_000, "nested too deep"),
        (b"[" * 150_000 + b"]" * 150_000, "nested too deep"),
    ],
)
def test_bad_json_is_400(body, message):
    """Anything but one strict JSON object is refused, with the reason."""
    with pytest.raises(InvalidRequestError, match=message):
        http.parse_json_object(body)


@pytest.mark.timeout(60)
def test_many_keys_are_no_work():
    """A body of 200,000 keys, the last one a repetition, is refused in a moment, not in hours."""
    body = "{" + ",".join(f'"{index}":0' for index in range(200_000)) + ',"199999":0}'
    with pytest.raises(InvalidRequestError, match="key '199999' is given twice"):
        http.parse_json_object(body.encode(), max_values=200_000)


def test_values_are_counted_before_they_are_read(monkeypatch):
    """A body of more values than a request can need is refused unread: reading would keep everybody waiting."""
    body = b'{"a": [' + b"0," * 20 + b"0]}"
    assert len(http.parse_json_object(body, max_values=20)["a"]) == 21
    monkeypatch.setattr(http, "_JSON_DECODER", None)
    with pytest.raises(InvalidRequestError, match="more than the 19 values"):
        http.parse_json_object(body, max_values=19)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.5, "n must be an integer, got a number"),
        (2.0**53 + 2, "n must be an integer, got a number"),
        (1e300, "n must be an integer, got a number"),
        (float("inf"), "n must be an integer, got a number"),
        (True, "n must be an integer, got a boolean"),
        ("3", "n must be an integer, got a string"),
        ([3], "n must be an integer, got an array"),
        ({}, "n must be an integer, got an object"),
        (None, "n must be an integer, got null"),
        (0, "n must be 1 to 5, got 0"),
        (-1, "n must be 1 to 5, got -1"),
        (6, "n must be 1 to 5, got 6"),
        (10**400, "n must be 1 to 5, got an integer of 1329 bits"),
        (-(10**400), "n must be 1 to 5, got an integer of 1329 bits"),
    ],
)
def test_what_is_no_integer(value, message):
    """Only integers in range are integers; the message is short whatever was sent."""
    with pytest.raises(InvalidRequestError, match=message):
        http.integer(value, "n", 1, 5)


def test_integer_with_a_point_is_an_integer():
    """3.0 is 3, as JSON Schema has it, and comes out as an int; up to where floats tell integers apart."""
    for given, value in ((3.0, 3), (-0.0, 0), (2.0**53, 2**53)):
        found = http.integer(given, "n", 0, 2**64)
        assert found == value
        assert type(found) is int


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "t must be a number, got a boolean"),
        ("1", "t must be a number, got a string"),
        (float("inf"), "t must be 0 to 2, got inf"),
        (float("nan"), "t must be 0 to 2, got nan"),
        (-0.001, "t must be 0 to 2, got -0.001"),
        (10**400, "t must be 0 to 2, got an integer"),
    ],
)
def test_what_is_no_number(value, message):
    """Only finite JSON numbers in range are numbers."""
    with pytest.raises(InvalidRequestError, match=message):
        http.number(value, "t", 0.0, 2.0)


def test_integers_are_numbers():
    """1 is as good as 1.0, and the ends of the range belong to it."""
    assert [http.number(value, "t", 0.0, 2.0) for value in (0, 1, 2, 2.0)] == [0.0, 1.0, 2.0, 2.0]
    assert [http.integer(value, "n", 1, 5) for value in (1, 5)] == [1, 5]


# npy.


def _npy(array: np.ndarray, *, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version, allow_pickle=True)
    return stream.getvalue()


def _npy_header(shape: str, descr: str = "'<f4'", *, fortran: str = "False", data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_read(version, order):
    """Both usual format versions and both orders give the array that was saved."""
    array = np.asarray(np.random.default_rng(0).normal(size=(3, 4)), dtype=np.float32, order=order)
    read = http.parse_npy(_npy(array, version=version), columns=4, max_rows=3)
    assert (read == array).all()
    assert read.flags.c_contiguous


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not an npy array"),
        (b"\x93NUMPX\x01\x00", "not an npy array"),
        (b"\x93NUMPY\x01", "not an npy array"),
        (b"\x93NUMPY\x03\x00\x10\x00\x00\x00" + b" " * 16, "npy format version 3.0 is not supported"),
        (b"\x93NUMPY\x01\x00\xff\xff{}", "not an npy array"),
        (b"\x93NUMPY\x01\x00\x02\x00{}", "not an npy array"),
        (_npy_header("(" * 9000), "not an npy array"),
        (_npy_header("__import__('os').abort()"), "not an npy array"),
        (_npy_header("(1, 4)", "'|O'"), "latents must be float32, got object"),
        (_npy_header("(1, 4)", "'no such type'"), "not an npy array"),
        (_npy_header("(1, 4)", "'<f8'", data=bytes(32)), "latents must be float32, got float64"),
        (_npy_header("(1, 4)", "'>f4'", data=bytes(16)), "latents must be float32, got >f4"),
        (_npy_header("(1, 4)", "[('a', '<f4')]", data=bytes(16)), "latents must be float32"),
        (_npy_header("(4,)", data=bytes(16)), r"must have shape \[N, 4\], got \[4\]"),
        (_npy_header("()", data=bytes(4)), r"must have shape \[N, 4\], got \[\]"),
        (_npy_header("(1, 5)", data=bytes(20)), r"must have shape \[N, 4\], got \[1, 5\]"),
        (_npy_header("(1, 4, 1)", data=bytes(16)), r"must have shape \[N, 4\]"),
        (_npy_header("(0, 4)"), "1 to 3 latents a request, got 0"),
        (_npy_header("(-1, 4)", data=bytes(16)), "1 to 3 latents a request, got -1"),
        (_npy_header("(4, 4)", data=bytes(64)), "1 to 3 latents a request, got 4"),
        (_npy_header("(10**400, 4)"), "not an npy array"),
        (_npy_header(f"({10**400}, 4)"), "1 to 3 latents a request, got an integer of 1329 bits"),
        (_npy_header("(1, 4)", data=bytes(15)), "needs 16 bytes after its header, got 15"),
        (_npy_header("(1, 4)", data=bytes(17)), "needs 16 bytes after its header, got 17"),
        (_npy_header("(1, 4)", fortran="'yes'", data=bytes(16)), "not an npy array"),
        (_npy(np.array([[1, 2, np.nan, 4]], np.float32)), "latents must be finite in float32; row 0 is not"),
        (_npy(np.array([[1, 2, 3, 4], [1, 2, 3, -np.inf]], np.float32)), "row 1 is not"),
    ],
)
def test_bad_npy_is_400(body, message):
    """Whatever is wrong with an npy body, it is refused with the reason before anything large is made."""
    with pytest.raises(InvalidRequestError, match=message):
        http.parse_npy(body, columns=4, max_rows=3)


def test_npy_bytes_are_numpys():
    """What is answered as npy is what NumPy reads."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 5, 4, 1), dtype=np.uint8)
    assert (np.load(io.BytesIO(http.npy_bytes(pixels)), allow_pickle=False) == pixels).all()


# Answers.


def test_problem_is_rfc_9457():
    """An error is a problem document with its status, title and detail, and the headers that belong to it."""
    response = http.problem(errors.OverloadedError('the "queue" is full', retry_after_s=7))
    assert response.status == 503
    assert response.content_type == "application/problem+json"
    assert response.headers == {"retry-after": "7", "cache-control": "no-store"}
    assert json.loads(response.body) == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": 'the "queue" is full',
    }


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (errors.InvalidRequestError("x"), 400, {}),
        (errors.UnauthorizedError("x"), 401, {"www-authenticate": "Bearer"}),
        (errors.NotFoundError("x"), 404, {}),
        (errors.MethodNotAllowedError("x", allowed=("GET", "HEAD")), 405, {"allow": "GET, HEAD"}),
        (errors.NotAcceptableError("x"), 406, {}),
        (errors.SlowRequestError("x"), 408, {"connection": "close"}),
        (errors.BodyTooLargeError("x"), 413, {}),
        (errors.UnsupportedMediaTypeError("x"), 415, {}),
        (errors.OverloadedError("x"), 503, {"retry-after": "1"}),
        (errors.DeadlineError("x"), 504, {}),
    ],
)
def test_every_error_has_its_status_and_headers(error, status, headers):
    """The tree's statuses are HTTP's, with the headers that HTTP asks for."""
    assert isinstance(error, RequestError)
    response = http.problem(error)
    assert response.status == json.loads(response.body)["status"] == status
    assert {**response.headers} == headers | {"cache-control": "no-store"}


def test_json_answers_have_no_nan():
    """An answer that is not JSON is a bug that shows here, not at the client."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        http.json_response({"loss": float("nan")})


_BOMB = 50_000_000


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"{}", mtime=0)),
        ("GZIP", gzip.compress(b"{}", mtime=0)),
        ("deflate", zlib.compress(b"{}")),
        ("deflate", zlib.compress(b"{}")[2:-4]),  # bare, as old clients send it
        ("identity", b"{}"),
    ],
)
def test_bodies_are_inflated(encoding, body):
    """Gzip and both kinds of deflate give the body that was compressed."""
    assert inflate(body, {"content-encoding": encoding}, limit=2) == b"{}"


@pytest.mark.parametrize(
    ("encoding", "body", "error", "message"),
    [
        ("br", b"{}", UnsupportedMediaTypeError, "'br'"),
        ("gzip, gzip", b"{}", UnsupportedMediaTypeError, "'gzip, gzip'"),
        ("gzip", b"{}", InvalidRequestError, "not gzip"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-1], InvalidRequestError, "ends early"),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"x", InvalidRequestError, "goes on"),
        ("deflate", b"\xff\xff", InvalidRequestError, "not deflate"),
        ("deflate", b"", InvalidRequestError, "ends early"),
        ("gzip", gzip.compress(b"123", mtime=0), BodyTooLargeError, "inflates to more"),
        ("gzip", gzip.compress(b"0" * _BOMB, mtime=0), BodyTooLargeError, "inflates to more"),
    ],
)
def test_bad_encodings_are_refused(encoding, body, error, message):
    """Another encoding, a damaged body, or one that inflates beyond the limit is an error that says which."""
    with pytest.raises(error, match=message):
        inflate(body, {"content-encoding": encoding}, limit=2)


def test_bombs_are_not_inflated():
    """Inflating stops at the limit: 50 MB of zeros cost no more memory than the limit and the body."""
    body = gzip.compress(b"0" * _BOMB)
    tracemalloc.start()
    with pytest.raises(BodyTooLargeError):
        inflate(body, {"content-encoding": "gzip"}, limit=1000)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
