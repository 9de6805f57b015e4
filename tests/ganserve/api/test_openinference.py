import dataclasses
import gzip
import json
import time
import zlib
from typing import Any

import numpy as np
import pytest

from ganserve import __version__, latents
from ganserve.api import openinference, tensors
from ganserve.api.http import Request
from ganserve.api.openinference import infer
from ganserve.api.routing import protocol_of, resolve
from ganserve.batcher import Counters
from ganserve.errors import InvalidRequestError, NotFoundError, OverloadedError, UnsupportedMediaTypeError
from ganserve.settings import Settings
from tests.connection import Connection
from tests.ganserve.api.inference import PATH, document, pixels_of, request, tensor

ROWS, LABELS = latents.draw(5, 3, 16, 10)


def _get(path: str, context: Any, **parts: Any) -> Any:
    """The JSON of a GET (or a POST with a body)."""
    method = "POST" if "body" in parts else "GET"
    match = resolve(method, path)
    found = match.handler(Request(method=method, path=path, path_parameters=match.parameters, **parts), context)
    assert (found.status, found.content_type) == (200, "application/json")
    return json.loads(found.body)


# What describes the server.


def test_server_metadata_names_the_extensions(context):
    """`GET /v2` has name, version and those extensions that are there in full."""
    assert _get("/v2", context) == {
        "name": "ganserve",
        "version": __version__,
        "extensions": ["binary_tensor_data", "model_configuration", "statistics"],
    }


def test_health_has_bodies(context):
    """KServe's client reads `live` and `ready` from the bodies; a model is ready with the server."""
    assert _get("/v2/health/live", context) == {"live": True}
    assert _get("/v2/health/ready", context) == {"ready": True}
    for path in ("/v2/models/mnist/ready", "/v2/models/mnist/versions/1/ready"):
        assert _get(path, context) == {"name": "mnist", "ready": True}


def test_model_metadata_is_the_signature(context, unconditional):
    """Inputs and outputs are the manifest's, with -1 for the batch; a model without labels has no such input."""
    metadata = _get("/v2/models/mnist", context)
    assert metadata == _get("/v2/models/mnist/versions/1", context)
    assert metadata == {
        "name": "mnist",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "latents", "datatype": "FP32", "shape": [-1, 16]},
            {"name": "labels", "datatype": "INT64", "shape": [-1]},
        ],
        "outputs": [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 28, 28, 1]}],
    }
    assert [item["name"] for item in _get("/v2/models/mnist", unconditional)["inputs"]] == ["latents"]


def test_model_config_agrees_with_the_metadata(context):
    """The configuration has the same tensors in Triton's words, and whole shapes: max_batch_size is 0."""
    config = _get("/v2/models/mnist/config", context)
    assert config == _get("/v2/models/mnist/versions/1/config", context)
    assert config["max_batch_size"] == 0
    assert config["input"][1] == {"name": "labels", "data_type": "TYPE_INT64", "dims": [-1]}
    assert config["output"] == [{"name": "pixels", "data_type": "TYPE_UINT8", "dims": [-1, 28, 28, 1]}]
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["parameters"]["max_request_rows"] == {"string_value": "1024"}


def test_statistics_are_the_batchers_counters(context):
    """Rows, batches, seconds in nanoseconds and the time of the last batch, on all three routes."""
    counters = Counters(
        batches=3, rows=50, done=20, queue_s=0.5, inference_s=0.25, last_batch_at=1.5e9, rejected_full=4, failed=2
    )
    counted = dataclasses.replace(context, batcher=type("Counting", (), {"counters": counters}))
    (statistics,) = _get("/v2/models/stats", counted)["model_stats"]
    for path in ("/v2/models/mnist/stats", "/v2/models/mnist/versions/1/stats"):
        assert _get(path, counted)["model_stats"] == [statistics]
    assert (statistics["name"], statistics["version"]) == ("mnist", "1")
    assert (statistics["inference_count"], statistics["execution_count"]) == (50, 3)
    assert statistics["last_inference"] == 1_500_000_000_000
    assert statistics["inference_stats"]["success"] == {"count": 20, "ns": 750_000_000}
    assert statistics["inference_stats"]["fail"] == {"count": 6, "ns": 0}
    assert statistics["inference_stats"]["queue"] == {"count": 22, "ns": 500_000_000}
    assert statistics["inference_stats"]["compute_infer"] == {"count": 3, "ns": 250_000_000}


