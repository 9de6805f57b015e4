"""Everything that changes while a run trains."""

import dataclasses

import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from training.config import PLAYERS, TrainingConfig
from training.data import DatasetFacts
from training.ema import Ema
from training.models import DISCRIMINATORS, GENERATORS, Discriminator, Generator
from training.optimizers import OPTIMIZERS


@dataclasses.dataclass(kw_only=True)
class TrainingState:
    """The two players, their optimizers, the average, the source of latents and labels, and the clock.

    Attributes:
        scalers: of each player's loss, by the player's name; none but with float16.
    """

    generator: Generator
    discriminator: Discriminator
    generator_optimizer: Optimizer
    discriminator_optimizer: Optimizer
    ema: Ema | None
    rng: torch.Generator
    scalers: dict[str, GradScaler] = dataclasses.field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0
    recent: list[list[float]] = dataclasses.field(default_factory=list)  # `training.health.Watch.recent`

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Everything with weights that a checkpoint keeps, by the name of its file there."""
        players: dict[str, nn.Module] = {"generator": self.generator, "discriminator": self.discriminator}
        return players | ({"generator_ema": self.ema.network} if self.ema else {})

    @property
    def shown_generator(self) -> Generator:
        """What sheets show and exports take: the average, if there is one."""
        return self.ema.network if self.ema else self.generator


def new_state(config: TrainingConfig, facts: DatasetFacts, device: torch.device) -> TrainingState:
    """The state before the first step, a pure function of its arguments; torch's global generator is seeded for it."""
    torch.manual_seed(config.seed)
    generator = build_generator(config, facts)
    discriminator = build_discriminator(config, facts)
    for network in (generator, discriminator):
        network.train().to(device)
        prefer_channels_last(network)
    optimizer = OPTIMIZERS[config.optimizer.kind]
    return TrainingState(
        generator=generator,
        discriminator=discriminator,
        generator_optimizer=optimizer(config.optimizer, generator.parameters()),
        discriminator_optimizer=optimizer(config.optimizer, discriminator.parameters()),
        ema=Ema(generator, config.ema) if config.ema.half_life_images else None,
        rng=torch.Generator(device).manual_seed(config.seed),
        scalers={player: GradScaler(device.type) for player in PLAYERS} if config.precision == "float16" else {},
    )


def build_generator(config: TrainingConfig, facts: DatasetFacts) -> Generator:
    """A freshly initialised generator of the run, for the data set's images and classes."""
    return GENERATORS[config.generator.kind](
        config.generator,
        image_shape=(facts.channels, facts.height, facts.width),
        num_classes=facts.num_classes if config.conditional else None,
    )


def build_discriminator(config: TrainingConfig, facts: DatasetFacts) -> Discriminator:
    """A freshly initialised discriminator of the run, for the data set's images and classes."""
    return DISCRIMINATORS[config.discriminator.kind](
        config.discriminator,
        image_shape=(facts.channels, facts.height, facts.width),
        num_classes=facts.num_classes if config.conditional else None,
    )


def prefer_channels_last(network: nn.Module) -> None:
    """Lays convolution weights out as [out, H, W, in]: the layout in which oneDNN and cuDNN need no reordering."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
