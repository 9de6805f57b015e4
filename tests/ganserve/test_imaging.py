import io

import numpy as np
import pytest
from PIL import Image

from ganserve import imaging


def decoded(png: bytes) -> np.ndarray:
    """Pixels [H, W, C] of a PNG, by Pillow."""
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.format == "PNG"
        pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (28, 28), (27, 31), (64, 300)])
def test_pillow_reads_the_same_pixels(height, width, channels):
    """What Pillow decodes is what was encoded, grey and colour, at even and odd sizes."""
    pixels = _noise(height, width, channels)
    assert (decoded(imaging.encode_png(pixels)) == pixels).all()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_colour_type_follows_the_channels(channels, mode):
    """One channel is a greyscale PNG and three an RGB one, not a palette or an alpha channel."""
    with Image.open(io.BytesIO(imaging.encode_png(_noise(5, 6, channels)))) as image:
        assert image.mode == mode


@pytest.mark.parametrize("scale", [1, 2, 3, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_scale_repeats_each_pixel(scale, channels):
    """Scaled by k, each pixel is a k x k block of its value."""
    pixels = _noise(5, 7, channels)
    expected = np.kron(pixels, np.ones((scale, scale, 1), dtype=np.uint8))
    assert (decoded(imaging.encode_png(pixels, scale=scale)) == expected).all()


def test_same_pixels_are_the_same_bytes():
    """A PNG has no time stamp: ETags and golden files rely on it."""
    assert imaging.encode_png(_noise(28, 28, 1)) == imaging.encode_png(_noise(28, 28, 1))


def test_views_are_encoded_as_what_they_show():
    """A slice of a batch with strides of its own is encoded as its pixels, not as its memory."""
    batch = _noise(4, 10, 12, 1)
    view = batch[2, ::2, ::-1]
    assert (decoded(imaging.encode_png(view)) == view).all()


def frames(gif: bytes) -> tuple[np.ndarray, list[int]]:
    """What Pillow reads of an animation: every frame as RGB, and how long each is shown."""
    with Image.open(io.BytesIO(gif)) as image:
        assert image.format == "GIF"
        assert image.info["loop"] == 0
        read, durations = [], []
        for index in range(image.n_frames):
            image.seek(index)
            read.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
        return np.stack(read), durations


@pytest.mark.parametrize("shape", [(1, 28, 28, 1), (9, 28, 28, 1), (3, 1, 300, 1), (2, 257, 3, 1)])
def test_gif_frames_are_the_pixels(shape):
    """Every frame of a greyscale animation is exactly its pixels, shown for its time, without end."""
    pixels = _noise(*shape)
    read, durations = frames(imaging.encode_gif(pixels, duration_ms=70))
    assert (read == pixels).all()  # the three channels of each are the one of ours
    assert durations == [70] * len(pixels)


def test_gif_has_every_grey_level():
    """All 256 grey levels come back as they are."""
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert (frames(imaging.encode_gif(pixels, duration_ms=20))[0] == pixels).all()


def test_gif_keeps_equal_frames():
    """Equal neighbours are frames of their own: n images are n frames."""
    pixels = np.repeat(_noise(2, 8, 8, 1), 3, axis=0)
    read, durations = frames(imaging.encode_gif(pixels, duration_ms=10_000))
    assert (read == pixels).all()
    assert durations == [10_000] * 6


def test_gif_of_colours():
    """RGB comes back where a frame has few colours, each frame with its own."""
    pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    pixels[0, :2], pixels[0, 2:] = (255, 0, 0), (0, 0, 255)
    pixels[1, :2], pixels[1, 2:] = (0, 255, 0), (9, 99, 199)
    assert (frames(imaging.encode_gif(pixels, duration_ms=50))[0] == pixels).all()


def test_same_pixels_are_the_same_gif():
    """Nothing of the time or the machine is in an animation."""
    pixels = _noise(3, 28, 28, 1)
    assert imaging.encode_gif(pixels, duration_ms=50) == imaging.encode_gif(pixels.copy(), duration_ms=50)


def test_contact_sheet_puts_images_in_rows_from_the_top_left():
    """Five images in three columns: each at its place, gaps around all, the sixth place empty."""
    images = _noise(5, 4, 6, 1)
    sheet = imaging.contact_sheet(images, columns=3, gap=2, background=9)
    assert sheet.shape == (2 * (4 + 2) + 2, 3 * (6 + 2) + 2, 1)
    untouched = np.ones(sheet.shape, dtype=bool)
    for index, image in enumerate(images):
        place = np.s_[2 + index // 3 * 6 : 6 + index // 3 * 6, 2 + index % 3 * 8 : 8 + index % 3 * 8]
        assert (sheet[place] == image).all()
        untouched[place] = False
    assert (sheet[untouched] == 9).all()


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (5, 2, 3), (16, 4, 4), (17, 4, 5)]
)
def test_contact_sheet_is_as_square_as_it_can_be(count, rows, columns):
    """Without a number of columns the sheet is the squarest that holds all images."""
    sheet = imaging.contact_sheet(_noise(count, 3, 3, 3), gap=1)
    assert sheet.shape == (rows * 4 + 1, columns * 4 + 1, 3)


def test_contact_sheet_without_gap():
    """A gap of 0 puts images edge to edge."""
    images = _noise(4, 3, 5, 1)
    sheet = imaging.contact_sheet(images, columns=2, gap=0)
    assert (sheet == np.vstack([np.hstack(images[:2]), np.hstack(images[2:])])).all()


def test_strip_is_a_row():
    """A strip is all images side by side."""
    images = _noise(3, 4, 5, 3)
    assert (imaging.strip(images) == np.concatenate(list(images), axis=1)).all()


def test_difference_counts_grey_levels_and_pixels():
    """0 against 200 is 200 levels apart, not 56: no wrap-around; the share counts pixels that differ at all."""
    left, right = np.zeros((2, 10), dtype=np.uint8), np.zeros((2, 10), dtype=np.uint8)
    assert imaging.difference(left, right) == (0, 0.0)
    right[0, 0], right[1, 1] = 200, 3
    assert imaging.difference(left, right) == imaging.difference(right, left) == (200, 0.1)


def test_difference_of_nothing_is_none():
    """Two empty batches do not differ."""
    empty = np.zeros((0, 28, 28, 1), dtype=np.uint8)
    assert imaging.difference(empty, empty) == (0, 0.0)
