"""The OpenAI Images API, as far as a generator of a few classes can mean it: the `openai` client works unmodified.

The reference is the API of platform.openai.com/docs/api-reference/images. What has no meaning here is accepted when it
asks for what is done anyway, and refused when answering would be doing something else without saying so.
"""

import base64
import functools
import re
import secrets
import time
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ganserve import imaging, latents
from ganserve.api.http import (
    JSON,
    Context,
    Labels,
    Latents,
    Pixels,
    Protocol,
    Request,
    Response,
    Work,
    integer,
    json_response,
    media_type,
    negotiate,
    parse_json_object,
    parse_query,
)
from ganserve.api.native import MAX_DIGITS, MAX_SCALE
from ganserve.errors import (
    InvalidRequestError,
    NotFoundError,
    RequestError,
    UnauthorizedError,
    UnsupportedMediaTypeError,
)

MAX_IMAGES = 10  # as in OpenAI's API; /v1/generate makes more
MAX_PROMPT_CHARACTERS = 1000  # as DALL-E 2 took; no prompt that means something here is near it
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = tuple("0123456789")

# What a client may ask of us that is the case anyway. None of them changes an image.
HARMLESS: Mapping[str, tuple[str | int | bool, ...]] = {
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "output_compression": (100,),
    "output_format": ("png",),
    "partial_images": (0,),
    "quality": ("auto", "standard"),
    "response_format": ("b64_json",),
    "stream": (False,),
}
# Names of the caller's user: anything, and nothing is done with it.
CALLERS = ("safety_identifier", "user")
# In the API, and always about something that is not made here.
MEANINGLESS = ("complexity", "frame_count", "frame_duration_ms", "style", "svg")
_KNOWN = ("prompt", "model", "n", "seed", "size", *HARMLESS, *CALLERS)

_SIZE = re.compile(r"([1-9][0-9]{0,6})x([1-9][0-9]{0,6})", re.ASCII)


def generations(request: Request, context: Context) -> Work:
    """`POST /v1/images/generations`: images of one class, or images that each show a row of digits.

    Raises:
        InvalidRequestError: a field is malformed, unknown, out of its range, or asks for what this model cannot do.
        NotFoundError: `model` is another one.
        NotAcceptableError: `Accept` does not name JSON.
        UnsupportedMediaTypeError: the body is not JSON.
    """
    kind = media_type(request)
    if kind != JSON:
        raise UnsupportedMediaTypeError(f"send {JSON}, got {kind or 'a body without content-type'}")
    parse_query(request, ())
    negotiate(request, (JSON,))
    fields = {name: value for name, value in parse_json_object(request.body).items() if value is not None}
    _check_names(fields)
    manifest = context.engine.manifest
    if "model" in fields and fields["model"] != manifest.name:
        raise _no_such_model(fields["model"], context)
    most_rows = context.settings.max_request_rows
    labels = _labels(fields.get("prompt"), context, max_digits=min(MAX_DIGITS, most_rows))
    digits = len(labels)
    count = integer(fields.get("n", 1), "n", 1, MAX_IMAGES)
    if count * digits > most_rows:
        raise InvalidRequestError(f"n x digits may be {most_rows} on this server, got {count * digits}", param="n")
    height, width, _ = manifest.pixel_shape
    scale = _scale(fields.get("size", "auto"), height, width * digits)
    # One of our own is below 2**53, so that every JSON reader gives back the seed that it was told.
    seed = integer(fields["seed"], "seed", 0, latents.SEED_MAX) if "seed" in fields else secrets.randbelow(2**53)

    def inputs() -> tuple[Latents, Labels | None]:
        drawn, _ = latents.draw(seed, count * digits, manifest.latent.dim)
        return drawn, np.tile(labels, count)

    def finish(_: Labels | None, pixels: Pixels) -> Response:
        pictures = [imaging.strip(pixels[first : first + digits]) for first in range(0, len(pixels), digits)]
        files = [imaging.encode_png(picture, scale=scale) for picture in pictures]
        document = {
            "created": int(time.time()),
            "data": [{"b64_json": base64.b64encode(file).decode()} for file in files],
            "output_format": "png",
            "size": f"{width * digits * scale}x{height * scale}",
        }
        return json_response(document, headers={"ganserve-seed": str(seed)})

    # A digit of 28 x 28 takes zlib 30 us, and 550 at 16 times that size.
    return Work(rows=count * digits, inputs=inputs, finish=finish, row_us=35.0 + 2.0 * scale**2)


def models(request: Request, context: Context) -> Response:
    """`GET /v1/models`: the one that is served."""
    parse_query(request, ())
    negotiate(request, (JSON,))
    return json_response({"object": "list", "data": [_model(context)]})


def model(request: Request, context: Context) -> Response:
    """`GET /v1/models/{model}`.

    Raises:
        NotFoundError: it is another one.
    """
    parse_query(request, ())
    negotiate(request, (JSON,))
    name = request.path_parameters["model"]
    if name != context.engine.manifest.name:
        raise _no_such_model(name, context)
    return json_response(_model(context))