@pytest.mark.parametrize("body", [b"", b"{}", b'{"ready": true}', b'{"ready": null}'])
def test_repository_index_has_the_one_model(context, body):
    """The index lists the model as ready, with or without a request object."""
    assert _get("/v2/repository/index", context, body=body) == [
        {"name": "mnist", "version": "1", "state": "READY", "reason": ""}
    ]


@pytest.mark.parametrize("body", [b"[]", b'{"ready": 1}', b'{"repository": "x"}', b"{"])
def test_repository_index_refuses_another_body(context, body):
    """What is no index request is a 400."""
    with pytest.raises(InvalidRequestError):
        openinference.repository_index(Request(method="POST", path="/v2/repository/index", body=body), context)


@pytest.mark.parametrize("suffix", ["", "/ready", "/config", "/stats", "/infer"])
@pytest.mark.parametrize("model", ["other", "mnist/versions/2", "mnist/versions/01", "MNIST", "..", "stats/versions/1"])
def test_other_models_and_versions_are_404(context, suffix, model):
    """There is one model in one version; the error names it."""
    path = f"/v2/models/{model}{suffix}"
    method = "POST" if suffix == "/infer" else "GET"
    match = resolve(method, path)
    with pytest.raises(NotFoundError, match="'mnist'"):
        match.handler(Request(method=method, path=path, path_parameters=match.parameters), context)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/models/mnist/load",
        "/v2/repository/models/mnist/unload",
        "/v2/systemsharedmemory/region/x/register",
        "/v2/systemsharedmemory/status",
        "/v2/cudasharedmemory/region/x/register",
        "/v2/logging",
        "/v2/trace/setting",
        "/v2/models/mnist/trace/setting",
        "/v2/models/mnist/generate",
        "/v2/models",
        "/v2/",
        "/v2/models/a/b/infer",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_not_there_says_so(method, path):
    """No loading, shared memory, logging or tracing: a 404 that says which of Triton's routes there are not."""
    with pytest.raises(NotFoundError, match="no shared memory, no loading or unloading") as caught:
        resolve(method, path)
    answered = protocol_of(path).error(caught.value)
    assert (answered.status, list(json.loads(answered.body))) == (404, ["error"])


def test_errors_keep_their_headers():
    """An error is `{"error": ...}` with the headers that belong to it."""
    answered = openinference.error(OverloadedError("the queue is full", retry_after_s=7))
    assert answered.status == 503
    assert json.loads(answered.body) == {"error": "the queue is full"}
    assert answered.headers["retry-after"] == "7"


# What is inferred.


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
@pytest.mark.parametrize("length_header", [False, True])
def test_pixels_are_the_engines_in_every_form(context, engine, answer, binary_in, binary_out, length_header):
    """JSON or binary, in or out, with or without the length where it may be left out: the engine's pixels."""
    asked = document(ROWS, LABELS, binary=binary_in, parameters={"binary_data_output": binary_out})
    arrays = (ROWS, LABELS) if binary_in else ()
    length = str(len(json.dumps(asked))) if length_header and not binary_in else None
    found = answer(infer, request(asked, *arrays, length=length), context)
    assert found.content_type == ("application/octet-stream" if binary_out else "application/json")
    assert (pixels_of(found.headers, found.body) == engine.run(ROWS, LABELS)).all()


def test_answer_names_the_model_and_echoes_the_id(context, answer):
    """An `id` comes back as it was sent, whatever is in it; without one there is none."""
    for identity in ("42", "", 'a "quoted" \\ id', "é\ud800\u2028\n", "x" * 3000):
        for binary in (False, True):
            asked = document(ROWS, LABELS, id=identity, parameters={"binary_data_output": binary})
            found = answer(infer, request(asked), context)
            length = int(found.headers.get("inference-header-content-length", len(found.body)))
            told = json.loads(found.body[:length])
            assert (told["id"], told["model_name"], told["model_version"]) == (identity, "mnist", "1")
    assert "id" not in json.loads(answer(infer, request(document(ROWS, LABELS)), context).body)


def test_order_of_inputs_is_free(context, engine, answer):
    """Labels may come first; binary data comes in the order of the inputs, mixed with JSON or not."""
    expected = engine.run(ROWS, LABELS)
    for labels_binary, arrays in ((True, (LABELS, ROWS)), (False, (ROWS,))):
        inputs = [tensor("labels", LABELS, binary=labels_binary), tensor("latents", ROWS, binary=True)]
        found = answer(infer, request({"inputs": inputs}, *arrays), context)
        assert (pixels_of(found.headers, found.body) == expected).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("binary", [False, True])
