"""Requests that came before, but for their tensors.

A client in a loop sends the same bytes around other latents, again and again. What the handler made of the first one
holds for all of them; so a handler may say which bytes of a body are its tensors, and the next request with the same
bytes around them is not looked at any more. Only its tensors are: together with those of its whole batch, in a few
calls of NumPy, and as strictly as the handler does. Whatever is unusual about a request is left to the handler.
"""

import functools
import struct
from collections.abc import Callable, Sequence

import numpy as np
import orjson

from ganserve.api.http import Labels, Latents, Pixels, finite, integer
from ganserve.errors import RequestError

_WORDS = (b"u", b"s")  # of true and false, which struct would take for 1 and 0; numbers have neither


class Tensors:
    """The `Reader` of a batcher for bodies' tensors: float32 latents, and behind them int64 labels if there are any.

    There is one for a model, so that rows of all clients and protocols are read together.
    """

    def __init__(self, latent_dim: int, num_classes: int | None) -> None:
        self.latent_dim = latent_dim
        self._num_classes = num_classes
        self._latents_bytes = latent_dim * 4
        self._row_bytes = self._latents_bytes + 8

    def read(self, sources: Sequence[bytes]) -> tuple[Latents, Labels | None]:
        """The rows of all sources; see `Reader`."""
        if self._num_classes is None:
            return self._latents(b"".join(sources)), None
        ends = [len(source) // self._row_bytes * self._latents_bytes for source in sources]
        latents = self._latents(b"".join([source[:end] for source, end in zip(sources, ends, strict=True)]))
        labels = np.frombuffer(
            b"".join([source[end:] for source, end in zip(sources, ends, strict=True)]), dtype=np.int64
        )
        # As unsigned numbers, negative ones are the largest of all.
        if int(labels.view(np.uint64).max()) >= self._num_classes:
            for extreme in (labels.min(), labels.max()):
                integer(int(extreme), "labels", 0, self._num_classes - 1)
        return latents, labels

    def _latents(self, joined: bytes) -> Latents:
        return finite(np.frombuffer(joined, dtype=np.float32).reshape(-1, self.latent_dim))


@functools.lru_cache(maxsize=16)
def tensors(latent_dim: int, num_classes: int | None) -> Tensors:
    """The one of a model of this shape."""
    return Tensors(latent_dim, num_classes)


class Repeat:
    """What a body asks for, whatever its tensors are.

    Attributes:
        before, after: how many bytes of the body come before the tensors, and after them.
        reader: reads them.
        encode: makes the answer's body, in one-dimensional pieces, of uint8 [rows, H, W, C]; status and headers are
            always the same.
        labels: int64 [rows], if they are not among the tensors but said by what is around them.
    """

    __slots__ = ("_pack", "_tail", "after", "before", "encode", "labels", "reader")

    def __init__(
        self,
        *,
        before: int,
        after: int = 0,
        reader: Tensors,
        encode: Callable[[Pixels], Sequence[bytes | memoryview]],
        labels: Labels | None = None,
        numbers: int | None = None,
    ) -> None:
        """As above, and `numbers`: how many there are, if latents are numbers of JSON, with commas between them."""
        self.before = before
        self.after = after
        self.reader = reader
        self.encode = encode
        self.labels = labels
        self._tail = b"" if labels is None else labels.tobytes()
        self._pack = None if numbers is None else struct.Struct(f"{numbers}f").pack

    def source(self, body: bytes) -> bytes | None:
        """What `reader` reads of the part of a body that may differ; None: the handler has to say what is wrong."""
        if self._pack is None:
            return body + self._tail if self._tail else body
        if _WORDS[0] in body or _WORDS[1] in body:
            return None
        try:
            return self._pack(*orjson.loads(b"[%b]" % body)) + self._tail
        except (ValueError, struct.error, OverflowError):  # no JSON, no numbers, not so many of them, no float32
            return None


def numbers_in(body: bytes, name: bytes, parse: Callable[[bytes], object], zeroed: object) -> tuple[int, int] | None:
    """Where a good JSON body has the flat array of numbers under a key: bytes before them, and bytes after them.

    Args:
        body: a JSON object.
        name: the key.
        parse: reads a JSON object.
        zeroed: what `parse` has to make of the body with a 0 in place of the numbers, so that no other array is taken
            for this one.
    """
    start = body.find(b"[", body.find(b'"%b"' % name)) + 1
    end = body.find(b"]", start)
    if start == 0 or end < 0:
        return None
    try:
        found = parse(b"%b0%b" % (body[:start], body[end:]))
    except RequestError:  # an array of arrays, for one
        return None
    return (start, len(body) - end) if found == zeroed else None
