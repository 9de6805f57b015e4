"""Strided convolutions, for images of any size.

An even size n is halved by a 4-wide kernel and an odd one by a 3-wide kernel, stride 2 and padding 1 both: n becomes
ceil(n / 2), and every pixel is seen. The transposed convolutions of the generator take the same sizes back, ceil(n / 2)
to n. So 28 x 28 is 14 x 14 and 7 x 7, and 29 x 31 is 15 x 16 and 8 x 8, and no image is padded or cropped. Height and
width choose their kernels apart.
"""

import torch
from torch import Tensor, nn

from training.config import DiscriminatorConfig, GeneratorConfig
from training.models.base import (
    Discriminator,
    Generator,
    ImageShape,
    LatentInput,
    MinibatchDeviation,
    Norm,
    Size,
    activation,
    halvings,
    normalize_spectrally,
    output_activation,
)


class ConvGenerator(Generator):
    """latent -> Linear to the smallest size -> `depth` doublings by 4 x 4 (or 3 x 3) transposed convolutions."""

    def __init__(self, config: GeneratorConfig, *, image_shape: ImageShape, num_classes: int | None) -> None:
        super().__init__()
        self.latent_dim = config.latent_dim
        self.num_classes = num_classes
        self.value_range = config.value_range
        sizes = halvings(image_shape[1:], config.depth)[::-1]
        channels = [config.width * 2**level for level in range(config.depth)][::-1]
        bias = config.norm == "none"  # a normalisation takes any bias away again

        self.start_shape = (channels[0], *sizes[0])
        self.input = LatentInput(config.latent_dim, channels[0] * sizes[0][0] * sizes[0][1], num_classes, bias=bias)
        self.norms = nn.ModuleList(
            Norm(config.norm, count, spatial=True, num_classes=num_classes) for count in channels
        )
        self.doublings = nn.ModuleList(
            nn.ConvTranspose2d(before, after, _kernel(size), stride=2, padding=1, bias=bias)
            for before, after, size in zip(channels, channels[1:], sizes[1:], strict=False)
        )
        self.doublings.append(nn.ConvTranspose2d(channels[-1], image_shape[0], _kernel(sizes[-1]), stride=2, padding=1))
        self.activations = nn.ModuleList(
            activation(config.activation, count, config.negative_slope) for count in channels
        )
        self.output = output_activation(config.output)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `Generator.forward`."""
        hidden = self.input(latents, labels).unflatten(1, self.start_shape)
        if self.training:  # the layout that the layers behind it like: 4 % of a step on two cores
            hidden = hidden.contiguous(memory_format=torch.channels_last)
        for norm, activate, doubling in zip(self.norms, self.activations, self.doublings, strict=True):
            hidden = doubling(activate(norm(hidden, labels)))
        images: Tensor = self.output(hidden)
        return images

    def normalized_layers(self) -> list[tuple[nn.Module, Norm]]:
        """See `Generator.normalized_layers`."""
        return list(zip([self.input, *self.doublings[:-1]], self.norms, strict=True))  # type: ignore[arg-type]  # ModuleList forgets what it holds


class ConvDiscriminator(Discriminator):
    """`depth` halvings by 4 x 4 (or 3 x 3) convolutions, doubling the channels; then the logit of all that is left."""

    def __init__(self, config: DiscriminatorConfig, *, image_shape: ImageShape, num_classes: int | None) -> None:
        sizes = halvings(image_shape[1:], config.depth)
        channels = [image_shape[0]] + [config.width * 2**level for level in range(config.depth)]
        super().__init__(channels[-1] * sizes[-1][0] * sizes[-1][1], num_classes)
        inputs = channels[:-1]
        self.deviation = MinibatchDeviation() if config.minibatch_deviation else None
        if self.deviation is not None:
            inputs[-1] += 1
        self.halvings = nn.ModuleList(
            nn.Conv2d(before, after, _kernel(size), stride=2, padding=1)
            for before, after, size in zip(inputs, channels[1:], sizes, strict=False)
        )
        self.activations = nn.ModuleList(
            activation(config.activation, count, config.negative_slope) for count in channels[1:]
        )
        if config.norm == "spectral":
            normalize_spectrally(self)

    def features(self, images: Tensor, *, batches: int = 1) -> Tensor:
        """See `Discriminator.features`."""
        hidden = images
        for level, (halving, activate) in enumerate(zip(self.halvings, self.activations, strict=True), start=1):
            if self.deviation is not None and level == len(self.halvings):
                hidden = self.deviation(hidden, batches)
            hidden = activate(halving(hidden))
        # Flattened as it lies in memory (channels last), in both directions: 3 % of a step on two cores.
        return hidden.permute(0, 2, 3, 1).flatten(1)


def _kernel(size: Size) -> Size:
    """The kernel that halves to ceil(n / 2), or doubles from it: 4 where n is even and 3 where it is odd."""
    height, width = size
    return (4 - height % 2, 4 - width % 2)