def test_latents_of_each_float_type(context, engine, answer, dtype, binary):
    """FP16 and FP64 are what they are in float32."""
    rows = ROWS.astype(dtype)
    inputs = [tensor("latents", rows, binary=binary), tensor("labels", LABELS)]
    found = answer(infer, request({"inputs": inputs}, *([rows] if binary else [])), context)
    expected = engine.run(rows.astype(np.float32), LABELS)
    assert (pixels_of(found.headers, found.body) == expected).all()


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
@pytest.mark.parametrize("binary", [False, True])
def test_labels_of_each_integer_type(context, engine, answer, dtype, binary):
    """Any integer type will do for labels, as [N] or, as MLServer's client makes it, [N, 1]."""
    expected = engine.run(ROWS, LABELS)
    for shape in ((3,), (3, 1)):
        labels = LABELS.astype(dtype).reshape(shape)
        inputs = [tensor("latents", ROWS), tensor("labels", labels, binary=binary)]
        found = answer(infer, request({"inputs": inputs}, *([labels] if binary else [])), context)
        assert (pixels_of(found.headers, found.body) == expected).all()


def test_data_may_be_nested(context, engine, answer):
    """JSON data comes flat or nested as the shape says."""
    inputs = [
        tensor("latents", ROWS, data=ROWS.tolist()),
        tensor("labels", LABELS.reshape(3, 1), data=LABELS.reshape(3, 1).tolist()),
    ]
    found = answer(infer, request({"inputs": inputs}), context)
    assert (pixels_of(found.headers, found.body) == engine.run(ROWS, LABELS)).all()


def test_model_without_labels_takes_latents_alone(unconditional, unconditional_engine, answer):
    """An unconditional model has one input, and labels are an unknown one."""
    found = answer(infer, request(document(ROWS, None)), unconditional)
    assert (pixels_of(found.headers, found.body) == unconditional_engine.run(ROWS)).all()
    with pytest.raises(InvalidRequestError, match="inputs must be latents, got 2 tensors"):
        infer(request(document(ROWS, LABELS)), unconditional)


@pytest.mark.parametrize(
    ("outputs", "binary_data_output", "binary"),
    [
        (..., ..., False),
        (None, True, True),
        ([], True, True),
        ([{"name": "pixels"}], ..., False),
        ([{"name": "pixels"}], True, True),
        ([{"name": "pixels", "parameters": {}}], True, True),
        ([{"name": "pixels", "parameters": {"binary_data": False}}], True, False),
        ([{"name": "pixels", "parameters": {"binary_data": True}}], False, True),
        ([{"name": "pixels", "parameters": {"binary_data": True, "classification": 0}}], False, True),
    ],
)
def test_outputs_choose_their_form(context, answer, outputs, binary_data_output, binary):
    """An output's own `binary_data` overrides `binary_data_output`; no outputs mean all of them."""
    parameters = ... if binary_data_output is ... else {"binary_data_output": binary_data_output}
    found = answer(infer, request(document(ROWS, LABELS, outputs=outputs, parameters=parameters)), context)
    assert ("inference-header-content-length" in found.headers) is binary
    assert pixels_of(found.headers, found.body).shape == (3, 28, 28, 1)


def test_unknown_parameters_are_ignored(context, answer):
    """Parameters for other servers do no harm; nor do fields that are null, which MLServer's types send."""
    extra = {"sequence_id": 7, "sequence_start": True, "priority": 1, "timeout": 5, "content_type": "np", "x": [{}]}
    asked = document(ROWS, LABELS, parameters=extra, id=None, outputs=None, model_name="mnist")
    asked["inputs"][0]["parameters"] = {"content_type": "np", "headers": {}}
    asked["inputs"][1]["parameters"] = None
    assert answer(infer, request(asked), context).status == 200


def test_data_that_lies_anywhere_is_aligned(context, engine, answer):
    """Binary data begins at any address, as long as the JSON is; what the session gets is aligned memory of ours."""
    for padding in range(8):
        asked = json.dumps(document(ROWS, LABELS, binary=True)).encode() + b" " * padding
        work = infer(request(asked, ROWS, LABELS), context)
        rows, labels = work.inputs()
        assert rows.flags.aligned
        assert rows.flags.c_contiguous
        assert (rows == ROWS).all()
        assert (labels == LABELS).all()


