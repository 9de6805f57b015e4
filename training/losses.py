"""The objectives and penalties: pure functions of tensors."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.nn import functional

LogitLoss = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The terms of a GAN's two losses, each from logits float32 [N] to one loss per sample [N].

    The discriminator minimises mean(real(D(x))) + mean(fake(D(G(z)))), the generator mean(generator(D(G(z)))).
    """

    real: LogitLoss
    fake: LogitLoss
    generator: LogitLoss

    paired: ClassVar[bool] = False  # whether the generator's loss needs logits of real images

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Scalar, of logits [N] each."""
        return self.real(real_logits).mean() + self.fake(fake_logits).mean()

    def wrong_label_loss(self, real_logits: Tensor, wrong_logits: Tensor) -> Tensor:
        """Scalar: what the discriminator pays for logits [N] of real images under wrong labels: they count as fakes."""
        return self.fake(wrong_logits).mean()

    def generator_loss(self, fake_logits: Tensor, real_logits: Tensor | None) -> Tensor:
        """Scalar, of logits [N]; those of real images are not looked at."""
        return self.generator(fake_logits).mean()


@dataclasses.dataclass(frozen=True)
class PairedObjective:
    """One loss of the lead of the first logit of a pair over the second (relativistic; Jolicoeur-Martineau 2019).

    The discriminator minimises mean(lead(D(x) - D(G(z)))), the generator mean(lead(D(G(z)) - D(x))): neither can
    win by what it does to one kind of image alone. Pairs are by position in the batch.
    """

    lead: LogitLoss

    paired: ClassVar[bool] = True

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Scalar, of logits [N] each."""
        return self.lead(real_logits - fake_logits).mean()

    def wrong_label_loss(self, real_logits: Tensor, wrong_logits: Tensor) -> Tensor:
        """Scalar: an image under its own label leads the same image under a wrong one."""
        return self.lead(real_logits - wrong_logits).mean()

    def generator_loss(self, fake_logits: Tensor, real_logits: Tensor | None) -> Tensor:
        """Scalar, of logits [N] each."""
        assert real_logits is not None, "a paired objective compares with real images"
        return self.lead(fake_logits - real_logits).mean()


def cross_entropy_to_one(logits: Tensor) -> Tensor:
    """-log(sigmoid(logit)), stable for any logit: float32 [N] -> [N], >= 0."""
    return functional.softplus(-logits)


def cross_entropy_to_zero(logits: Tensor) -> Tensor:
    """-log(1 - sigmoid(logit)), stable for any logit: float32 [N] -> [N], >= 0."""
    return functional.softplus(logits)


def squared_error_to_one(logits: Tensor) -> Tensor:
    """(sigmoid(logit) - 1)^2, the error of the probability: float32 [N] -> [N], in [0, 1]."""
    return (torch.sigmoid(logits) - 1).square()


def half_square_to_one(logits: Tensor) -> Tensor:
    """(logit - 1)^2 / 2: float32 [N] -> [N], >= 0."""
    return (logits - 1).square() / 2


def half_square_to_zero(logits: Tensor) -> Tensor:
    """logit^2 / 2: float32 [N] -> [N], >= 0."""
    return logits.square() / 2


def hinge_above_one(logits: Tensor) -> Tensor:
    """max(0, 1 - logit): float32 [N] -> [N], >= 0."""
    return functional.relu(1 - logits)


def hinge_below_minus_one(logits: Tensor) -> Tensor:
    """max(0, 1 + logit): float32 [N] -> [N], >= 0."""
    return functional.relu(1 + logits)


# Goodfellow et al. 2014. The generator's target is 1: that is the loss which section 3 calls non-saturating, so `bce`
# (the article's word) and `ns` (the literature's) are one function under both of its names.
_CROSS_ENTROPY = Objective(real=cross_entropy_to_one, fake=cross_entropy_to_zero, generator=cross_entropy_to_one)

OBJECTIVES: Final[dict[str, Objective | PairedObjective]] = {
    "bce": _CROSS_ENTROPY,
    # The article's text, 3.2: cross-entropy on the fakes, mean squared error on the reals.
    "bce_mse": Objective(real=squared_error_to_one, fake=cross_entropy_to_zero, generator=cross_entropy_to_one),
    # Lim and Ye 2017; the generator's term has no margin, so that it never stops.
    "hinge": Objective(real=hinge_above_one, fake=hinge_below_minus_one, generator=torch.neg),
    # Mao et al. 2017, with the targets 1 and 0: the logit itself is the estimate.
    "lsgan": Objective(real=half_square_to_one, fake=half_square_to_zero, generator=half_square_to_one),
    "ns": _CROSS_ENTROPY,
    # R3GAN (Huang et al. 2024), with R1 and R2.
    "rpgan": PairedObjective(lead=cross_entropy_to_one),
    # Arjovsky et al. 2017: the logits' difference estimates a distance, if something keeps the discriminator Lipschitz.
    "wasserstein": Objective(real=torch.neg, fake=torch.positive, generator=torch.neg),
}


def gradient_penalty(samples: Tensor, logits: Tensor) -> Tensor:
    """Squared gradient norm of the logits with respect to each sample (Mescheder et al. 2018).

    On real images it is R1, on fakes R2.

    Args:
        samples: float32 [N, C, H, W], requires grad; all real or all fake.
        logits: float32 [N], the discriminator's output for `samples`. If it sees statistics of the batch, a sample
            pays for what it does to the others' logits too.

    Returns:
        float32 [N], one penalty per sample, neither weighted nor averaged; differentiable.
    """
    return _gradients(samples, logits).square().sum(dim=1)


def unit_gradient_penalty(samples: Tensor, logits: Tensor) -> Tensor:
    """(|gradient| - 1)^2 of the logits with respect to each sample (WGAN-GP; Gulrajani et al. 2017).

    Args:
        samples: float32 [N, C, H, W], requires grad; points between real and generated images.
        logits: float32 [N], the discriminator's output for `samples`.

    Returns:
        float32 [N], one per sample, neither weighted nor averaged; differentiable, also where the gradient is 0.
    """
    length: Tensor = torch.linalg.vector_norm(_gradients(samples, logits), dim=1)
    return (length - 1).square()


def between(real_images: Tensor, fake_images: Tensor, mix: Tensor) -> Tensor:
    """The points at `mix` float32 [N], in [0, 1], of the way from the real image to the fake of each pair."""
    return torch.lerp(real_images, fake_images, mix[:, None, None, None])


def _gradients(samples: Tensor, logits: Tensor) -> Tensor:
    """float32 [N, C * H * W], with a graph of its own."""
    (gradient,) = torch.autograd.grad(logits.sum(), samples, create_graph=True)
    return gradient.flatten(1)
