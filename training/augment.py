"""Differentiable augmentation of what the discriminator sees: DiffAugment (Zhao et al. 2020).

A discriminator that has seen every training image too often learns them by heart. Seeing each in another light and
place every time, it cannot; and as the fakes go the same way, the generator does not learn the changes.
"""

import torch
from torch import Tensor

from training import distributed
from training.config import AugmentConfig


def augment(images: Tensor, config: AugmentConfig, *, value_range: tuple[float, float], rng: torch.Generator) -> Tensor:
    """Each image changed at random; gradients flow back. Draws nothing from `rng` for what is switched off.

    Args:
        images: float32 [N, C, H, W] in `value_range`: this process's share of the batch, if there are several.
        config: how much of what.
        value_range: the range of the images before; brightness and contrast may leave it, as in the paper.
        rng: on the images' device.

    Returns:
        float32 [N, C, H, W].
    """
    low, high = value_range
    if config.brightness:
        images = images + config.brightness * (high - low) * _signed(images, rng).view(-1, 1, 1, 1)
    if config.contrast:
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (1 + config.contrast * _signed(images, rng)).view(-1, 1, 1, 1)
    middle = (low + high) / 2  # zero, in the paper's [-1, 1]
    if config.translation:
        images = _moved(images, config.translation, middle, rng)
    if config.cutout:
        images = _cut_out(images, config.cutout, middle, rng)
    return images


def _moved(images: Tensor, share: float, fill: float, rng: torch.Generator) -> Tensor:
    """Moves by whole pixels; what comes in at the border is `fill`."""
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    sources: list[Tensor] = []
    for dim in (2, 3):
        size = images.shape[dim]
        shift = _integers(-round(share * size), round(share * size), images, rng)
        source = torch.arange(size, device=images.device) - shift[:, None]  # [N, size]: where each pixel comes from
        valid = (source >= 0) & (source < size)
        inside = inside & (valid[:, None, :, None] if dim == 2 else valid[:, None, None, :])
        sources.append(source.clamp(0, size - 1))
    rows, columns = sources
    count, channels, height, width = images.shape
    moved = images.gather(2, rows[:, None, :, None].expand(count, channels, height, width))
    moved = moved.gather(3, columns[:, None, None, :].expand(count, channels, height, width))
    return torch.where(inside, moved, fill)


def _cut_out(images: Tensor, share: float, fill: float, rng: torch.Generator) -> Tensor:
    """A rectangle of this share of both sides becomes `fill`; its centre is anywhere in the image."""
    outside = torch.zeros((), dtype=torch.bool, device=images.device)
    for dim in (2, 3):
        size = images.shape[dim]
        cut = round(share * size)
        start = _integers(0, size - 1, images, rng)[:, None] - cut // 2
        place = torch.arange(size, device=images.device)
        out = (place < start) | (place >= start + cut)
        outside = outside | (out[:, None, :, None] if dim == 2 else out[:, None, None, :])
    return torch.where(outside, images, fill)


def _signed(images: Tensor, rng: torch.Generator) -> Tensor:
    """Uniform in [-1, 1): float32 [N]."""
    whole = len(images) * distributed.size()
    return distributed.mine(2 * torch.rand(whole, generator=rng, device=images.device) - 1)


def _integers(first: int, last: int, images: Tensor, rng: torch.Generator) -> Tensor:
    """Uniform among first, ..., last: int64 [N]."""
    whole = (len(images) * distributed.size(),)
    return distributed.mine(torch.randint(first, last + 1, whole, generator=rng, device=images.device))