def test_plans_are_kept_and_answers_are_not_mixed(context, engine, answer):
    """The same JSON with other binary data, and other JSON with the same: each gets its own pixels and id."""
    tensors._cached_plan.cache_clear()
    for repeat in range(3):
        rows, labels = latents.draw(repeat, 3, 16, 10)
        for identity in ("a", "b"):
            asked = document(rows, labels, binary=True, id=identity, parameters={"binary_data_output": True})
            found = answer(infer, request(asked, rows, labels), context)
            assert (pixels_of(found.headers, found.body) == engine.run(rows, labels)).all()
            assert found.body.startswith(b'{"id":"%s"' % identity.encode())
    assert tensors._cached_plan.cache_info()[:2] == (4, 2)  # hits, misses
    large = json.dumps(document(ROWS, LABELS, binary=True, id="x" * 2000))
    assert answer(infer, request(large.encode(), ROWS, LABELS), context).status == 200
    assert tensors._cached_plan.cache_info().currsize == 2  # what is kept is small, whatever clients send


def test_a_plan_is_for_one_model_and_its_limits(context, unconditional):
    """A plan that was kept is not used for a model or a limit that it was not checked against."""
    asked = document(ROWS, LABELS, binary=True)
    assert infer(request(asked, ROWS, LABELS), context).rows == 3
    with pytest.raises(InvalidRequestError, match="inputs must be latents"):
        infer(request(asked, ROWS, LABELS), unconditional)
    smaller = dataclasses.replace(context, settings=Settings(max_request_rows=2))
    with pytest.raises(InvalidRequestError, match="must be 1 to 2, got 3"):
        infer(request(asked, ROWS, LABELS), smaller)


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br, zstd", "gzip"),
        ("GZIP;q=0.5, deflate;q=0.8", "deflate"),
        ("*", "gzip"),
        ("gzip;q=0, *;q=0.5", "deflate"),
        ("gzip;q=0", None),
        ("identity", None),
        ("identity;q=1, gzip;q=0.5", None),
        ("br", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("binary", [False, True])
def test_answers_are_compressed_as_asked(context, engine, answer, accept, coding, binary):
    """`Accept-Encoding` is heard; the length of the JSON is that of the inflated one."""
    asked = document(ROWS, LABELS, parameters={"binary_data_output": binary})
    found = answer(infer, request(asked, accept_encoding=accept), context)
    assert found.headers.get("content-encoding") == coding
    body = found.body
    if coding is not None:
        assert found.headers["vary"] == "accept-encoding"
        body = gzip.decompress(body) if coding == "gzip" else zlib.decompress(body)
        assert binary or len(found.body) < len(body)  # these pixels are noise; written as JSON they can be packed
    assert (pixels_of(found.headers, body) == engine.run(ROWS, LABELS)).all()


def test_small_answers_are_not_compressed(context, answer):
    """What fits into one packet is sent as it is."""
    asked = document(ROWS[:1], LABELS[:1], parameters={"binary_data_output": True})
    found = answer(infer, request(asked, accept_encoding="gzip"), context)
    assert "content-encoding" not in found.headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/vnd.bentoml+pickle"])
def test_other_media_types_are_415(context, kind):
    """A form, text or a pickle is refused by its type, whatever is in it."""
    with pytest.raises(UnsupportedMediaTypeError, match="send application/json or application/octet-stream"):
        infer(request(document(ROWS, LABELS), content_type=kind), context)


# What is refused, and then a good request on the same connection.


def _send(connection: Connection, asked: Request, path: str = PATH) -> tuple[int, dict[str, str], bytes]:
    headers = {name.replace("-", "_"): value for name, value in asked.headers.items()}
    return connection.ask("POST", path, asked.body, **headers)


def _good(connection: Connection, engine: Any) -> None:
    """A good binary request on this very connection."""
    asked = document(ROWS, LABELS, binary=True, parameters={"binary_data_output": True})
    status, headers, body = _send(connection, request(asked, ROWS, LABELS))
    assert status == 200, body
    assert (pixels_of(headers, body) == engine.run(ROWS, LABELS)).all()


def _with_latents(**changes: Any) -> dict[str, Any]:
    return {"inputs": [tensor("latents", ROWS, **changes), tensor("labels", LABELS)]}


def _with_labels(*data: Any, **changes: Any) -> dict[str, Any]:
    given = {"data": list(data)} if data else {}
    return {"inputs": [tensor("latents", ROWS), tensor("labels", LABELS, **given, **changes)]}


def _with_value(text: bytes) -> bytes:
    """One latent of the request, replaced in the JSON text itself."""
    values = [b"0.5"] * 47 + [text]
    labels = b'{"name":"labels","shape":[3],"datatype":"INT64","data":[1,2,3]}'
    latents_ = b'{"name":"latents","shape":[3,16],"datatype":"FP32","data":[%s]}' % b",".join(values)
    return b'{"inputs":[%s,%s]}' % (latents_, labels)


_BIG = 9223372036854775807
_REFUSED = {
    # the JSON object
    "empty body": (b"", "not JSON"),
    "no JSON": (b"{", "not JSON"),
    "no object": (b"[]", "must be a JSON object, got an array"),
    "BOM": (b"\xef\xbb\xbf{}", "BOM"),
    "UTF-16": (json.dumps({"inputs": []}).encode("utf-16"), "not UTF-8"),
    "trailing data": (json.dumps(document(ROWS, LABELS)).encode() + b"x", "Extra data"),
    "duplicate key": (b'{"inputs": [], "inputs": []}', "'inputs' is given twice"),
    "duplicate key of a tensor": (b'{"inputs": [{"name": "latents", "name": "labels"}]}', "'name' is given twice"),
    "nested deep": (b'{"inputs":' + b"[" * 150_000, "nested too deep"),
    "nested deep as data": (_with_value(b"[" * 150_000), "nested too deep"),
    "unknown field": (document(ROWS, LABELS, input=[]), "unknown field 'input'"),
    "unknown field of a tensor": (_with_latents(dtype="FP32"), "unknown field 'dtype'"),
    "id that is a number": (document(ROWS, LABELS, id=7), "id must be a string"),
    "parameters that are a list": (document(ROWS, LABELS, parameters=[]), "parameters of the request must be"),
    "flag that is a string": (document(ROWS, LABELS, parameters={"binary_data_output": "true"}), "true or false"),
    # inputs
    "no inputs": ({}, "inputs must be an array"),
    "inputs that are an object": ({"inputs": {}}, "inputs must be an array"),
    "empty inputs": ({"inputs": []}, "input latents is missing"),
    "no labels": (document(ROWS, None), "input labels is missing"),
    "10,000 inputs": ({"inputs": [{"name": "latents"}] * 10_000}, "got 10000 tensors"),
    "duplicate input": ({"inputs": [tensor("latents", ROWS)] * 2}, "input latents is given twice"),
    "unknown input": ({"inputs": [tensor("z", ROWS)]}, 'input "z" is none of this model'),
    "input without a name": ({"inputs": [{}]}, "input null is none"),
    "name that is a list": ({"inputs": [{"name": []}]}, "input an array is none"),
    "input that is a number": ({"inputs": [5]}, "an input must be a JSON object"),
    "shared memory": (_with_latents(data=..., parameters={"shared_memory_region": "x"}), "shared memory"),
    # datatypes
    "no datatype": (_with_latents(datatype=...), "got null"),
    "integers for latents": (_with_latents(datatype="INT64"), 'FP16, FP32, FP64, got "INT64"'),
    "BF16": (_with_latents(datatype="BF16"), 'got "BF16"'),
    "BYTES": (_with_latents(datatype="BYTES"), 'got "BYTES"'),
    "lower case": (_with_latents(datatype="fp32"), 'got "fp32"'),
    "floats for labels": (_with_labels(datatype="FP32"), 'got "FP32"'),
    "BOOL for labels": (_with_labels(datatype="BOOL"), 'got "BOOL"'),
    "datatype that is a list": (_with_latents(datatype=[]), "got an array"),
    # shapes
    "no shape": (_with_latents(shape=...), "must have a shape"),
    "wrong width": (_with_latents(shape=[3, 15]), "must have shape [N, 16], got [3, 15]"),
    "wrong rank": (_with_latents(shape=[48]), "must have shape [N, 16], got [48]"),
    "rank 0": (_with_latents(shape=[]), "must have shape [N, 16], got []"),
    "rank 3": (_with_latents(shape=[3, 16, 1]), "got [3, 16, 1]"),
    "rank 10,000": (_with_latents(shape=[1] * 10_000), "got [10000 dimensions]"),
    "zero rows": (_with_latents(shape=[0, 16], data=[]), "must be 1 to 1024, got 0"),
    "negative rows": (_with_latents(shape=[-3, 16]), "must be 1 to 1024, got -3"),
    "both negative": (_with_latents(shape=[-3, -16]), "got [-3, -16]"),
    "too many rows": (_with_latents(shape=[1025, 16]), "must be 1 to 1024, got 1025"),
    "what kills Triton": (_with_latents(shape=[_BIG, 100]), f"got [{_BIG}, 100]"),
    "what kills Triton, of our width": (_with_latents(shape=[_BIG, 16]), "must be 1 to 1024"),
    "product that overflows": (_with_latents(shape=[2**60, 16]), "must be 1 to 1024"),
    "product that wraps to 48": (_with_latents(shape=[2**60 + 3, 16]), "must be 1 to 1024"),
    "10**400 rows": (_with_latents(shape=[10**400, 16]), "bits"),
    "10**400 columns": (_with_latents(shape=[3, 10**400]), "an integer of 1329 bits"),
    "shape of floats": (_with_latents(shape=[3.0, 16.0]), "an array of integers"),
    "shape of booleans": (_with_latents(shape=[True, 16]), "an array of integers"),
    "shape of strings": (_with_latents(shape=["3", "16"]), "an array of integers"),
    "shape that is a string": (_with_latents(shape="3x16"), "an array of integers"),
    "nested shape": (_with_latents(shape=[[3, 16]]), "an array of integers"),
    "labels of two columns": (_with_labels(shape=[3, 2]), "must have shape [N], got [3, 2]"),
    "fewer labels than latents": (_with_labels(1, 2, shape=[2]), "labels has 2 rows, latents has 3"),
    # data
    "no data": (_with_latents(data=...), "needs data"),
    "data that is a number": (_with_latents(data=5), "needs data"),
    "data that is a string": (_with_latents(data="x" * 48), "needs data"),
    "empty data": (_with_latents(data=[]), "must have 48 values, got 0"),
    "too little data": (_with_latents(data=[0.0] * 47), "must have 48 values, got 47"),
    "too much data": (_with_latents(data=[0.0] * 49), "must have 48 values, got 49"),
    "ragged": (_with_latents(data=[[0.0] * 16, [0.0] * 15, [0.0] * 17]), "3 arrays of 16 values"),
    "ragged, the sum right": (_with_latents(data=[[0.0] * 16, [0.0] * 32]), "3 arrays of 16 values"),
    "half nested": (_with_latents(data=[[0.0] * 16, 0.0, 0.0]), "3 arrays of 16 values"),
    "nested once more": (_with_latents(data=[[[0.0]] * 16] * 3), "latents must be numbers"),
    "transposed": (_with_latents(data=[[0.0] * 3] * 16), "3 arrays of 16 values"),
    "nested labels": (_with_labels([1], [2], [3]), "labels must be integers"),
    "null": (_with_value(b"null"), "latents must be numbers"),
    "true": (_with_value(b"true"), "latents must be numbers"),
    "string": (_with_value(b'"0.5"'), "latents must be numbers"),
    "NaN": (_with_value(b"NaN"), "NaN is not JSON"),
    "Infinity": (_with_value(b"-Infinity"), "-Infinity is not JSON"),
    "1e400": (_with_value(b"1e400"), "latents must be finite in float32; row 2 is not"),
    "1e39": (_with_value(b"1e39"), "latents must be finite in float32; row 2 is not"),
    "10**400": (_with_value(b"1" + b"0" * 400), "latents must be finite in float32"),
    "10**5000": (_with_value(b"1" + b"0" * 5000), "not JSON"),
    "1e39 as FP64": (_with_latents(datatype="FP64", data=[1e39] * 48), "must be finite in float32; row 0 is not"),
    "1e6 as FP16": (_with_latents(datatype="FP16", data=[1e6] * 48), "must be finite in float32; row 0 is not"),
    "label -1": (_with_labels(-1, 0, 0), "labels must be 0 to 9, got -1"),
    "label 10": (_with_labels(0, 0, 10), "labels must be 0 to 9, got 10"),
    "label 2**63": (_with_labels(0, 0, 2**63), "labels must be 0 to 9"),
    "label 10**400": (_with_labels(0, 10**400, 0), "labels must be 0 to 9, got an integer of 1329 bits"),
    "label -10**400": (_with_labels(0, -(10**400), 0), "labels must be 0 to 9"),
    "label 1.0": (_with_labels(0, 1.0, 0), "labels must be integers"),
    "label true": (_with_labels(0, True, 0), "labels must be integers"),
    'label "3"': (_with_labels(0, "3", 0), "labels must be integers"),
    "label null": (_with_labels(0, None, 0), "labels must be integers"),
    # outputs
    "outputs that are an object": (document(ROWS, LABELS, outputs={}), "outputs must be an array"),
    "unknown output": (document(ROWS, LABELS, outputs=[{"name": "logits"}]), 'output "logits" is none'),
    "duplicate output": (document(ROWS, LABELS, outputs=[{"name": "pixels"}] * 2), "once, got 2 tensors"),
    "output that is a string": (document(ROWS, LABELS, outputs=["pixels"]), "an output must be a JSON object"),
    "classification": (
        document(ROWS, LABELS, outputs=[{"name": "pixels", "parameters": {"classification": 3}}]),
        "classification is not supported",
    ),
    "output to shared memory": (
        document(ROWS, LABELS, outputs=[{"name": "pixels", "parameters": {"shared_memory_region": "x"}}]),
        "output pixels is in shared memory",
    ),
    "binary_data that is 1": (
        document(ROWS, LABELS, outputs=[{"name": "pixels", "parameters": {"binary_data": 1}}]),
        "binary_data must be true or false",
    ),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_refused_and_then_a_good_request(connection, engine, name):
    """A bad request is a 400 that says what is wrong, and the same connection serves a good one afterwards."""
    content, reason = _REFUSED[name]
    status, headers, body = _send(connection, request(content))
    assert status == 400, body
    assert headers["content-type"] == "application/json"
    assert reason in json.loads(body)["error"]
    assert len(body) < 500  # whatever was sent
    _good(connection, engine)


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        ("0", "must be 1 to the body's"),
        ("-1", "must be one number"),
        ("1e3", "must be one number"),
        ("0x10", "must be one number"),
        ("1_0", "must be one number"),
        ("12.0", "must be one number"),
        ("", "must be one number"),
        ("\xb2", "must be one number"),
        ("9" * 400, "must be one number"),
        ("999999999", "must be 1 to the body's"),
        ("5", "not JSON"),
        ("+1", "not JSON"),  # one byte more than the JSON object has: the first of the binary data
        ("one byte less", "not JSON"),
    ],
)
def test_wrong_header_length(connection, engine, length, reason):
    """A length that is no number, or not the JSON object's, is a 400."""
    asked = json.dumps(document(ROWS, LABELS, binary=True)).encode()
    length = {"+1": str(len(asked) + 1), "one byte less": str(len(asked) - 1)}.get(length, length)
    status, _, body = _send(connection, request(asked, ROWS, LABELS, length=length))
    assert status == 400, body
    assert reason in json.loads(body)["error"] or "not UTF-8" in json.loads(body)["error"]
    _good(connection, engine)


