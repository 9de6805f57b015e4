"""One update of each player: tensors in, detached tensors out; no printing, no saving, no waiting for the device."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training.losses import Objective, gradient_penalty
from training.models import Discriminator


class DiscriminatorReport(NamedTuple):
    """Float32 scalars on the device; `loss` is without penalties, `d_*` are mean probabilities of being real."""

    loss: Tensor
    grad_norm: Tensor
    d_real: Tensor
    d_fake: Tensor


class GeneratorReport(NamedTuple):
    """Float32 scalars on the device."""

    loss: Tensor
    grad_norm: Tensor


def discriminator_step(
    discriminator: Discriminator,
    optimizer: Optimizer,
    objective: Objective,
    *,
    real_images: Tensor,
    real_labels: Tensor | None,
    fake_images: Tensor,
    fake_labels: Tensor | None,
    wrong_labels: Tensor | None = None,
    wrong_label_weight: float = 0.0,
    r1_weight: float = 0.0,
) -> DiscriminatorReport:
    """Updates the discriminator once, unless its loss or gradient is not finite.

    loss = mean(real(D(x, y))) + mean(fake(D(G(z, y'), y'))) + wrong_label_weight * mean(fake(D(x, wrong)))
           + r1_weight * mean |grad_x D(x, y)|^2

    Args:
        discriminator: its logits of one image do not depend on the others in the batch.
        optimizer: of the discriminator's parameters.
        objective: the loss of a logit.
        real_images: float32 [N, C, H, W].
        real_labels: int64 [N], None if unconditional.
        fake_images: float32 [N, C, H, W]; nothing flows back into them.
        fake_labels: int64 [N], None if unconditional.
        wrong_labels: int64 [N], none of them the image's; None leaves the term out (Reed et al. 2016).
        wrong_label_weight: of that term.
        r1_weight: 0 leaves the penalty out.
    """
    optimizer.zero_grad(set_to_none=True)
    if r1_weight:
        real_images = real_images.detach().requires_grad_()
    # One pass over both halves: a batch of 64 keeps two cores busier than two of 32.
    real_features, fake_features = discriminator.features(torch.cat([real_images, fake_images.detach()])).chunk(2)
    real_logits = discriminator.logits(real_features, real_labels)
    fake_logits = discriminator.logits(fake_features, fake_labels)
    loss = objective.real(real_logits).mean() + objective.fake(fake_logits).mean()
    if wrong_labels is not None:
        loss = loss + wrong_label_weight * objective.fake(discriminator.logits(real_features, wrong_labels)).mean()
    total = loss
    if r1_weight:
        total = loss + r1_weight * gradient_penalty(real_images, real_logits).mean()
    grad_norm = _update(total, optimizer, list(discriminator.parameters()))
    with torch.no_grad():
        return DiscriminatorReport(
            loss=loss.detach(),
            grad_norm=grad_norm,
            d_real=torch.sigmoid(real_logits).mean(),
            d_fake=torch.sigmoid(fake_logits).mean(),
        )


def generator_step(
    generator: nn.Module,
    discriminator: Discriminator,
    optimizer: Optimizer,
    objective: Objective,
    *,
    fake_images: Tensor,
    fake_labels: Tensor | None,
) -> GeneratorReport:
    """Updates the generator once, unless its loss or gradient is not finite; the discriminator stays as it is.

    loss = mean(generator(D(G(z, y'), y')))

    Args:
        generator: it made the fakes.
        discriminator: it judges them.
        optimizer: of the generator's parameters.
        objective: the loss of a logit.
        fake_images: float32 [N, C, H, W], with the generator's graph.
        fake_labels: int64 [N], None if unconditional.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = objective.generator(discriminator(fake_images, fake_labels)).mean()
    grad_norm = _update(loss, optimizer, list(generator.parameters()))
    return GeneratorReport(loss=loss.detach(), grad_norm=grad_norm)


def _update(loss: Tensor, optimizer: Optimizer, parameters: list[nn.Parameter]) -> Tensor:
    """Back-propagates into `parameters` alone, and updates them if the loss and the gradient are finite.

    Returns:
        The gradient's norm, float32 scalar.
    """
    loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
    grad_norm = nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
    finite = torch.isfinite(loss.detach() + grad_norm)
    if optimizer.defaults.get("fused"):
        # The fused kernels look at this flag themselves, on the device: the door that torch.amp's GradScaler uses.
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        optimizer.step()
    elif finite:  # on a GPU this waits for it
        optimizer.step()
    return grad_norm
