from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.data import load_dataset
from training.data.batches import Batches, batch_indices, epoch_order, images_from_pixels, pixels_from_images


@pytest.mark.parametrize("batch_size", [1, 7, 10, 32])
def test_every_image_comes_once_in_an_epoch(batch_size: int) -> None:
    """Batches follow the epochs' permutations without a gap, also where one ends within a batch."""
    steps = -(-30 // batch_size)
    stream = torch.cat([batch_indices(3, step, batch_size, 10) for step in range(steps)])
    for epoch in stream[:30].split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert stream[:10].tolist() != stream[10:20].tolist()


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    """A resumed run sees the images that an uninterrupted one would have seen; another seed, others."""
    first = epoch_order(1, 5, 100).clone()
    epoch_order.cache_clear()
    assert torch.equal(first, epoch_order(1, 5, 100))
    assert not torch.equal(first, epoch_order(1, 6, 100))
    assert not torch.equal(first, epoch_order(2, 5, 100))


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_pixels_survive_the_way_to_images_and_back(value_range: tuple[float, float]) -> None:
    """All 256 grey levels come back as they were; 0 and 255 are the ends of the range; beyond it is cut off."""
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    images = images_from_pixels(pixels, value_range)
    assert (images.min().item(), images.max().item()) == pytest.approx(value_range)
    assert torch.equal(pixels_from_images(images, value_range), pixels.permute(0, 2, 3, 1))
    assert pixels_from_images(torch.full((1, 1, 1, 1), 9.0), value_range).item() == 255
    assert pixels_from_images(torch.full((1, 1, 1, 1), -9.0), value_range).item() == 0


def test_images_keep_their_labels(make_data: Callable[..., Path]) -> None:
    """Class i is brighter in column i: also in a batch, after shuffling."""
    dataset = load_dataset(make_data(classes=3), "train")
    batches = Batches(dataset, batch_size=16, seed=0, value_range=(-1.0, 1.0), device=torch.device("cpu"))
    images, labels = batches.batch(4)
    assert images.shape == (16, 1, 8, 8)
    assert images.dtype == torch.float32
    assert torch.equal(images.mean(dim=(1, 2)).argmax(dim=1), labels)


def test_labels_of_fakes_are_those_of_the_data(make_data: Callable[..., Path]) -> None:
    """A class that the data does not have is never asked for."""
    dataset = load_dataset(make_data(classes=3), "train")
    dataset.labels[dataset.labels == 0] = 2
    batches = Batches(dataset, batch_size=200, seed=0, value_range=(-1.0, 1.0), device=torch.device("cpu"))
    assert batches.draw_labels(torch.Generator().manual_seed(0)).unique().tolist() == [1, 2]
