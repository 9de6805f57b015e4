import numpy as np
import pytest

from ganserve.errors import ParityError
from ganserve.proof import (
    BATCH_ROWS,
    IMAGES_MAX_ERROR,
    LIMITS,
    PROBES,
    Labels,
    Latents,
    Pixels,
    Runner,
    prove,
    prove_batches,
    prove_images,
    prove_labels,
    prove_same,
)

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
    reference = np.concatenate([REFERENCE] * 4)
    replay = Replay(reference)
    results = prove("generator.onnx", replay, reference, np.zeros((256, 4), dtype=np.float32), None)
    assert [result.batch_rows for result in results] == list(BATCH_ROWS)
    assert all((result.max_abs_diff, result.differing_share) == (0, 0.0) for result in results)
    assert replay.sizes >= set(BATCH_ROWS)
    assert replay.position == 256 * (len(BATCH_ROWS) + 1)  # and once more, which must change nothing


def test_one_grey_level_on_a_few_pixels_is_allowed() -> None:
    """One grey level on less than 0.1 % of the pixels is rounding, and is reported."""
    moved = REFERENCE.copy()
    moved.reshape(-1)[:50] ^= 1  # 50 of 50,176 pixels, one level each
    results = prove("generator.onnx", Replay(moved), REFERENCE, ROWS, None)
    assert results[0].max_abs_diff == 1
    assert results[0].differing_share == pytest.approx(50 / REFERENCE.size)


def test_too_many_pixels_fail() -> None:
    """One grey level on more than 0.1 % of the pixels is an error that carries the numbers."""
    moved = REFERENCE.copy()
    moved.reshape(-1)[:51] ^= 1
    with pytest.raises(ParityError, match=r"at batch 1: 0\.102% of the pixels") as caught:
        prove("generator.onnx", Replay(moved), REFERENCE, ROWS, None)
    assert caught.value.max_abs_diff == 1
    assert caught.value.differing_share == pytest.approx(51 / REFERENCE.size)


def test_two_grey_levels_fail() -> None:
    """A single pixel that is two grey levels off is an error."""
    moved = REFERENCE.copy()
    moved[0, 0, 0, 0] += 2
    with pytest.raises(ParityError, match="by up to 2 grey levels"):
        prove("generator.onnx", Replay(moved), REFERENCE, ROWS, None)


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
        prove("generator.onnx", run, REFERENCE, ROWS, None)


def test_another_shape_fails() -> None:
    """Pixels of another shape are an error, not a broadcast."""
    with pytest.raises(ParityError, match=r"got uint8 \[64, 28, 28\]"):
        prove("generator.onnx", Replay(REFERENCE[..., 0]), REFERENCE, ROWS, None)


def test_the_proof_is_as_long_as_it_says() -> None:
    """4,096 latents at batches of 1 to 256, and a row of limits for every format."""
    assert PROBES == 4096
    assert BATCH_ROWS == (1, 2, 3, 17, 64, 256)
    assert set(LIMITS) == {"generator.onnx", "generator.fp16.onnx", "generator.float.onnx", "generator.ts"}


