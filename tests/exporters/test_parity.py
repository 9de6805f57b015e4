import numpy as np
import pytest
import torch

from ganserve.proof import pixels_of
from training.data.batches import pixels_from_images


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_pixels_are_training_s_to_the_last_bit(value_range: tuple[float, float]) -> None:
    """Images become pixels without torch exactly as training makes them: halves, ends and what is beyond them too."""
    low, high = value_range
    halves = (np.arange(-2, 514, dtype=np.float32) / 2 / 255 * (high - low) + low).astype(np.float32)
    random = np.random.default_rng(0).uniform(low - 0.1, high + 0.1, size=100_000).astype(np.float32)
    images = np.concatenate([halves, np.nextafter(halves, np.float32(2)), random])[: 28 * 28 * 128].reshape(-1, 1, 2, 2)
    expected = pixels_from_images(torch.from_numpy(images), value_range).numpy()
    pixels = pixels_of(images, value_range)
    assert pixels.dtype == np.uint8
    assert set(np.unique(pixels)) == set(range(256))
    np.testing.assert_array_equal(pixels, expected)
