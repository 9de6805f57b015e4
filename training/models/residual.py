"""Residual blocks: the deeper networks, whose gradient has a short way back (He et al. 2016)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import DiscriminatorConfig, GeneratorConfig
from training.models.base import (
    Discriminator,
    DoubledConv,
    Generator,
    ImageShape,
    LatentInput,
    MinibatchDeviation,
    Norm,
    Size,
    activation,
    doubled,
    halvings,
    normalize_spectrally,
    output_activation,
)


class ResidualGenerator(Generator):
    """latent -> Linear to the smallest size -> `depth` doubling blocks -> 3 x 3 convolution to the image."""

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
        self.norm = Norm(config.norm, channels[0], spatial=True, num_classes=num_classes)
        self.activation = activation(config.activation, channels[0], config.negative_slope)
        self.blocks = nn.ModuleList(
            DoublingBlock(config, before, after, size, num_classes=num_classes)
            for before, after, size in zip(channels, [*channels[1:], channels[-1]], sizes[1:], strict=True)
        )
        self.pixels = nn.Conv2d(channels[-1], image_shape[0], 3, padding=1)
        self.output = output_activation(config.output)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `Generator.forward`."""
        hidden = self.input(latents, labels).unflatten(1, self.start_shape)
        if self.training:  # the layout that the layers behind it like, as in conv.py
            hidden = hidden.contiguous(memory_format=torch.channels_last)
        hidden = self.activation(self.norm(hidden, labels))
        for block in self.blocks:
            hidden = block(hidden, labels)
        images: Tensor = self.output(self.pixels(hidden))
        return images

    def normalized_layers(self) -> list[tuple[nn.Module, Norm]]:
        """See `Generator.normalized_layers`."""
        layers: list[tuple[nn.Module, Norm]] = [(self.input, self.norm)]
        for block in self.blocks:
            assert isinstance(block, DoublingBlock)
            layers += [(block.first, block.first_norm), (block.second, block.second_norm)]
        return layers


class DoublingBlock(nn.Module):
    """Doubles to `size`: activation(norm(conv(activation(norm(conv(up(x)))))) + up(conv1x1(x))).

    Each normalisation comes after a convolution, so that at inference it is a part of that convolution; in the
    pre-activation form none could be.
    """

    def __init__(
        self, config: GeneratorConfig, before: int, after: int, size: Size, *, num_classes: int | None
    ) -> None:
        super().__init__()
        bias = config.norm == "none"
        self.size = size
        self.first = DoubledConv(before, after, size, bias=bias)
        self.first_norm = Norm(config.norm, after, spatial=True, num_classes=num_classes)
        self.first_activation = activation(config.activation, after, config.negative_slope)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=bias)
        self.second_norm = Norm(config.norm, after, spatial=True, num_classes=num_classes)
        self.second_activation = activation(config.activation, after, config.negative_slope)
        self.shortcut = nn.Conv2d(before, after, 1)

    def forward(self, hidden: Tensor, labels: Tensor | None) -> Tensor:
        """float32 [N, before, ceil(H / 2), ceil(W / 2)], labels int64 [N] if conditional -> [N, after, H, W]."""
        shortcut = doubled(self.shortcut(hidden), self.size)  # a 1 x 1 convolution gives the same before and after
        hidden = self.first_activation(self.first_norm(self.first(hidden), labels))
        images: Tensor = self.second_activation(self.second_norm(self.second(hidden), labels) + shortcut)
        return images


class ResidualDiscriminator(Discriminator):
    """`depth` halving blocks, doubling the channels; then the logit of all that is left."""

    def __init__(self, config: DiscriminatorConfig, *, image_shape: ImageShape, num_classes: int | None) -> None:
        sizes = halvings(image_shape[1:], config.depth)
        channels = [image_shape[0]] + [config.width * 2**level for level in range(config.depth)]
        super().__init__(channels[-1] * sizes[-1][0] * sizes[-1][1], num_classes)
        inputs = channels[:-1]
        self.deviation = MinibatchDeviation() if config.minibatch_deviation else None
        if self.deviation is not None:
            inputs[-1] += 1
        self.blocks = nn.ModuleList(
            HalvingBlock(config, before, after) for before, after in zip(inputs, channels[1:], strict=True)
        )
        if config.norm == "spectral":
            normalize_spectrally(self)

    def features(self, images: Tensor, *, batches: int = 1) -> Tensor:
        """See `Discriminator.features`."""
        hidden = images
        for level, block in enumerate(self.blocks, start=1):
            if self.deviation is not None and level == len(self.blocks):
                hidden = self.deviation(hidden, batches)
            hidden = block(hidden)
        return hidden.permute(0, 2, 3, 1).flatten(1)  # as it lies in memory, as in conv.py


class HalvingBlock(nn.Module):
    """Halves, rounding up: activation(pool(conv(activation(conv(x)))) + conv1x1(pool(x)))."""

    def __init__(self, config: DiscriminatorConfig, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.first_activation = activation(config.activation, after, config.negative_slope)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.second_activation = activation(config.activation, after, config.negative_slope)
        self.shortcut = nn.Conv2d(before, after, 1, bias=False)  # `second` has one already

    def forward(self, hidden: Tensor) -> Tensor:
        """float32 [N, before, H, W] -> float32 [N, after, ceil(H / 2), ceil(W / 2)]."""
        shortcut = self.shortcut(_halved(hidden))
        hidden = self.second(self.first_activation(self.first(hidden)))
        images: Tensor = self.second_activation(_halved(hidden) + shortcut)
        return images


def _halved(hidden: Tensor) -> Tensor:
    """The means of 2 x 2 cells, and at an odd border of what there is of them."""
    return functional.avg_pool2d(hidden, 2, ceil_mode=True)
