"""One update of each player: tensors in, detached tensors out; no printing, no saving, no waiting for the device.

Where several processes train together (`training.distributed`), the images are this one's share of the batch, and so
are the means that are reported; gradients, and the decision to update, are everybody's.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from training import distributed
from training.losses import Objective, PairedObjective, between, gradient_penalty, unit_gradient_penalty
from training.models import Discriminator


class DiscriminatorReport(NamedTuple):
    """Float32 scalars on the device; `loss` is without penalties, `d_*` are means of sigmoid(logit).

    With the cross-entropies those are probabilities of being real; with other objectives, a logit's place on a scale.
    `logit_margin` is how much higher the mean logit of real images is than that of fakes.
    """

    loss: Tensor
    grad_norm: Tensor
    d_real: Tensor
    d_fake: Tensor
    logit_margin: Tensor


class GeneratorReport(NamedTuple):
    """Float32 scalars on the device."""

    loss: Tensor
    grad_norm: Tensor


def discriminator_step(
    discriminator: Discriminator,
    optimizer: Optimizer,
    objective: Objective | PairedObjective,
    *,
    real_images: Tensor,
    real_labels: Tensor | None,
    fake_images: Tensor,
    fake_labels: Tensor | None,
    wrong_labels: Tensor | None = None,
    wrong_label_weight: float = 0.0,
    r1_weight: float = 0.0,
    r2_weight: float = 0.0,
    gradient_weight: float = 0.0,
    mix: Tensor | None = None,
    clip: float = 0.0,
    scaler: GradScaler | None = None,
) -> DiscriminatorReport:
    """Updates the discriminator once, unless its loss or gradient is not finite.

    loss = mean(real(D(x, y))) + mean(fake(D(G(z, y'), y'))) + wrong_label_weight * mean(fake(D(x, wrong)))
           + r1_weight * mean |grad D(x, y)|^2 + r2_weight * mean |grad D(G(z, y'), y')|^2
           + gradient_weight * mean (|grad D(x~, y)| - 1)^2,    x~ = (1 - mix) x + mix G(z, y')

    and of a paired objective, the loss of D(x, y) - D(G(z, y'), y') in place of the first two terms.

    Args:
        discriminator: its logits of real images do not depend on the fakes in the batch, nor the other way round.
        optimizer: of the discriminator's parameters.
        objective: the loss of a logit, or of a difference of two.
        real_images: float32 [N, C, H, W].
        real_labels: int64 [N], None if unconditional.
        fake_images: float32 [N, C, H, W]; nothing flows back into them.
        fake_labels: int64 [N], None if unconditional.
        wrong_labels: int64 [N], none of them the image's; None leaves the term out (Reed et al. 2016).
        wrong_label_weight: of that term.
        r1_weight: 0 leaves the penalty out.
        r2_weight: 0 leaves the penalty out.
        gradient_weight: 0 leaves the penalty out; with it, the two images of a pair are of one class.
        mix: float32 [N] in [0, 1], where each pair's gradient is taken; needed with `gradient_weight`.
        clip: afterwards every weight is in [-clip, clip]; 0 leaves them as they are.
        scaler: of the loss, where gradients are float16.
    """
    optimizer.zero_grad(set_to_none=True)
    fake_images = fake_images.detach()
    if r1_weight:
        real_images = real_images.detach().requires_grad_()
    if r2_weight:
        fake_images = fake_images.requires_grad_()
    # One pass over both halves: a batch of 64 keeps two cores busier than two of 32.
    real_features, fake_features = discriminator.features(torch.cat([real_images, fake_images]), batches=2).chunk(2)
    real_logits = discriminator.logits(real_features, real_labels)
    fake_logits = discriminator.logits(fake_features, fake_labels)
    loss = objective.discriminator_loss(real_logits, fake_logits)
    if wrong_labels is not None:
        wrong_logits = discriminator.logits(real_features, wrong_labels)
        loss = loss + wrong_label_weight * objective.wrong_label_loss(real_logits, wrong_logits)
    total = loss
    if r1_weight:
        total = total + r1_weight * gradient_penalty(real_images, real_logits).mean()
    if r2_weight:
        total = total + r2_weight * gradient_penalty(fake_images, fake_logits).mean()
    if gradient_weight:
        assert mix is not None, "the gradient penalty needs a place to be taken at"
        points = between(real_images.detach(), fake_images.detach(), mix).requires_grad_()
        total = total + gradient_weight * unit_gradient_penalty(points, discriminator(points, real_labels)).mean()
    grad_norm = _update(total, optimizer, list(discriminator.parameters()), scaler)
    if clip:
        clip_weights(discriminator, clip)
    with torch.no_grad():
        return DiscriminatorReport(
            loss=loss.detach(),
            grad_norm=grad_norm,
            d_real=torch.sigmoid(real_logits).mean(),
            d_fake=torch.sigmoid(fake_logits).mean(),
            logit_margin=real_logits.mean() - fake_logits.mean(),
        )


def generator_step(
    generator: nn.Module,
    discriminator: Discriminator,
    optimizer: Optimizer,
    objective: Objective | PairedObjective,
    *,
    fake_images: Tensor,
    fake_labels: Tensor | None,
    real_images: Tensor | None = None,
    real_labels: Tensor | None = None,
    scaler: GradScaler | None = None,
) -> GeneratorReport:
    """Updates the generator once, unless its loss or gradient is not finite; the discriminator's weights stay.

    loss = mean(generator(D(G(z, y'), y'))), and of a paired objective, the loss of D(G(z, y'), y') - D(x, y)

    Args:
        generator: it made the fakes.
        discriminator: it judges them.
        optimizer: of the generator's parameters.
        objective: the loss of a logit, or of a difference of two.
        fake_images: float32 [N, C, H, W], with the generator's graph.
        fake_labels: int64 [N], None if unconditional.
        real_images: float32 [N, C, H, W]; needed with a paired objective, and looked at with no other.
        real_labels: int64 [N], None if unconditional.
        scaler: of the loss, where gradients are float16.
    """
    optimizer.zero_grad(set_to_none=True)
    if objective.paired:
        assert real_images is not None, "a paired objective compares with real images"
        real_features, fake_features = discriminator.features(torch.cat([real_images, fake_images]), batches=2).chunk(2)
        real_logits = discriminator.logits(real_features, real_labels)
        loss = objective.generator_loss(discriminator.logits(fake_features, fake_labels), real_logits)
    else:
        loss = objective.generator_loss(discriminator(fake_images, fake_labels), None)
    grad_norm = _update(loss, optimizer, list(generator.parameters()), scaler)
    return GeneratorReport(loss=loss.detach(), grad_norm=grad_norm)


@torch.no_grad()
def clip_weights(discriminator: nn.Module, limit: float) -> None:
    """Brings every weight into [-limit, limit], in place (Arjovsky et al. 2017)."""
    for parameter in discriminator.parameters():
        parameter.clamp_(-limit, limit)


def _update(loss: Tensor, optimizer: Optimizer, parameters: list[nn.Parameter], scaler: GradScaler | None) -> Tensor:
    """Back-propagates into `parameters` alone, and updates them if the loss and the gradient are finite.

    Returns:
        The gradient's norm, float32 scalar; 0 where a scaled one was beyond float16, which the next one is not to be.
    """
    if scaler is not None:
        scaler.scale(loss).backward(inputs=parameters)  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        grad_norm = nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
        scaler.step(optimizer)
        scaler.update()
        return torch.where(grad_norm.isfinite(), grad_norm, 0.0)
    loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
    grad_norm = nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
    finite = torch.isfinite(distributed.mean(loss.detach()) + grad_norm)
    if optimizer.defaults.get("fused"):
        # The fused kernels look at this flag themselves, on the device: the door that torch.amp's GradScaler uses.
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]
        optimizer.step()
    elif finite:  # on a GPU this waits for it
        optimizer.step()
    return grad_norm
