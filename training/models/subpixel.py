"""Convolutions at the low resolution, and a pixel shuffle to the next (Shi et al. 2016)."""

import torch
from torch import Tensor, nn

from training.config import GeneratorConfig
from training.models.base import (
    Generator,
    ImageShape,
    LatentInput,
    Norm,
    ShuffledConv,
    activation,
    halvings,
    output_activation,
)


class SubpixelGenerator(Generator):
    """latent -> Linear to the smallest size -> `depth` doublings by a 3 x 3 convolution to 2 x 2 cells a pixel.

    Where a transposed convolution overlaps its own output unevenly, this one computes each pixel with as many weights
    as the next. Odd sizes are cropped from the even ones above them.
    """

    def __init__(self, config: GeneratorConfig, *, image_shape: ImageShape, num_classes: int | None) -> None:
        super().__init__()
        self.latent_dim = config.latent_dim
        self.num_classes = num_classes
        self.value_range = config.value_range
        sizes = halvings(image_shape[1:], config.depth)[::-1]
        channels = [config.width * 2**level for level in range(config.depth)][::-1]
        bias = config.norm == "none"  # a normalisation takes any bias away again

        self.start_shape = (channels[0], *sizes[0])
        start = channels[0] * sizes[0][0] * sizes[0][1]
        self.input = LatentInput(config.latent_dim, start, num_classes, bias=bias)
        self.norms = nn.ModuleList(
            Norm(config.norm, count, spatial=True, num_classes=num_classes) for count in channels
        )
        self.activations = nn.ModuleList(
            activation(config.activation, count, config.negative_slope) for count in channels
        )
        self.doublings = nn.ModuleList(
            ShuffledConv(before, after, size, bias=bias)
            for before, after, size in zip(channels, channels[1:], sizes[1:], strict=False)
        )
        self.doublings.append(ShuffledConv(channels[-1], image_shape[0], sizes[-1], bias=True))
        self.output = output_activation(config.output)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `Generator.forward`."""
        hidden = self.input(latents, labels).unflatten(1, self.start_shape)
        if self.training:  # the layout that the layers behind it like, as in conv.py
            hidden = hidden.contiguous(memory_format=torch.channels_last)
        for norm, activate, doubling in zip(self.norms, self.activations, self.doublings, strict=True):
            hidden = doubling(activate(norm(hidden, labels)))
        images: Tensor = self.output(hidden)
        return images

    def normalized_layers(self) -> list[tuple[nn.Module, Norm]]:
        """See `Generator.normalized_layers`; a convolution's own shuffle comes before its normalisation."""
        return list(zip([self.input, *self.doublings[:-1]], self.norms, strict=True))  # type: ignore[arg-type]  # as in conv.py
