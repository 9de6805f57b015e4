"""ganserve's own protocol: /v1/generate, /v1/digits/{text}.png, /v1/model, and the page at /."""

import base64
import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from ganserve import imaging, latents
from ganserve.api.http import (
    HTML,
    JSON,
    MAX_JSON_VALUES,
    NPY,
    PNG,
    Context,
    Labels,
    Latents,
    Pixels,
    Protocol,
    Request,
    Response,
    Work,
    finite,
    integer,
    json_response,
    media_type,
    negotiate,
    npy_bytes,
    npy_start,
    number,
    parse_json_object,
    parse_npy,
    parse_query,
    problem,
    query_integer,
    query_number,
)
from ganserve.api.repeat import Repeat, tensors
from ganserve.errors import InvalidRequestError, UnsupportedMediaTypeError

MODEL_VERSION = "1"
MAX_TRUNCATION = 2.0
MAX_SCALE = 16
MAX_DIGITS = 64

_SEEDED_KEYS = ("n", "seed", "labels", "truncation", "encoding")
_LATENT_KEYS = ("latents", "labels", "encoding")
ENCODINGS = ("png", "pixels")


def generate(request: Request, context: Context) -> Work:
    """`POST /v1/generate`: images of a seed, or of latents that the client brings.

    Raises:
        InvalidRequestError: a field is malformed, unknown or out of its range.
        NotAcceptableError: `Accept` names none of JSON, PNG and npy.
        UnsupportedMediaTypeError: the body is neither JSON nor npy.
    """
    kind = media_type(request)
    if kind == NPY:
        return _generate_npy(request, context)
    if kind != JSON and (kind or request.body):
        raise UnsupportedMediaTypeError(f"send {JSON} or {NPY}, got {kind or 'a body without content-type'}")
    parse_query(request, ())
    latent_dim, max_rows = context.engine.manifest.latent.dim, context.settings.max_request_rows
    max_values = max_rows * (latent_dim + 1) + MAX_JSON_VALUES
    fields = parse_json_object(request.body, max_values=max_values) if request.body else {}
    return work_for(fields, context, accept=negotiate(request, (JSON, PNG, NPY)))


def work_for(fields: dict[str, Any], context: Context, *, accept: str = JSON) -> Work:
    """The work of one `/v1/generate` body that is a JSON object.

    Args:
        fields: `{n, seed, labels, truncation, encoding}` or `{latents, labels, encoding}`.
        context: the server.
        accept: media type of the answer.

    Raises:
        InvalidRequestError: a field is malformed, unknown or out of its range.
    """
    known = {*_SEEDED_KEYS, *_LATENT_KEYS}
    # A field that is null is one that is missing: BentoML's clients send every default of their signature.
    fields = {name: value for name, value in fields.items() if value is not None or name not in known}
    allowed = _LATENT_KEYS if "latents" in fields else _SEEDED_KEYS
    for name in fields:
        if name not in allowed:
            also = (
                f" together with latents (which come with {', '.join(_LATENT_KEYS[1:])})" if "latents" in fields else ""
            )
            raise InvalidRequestError(f"unknown field {name[:64]!r}{also}; known are {', '.join(allowed)}")
    encoding = _encoding(fields.get("encoding"), accept)
    if "latents" in fields:
        given = json_latents(fields["latents"], context)
        labels = _labels(fields.get("labels"), len(given), context, required=True)
        return _work(context, len(given), None, lambda: (given, labels), accept, encoding)

    chosen = fields.get("labels")
    default_rows = len(chosen) if isinstance(chosen, list) and chosen else 1
    count = integer(fields.get("n", default_rows), "n", 1, context.settings.max_request_rows)
    # One of our own is below 2**53, so that every JSON reader gives back the seed that it was told.
    seed = integer(fields["seed"], "seed", 0, latents.SEED_MAX) if "seed" in fields else secrets.randbelow(2**53)
    truncation = number(fields.get("truncation", 1.0), "truncation", 0.0, MAX_TRUNCATION)
    labels = _labels(chosen, count, context, required=False)
    return _work(context, count, seed, lambda: _draw(context, seed, count, truncation, labels), accept, encoding)


