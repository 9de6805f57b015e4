"""`POST /v1/interpolate`: the way from one latent to another, as an animation, a strip or an array."""

from typing import Any

import numpy as np

from ganserve import imaging, latents
from ganserve.api.http import (
    GIF,
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
    integer,
    media_type,
    negotiate,
    npy_bytes,
    number,
    parse_json_object,
    parse_query,
    problem,
)
from ganserve.api.native import MAX_TRUNCATION, json_latents
from ganserve.errors import InvalidRequestError, UnsupportedMediaTypeError

DEFAULT_STEPS = 16
DEFAULT_DURATION_MS = 80
DURATION_UNIT_MS = 10  # GIF counts in hundredths of a second
MIN_DURATION_MS = 20  # browsers show anything faster as slow as 100 ms
MAX_DURATION_MS = 10_000

_SEEDED_KEYS = ("seeds", "label", "steps", "truncation", "duration_ms")
_LATENT_KEYS = ("latents", "label", "steps", "duration_ms")


def interpolate(request: Request, context: Context) -> Work:
    """`POST /v1/interpolate`: images on the way from A to B, both among them.

    Raises:
        InvalidRequestError: a field is malformed, missing, unknown or out of its range.
        NotAcceptableError: `Accept` names none of GIF, PNG and npy.
        UnsupportedMediaTypeError: the body is not JSON.
    """
    kind = media_type(request)
    if kind != JSON:
        raise UnsupportedMediaTypeError(f"send {JSON}, got {kind or 'a body without content-type'}")
    parse_query(request, ())
    known = {*_SEEDED_KEYS, *_LATENT_KEYS}
    max_values = 2 * context.engine.manifest.latent.dim + MAX_JSON_VALUES
    given = parse_json_object(request.body, max_values=max_values).items()
    fields = {name: value for name, value in given if value is not None or name not in known}  # null is missing
    allowed = _LATENT_KEYS if "latents" in fields else _SEEDED_KEYS
    for name in fields:
        if name not in allowed:
            also = " together with latents" if name in known else ""
            raise InvalidRequestError(f"unknown field {name[:64]!r}{also}; known are {', '.join(allowed)}")
    accept = negotiate(request, (GIF, PNG, NPY))
    if "duration_ms" in fields and accept != GIF:
        raise InvalidRequestError(f"duration_ms is for {GIF} answers; Accept asks for {accept}", param="duration_ms")
    duration_ms = integer(
        fields.get("duration_ms", DEFAULT_DURATION_MS), "duration_ms", MIN_DURATION_MS, MAX_DURATION_MS
    )
    if duration_ms % DURATION_UNIT_MS:
        raise InvalidRequestError(f"duration_ms must be a multiple of {DURATION_UNIT_MS}, got {duration_ms}")
    limit = context.settings.max_request_rows
    steps = integer(fields.get("steps", min(DEFAULT_STEPS, limit)), "steps", 2, limit)
    label = _label(fields.get("label"), context)
    start, end = _ends(fields, context)

    def inputs() -> tuple[Latents, Labels | None]:
        labels = None if label is None else np.full(steps, label, dtype=np.int64)
        return latents.slerp(start, end, steps), labels

    def done(_: Labels | None, pixels: Pixels) -> Response:
        if accept == GIF:
            body = imaging.encode_gif(pixels, duration_ms=duration_ms)
        elif accept == PNG:
            body = imaging.encode_png(imaging.strip(pixels))
        else:
            body = npy_bytes(pixels)
        model = f"{context.engine.manifest.name} {context.engine.digest}"
        return Response(content_type=accept, headers={"vary": "accept", "ganserve-model": model}, body=body)

    return Work(rows=steps, inputs=inputs, finish=done, row_us=5.0 if accept == NPY else 40.0)


def _ends(fields: dict[str, Any], context: Context) -> Latents:
    """The two ends, float32 [2, latent_dim]: those of the body, or each the first latent of its seed."""
    name = "latents" if "latents" in fields else "seeds"
    pair = fields.get(name)
    if not isinstance(pair, list) or len(pair) != 2:
        raise InvalidRequestError("send seeds, an array of two integers, or latents, an array of two latents")
    if name == "latents":
        return json_latents(pair, context)
    truncation = number(fields.get("truncation", 1.0), "truncation", 0.0, MAX_TRUNCATION)
    ends = [
        latents.draw(
            integer(seed, "seeds", 0, latents.SEED_MAX), 1, context.engine.manifest.latent.dim, truncation=truncation
        )[0]
        for seed in pair
    ]
    return np.concatenate(ends)


def _label(value: Any, context: Context) -> int | None:
    """The one class of all images; a seed's own would be two, and nothing lies between two classes."""
    num_classes = context.engine.manifest.num_classes
    if num_classes is None:
        if value is not None:
            raise InvalidRequestError("this model takes no label", param="label")
        return None
    if value is None:
        raise InvalidRequestError("label is required: the model is conditional", param="label")
    return integer(value, "label", 0, num_classes - 1)


PROTOCOL = Protocol(
    prefixes=("/v1/interpolate",),
    routes={"/v1/interpolate": {"POST": interpolate}},
    error=problem,
)