def test_header_length_given_twice(connection, engine):
    """Two lengths are none, even if they are equal."""
    asked = request(document(ROWS, LABELS, binary=True), ROWS, LABELS)
    connection.putrequest("POST", PATH)
    for _ in range(2):
        connection.putheader("Inference-Header-Content-Length", asked.headers["inference-header-content-length"])
    connection.putheader("Content-Length", str(len(asked.body)))
    connection.endheaders(asked.body)
    response = connection.getresponse()
    assert response.status == 400
    assert "must be one number of bytes" in json.loads(response.read())["error"]
    _good(connection, engine)


def _binary(size: Any, **changes: Any) -> dict[str, Any]:
    parameters = {} if size is ... else {"binary_data_size": size}
    latents_ = tensor("latents", ROWS, data=..., parameters=parameters, **changes)
    return {"inputs": [latents_, tensor("labels", LABELS, binary=True)]}


@pytest.mark.parametrize(
    ("content", "arrays", "reason"),
    [
        (_binary(191), (ROWS, LABELS), "must be 192, got 191"),
        (_binary(193), (ROWS, LABELS), "must be 192, got 193"),
        (_binary(0), (ROWS, LABELS), "must be 192, got 0"),
        (_binary(-192), (ROWS, LABELS), "must be 192, got -192"),
        (_binary(192.0), (ROWS, LABELS), "must be 192, got 192.0"),
        (_binary(True), (ROWS, LABELS), "must be 192, got true"),
        (_binary("192"), (ROWS, LABELS), 'must be 192, got "192"'),
        (_binary([192]), (ROWS, LABELS), "must be 192, got an array"),
        (_binary(10**400), (ROWS, LABELS), "must be 192, got an integer of 1329 bits"),
        (_binary(...), (ROWS, LABELS), "latents needs data"),
        (_binary(192, shape=[_BIG, 16]), (ROWS, LABELS), "must be 1 to 1024"),
        (_binary(192, datatype="FP64"), (ROWS, LABELS), "must be 384, got 192"),
        (_binary(192), (ROWS, LABELS[:2]), "need 216 bytes of binary data after the JSON object, got 208"),
        (_binary(192), (ROWS,), "need 216 bytes of binary data after the JSON object, got 192"),
        (_binary(192), (ROWS, LABELS, LABELS), "need 216 bytes of binary data after the JSON object, got 240"),
        (_with_latents(), (ROWS,), "need 0 bytes of binary data after the JSON object, got 192"),
        (_with_latents(parameters={"binary_data_size": 192}), (ROWS,), "has data and binary_data_size"),
        (_binary(192), (np.full_like(ROWS, np.nan), LABELS), "must be finite in float32; row 0 is not"),
        (_binary(192), (np.full_like(ROWS, -np.inf), LABELS), "must be finite in float32; row 0 is not"),
        (_binary(384, datatype="FP64"), (ROWS.astype("f8") * 1e39, LABELS), "must be finite in float32"),
        (_binary(384, datatype="FP64"), (np.full((3, 16), np.nan), LABELS), "must be finite in float32"),
        (_binary(96, datatype="FP16"), (np.full((3, 16), np.inf, "f2"), LABELS), "must be finite in float32"),
        (_binary(192), (ROWS, LABELS - 10), "labels must be 0 to 9, got -"),
        (_binary(192), (ROWS, LABELS + 2**62), "labels must be 0 to 9, got 4611686018427387904"),
    ],
)
def test_wrong_binary_data(connection, engine, content, arrays, reason):
    """Sizes that do not fit the shapes or the body, and values that are none, are a 400."""
    status, _, body = _send(connection, request(content, *arrays))
    assert status == 400, body
    assert reason.removesuffix("4611686018427387904") in json.loads(body)["error"]
    _good(connection, engine)


