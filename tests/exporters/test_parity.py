import numpy as np
import pytest

from exporters.parity import BATCH_ROWS, Labels, Latents, Pixels, prove
from ganserve.errors import ParityError

ROWS = np.zeros((64, 4), dtype=np.float32)
REFERENCE = np.arange(64 * 28 * 28, dtype=np.int64).astype(np.uint8).reshape(64, 28, 28, 1)


class Replay:
    """Gives back prepared pixels batch by batch, as a written file would."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels
        self.position = 0
        self.sizes: set[int] = set()

    def __call__(self, latents: Latents, labels: Labels | None) -> Pixels:
        """The next rows."""
        start = self.position % len(self.pixels)
        self.position += len(latents)
        self.sizes.add(len(latents))
        return self.pixels[start : start + len(latents)]


def test_every_batch_size_is_run() -> None:
    """Equal pixels pass, after every batch size has been run on all probes."""
    replay = Replay(REFERENCE)
    results = prove("generator.onnx", replay, REFERENCE, ROWS, None, served=True)
    assert [result.batch_rows for result in results] == list(BATCH_ROWS)
    assert all((result.max_abs_diff, result.differing_share) == (0, 0.0) for result in results)
    assert replay.sizes >= set(BATCH_ROWS)
    assert replay.position == len(ROWS) * len(BATCH_ROWS)


def test_one_grey_level_on_a_few_pixels_is_allowed() -> None:
    """One grey level on less than 0.1 % of the pixels is rounding, and is reported."""
    moved = REFERENCE.copy()
    moved.reshape(-1)[:50] ^= 1  # 50 of 50,176 pixels, one level each
    results = prove("generator.onnx", Replay(moved), REFERENCE, ROWS, None, served=True)
    assert results[0].max_abs_diff == 1
    assert results[0].differing_share == pytest.approx(50 / REFERENCE.size)


def test_too_many_pixels_fail() -> None:
    """One grey level on more than 0.1 % of the pixels is an error that carries the numbers."""
    moved = REFERENCE.copy()
    moved.reshape(-1)[:51] ^= 1
    with pytest.raises(ParityError, match=r"at batch 1: 0\.102% of the pixels") as caught:
        prove("generator.onnx", Replay(moved), REFERENCE, ROWS, None, served=True)
    assert caught.value.max_abs_diff == 1
    assert caught.value.differing_share == pytest.approx(51 / REFERENCE.size)


def test_two_grey_levels_fail() -> None:
    """A single pixel that is two grey levels off is an error."""
    moved = REFERENCE.copy()
    moved[0, 0, 0, 0] += 2
    with pytest.raises(ParityError, match="by up to 2 grey levels"):
        prove("generator.onnx", Replay(moved), REFERENCE, ROWS, None, served=True)


def test_images_that_depend_on_their_batch_fail() -> None:
    """A served format whose image changes with the batch size fails, even within the tolerance."""

    def run(latents: Latents, labels: Labels | None) -> Pixels:
        start = run_position[0] % 64
        run_position[0] += len(latents)
        pixels = REFERENCE[start : start + len(latents)].copy()
        if len(latents) == 17:
            pixels[0, 0, 0, 0] ^= 1
        return pixels

    run_position = [0]
    with pytest.raises(ParityError, match="at batch 17: images depend on their batch"):
        prove("generator.onnx", run, REFERENCE, ROWS, None, served=True)


def test_another_shape_fails() -> None:
    """Pixels of another shape are an error, not a broadcast."""
    with pytest.raises(ParityError, match=r"got uint8 \[64, 28, 28\]"):
        prove("generator.onnx", Replay(REFERENCE[..., 0]), REFERENCE, ROWS, None, served=True)
