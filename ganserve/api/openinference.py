"""The Open Inference Protocol (KServe V2) over HTTP, with Triton's extensions for binary data, config and statistics.

There is one model, named as the manifest says, in version "1". It is never loaded, unloaded or configured over HTTP,
and tensors travel in bodies only, never through shared memory.
"""

import functools
import math
from typing import Any

from ganserve import __version__
from ganserve.api.http import (
    JSON,
    MIN_DEFLATED_BYTES,
    Context,
    Labels,
    Pixels,
    Protocol,
    Request,
    Response,
    Work,
    compresses,
    deflate,
    json_response,
    media_type,
    parse_json_object,
)
from ganserve.api.repeat import Repeat
from ganserve.api.tensors import (
    HEADER_LENGTH,
    MODEL_VERSION,
    OCTETS,
    Model,
    read_inference,
    repeat_of,
    write_inference,
)
from ganserve.artifact import TensorSpec
from ganserve.errors import InvalidRequestError, NotFoundError, RequestError, UnsupportedMediaTypeError

_DATATYPES = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}
_PLATFORM = "onnxruntime_onnx"


def infer(request: Request, context: Context) -> Work:
    """`POST .../infer`: pixels of the latents (and labels) that the client brings.

    Raises:
        NotFoundError: another model or version.
        InvalidRequestError: the body is not what the protocol or the model wants.
        UnsupportedMediaTypeError: the body is neither JSON nor JSON with binary data behind it.
    """
    _check_model(request, context)
    _check_media_type(request)
    model = _model(context)
    plan, latents, labels = read_inference(request.body, request.headers.get(HEADER_LENGTH), model)

    accept_encoding, form = request.headers.get("accept-encoding"), plan.form
    compressed = compresses(accept_encoding)

    def finish(_: Labels | None, pixels: Pixels) -> Response:
        return deflate(write_inference(form, pixels), accept_encoding)

    def repeat() -> Repeat | None:
        small = form.binary and len(form.head) + len(latents) * math.prod(model.pixel_shape) < MIN_DEFLATED_BYTES
        return repeat_of(plan, request.body, labels, model) if small or not compressed else None

    # Binary pixels are copied, JSON ones written out; compressing either is what takes time.
    row_us = 30.0 if compressed else 0.5 if form.binary else 5.0
    return Work(rows=len(latents), inputs=lambda: (latents, labels), finish=finish, row_us=row_us, repeat=repeat)


@functools.lru_cache(maxsize=4)  # of one server there is one context
def _model(context: Context) -> Model:
    manifest = context.engine.manifest
    return Model(
        manifest.name,
        manifest.latent.dim,
        manifest.num_classes,
        manifest.pixel_shape,
        context.settings.max_request_rows,
    )


def server_metadata(request: Request, context: Context) -> Response:
    """`GET /v2`: what this server is and which extensions it has."""
    # Without model_repository: that one would have to load and unload.
    extensions = ["binary_tensor_data", "model_configuration", "statistics"]
    return json_response({"name": "ganserve", "version": __version__, "extensions": extensions})


def live(request: Request, context: Context) -> Response:
    """`GET /v2/health/live`: whoever answers lives."""
    return json_response({"live": True})


def ready(request: Request, context: Context) -> Response:
    """`GET /v2/health/ready`: an engine that is there has proven itself; the server may be draining, though."""
    return _readiness(context, {"ready": context.batcher.ready})


def model_ready(request: Request, context: Context) -> Response:
    """`GET /v2/models/{model}/ready`: as the server."""
    _check_model(request, context)
    return _readiness(context, {"name": context.engine.manifest.name, "ready": context.batcher.ready})


def _readiness(context: Context, document: dict[str, Any]) -> Response:
    """503 while not ready, and why; Triton's clients look at the status alone."""
    if context.batcher.ready:
        return json_response(document)
    return json_response({**document, "reason": context.batcher.obstacle}, status=503)


def model_metadata(request: Request, context: Context) -> Response:
    """`GET /v2/models/{model}`: its inputs and outputs; -1 is the batch."""
    _check_model(request, context)
    manifest = context.engine.manifest

    def describe(spec: TensorSpec) -> dict[str, Any]:
        return {"name": spec.name, "datatype": _DATATYPES[spec.dtype], "shape": _dims(spec)}

    return json_response(
        {
            "name": manifest.name,
            "versions": [MODEL_VERSION],
            "platform": _PLATFORM,
            "inputs": [describe(spec) for spec in manifest.signature.inputs],
            "outputs": [describe(spec) for spec in manifest.signature.outputs],
        }
    )


