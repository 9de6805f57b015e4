"""Name -> builder of every network that a recipe can ask for."""

from typing import Final, Protocol

from training.config import DiscriminatorConfig, GeneratorConfig
from training.models.base import Discriminator, Generator, ImageShape
from training.models.conv import ConvDiscriminator, ConvGenerator
from training.models.mlp import MlpDiscriminator, MlpGenerator
from training.models.residual import ResidualDiscriminator, ResidualGenerator
from training.models.subpixel import SubpixelGenerator

__all__ = ["DISCRIMINATORS", "GENERATORS", "Discriminator", "Generator", "ImageShape"]


class GeneratorBuilder(Protocol):
    """Makes a freshly initialised generator; `num_classes` is None for an unconditional one."""

    def __call__(self, config: GeneratorConfig, *, image_shape: ImageShape, num_classes: int | None) -> Generator: ...


class DiscriminatorBuilder(Protocol):
    """Makes a freshly initialised discriminator; `num_classes` is None for an unconditional one."""

    def __call__(
        self, config: DiscriminatorConfig, *, image_shape: ImageShape, num_classes: int | None
    ) -> Discriminator: ...


GENERATORS: Final[dict[str, GeneratorBuilder]] = {
    "conv": ConvGenerator,
    "mlp": MlpGenerator,
    "residual": ResidualGenerator,
    "subpixel": SubpixelGenerator,
}
DISCRIMINATORS: Final[dict[str, DiscriminatorBuilder]] = {
    "conv": ConvDiscriminator,
    "mlp": MlpDiscriminator,
    "residual": ResidualDiscriminator,
}
