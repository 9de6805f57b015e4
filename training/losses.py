"""The objectives and penalties: pure functions of tensors."""

import dataclasses
from collections.abc import Callable
from typing import Final

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


def cross_entropy_to_one(logits: Tensor) -> Tensor:
    """-log(sigmoid(logit)), stable for any logit: float32 [N] -> [N], >= 0."""
    return functional.softplus(-logits)


def cross_entropy_to_zero(logits: Tensor) -> Tensor:
    """-log(1 - sigmoid(logit)), stable for any logit: float32 [N] -> [N], >= 0."""
    return functional.softplus(logits)


def squared_error_to_one(logits: Tensor) -> Tensor:
    """(sigmoid(logit) - 1)^2, the error of the probability: float32 [N] -> [N], in [0, 1]."""
    return (torch.sigmoid(logits) - 1).square()


# Goodfellow et al. 2014. The generator's target is 1: that is the loss which section 3 calls non-saturating, so `bce`
# (the article's word) and `ns` (the literature's) are one function under both of its names.
_CROSS_ENTROPY = Objective(real=cross_entropy_to_one, fake=cross_entropy_to_zero, generator=cross_entropy_to_one)

OBJECTIVES: Final[dict[str, Objective]] = {
    "bce": _CROSS_ENTROPY,
    # The article's text, 3.2: cross-entropy on the fakes, mean squared error on the reals.
    "bce_mse": Objective(real=squared_error_to_one, fake=cross_entropy_to_zero, generator=cross_entropy_to_one),
    "ns": _CROSS_ENTROPY,
}


def gradient_penalty(samples: Tensor, logits: Tensor) -> Tensor:
    """Squared gradient norm of the logits with respect to each sample (R1 on real images; Mescheder et al. 2018).

    Args:
        samples: float32 [N, C, H, W], requires grad; real images.
        logits: float32 [N], the discriminator's output for `samples`, each of its own sample alone.

    Returns:
        float32 [N], one penalty per sample, neither weighted nor averaged; differentiable.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), samples, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1)