def model_config(request: Request, context: Context) -> Response:
    """`GET /v2/models/{model}/config`: Triton's ModelConfig, as far as it is true here.

    `max_batch_size` is 0, which says that the dims below are whole shapes: with another number, Triton's clients would
    send labels as [N, 1].
    """
    _check_model(request, context)
    manifest = context.engine.manifest

    def describe(spec: TensorSpec) -> dict[str, Any]:
        return {"name": spec.name, "data_type": f"TYPE_{_DATATYPES[spec.dtype]}", "dims": _dims(spec)}

    kind = "KIND_GPU" if context.engine.provider == "CUDAExecutionProvider" else "KIND_CPU"
    return json_response(
        {
            "name": manifest.name,
            "platform": _PLATFORM,
            "backend": "onnxruntime",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": 0,
            "input": [describe(spec) for spec in manifest.signature.inputs],
            "output": [describe(spec) for spec in manifest.signature.outputs],
            "instance_group": [{"name": manifest.name, "kind": kind, "count": 1}],
            "parameters": {"max_request_rows": {"string_value": str(context.settings.max_request_rows)}},
        }
    )


def model_statistics(request: Request, context: Context) -> Response:
    """`GET /v2/models/stats` and `/v2/models/{model}/stats`: what this worker has done so far.

    Rows and batches are counted, and time in the queue and in the session; input and output are no steps of their own
    here, there is no cache, and nothing is kept by batch size.
    """
    if request.path_parameters:
        _check_model(request, context)
    counters = context.batcher.counters
    failed = counters.failed + counters.rejected_full + counters.rejected_deadline
    nothing = _duration(0, 0.0)
    statistics = {
        "name": context.engine.manifest.name,
        "version": MODEL_VERSION,
        "last_inference": int(counters.last_batch_at * 1e3),
        "inference_count": counters.rows,
        "execution_count": counters.batches,
        "inference_stats": {
            "success": _duration(counters.done, counters.queue_s + counters.inference_s),
            "fail": _duration(failed, 0.0),
            "queue": _duration(counters.done + counters.failed, counters.queue_s),
            "compute_input": nothing,
            "compute_infer": _duration(counters.batches, counters.inference_s),
            "compute_output": nothing,
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [],
    }
    return json_response({"model_stats": [statistics]})


def repository_index(request: Request, context: Context) -> Response:
    """`POST /v2/repository/index`: the one model.

    Raises:
        InvalidRequestError: a body that is not `{"ready": boolean}`.
        UnsupportedMediaTypeError: one that is not JSON.
    """
    _check_media_type(request)
    fields = parse_json_object(request.body) if request.body else {}
    if not fields.keys() <= {"ready"} or not isinstance(fields.get("ready"), bool | None):
        raise InvalidRequestError('send no body, or {"ready": true}')
    name = context.engine.manifest.name
    return json_response([{"name": name, "version": MODEL_VERSION, "state": "READY", "reason": ""}])


def error(err: RequestError) -> Response:
    """An error in this protocol's words: "Inference Response JSON Error Object"."""
    return json_response({"error": str(err)}, status=err.status, headers={**err.headers, "cache-control": "no-store"})


def _check_model(request: Request, context: Context) -> None:
    name = context.engine.manifest.name
    if request.path_parameters["model"] != name:
        raise NotFoundError(f"model {request.path_parameters['model'][:64]!r} is not served here; {name!r} is")
    version = request.path_parameters.get("version", MODEL_VERSION)
    if version != MODEL_VERSION:
        raise NotFoundError(f"model {name!r} has version {MODEL_VERSION!r}, not {version[:64]!r}")


def _check_media_type(request: Request) -> None:
    kind = media_type(request)
    if kind not in (OCTETS, JSON, ""):  # clients send either for both
        raise UnsupportedMediaTypeError(f"send {JSON} or {OCTETS}, got {kind[:64]!r}")


def _dims(spec: TensorSpec) -> list[int]:
    return [-1 if isinstance(size, str) else size for size in spec.shape]


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}


def _with_version(suffix: str, method: str, handler: Any) -> dict[str, Any]:
    """The two routes of one question about a model: with its version and without."""
    return {f"/v2/models/{{model}}{version}{suffix}": {method: handler} for version in ("", "/versions/{version}")}


PROTOCOL = Protocol(
    prefixes=("/v2",),
    routes={
        **_with_version("/infer", "POST", infer),  # first: templates are tried in this order
        **_with_version("", "GET", model_metadata),
        **_with_version("/ready", "GET", model_ready),
        **_with_version("/config", "GET", model_config),
        **_with_version("/stats", "GET", model_statistics),
        "/v2": {"GET": server_metadata},
        "/v2/health/live": {"GET": live},
        "/v2/health/ready": {"GET": ready},
        "/v2/models/stats": {"GET": model_statistics},
        "/v2/repository/index": {"POST": repository_index},
    },
    error=error,
    no_route="no such route; there is no shared memory, no loading or unloading, no trace or log setting here; "
    "GET /openapi.json lists what there is",
)
