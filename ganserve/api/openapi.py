"""`GET /openapi.json`: OpenAPI 3.1 of every route, with the ranges that validate.

What a JSON schema cannot say (as many labels as images, a size that fits the number of digits) is said in words, and
the schema holds what is right whatever the rest is: a body that fits the schema is accepted.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ganserve import __version__, latents
from ganserve.api import interpolate, native, openai
from ganserve.api.http import (
    GIF,
    HTML,
    JSON,
    NPY,
    PNG,
    PROBLEM,
    Context,
    Protocol,
    Request,
    Response,
    json_response,
    negotiate,
    parse_query,
    problem,
)

Schema = dict[str, Any]

_TEXT = "text/plain"
_OCTETS = "application/octet-stream"
_V2 = "Open Inference Protocol"
_REASONS = {
    400: "Malformed, unknown or out of its range; the message says what was expected and what was found.",
    401: "The server has a token, and the request does not have it.",
    404: "No such route or model.",
    405: "The route has other methods: `Allow` lists them.",
    406: "`Accept` names nothing that this route can answer with.",
    408: "The body did not arrive in time; the connection is closed.",
    413: "The body is larger than the limit, as it came or inflated.",
    415: "`Content-Type` or `Content-Encoding` is none that this route reads.",
    431: "The head has more than 100 headers or 64 KiB; the connection is closed.",
    500: "A fault of the server; its log has the details.",
    501: "The body has another transfer coding than chunked; the connection is closed.",
    503: "The queue is full, too many large bodies arrive, or the server is starting, stopping or not ready.",
    504: "Not done within the deadline; rows that still waited were not computed.",
    505: "Another version of HTTP than 1.0 and 1.1; the connection is closed.",
}
# Of every route: before a handler sees anything.
_ALWAYS = (400, 404, 405, 408, 413, 415, 431, 500, 501, 503, 505)
_NEGOTIATED = (*_ALWAYS, 406)
_INFERRED = (*_NEGOTIATED, 504)

# Halfway between the largest float32 and the next that there would be: from here on, rounding gives infinity.
_BEYOND_FLOAT32 = 2.0**128 - 2.0**103


def openapi(request: Request, context: Context) -> Response:
    """`GET /openapi.json`."""
    parse_query(request, ())
    negotiate(request, (JSON,))
    return json_response(document(context))


def document(context: Context) -> dict[str, Any]:
    """The whole document, for the model that is served."""
    components = {"schemas": _components(), "responses": _error_responses()}
    paths = {
        **_native(context),
        **_interpolate(context),
        **_openai(context),
        **_open_inference(context),
        **_bentoml(),
    }
    security: dict[str, Any] = {}
    if context.settings.token is not None:
        _ask_for_token(paths)
        security = {"security": [{"token": []}]}
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ganserve",
            "version": __version__,
            "summary": "Images of a GAN generator.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "ganserve", "description": "The server's own routes."},
            {"name": "OpenAI", "description": "The OpenAI Images API: the `openai` client works unmodified."},
            {"name": "Open Inference Protocol", "description": "KServe V2: tritonclient and its like work unmodified."},
            {"name": "BentoML", "description": "What BentoML's application answers."},
        ],
        **security,
        "paths": paths,
        "components": components,
    }


def _native(context: Context) -> dict[str, Any]:
    manifest, settings = context.engine.manifest, context.settings
    image = manifest.model.image
    seed, encoding = _nullable(_seed()), {"enum": [*native.ENCODINGS, None], "default": native.ENCODINGS[0]}
    truncation = _nullable({"type": "number", "minimum": 0, "maximum": native.MAX_TRUNCATION, "default": 1})
    count = {"type": "integer", "minimum": 1, "maximum": settings.max_request_rows, "default": 1}
    common = {"seed": seed, "truncation": truncation, "encoding": encoding, "latents": _NULL}
    unseeded = {"n": _NULL, "seed": _NULL, "truncation": _NULL, "encoding": encoding}
    rows = _array(_latent(context), 1, settings.max_request_rows)
    if manifest.num_classes is None:
        bodies = [
            _object("Images of a seed", {"n": _nullable(count), "labels": _NULL, **common}, required=[]),
            _object("Images of latents", {"latents": rows, "labels": _NULL, **unseeded}, required=["latents"]),
        ]
    else:
        label = _label(context)
        one = {"anyOf": [label, _array(label, 1, 1)]}
        bodies = [
            _object(
                "Images of a seed",
                {"n": _nullable(count), "labels": {"anyOf": [*one["anyOf"], _NULL]}, **common},
                required=[],
            ),
            _object(
                "An image of a seed for each label",
                {"n": _NULL, "labels": _array(label, 1, settings.max_request_rows), **common},
                required=["labels"],
            ),
            _object(
                "Images of latents",
                {"latents": rows, "labels": one, **unseeded},
                required=["latents", "labels"],
            ),
        ]
    level = {"type": "integer", "minimum": 0, "maximum": 255}
    picture = _array(_array(_array(level, image.channels, image.channels), image.width, image.width), image.height)
    shape = f"uint8 [n, {image.height}, {image.width}, {image.channels}]"
    answer = _object(
        "Images",
        {
            "model": _object("Model", {"name": {"const": manifest.name}, "digest": {"type": "string"}}),
            "n": {"type": "integer", "minimum": 1},
            "seed": _nullable(_seed()),
            "labels": {"type": ["array", "null"], "items": {"type": "integer"}},
            "images": _array({"type": "string", "contentEncoding": "base64", "contentMediaType": PNG}, 1),
            "pixels": _array(picture, 1),
        },
        required=["model", "n", "seed", "labels"],
    )
    generate = {
        "tags": ["ganserve"],
        "description": (
            "Image i of a seed is the same whatever n is, whoever else is served. Without a seed the server takes one "
            "and tells it; without labels they are drawn from the seed. `labels` is one for all images or one for "
            f"each. The body may be compressed with gzip or deflate. As {NPY} it is float32 "
            f"[n, {manifest.latent.dim}], with `?labels=3` or `?labels=3,7` and `?encoding=` in the query."
        ),
        "requestBody": {"content": {JSON: {"schema": {"anyOf": bodies}}, NPY: {}}},
        "responses": {
            "200": {
                "description": f"By `Accept`: JSON; one image, or a contact sheet of n; {shape}.",
                "content": {JSON: {"schema": answer}, PNG: {}, NPY: {}},
            },
            **_problems(_INFERRED),
        },
    }
    model = {
        "name": {"const": manifest.name},
        "version": {"const": native.MODEL_VERSION},
        "digest": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
        "latent_dim": {"const": manifest.latent.dim},
        "num_classes": {"const": manifest.num_classes},
        "image": _object("Image", {name: {"type": "integer"} for name in ("height", "width", "channels")}),
        "provider": {"type": "string"},
        "quality": {"type": ["object", "null"]},
        "artifact": {"type": "string"},
    }
    return {
        "/": {"get": _get("page", "ganserve", "A page with generated digits and the routes.", HTML, None, _ALWAYS)},
        "/v1/generate": {
            "post": {"operationId": "generate", "summary": "Images of a seed, or of latents.", **generate}
        },
        "/generate": {
            "post": {"operationId": "bentomlGenerate", "summary": "/v1/generate, for BentoML's clients.", **generate}
        },
        "/v1/digits/{text}.png": {"get": _digits(context)},
        "/v1/model": {"get": _get("model", "ganserve", "What is served.", JSON, _object("Model", model), _ALWAYS)},
        "/openapi.json": {"get": _get("openapi", "ganserve", "This document.", JSON, {"type": "object"}, _NEGOTIATED)},
    }


def _digits(context: Context) -> dict[str, Any]:
    most = min(native.MAX_DIGITS, context.settings.max_request_rows)
    integer = {"type": "integer", "minimum": 1, "maximum": native.MAX_SCALE, "default": 1}
    number = {"type": "number", "minimum": 0, "maximum": native.MAX_TRUNCATION, "default": 1}
    etag = {"etag": {"required": True, "schema": {"type": "string"}}}
    return {
        "operationId": "digits",
        "tags": ["ganserve"],
        "summary": "Digits written out as one image, the same for as long as the same artifact is served.",
        "parameters": [
            _parameter("text", "path", _row(context, 1, most)),
            _parameter("seed", "query", {**_seed(), "default": 0}),
            _parameter("scale", "query", integer),
            _parameter("truncation", "query", number),
            _parameter("If-None-Match", "header", {"type": "string"}),
        ],
        "responses": {
            "200": {"description": "The image.", "headers": etag, "content": {PNG: {}}},
            "304": {"description": "`If-None-Match` names this image.", "headers": etag},
            **_problems((*_ALWAYS, 504)),
        },
    }


def _interpolate(context: Context) -> dict[str, Any]:
    conditional = context.engine.manifest.num_classes is not None
    unit = interpolate.DURATION_UNIT_MS
    common: Schema = {
        "steps": _nullable({"type": "integer", "minimum": 2, "maximum": context.settings.max_request_rows}),
        "duration_ms": {
            "description": f"How long each image of a GIF is shown; only with {GIF}.",
            **_nullable(
                {
                    "type": "integer",
                    "minimum": interpolate.MIN_DURATION_MS,
                    "maximum": interpolate.MAX_DURATION_MS,
                    "multipleOf": unit,
                    "default": interpolate.DEFAULT_DURATION_MS,
                }
            ),
        },
        "label": _label(context) if conditional else _NULL,
    }
    truncation = _nullable({"type": "number", "minimum": 0, "maximum": native.MAX_TRUNCATION, "default": 1})
    also = ["label"] if conditional else []
    bodies = [
        _object(
            "Between two seeds",
            {"seeds": _array(_seed(), 2, 2), "truncation": truncation, "latents": _NULL, **common},
            required=["seeds", *also],
        ),
        _object(
            "Between two latents",
            {"latents": _array(_latent(context), 2, 2), "seeds": _NULL, "truncation": _NULL, **common},
            required=["latents", *also],
        ),
    ]
    operation = {
        "operationId": "interpolate",
        "tags": ["ganserve"],
        "summary": "Images on the way from one latent to another, around the origin (slerp), both ends among them.",
        "requestBody": {"required": True, "content": {JSON: {"schema": {"anyOf": bodies}}}},
        "responses": {
            "200": {
                "description": "By `Accept`: an animation, a strip, or uint8 [steps, H, W, C].",
                "content": {GIF: {}, PNG: {}, NPY: {}},
            },
            **_problems(_INFERRED),
        },
    }
    return {"/v1/interpolate": {"post": operation}}


def _openai(context: Context) -> dict[str, Any]:
    manifest = context.engine.manifest
    height, width, _ = manifest.pixel_shape
    sizes = [f"{width * scale}x{height * scale}" for scale in range(1, native.MAX_SCALE + 1)]
    most = min(native.MAX_DIGITS, context.settings.max_request_rows)
    common: Schema = {
        "n": _nullable({"type": "integer", "minimum": 1, "maximum": openai.MAX_IMAGES, "default": 1}),
        "model": {"enum": [manifest.name, None]},
        "seed": {"description": "Not in OpenAI's API: the same seed, the same images.", **_nullable(_seed())},
        **{name: {"enum": [*values, None]} for name, values in openai.HARMLESS.items()},
        **{name: {"type": ["string", "null"]} for name in openai.CALLERS},
    }
    one: Schema = {"enum": sorted(openai.spellings(manifest.labels or ()))}
    bodies = [
        _object(
            "Images of one class",
            {"prompt": one, "size": {"enum": ["auto", *sizes, None]}, **common},
            required=["prompt"],
        ),
        _object(
            "Images of digits in a row",
            {
                "prompt": _row(context, 2, most),
                "size": {
                    "description": f"Also k times the picture's own: {width * 8}x{height * 2} for 4 digits and k = 2.",
                    "enum": ["auto", None],
                },
                **common,
            },
            required=["prompt"],
        ),
    ]
    picture = _object("Image", {"b64_json": {"type": "string", "contentEncoding": "base64", "contentMediaType": PNG}})
    images = _object(
        "Images",
        {
            "created": {"type": "integer"},
            "data": _array(picture, 1, openai.MAX_IMAGES),
            "output_format": {"const": "png"},
            "size": {"type": "string", "pattern": "^[0-9]+x[0-9]+$"},
        },
    )
    model = _object(
        "Model",
        {
            "id": {"const": manifest.name},
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": {"const": "ganserve"},
        },
    )
    listed = _object("Models", {"object": {"const": "list"}, "data": _array(model, 1, 1)})
    generations = {
        "operationId": "createImage",
        "tags": ["OpenAI"],
        "summary": "Images of one class, or images that each show a row of digits.",
        "description": (
            "A prompt is read in Unicode's NFKC, whatever its case and the white space around it. Anything but a class "
            "or a row of digits is an error, never a guess."
        ),
        "requestBody": {"required": True, "content": {JSON: {"schema": {"anyOf": bodies}}}},
        "responses": {
            "200": {"description": "PNGs.", "content": {JSON: {"schema": images}}},
            **_errors(_INFERRED, "OpenAIError"),
        },
    }
    one_model = _get("getModel", "OpenAI", "The model that is served.", JSON, model, ())
    one_model["parameters"] = [_parameter("model", "path", {"enum": [manifest.name]})]
    operations = {
        "/v1/images/generations": {"post": generations},
        "/v1/models": {"get": _get("listModels", "OpenAI", "The one model that is served.", JSON, listed, ())},
        "/v1/models/{model}": {"get": one_model},
    }
    for methods in operations.values():
        for operation in methods.values():
            operation["responses"] |= _errors(_NEGOTIATED, "OpenAIError")
    return operations


def _open_inference(context: Context) -> dict[str, Any]:
    manifest = context.engine.manifest
    tensors = {spec.name: spec for spec in (*manifest.signature.inputs, *manifest.signature.outputs)}
    dim, most = manifest.latent.dim, context.settings.max_request_rows

    def tensor(name: str, datatypes: Sequence[str], shape: Sequence[int], data: Schema) -> Schema:
        properties = {
            "name": {"const": name},
            "shape": {"const": list(shape)},
            "datatype": {"enum": list(datatypes)},
            "data": data,
        }
        return _object(name, properties)

    latent, text = _latent(context), {"type": "string"}
    inputs = [tensor("latents", ("FP32", "FP64"), (1, dim), {"anyOf": [latent, _array(latent, 1, 1)]})]
    if "labels" in tensors:
        inputs.append(
            tensor(
                "labels",
                ("INT64", "INT32", "UINT8"),
                (1,),
                _array({"enum": list(range(min(manifest.num_classes or 0, 100)))}, 1, 1),
            )
        )
    inference = _object(
        "Inference request",
        {
            "id": {"type": ["string", "null"]},
            "inputs": {"type": "array", "prefixItems": inputs, "minItems": len(inputs), "maxItems": len(inputs)},
            "outputs": _nullable(_array(_object("Output", {"name": {"const": "pixels"}}), 0, 1)),
        },
        required=["inputs"],
    )
    level = {"type": "integer", "minimum": 0, "maximum": 255}
    pixels = {
        "name": {"const": "pixels"},
        "datatype": {"const": "UINT8"},
        "shape": _array({"type": "integer"}, 4, 4),
        "data": _array(level, 1),
    }
    identity = {"model_name": {"const": manifest.name}, "model_version": {"const": native.MODEL_VERSION}}
    answer = _object(
        "Inference response",
        {"id": text, **identity, "outputs": _array(_object("Pixels", pixels), 1, 1)},
        required=[*identity, "outputs"],
    )
    infer: dict[str, Any] = {
        "summary": "Pixels of latents, and labels if the model takes them.",
        "description": (
            f"The schema is that of one row. For N rows, 1 to {most}, the shapes are [N, {dim}] and [N], and the data "
            "is so much longer, flat or nested. Any float type is read that is finite in float32, and any integer "
            "type. With the binary tensor extension the body is "
            f"{_OCTETS}: `Inference-Header-Content-Length` bytes of the JSON object, in which `binary_data_size` "
            "takes the place of `data`, and the tensors behind it; `binary_data_output` asks for an answer like "
            "that. Bodies may be compressed with gzip or deflate both ways."
        ),
        "requestBody": {"required": True, "content": {JSON: {"schema": inference}}},
        "responses": {"200": {"description": "Pixels.", "content": {JSON: {"schema": answer}, _OCTETS: {}}}},
    }
    described = _object("Tensor", {"name": text, "datatype": text, "shape": _array({"type": "integer"}, 1)})
    name = {"name": identity["model_name"]}
    metadata = _object(
        "Model",
        {
            **name,
            "versions": {"const": [native.MODEL_VERSION]},
            "platform": text,
            "inputs": _array(described, 1),
            "outputs": _array(described, 1, 1),
        },
    )
    server = _object("Server", {"name": text, "version": text, "extensions": _array(text, 0)})
    index = _object(
        "Model", {**name, "version": identity["model_version"], "state": {"const": "READY"}, "reason": text}
    )
    asked = {"type": "object", "properties": {"ready": {"type": ["boolean", "null"]}}, "additionalProperties": False}
    statistics = _object("Statistics", {"model_stats": _array({"type": "object"}, 1, 1)})

    def get(operation: str, summary: str, schema: Schema) -> dict[str, Any]:
        return {"get": _get(operation, _V2, summary, JSON, schema, ())}

    paths = {
        "/v2": get("serverMetadata", "What this server is, and its extensions.", server),
        "/v2/health/live": get("serverLive", "Whether it lives.", _object("Live", {"live": {"const": True}})),
        "/v2/health/ready": get("serverReady", "Whether it is ready.", _object("Ready", {"ready": {"const": True}})),
        "/v2/models/stats": get("statistics", "What this worker has done so far.", statistics),
        "/v2/repository/index": {
            "post": {
                "operationId": "repositoryIndex",
                "summary": "The one model.",
                "requestBody": {"content": {JSON: {"schema": asked}}},
                "responses": {"200": {"description": "It.", "content": {JSON: {"schema": _array(index, 1, 1)}}}},
            }
        },
    }
    for version, suffix in (("", ""), ("/versions/{version}", "OfVersion")):
        model = f"/v2/models/{{model}}{version}"
        questions = {
            model: get(f"modelMetadata{suffix}", "Its inputs and outputs.", metadata),
            f"{model}/ready": get(
                f"modelReady{suffix}", "Whether it is ready.", _object("Ready", {**name, "ready": {"const": True}})
            ),
            f"{model}/config": get(f"modelConfig{suffix}", "Triton's ModelConfig.", {"type": "object"}),
            f"{model}/stats": get(f"modelStatistics{suffix}", "What this worker has done so far.", statistics),
            f"{model}/infer": {"post": {"operationId": f"infer{suffix}", **infer, "responses": {**infer["responses"]}}},
        }
        parameters = [_parameter("model", "path", {"enum": [manifest.name]})]
        if version:
            parameters.append(_parameter("version", "path", {"enum": [native.MODEL_VERSION]}))
        for path, methods in questions.items():
            paths[path] = {**methods, "parameters": parameters}
    for path, methods in paths.items():
        for method in ("get", "post"):
            if method in methods:
                methods[method]["tags"] = [_V2]
                statuses = (*_ALWAYS, 504) if path.endswith("/infer") else _ALWAYS
                methods[method]["responses"] |= _errors(statuses, "InferenceError")
    return paths


def _bentoml() -> dict[str, Any]:
    """The routes that BentoML's application answers; the front door reads their bodies, so its limits hold."""
    texts = {
        "/livez": "The process lives.",
        "/readyz": "The model is verified and warm, and the server is not stopping.",
        "/healthz": "As /livez.",
        "/metrics": "Prometheus series.",
    }
    documents = {
        "/schema.json": "BentoML's description of `/generate`.",
        "/docs.json": "BentoML's OpenAPI document of its own routes.",
    }
    described = [(path, summary, _TEXT, None) for path, summary in texts.items()]
    paths: dict[str, Any] = {}
    for path, summary, media_type, schema in [
        *described,
        *((path, summary, JSON, {"type": "object"}) for path, summary in documents.items()),
    ]:
        operation = _get(
            path[1:].replace(".", "_"), "BentoML", summary, media_type, schema, (400, 408, 413, 431, 501, 505)
        )
        for status in (405, 500, 503):
            operation["responses"][str(status)] = {"description": _REASONS[status], "content": {_TEXT: {}}}
        if path == "/readyz":  # by the front door, where there is a reason to tell
            operation["responses"]["503"]["content"]["application/problem+json"] = {}
        if path in ("/livez", "/readyz", "/healthz"):
            operation["security"] = []  # whoever watches the server need not be able to use it
        paths[path] = {"get": operation}
    return paths