def digits(request: Request, context: Context) -> Response | Work:
    """`GET /v1/digits/{text}.png`: the digits of `text` written out as one image, the same for ever.

    Raises:
        InvalidRequestError: a character that is no label of the model, or a query parameter out of its range.
    """
    text = request.path_parameters["text"]
    query = parse_query(request, ("seed", "scale", "truncation"))
    seed = query_integer(query.get("seed", "0"), "seed", 0, latents.SEED_MAX)
    scale = query_integer(query.get("scale", "1"), "scale", 1, MAX_SCALE)
    truncation = query_number(query.get("truncation", "1"), "truncation", 0.0, MAX_TRUNCATION)
    labels = _written(text, context, max_digits=min(MAX_DIGITS, context.settings.max_request_rows))

    key = json.dumps([context.engine.digest, text, seed, scale, truncation])
    headers = {"etag": f'"{hashlib.sha256(key.encode()).hexdigest()[:32]}"', "cache-control": "public, no-cache"}
    if _matches(request.headers.get("if-none-match"), headers["etag"]):
        return Response(status=304, content_type=None, headers=headers)

    def finish(_: Labels | None, pixels: Pixels) -> Response:
        body = imaging.encode_png(imaging.strip(pixels), scale=scale)
        return Response(content_type=PNG, headers=headers, body=body)

    count = len(text)
    return Work(
        rows=count,
        inputs=lambda: _draw(context, seed, count, truncation, labels),
        finish=finish,
        row_us=35.0 + 2.0 * scale**2,
    )


def model(request: Request, context: Context) -> Response:
    """`GET /v1/model`: what is served."""
    parse_query(request, ())
    manifest, image = context.engine.manifest, context.engine.manifest.model.image
    quality = manifest.quality
    return json_response(
        {
            "name": manifest.name,
            "version": MODEL_VERSION,
            "digest": context.engine.digest,
            "latent_dim": manifest.latent.dim,
            "num_classes": manifest.num_classes,
            "image": {"height": image.height, "width": image.width, "channels": image.channels},
            "provider": context.engine.provider,
            "quality": None if quality is None else {name: dict(values) for name, values in quality.items()},
            "artifact": str(context.artifact.path),
        }
    )


_PAGE = files("ganserve").joinpath("web", "index.html").read_bytes()