def test_binary_data_without_the_header_length(connection, engine):
    """Binary data that no header announces is not JSON; sizes without data name the header that is missing."""
    asked = document(ROWS, LABELS, binary=True)
    whole = request(asked, ROWS, LABELS)
    for body, reason in ((whole.body, "not"), (json.dumps(asked).encode(), "the header inference-header-content-len")):
        status, _, content = connection.ask("POST", PATH, body)
        assert status == 400
        assert reason in json.loads(content)["error"]
        _good(connection, engine)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/../../etc/passwd/infer",
        "/v2/models/..%2f..%2fetc%2fpasswd/infer",
        "/v2/models/%2e%2e/infer",
        "/v2/models/mnist%00/infer",
        "/v2/models/mnist%0d%0aset-cookie:%20x=1/infer",
        "/v2/models/%ff%fe/infer",
        "/v2/models/mnist/versions/%2e%2e/infer",
        "/v2/models/mnist//infer",
        "/v2/models/mnist/infer/",
        "/v2/models/" + "m" * 5000 + "/infer",
    ],
)
def test_model_names_lead_nowhere(connection, engine, path):
    """Traversal, encoded or not, control characters and long names are a 404 in this protocol's words."""
    status, headers, body = _send(connection, request(document(ROWS, LABELS)), path)
    assert status == 404, body
    assert list(json.loads(body)) == ["error"]
    assert len(body) < 500
    assert "set-cookie" not in headers
    _good(connection, engine)


