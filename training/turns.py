"""One step of a run: the batches, the fakes, and each player's turn, in the order that the configuration says."""

import contextlib
from typing import Final

import torch
from torch import Tensor

from training import distributed
from training.augment import augment
from training.config import PLAYERS, TrainingConfig
from training.data import Dataset
from training.data.batches import Batches
from training.losses import OBJECTIVES
from training.optimizers import learning_rate, set_learning_rate
from training.state import TrainingState
from training.step import DiscriminatorReport, GeneratorReport, discriminator_step, generator_step

COMPILER: Final = "inductor"  # torch.compile's backend; Triton's kernels on a GPU, C++ on the CPU
_HALVES: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Turns:
    """Takes the steps of a run. What a step does is a function of its number, the state and the data set alone.

    Of several processes each draws for the whole batch, and goes on with its share.
    """

    def __init__(self, config: TrainingConfig, state: TrainingState, dataset: Dataset, device: torch.device) -> None:
        self._config = config
        self._state = state
        self._device = device
        self._objective = OBJECTIVES[config.objective]
        self._num_classes = dataset.num_classes
        self._batches = Batches(
            dataset,
            batch_size=config.batch_size,
            seed=config.seed,
            value_range=config.generator.value_range,
            device=device,
        )
        order = sorted(PLAYERS, key=lambda player: player != config.first_player)
        self._players = [
            player for player in order for _ in range(config.discriminator_steps if player == "discriminator" else 1)
        ]
        self._generator = state.generator
        if config.compile:
            self._generator = torch.compile(state.generator, backend=COMPILER, dynamic=False)  # type: ignore[assignment]
            features = torch.compile(state.discriminator.features, backend=COMPILER, dynamic=False)
            state.discriminator.features = features  # type: ignore[method-assign]  # what both players' turns call
        self._share_generator = distributed.GradientMean(state.generator)
        self._share_discriminator = distributed.GradientMean(state.discriminator)

    def take(self, step: int) -> dict[str, Tensor]:
        """Both players' turns of one step, 1 the first, and the average's; what they report, as float32 scalars."""
        config, state = self._config, self._state
        lr = self.learning_rate(step)
        set_learning_rate(state.generator_optimizer, lr)
        set_learning_rate(state.discriminator_optimizer, lr * config.optimizer.discriminator_lr_share)

        update = (step - 1) * config.discriminator_steps  # of the discriminator, from 0; each has its own batch
        real_images, real_labels, wrong_labels = self._reals(update)
        fake_images, fake_labels = self._fakes(real_labels)
        for turn, player in enumerate(self._players):
            if turn and player == "discriminator" == self._players[turn - 1]:
                update += 1
                real_images, real_labels, wrong_labels = self._reals(update)
                fake_images, fake_labels = self._fakes(real_labels)
            elif turn and not config.reuse_fakes:
                fake_images, fake_labels = self._fakes(real_labels)
            if player == "discriminator":
                d_report = self._discriminate(update, real_images, real_labels, wrong_labels, fake_images, fake_labels)
            else:
                g_report = self._generate(real_images, real_labels, fake_images, fake_labels)
        if state.ema:
            images_seen = step * config.images_per_step
            state.ema.update(state.generator, images_seen=images_seen, batch_images=config.images_per_step)
        reported = {
            "loss_discriminator": d_report.loss,
            "loss_generator": g_report.loss,
            "d_real": d_report.d_real,
            "d_fake": d_report.d_fake,
            "logit_margin": d_report.logit_margin,
            "grad_norm_discriminator": d_report.grad_norm,
            "grad_norm_generator": g_report.grad_norm,
        }
        if distributed.size() == 1:
            return reported
        means = distributed.mean(torch.stack(list(reported.values())))  # norms are the same everywhere
        return dict(zip(reported, means.unbind(), strict=True))

    def learning_rate(self, step: int) -> float:
        """The generator's rate at a step."""
        config = self._config
        return learning_rate(
            config.optimizer,
            images_seen=(step - 1) * config.images_per_step,
            total_images=config.steps * config.images_per_step,
        )

    def _discriminate(
        self,
        update: int,
        real_images: Tensor,
        real_labels: Tensor,
        wrong_labels: Tensor | None,
        fake_images: Tensor,
        fake_labels: Tensor | None,
    ) -> DiscriminatorReport:
        config, state, penalty = self._config, self._state, self._config.penalty
        lazy = penalty.every_steps if (update + 1) % penalty.every_steps == 0 else 0
        mix = None
        if penalty.gradient and lazy:
            mix = distributed.mine(torch.rand(config.batch_size, generator=state.rng, device=self._device))
        self._share_discriminator()
        penalised = lazy and any((penalty.r1, penalty.r2, penalty.gradient))
        # What torch.compile makes cannot be differentiated twice.
        stance = torch.compiler.set_stance("force_eager") if penalised and config.compile else contextlib.nullcontext()
        with stance, self._autocast():
            return discriminator_step(
                state.discriminator,
                state.discriminator_optimizer,
                self._objective,
                real_images=real_images,
                real_labels=real_labels if config.conditional else None,
                fake_images=fake_images,
                fake_labels=fake_labels,
                wrong_labels=wrong_labels,
                wrong_label_weight=config.wrong_label_weight,
                r1_weight=penalty.r1 / 2 * lazy,
                r2_weight=penalty.r2 / 2 * lazy,
                gradient_weight=penalty.gradient * lazy,
                mix=mix,
                clip=penalty.clip,
                scaler=state.scalers.get("discriminator"),
            )

    def _generate(
        self, real_images: Tensor, real_labels: Tensor, fake_images: Tensor, fake_labels: Tensor | None
    ) -> GeneratorReport:
        state = self._state
        self._share_generator()
        with self._autocast():
            return generator_step(
                state.generator,
                state.discriminator,
                state.generator_optimizer,
                self._objective,
                fake_images=fake_images,
                fake_labels=fake_labels,
                real_images=real_images,
                real_labels=real_labels if self._config.conditional else None,
                scaler=state.scalers.get("generator"),
            )

    def _reals(self, update: int) -> tuple[Tensor, Tensor, Tensor | None]:
        images, labels = self._batches.batch(update)
        images = self._seen(images)
        if not self._config.wrong_label_weight:
            return images, labels, None
        whole = (self._config.batch_size,)
        shift = distributed.mine(
            torch.randint(1, self._num_classes, whole, generator=self._state.rng, device=self._device)
        )
        return images, labels, (labels + shift) % self._num_classes

    def _fakes(self, real_labels: Tensor) -> tuple[Tensor, Tensor | None]:
        config, state = self._config, self._state
        latents = distributed.mine(
            torch.randn(config.batch_size, config.generator.latent_dim, generator=state.rng, device=self._device)
        )
        labels = None
        if config.conditional:
            labels = real_labels if config.pairs_of_one_class else self._batches.draw_labels(state.rng)
        with self._autocast():
            images = self._generator(latents, labels)
        return self._seen(images.float()), labels

    def _seen(self, images: Tensor) -> Tensor:
        """What the discriminator sees of the images, in its own turns and in the generator's."""
        config = self._config
        return augment(images, config.augment, value_range=config.generator.value_range, rng=self._state.rng)

    def _autocast(self) -> torch.autocast:
        """Around each use of the networks, anew: it keeps converted weights, which an update leaves behind."""
        half = _HALVES.get(self._config.precision)
        return torch.autocast(self._device.type, dtype=half or torch.bfloat16, enabled=half is not None)