def page(request: Request, context: Context) -> Response:
    """`GET /`: a page that shows digits and names the routes."""
    headers = {
        "content-security-policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }
    return Response(content_type=HTML, headers=headers, body=_PAGE)


def _generate_npy(request: Request, context: Context) -> Work:
    settings = context.settings
    given = parse_npy(request.body, columns=context.engine.manifest.latent.dim, max_rows=settings.max_request_rows)
    query = parse_query(request, ("labels", "encoding"))
    accept = negotiate(request, (JSON, PNG, NPY))
    encoding = _encoding(query.get("encoding"), accept)
    chosen: list[int] | None = None
    if "labels" in query:
        pieces = query["labels"].split(",", settings.max_request_rows)
        highest = (context.engine.manifest.num_classes or 1 << 16) - 1  # a model without labels refuses them below
        chosen = [query_integer(text, "labels", 0, highest) for text in pieces]
    labels = _labels(chosen, len(given), context, required=True)
    work = _work(context, len(given), None, lambda: (given, labels), accept, encoding)
    if accept == NPY or (accept == PNG and work.rows == 1):
        work.repeat = lambda: _repeat(request, context, accept, labels)
    return work


def _repeat(request: Request, context: Context, accept: str, labels: Labels | None) -> Repeat | None:
    """How the next array of this shape is answered, sent to the same URL with the same headers."""
    manifest, start = context.engine.manifest, npy_start(request.body)
    if start is None:
        return None
    return Repeat(
        before=start,
        reader=tensors(manifest.latent.dim, manifest.num_classes),
        encode=lambda pixels: (npy_bytes(pixels) if accept == NPY else imaging.encode_png(pixels[0]),),
        labels=labels,
    )


def _work(
    context: Context,
    rows: int,
    seed: int | None,
    inputs: Callable[[], tuple[Latents, Labels | None]],
    accept: str,
    encoding: str,
) -> Work:
    """The answer in the form that was asked for."""
    identity = {"name": context.engine.manifest.name, "digest": context.engine.digest}

    def finish(labels: Labels | None, pixels: Pixels) -> Response:
        told = None if labels is None else labels.tolist()
        if accept == JSON:
            document: dict[str, Any] = {"model": identity, "n": rows, "seed": seed, "labels": told}
            if encoding == "pixels":
                document["pixels"] = pixels.tolist()
            else:
                document["images"] = [base64.b64encode(imaging.encode_png(image)).decode() for image in pixels]
            return json_response(document, headers={"vary": "accept"})
        headers = {"vary": "accept", "ganserve-model": f"{identity['name']} {identity['digest']}"}
        if seed is not None:
            headers["ganserve-seed"] = str(seed)
        if told is not None:
            headers["ganserve-labels"] = ",".join(map(str, told))
        if accept == PNG:
            picture = pixels[0] if rows == 1 else imaging.contact_sheet(pixels)
            return Response(content_type=PNG, headers=headers, body=imaging.encode_png(picture))
        return Response(content_type=NPY, headers=headers, body=npy_bytes(pixels))

    # Latents that were brought are there already; npy is a copy.
    row_us = (0.0 if seed is None else 4.0) + (0.5 if accept == NPY else 30.0)
    return Work(rows=rows, inputs=inputs, finish=finish, row_us=row_us)


def _draw(
    context: Context, seed: int, count: int, truncation: float, labels: Labels | None
) -> tuple[Latents, Labels | None]:
    """A seed's rows, with the labels that were asked for in place of those that the seed draws."""
    manifest = context.engine.manifest
    drawn, drawn_labels = latents.draw(seed, count, manifest.latent.dim, manifest.num_classes, truncation=truncation)
    return drawn, drawn_labels if labels is None else labels


def _encoding(value: Any, accept: str) -> str:
    if value is None:
        return "png"
    if value not in ENCODINGS:
        raise InvalidRequestError(f"encoding must be one of {', '.join(ENCODINGS)}")
    if accept != JSON:
        raise InvalidRequestError(f"encoding is for {JSON} answers; Accept asks for {accept}")
    return str(value)


def _labels(value: Any, rows: int, context: Context, *, required: bool) -> Labels | None:
    """Labels of a request: an integer, a list of one for all rows, or a list of one for each row."""
    num_classes = context.engine.manifest.num_classes
    if value is None:
        if required and num_classes is not None:
            raise InvalidRequestError("labels are required with latents: the model is conditional")
        return None
    if num_classes is None:
        raise InvalidRequestError("this model takes no labels")
    values = value if isinstance(value, list) else [value]
    if len(values) not in (1, rows):
        raise InvalidRequestError(f"labels must be one for all or one for each of {rows} rows, got {len(values)}")
    checked = [integer(label, "labels", 0, num_classes - 1) for label in values]
    return np.full(rows, checked[0], dtype=np.int64) if len(checked) == 1 else np.array(checked, dtype=np.int64)


def json_latents(value: Any, context: Context) -> Latents:
    """Latents of a JSON body as float32 [n, latent_dim], finite."""
    columns, max_rows = context.engine.manifest.latent.dim, context.settings.max_request_rows
    if not isinstance(value, list) or not all(type(row) is list for row in value):
        raise InvalidRequestError(f"latents must be an array of arrays of {columns} numbers")
    if not 1 <= len(value) <= max_rows:
        raise InvalidRequestError(f"1 to {max_rows} latents a request, got {len(value)}")
    for index, row in enumerate(value):
        if len(row) != columns:
            raise InvalidRequestError(f"latents must have shape [N, {columns}]; row {index} has {len(row)} values")
        # Before NumPy sees them: it would take "3" and true for numbers.
        if not {*map(type, row)} <= {int, float}:
            raise InvalidRequestError(f"latents must be numbers; row {index} has something else")
    try:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and that is refused
            return finite(np.array(value, dtype=np.float64).astype(np.float32))
    except OverflowError as err:  # an integer that no float holds
        raise InvalidRequestError("latents must be finite in float32") from err


def _written(text: str, context: Context, *, max_digits: int) -> Labels:
    """The label of each character: the model's classes, by name."""
    names: Sequence[str] = context.engine.manifest.labels or ()
    if not names:
        raise InvalidRequestError("this model takes no labels: it cannot write digits")
    if len(text) > max_digits:
        raise InvalidRequestError(f"at most {max_digits} digits an image, got {len(text)}")
    label_of = {name: label for label, name in enumerate(names)}
    unknown = next((character for character in text if character not in label_of), None)
    if unknown is not None:
        writable = "".join(name for name in names if len(name) == 1)
        raise InvalidRequestError(f"{unknown!r} is not one of the characters that this model writes: {writable}")
    return np.array([label_of[character] for character in text], dtype=np.int64)


def _matches(if_none_match: str | None, etag: str) -> bool:
    """RFC 9110, section 13.1.2: the weak comparison of If-None-Match."""
    if if_none_match is None:
        return False
    return any(candidate.strip().removeprefix("W/") in ("*", etag) for candidate in if_none_match.split(","))


PROTOCOL = Protocol(
    prefixes=("/",),
    routes={
        "/": {"GET": page},
        "/v1/generate": {"POST": generate},
        "/v1/digits/{text}.png": {"GET": digits},
        "/v1/model": {"GET": model},
        "/generate": {"POST": generate},  # what BentoML's clients call
    },
    error=problem,
)