def test_each_format_has_its_own_limits() -> None:
    """What float16 may differ by is a failure of float32, and float16 has a limit too."""
    moved = REFERENCE.copy()
    moved.reshape(-1)[: REFERENCE.size // 25] ^= 1  # 4 % of the pixels, one level each
    results = prove("generator.fp16.onnx", Replay(moved), REFERENCE, ROWS, None)
    assert results[0].differing_share == pytest.approx(0.04, abs=1e-4)
    with pytest.raises(ParityError, match=r"allowed: 0\.1%, 1"):
        prove("generator.onnx", Replay(moved), REFERENCE, ROWS, None)
    moved.reshape(-1)[: REFERENCE.size // 15] = REFERENCE.reshape(-1)[: REFERENCE.size // 15] ^ 1
    with pytest.raises(ParityError, match=r"allowed: 5\.0%, 1"):
        prove("generator.fp16.onnx", Replay(moved), REFERENCE, ROWS, None)


def test_images_that_change_on_a_rerun_fail() -> None:
    """The same rows at the same batch size, a second time, must give the same bits."""

    def run(latents: Latents, labels: Labels | None) -> Pixels:
        start = position[0] % 64
        position[0] += len(latents)
        pixels = REFERENCE[start : start + len(latents)].copy()
        if position[0] > 64 * len(BATCH_ROWS):
            pixels[0, 0, 0, 0] ^= 1
        return pixels

    position = [0]
    with pytest.raises(ParityError, match="at batch 64: a rerun changes images"):
        prove("generator.onnx", run, REFERENCE, ROWS, None)


def test_one_image_in_all_batches_needs_no_reference() -> None:
    """Without PyTorch, every batch size is compared with the first, and the first bit that differs is an error."""
    replay = Replay(REFERENCE)
    np.testing.assert_array_equal(prove_batches("generator.onnx", replay, ROWS, None), REFERENCE)
    assert replay.sizes >= {1, 2, 3, 17, 64}

    def run(latents: Latents, labels: Labels | None) -> Pixels:
        pixels = np.zeros((len(latents), 2, 2, 1), dtype=np.uint8)
        pixels[0] = len(latents) == 3
        return pixels

    with pytest.raises(ParityError, match=r"at batch 3: images depend on their batch: .* differ from batch 1"):
        prove_batches("generator.onnx", run, ROWS, None)


def test_other_circumstances_change_nothing() -> None:
    """A single bit that a second session gives differently is an error with the fault's name."""
    moved = REFERENCE.copy()
    moved[3, 0, 0, 0] ^= 1
    prove_same("generator.onnx", Replay(REFERENCE), REFERENCE, ROWS, None, "images depend on the number of threads")
    with pytest.raises(ParityError, match="depend on the number of threads") as caught:
        prove_same("generator.onnx", Replay(moved), REFERENCE, ROWS, None, "images depend on the number of threads")
    assert caught.value.max_abs_diff == 1


def test_one_image_for_every_latent_fails() -> None:
    """A generator that draws the same image for all latents is refused, however well it matches PyTorch."""
    constant = np.repeat(REFERENCE[:1], 64, axis=0)
    with pytest.raises(ParityError, match="all 64 images are the same"):
        prove("generator.onnx", Replay(constant), constant, ROWS, None)


def test_black_and_white_alone_fails() -> None:
    """A generator whose every pixel is at an end of the range is refused."""
    saturated = np.where(REFERENCE > 127, 255, 0).astype(np.uint8)
    saturated[0] = 0  # images differ, so that it is saturation that is found
    with pytest.raises(ParityError, match=r"100\.00% of the pixels are 0 or 255"):
        prove("generator.onnx", Replay(saturated), saturated, ROWS, None)


def test_labels_must_be_respected() -> None:
    """Labels that give other pixels pass; two labels with the same images are named."""

    def by(table: list[int]) -> Runner:
        return lambda latents, labels: np.array(table, dtype=np.uint8)[labels].reshape(-1, 1, 1, 1)

    prove_labels("generator.onnx", by([1, 2, 3]), ROWS, 3)
    with pytest.raises(ParityError, match="labels 0 and 2 give the same 16 images"):
        prove_labels("generator.onnx", by([1, 2, 1]), ROWS, 3)


def test_float_images_have_a_limit_of_their_own() -> None:
    """The largest error of float images is told, and above the limit, or when one is not a number, it is an error."""
    images = np.zeros((4, 1, 2, 2), dtype=np.float32)
    near, far, broken = images.copy(), images.copy(), images.copy()
    near[1, 0, 0, 0] = IMAGES_MAX_ERROR / 2
    far[1, 0, 0, 0] = IMAGES_MAX_ERROR * 2
    broken[1, 0, 0, 0] = np.nan
    assert prove_images("generator.float.onnx", near, images) == pytest.approx(IMAGES_MAX_ERROR / 2)
    for wrong in (far, broken):
        with pytest.raises(ParityError, match="away from PyTorch's"):
            prove_images("generator.float.onnx", wrong, images)