def _ask_for_token(paths: dict[str, Any]) -> None:
    """Adds the answer of a request without the token to every operation that needs one."""
    for methods in paths.values():
        for method in methods.keys() & {"get", "post"}:
            operation = methods[method]
            if "security" not in operation:
                fault = operation["responses"]["500"].get("$ref", "Problem500").rpartition("/")[2]
                operation["responses"] |= _errors((401,), fault.removesuffix("500"))


def _components() -> dict[str, Schema]:
    text = {"type": "string"}
    return {
        "Problem": {
            "description": "RFC 9457.",
            **_object("Problem", {"type": text, "title": text, "status": {"type": "integer"}, "detail": text}),
        },
        "InferenceError": _object("Error", {"error": text}),
        "OpenAIError": _object(
            "Error",
            {
                "error": _object(
                    "Error",
                    {
                        "message": text,
                        "type": {"enum": ["invalid_request_error", "server_error"]},
                        "param": {"type": ["string", "null"]},
                        "code": {"type": ["string", "null"]},
                    },
                )
            },
        ),
    }


def _get(
    name: str, tag: str, summary: str, media_type: str, schema: Schema | None, statuses: Iterable[int]
) -> dict[str, Any]:
    """An operation without parameters."""
    content = {media_type: {} if schema is None else {"schema": schema}}
    return {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "responses": {"200": {"description": summary, "content": content}, **_problems(statuses)},
    }