def test_percent_encoding_is_decoded_once(connection, engine):
    """A model name may be percent-encoded, as clients that quote it do; doubly encoded it is another name."""
    asked = request(document(ROWS, LABELS))
    assert _send(connection, asked, "/v2/models/%6dnist/infer")[0] == 200
    assert _send(connection, asked, "/v2/models/%256dnist/infer")[0] == 404
    _good(connection, engine)


def test_methods_are_refused_in_this_protocols_words(connection, engine):
    """A 405 is `{"error": ...}` with the methods that there are."""
    for method, path, allow in (("GET", PATH, "POST"), ("POST", "/v2/health/live", "GET, HEAD")):
        status, headers, body = connection.ask(method, path)
        assert (status, headers["allow"]) == (405, allow)
        assert list(json.loads(body)) == ["error"]
    _good(connection, engine)


def test_compressed_bodies_are_read(connection, engine):
    """Bodies may be gzip or deflate: the header length is that of the inflated JSON."""
    asked = request(document(ROWS, LABELS, binary=True), ROWS, LABELS)
    for coding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        packed = dataclasses.replace(
            asked, body=compress(asked.body), headers={**asked.headers, "content-encoding": coding}
        )
        status, headers, body = _send(connection, packed)
        assert status == 200, body
        assert (pixels_of(headers, body) == engine.run(ROWS, LABELS)).all()


def test_statistics_count_what_was_inferred(connection, engine):
    """One inference of three rows is three inferences in one execution, just now."""
    before = json.loads(connection.ask("GET", "/v2/models/mnist/stats")[2])["model_stats"][0]
    _good(connection, engine)
    after = json.loads(connection.ask("GET", "/v2/models/mnist/stats")[2])["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] == 1
    success = [stats["inference_stats"]["success"] for stats in (before, after)]
    assert success[1]["count"] - success[0]["count"] == 1
    assert success[1]["ns"] > success[0]["ns"]
    assert 0 <= time.time() * 1e3 - after["last_inference"] < 10_000
