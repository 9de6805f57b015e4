"""Perceptrons: the networks of the article, and any width and depth of them."""

import math

from torch import Tensor, nn

from training.config import DiscriminatorConfig, GeneratorConfig
from training.models.base import (
    Discriminator,
    Generator,
    ImageShape,
    LatentInput,
    MinibatchDeviation,
    Norm,
    activation,
    normalize_spectrally,
    output_activation,
)


class MlpGenerator(Generator):
    """latent -> `depth` hidden layers of `width` -> pixels."""

    def __init__(self, config: GeneratorConfig, *, image_shape: ImageShape, num_classes: int | None) -> None:
        super().__init__()
        self.latent_dim = config.latent_dim
        self.num_classes = num_classes
        self.value_range = config.value_range
        bias = config.norm == "none"  # a normalisation takes any bias away again
        self.input = LatentInput(config.latent_dim, config.width, num_classes, bias=bias)
        self.hidden = nn.ModuleList(nn.Linear(config.width, config.width, bias=bias) for _ in range(config.depth - 1))
        self.norms = nn.ModuleList(
            Norm(config.norm, config.width, spatial=False, num_classes=num_classes) for _ in range(config.depth)
        )
        self.pixels = nn.Linear(config.width, math.prod(image_shape))
        self.activations = nn.ModuleList(
            activation(config.activation, config.width, config.negative_slope) for _ in range(config.depth)
        )
        self.output = output_activation(config.output)
        self.image_shape = image_shape
        _start_as_the_article(self)

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `Generator.forward`."""
        hidden = self.activations[0](self.norms[0](self.input(latents, labels), labels))
        for linear, norm, activate in zip(self.hidden, list(self.norms)[1:], list(self.activations)[1:], strict=True):
            hidden = activate(norm(linear(hidden), labels))
        images: Tensor = self.output(self.pixels(hidden)).unflatten(1, self.image_shape)
        return images

    def normalized_layers(self) -> list[tuple[nn.Module, Norm]]:
        """See `Generator.normalized_layers`."""
        return list(zip([self.input, *self.hidden], self.norms, strict=True))  # type: ignore[arg-type]  # as in conv.py


class MlpDiscriminator(Discriminator):
    """pixels -> `depth` hidden layers of `width` -> logit."""

    def __init__(self, config: DiscriminatorConfig, *, image_shape: ImageShape, num_classes: int | None) -> None:
        super().__init__(config.width, num_classes)
        sizes = [math.prod(image_shape)] + [config.width] * config.depth
        inputs = sizes[:-1]
        self.deviation = MinibatchDeviation() if config.minibatch_deviation else None
        if self.deviation is not None:
            inputs[-1] += 1
        self.hidden = nn.ModuleList(nn.Linear(before, config.width) for before in inputs)
        self.activations = nn.ModuleList(
            activation(config.activation, config.width, config.negative_slope) for _ in range(config.depth)
        )
        _start_as_the_article(self)
        if config.norm == "spectral":
            normalize_spectrally(self)

    def features(self, images: Tensor, *, batches: int = 1) -> Tensor:
        """See `Discriminator.features`."""
        hidden = images.flatten(1)
        for level, (linear, activate) in enumerate(zip(self.hidden, self.activations, strict=True), start=1):
            if self.deviation is not None and level == len(self.hidden):
                hidden = self.deviation(hidden, batches)
            hidden = activate(linear(hidden))
        return hidden


def _start_as_the_article(network: nn.Module) -> None:
    """Glorot uniform weights and zero biases: what the article's tf.layers.dense starts with."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