def error(fault: RequestError) -> Response:
    """An error as OpenAI's clients read it."""
    code = None
    if isinstance(fault, UnauthorizedError):
        code = "invalid_api_key"
    elif isinstance(fault, NotFoundError) and fault.param == "model":
        code = "model_not_found"
    document = {
        "message": str(fault),
        "type": "invalid_request_error" if fault.status < 500 else "server_error",
        "param": fault.param,
        "code": code,
    }
    return json_response(
        {"error": document}, status=fault.status, headers={**fault.headers, "cache-control": "no-store"}
    )


@functools.lru_cache(maxsize=4)
def spellings(names: tuple[str, ...]) -> Mapping[str, int]:
    """How a prompt may name a class: normalised text -> label; what could mean two classes is not among them.

    Args:
        names: of the classes, by label.
    """
    exact: dict[str, set[int]] = {}
    folded: dict[str, set[int]] = {}
    for label, name in enumerate(names):
        exact.setdefault(_normal(name), set()).add(label)
        folded.setdefault(_normal(name).casefold(), set()).add(label)
    if names == DIGITS:
        folded |= {word: {label} for label, word in enumerate(WORDS)}
    # Exact spellings win: where "A" and "a" are two classes, each is still called by its own name.
    return {text: next(iter(labels)) for text, labels in (folded | exact).items() if len(labels) == 1}


def _labels(prompt: Any, context: Context, *, max_digits: int) -> Labels:
    """The labels that a prompt asks for: of one class, or of each character of a text in which all are classes."""
    names = context.engine.manifest.labels
    if names is None:
        raise InvalidRequestError("this model takes no labels: no prompt can say what it makes", param="prompt")
    if not isinstance(prompt, str):
        raise InvalidRequestError("prompt is required and must be a string", param="prompt")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequestError(
            f"prompt may have {MAX_PROMPT_CHARACTERS} characters, got {len(prompt)}", param="prompt"
        )
    label_of = spellings(names)
    text = _normal(prompt)
    for spelling in (text, text.casefold()):
        if spelling in label_of:
            return np.array([label_of[spelling]], dtype=np.int64)
    written = [label_of.get(character, label_of.get(character.casefold(), -1)) for character in text]
    if not written or -1 in written:
        raise InvalidRequestError(
            f"prompt must be {_accepted(names)}; got {prompt[:64]!r}{'...' if len(prompt) > 64 else ''}",
            param="prompt",
        )
    if len(written) > max_digits:
        raise InvalidRequestError(f"at most {max_digits} characters an image, got {len(written)}", param="prompt")
    return np.array(written, dtype=np.int64)


def _normal(text: str) -> str:
    """NFKC, and every run of white space one space, none around."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _accepted(names: Sequence[str]) -> str:
    """What a prompt can be, for people."""
    if tuple(names) == DIGITS:
        return 'one digit ("7" or "seven"), or several to be written in a row ("2026")'
    shown = ", ".join(names[:20])
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    row = ", or a row of those of one character" if any(len(name) == 1 for name in names) else ""
    return f"one of {shown}{more}{row}"


def _scale(size: Any, height: int, width: int) -> int:
    """How many times larger than its pixels the picture is to be."""
    if size == "auto":
        return 1
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is not None:
        scale, rest = divmod(int(match[2]), height)
        if rest == 0 and 1 <= scale <= MAX_SCALE and int(match[1]) == width * scale:
            return scale
    raise InvalidRequestError(
        f'size must be "auto" or a multiple of this picture\'s {width}x{height}, up to {MAX_SCALE} times: '
        f"{width * 2}x{height * 2}, {width * 4}x{height * 4}",
        param="size",
    )


def _check_names(fields: Mapping[str, Any]) -> None:
    """Refuses what is unknown, and what would be ignored although it asks for something."""
    for name, value in fields.items():
        if name in MEANINGLESS:
            raise InvalidRequestError(f"{name} has no meaning for this model: leave it out", param=name)
        if name not in _KNOWN:
            raise InvalidRequestError(f"unknown field {name[:64]!r}; known are {', '.join(_KNOWN)}", param=name[:64])
        if name in CALLERS and not isinstance(value, str):
            raise InvalidRequestError(f"{name} must be a string", param=name)
        # By type as well: to Python, true is 1 and 100.0 is 100.
        accepted = HARMLESS.get(name, (value,))
        if not any(type(value) is type(choice) and value == choice for choice in accepted):
            choices = " or ".join(str(choice).lower() for choice in accepted)
            raise InvalidRequestError(f"{name} can only be {choices} here", param=name)


def _no_such_model(name: Any, context: Context) -> RequestError:
    if not isinstance(name, str):
        return InvalidRequestError("model must be a string", param="model")
    return NotFoundError(
        f"there is no model {name[:64]!r}; this server has {context.engine.manifest.name!r}", param="model"
    )


def _model(context: Context) -> dict[str, Any]:
    manifest = context.engine.manifest
    return {
        "id": manifest.name,
        "object": "model",
        "created": int(manifest.created_at.timestamp()),
        "owned_by": "ganserve",
    }


PROTOCOL = Protocol(
    prefixes=("/v1/images", "/v1/models"),
    routes={
        "/v1/images/generations": {"POST": generations},
        "/v1/models": {"GET": models},
        "/v1/models/{model}": {"GET": model},
    },
    error=error,
)
