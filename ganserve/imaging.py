"""Pixels to pictures: PNG, GIF, contact sheets and strips."""

import functools
import math
import struct
import zlib

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 3: 2}  # channels -> PNG colour type: greyscale, RGB
_STORED_BYTES = 1024  # a PNG of so little is not compressed


def encode_png(pixels: Pixels, *, scale: int = 1) -> bytes:
    """A PNG file (RFC 2083) of one image, the same bytes for the same pixels on one zlib.

    Our own few lines, because a digit is 784 bytes: Pillow's set-up costs more than the compression (the tests use it
    as the oracle).

    Args:
        pixels: uint8 [H, W, C], C 1 (greyscale) or 3 (RGB).
        scale: each pixel becomes scale x scale of the same value.
    """
    if scale > 1:
        pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    height, width, channels = pixels.shape
    lines = np.zeros((height, 1 + width * channels), dtype=np.uint8)  # a leading 0 on each line: filter "none"
    lines[:, 1:] = pixels.reshape(height, width * channels)
    # A digit takes 284 bytes in 22 us; level 1: 296 in 21, level 6: 277 in 28, level 9: 273 in 49; stored 823 in 2.
    # Either travels in one packet and lies in one block of a disk, so it is stored.
    level = 0 if lines.nbytes <= _STORED_BYTES else 3
    body = zlib.compress(lines.data, level)
    return b"".join((_head(width, height, channels), _chunk(b"IDAT", body), _END))


def encode_gif(pixels: Pixels, *, duration_ms: int) -> bytes:
    """An animation (GIF89a) that plays for ever, the same bytes for the same pixels.

    Greyscale is exact: the palette is the 256 greys, and each frame is whole. RGB is reduced to 256 colours a frame.

    Args:
        pixels: uint8 [N, H, W, C], N >= 1, C 1 or 3; H and W below 65536.
        duration_ms: how long each frame is shown: a multiple of 10, GIF counts in hundredths of a second.
    """
    from PIL import GifImagePlugin, Image  # here: 10 ms and 2 MB of every worker's start, and few ask for a GIF

    count, height, width, channels = pixels.shape
    pieces = [
        b"GIF89a",
        struct.pack("<HHBBB", width, height, 0xF7, 0, 0),  # 0xF7: a global table of 256 colours, 8 bits each
        bytes(level for level in range(256) for _ in "RGB"),
        b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00",  # play it again, without end
    ]
    # Pillow compresses each frame, and we put them together: its `save` would make one frame of equal neighbours, and
    # add up their durations until they do not fit.
    for index in range(count):
        if channels == 1:
            pieces += GifImagePlugin.getdata(Image.fromarray(pixels[index, :, :, 0]), duration=duration_ms)
        else:
            frame = Image.fromarray(pixels[index]).quantize(256)
            pieces += GifImagePlugin.getdata(frame, duration=duration_ms, include_color_table=True)
    pieces.append(b";")
    return b"".join(pieces)


def contact_sheet(pixels: Pixels, *, columns: int | None = None, gap: int = 2, background: int = 64) -> Pixels:
    """All images on one sheet, in rows from the top left.

    Args:
        pixels: uint8 [N, H, W, C], N >= 1.
        columns: images in a row; by default as square as N allows.
        gap: pixels between images and around them.
        background: grey level of the gaps and of empty places.

    Returns:
        uint8 [rows * (H + gap) + gap, columns * (W + gap) + gap, C].
    """
    count, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    cells = np.full((rows * columns, height + gap, width + gap, channels), background, dtype=np.uint8)
    cells[:count, gap:, gap:] = pixels
    if count < rows * columns:
        cells[count:] = background
    grid = cells.reshape(rows, columns, height + gap, width + gap, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + gap), columns * (width + gap), channels)
    return np.pad(grid, ((0, gap), (0, gap), (0, 0)), constant_values=background)


def strip(pixels: Pixels) -> Pixels:
    """All images side by side with nothing between them: uint8 [N, H, W, C] -> [H, N * W, C]."""
    count, height, width, channels = pixels.shape
    return pixels.swapaxes(0, 1).reshape(height, count * width, channels)


def levels(count: int) -> str:
    """A worst difference in words."""
    return f"{count} grey level{'' if count == 1 else 's'}"


def difference(left: Pixels, right: Pixels) -> tuple[int, float]:
    """How far two batches of pixels are apart: worst difference in grey levels, share of pixels that differ."""
    distance = np.abs(left.astype(np.int16) - right.astype(np.int16))
    if distance.size == 0:
        return 0, 0.0
    return int(distance.max()), float(np.count_nonzero(distance) / distance.size)


@functools.lru_cache(maxsize=64)
def _head(width: int, height: int, channels: int) -> bytes:
    """Signature and IHDR."""
    return _SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))))


_END = _chunk(b"IEND", b"")
