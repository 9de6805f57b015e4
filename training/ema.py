"""Exponential moving average of the generator, clocked in images."""

import copy
from itertools import chain

import torch
from torch import nn

from training.config import EmaConfig
from training.models import Generator


def ema_decay(config: EmaConfig, *, images_seen: int, batch_images: int) -> float:
    """The share of the old average that an update of `batch_images` keeps, in [0, 1).

    It is 0.5^(batch / half-life), so the batch size does not change what is averaged; while `ramp * images_seen` is
    below the half-life it takes its place.
    """
    half_life = min(config.half_life_images, config.ramp * images_seen)
    return float(0.5 ** (batch_images / half_life))


class Ema:
    """The averaged generator: `network`, in evaluation mode, a twin of the trained one."""

    def __init__(self, generator: Generator, config: EmaConfig) -> None:
        self.config = config
        self.network = copy.deepcopy(generator).eval().requires_grad_(False)
        self._averaged, self._copied = _tensors(self.network)

    @torch.no_grad()
    def update(self, generator: Generator, *, images_seen: int, batch_images: int) -> None:
        """Moves the average towards the generator's weights, and its batch statistics with them."""
        decay = ema_decay(self.config, images_seen=images_seen, batch_images=batch_images)
        averaged, copied = _tensors(generator)
        torch._foreach_lerp_(self._averaged, averaged, 1 - decay)
        if copied:
            torch._foreach_copy_(self._copied, copied)


def _tensors(network: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Parameters and floating buffers, which are averaged; and the counters, which are copied."""
    everything = list(chain(network.parameters(), network.buffers()))
    return [one for one in everything if one.is_floating_point()], [
        one for one in everything if not one.is_floating_point()
    ]