def _problems(statuses: Iterable[int]) -> dict[str, Any]:
    return _errors(statuses, "Problem")


def _errors(statuses: Iterable[int], error: str) -> dict[str, Any]:
    """The answers of each status, in a protocol's words."""
    return {str(status): {"$ref": f"#/components/responses/{error}{status}"} for status in sorted(statuses)}


def _error_responses() -> dict[str, Any]:
    """Every status in the words of every protocol, for `_errors` to point at."""
    headers = {
        401: {"www-authenticate": {"required": True, "schema": {"const": "Bearer"}}},
        405: {"allow": {"required": True, "schema": {"type": "string"}}},
        503: {"retry-after": {"required": True, "schema": {"type": "integer", "minimum": 1}}},
    }
    return {
        f"{error}{status}": {
            "description": reason,
            **({"headers": headers[status]} if status in headers else {}),
            "content": {media_type: {"schema": {"$ref": f"#/components/schemas/{error}"}}},
        }
        for error, media_type in (("Problem", PROBLEM), ("OpenAIError", JSON), ("InferenceError", JSON))
        for status, reason in _REASONS.items()
    }


def _parameter(name: str, place: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _object(title: str, properties: Schema, *, required: Sequence[str] | None = None) -> Schema:
    """An object with these properties and no others; all are required unless it is said which."""
    return {
        "title": title,
        "type": "object",
        "properties": properties,
        "required": list(properties if required is None else required),
        "additionalProperties": False,
    }


def _array(items: Schema, fewest: int, most: int | None = None) -> Schema:
    return {"type": "array", "items": items, "minItems": fewest} | ({} if most is None else {"maxItems": most})


_NULL: Schema = {"type": "null"}


def _nullable(schema: Schema) -> Schema:
    """Null is the same as leaving the field out."""
    return {**schema, "type": [schema["type"], "null"]}


def _seed() -> Schema:
    return {"type": "integer", "minimum": 0, "maximum": latents.SEED_MAX}


def _label(context: Context) -> Schema:
    num_classes = context.engine.manifest.num_classes or 1
    return {"type": "integer", "minimum": 0, "maximum": num_classes - 1}


def _latent(context: Context) -> Schema:
    dim = context.engine.manifest.latent.dim
    number = {"type": "number", "exclusiveMinimum": -_BEYOND_FLOAT32, "exclusiveMaximum": _BEYOND_FLOAT32}
    return _array(number, dim, dim)


def _row(context: Context, fewest: int, most: int) -> Schema:
    """A text whose every character is a class of the model."""
    names = (name for name in context.engine.manifest.labels or () if len(name) == 1)
    characters = "".join(re.escape(name) for name in names)
    return {"type": "string", "pattern": f"^[{characters}]{{{fewest},{most}}}$" if characters else "^$a"}


PROTOCOL = Protocol(prefixes=("/openapi.json",), routes={"/openapi.json": {"GET": openapi}}, error=problem)
