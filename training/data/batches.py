"""Which images are in which step's batch: a pure function of (seed, step), so a run needs no stored position."""

import functools

import numpy as np
import torch
from torch import Tensor

from training import distributed
from training.data import Dataset

_STREAM = int.from_bytes(b"batches", "little")  # keeps this use of the seed apart from every other


@functools.lru_cache(maxsize=2)  # a batch touches one epoch, or two
def epoch_order(seed: int, epoch: int, images: int) -> Tensor:
    """A permutation of range(images): int64 [images], the same for the same arguments."""
    order = np.random.Generator(np.random.Philox(key=[seed, _STREAM], counter=[0, 0, 0, epoch])).permutation(images)
    return torch.from_numpy(order)


def batch_indices(seed: int, step: int, batch_size: int, images: int) -> Tensor:
    """The images of one step: int64 [batch_size]. Epochs follow each other without a gap, each in its own order.

    Args:
        seed: the run's.
        step: 0 for the first.
        batch_size: may exceed `images`; then some are in the batch more than once.
        images: in the data set.
    """
    parts = []
    position, end = step * batch_size, (step + 1) * batch_size
    while position < end:
        epoch, start = divmod(position, images)
        part = epoch_order(seed, epoch, images)[start : start + end - position]
        parts.append(part)
        position += len(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Batches:
    """A data set on a device, as uint8, and its batches as the networks see them.

    On two cores there is nothing for worker processes to do: indexing 32 digits takes a few microseconds. Where several
    processes train together, each gets its share of the batch.
    """

    def __init__(
        self, dataset: Dataset, *, batch_size: int, seed: int, value_range: tuple[float, float], device: torch.device
    ) -> None:
        self.pixels = torch.from_numpy(dataset.images).unsqueeze(1).to(device)
        self.labels = torch.from_numpy(dataset.labels).to(device)
        self.batch_size = batch_size
        self.seed = seed
        self.value_range = value_range

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Step 0 is the first. images float32 [N, 1, H, W] in `value_range`, labels int64 [N]."""
        whole = batch_indices(self.seed, step, self.batch_size, len(self.labels))
        indices = distributed.mine(whole).to(self.labels.device)
        return images_from_pixels(self.pixels[indices], self.value_range), self.labels[indices]

    def draw_labels(self, generator: torch.Generator) -> Tensor:
        """Labels for a batch of fakes, as frequent as in the data: int64 [N]."""
        device = self.labels.device
        whole = torch.randint(len(self.labels), (self.batch_size,), generator=generator, device=device)
        return self.labels[distributed.mine(whole)]


def images_from_pixels(pixels: Tensor, value_range: tuple[float, float]) -> Tensor:
    """uint8 [N, C, H, W] -> float32 [N, C, H, W]: 0 is the range's low end, 255 its high end."""
    low, high = value_range
    return pixels.float().mul_((high - low) / 255).add_(low)


def pixels_from_images(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """float32 [N, C, H, W] in `value_range` -> uint8 [N, H, W, C], rounded to the nearest grey level."""
    low, high = value_range
    levels = (images - low) * (255 / (high - low))
    return levels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
