import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from training.config import TrainingConfig
from training.data import DatasetFacts
from training.losses import OBJECTIVES, Objective
from training.models import Discriminator
from training.optimizers import OPTIMIZERS
from training.state import TrainingState, new_state
from training.step import DiscriminatorReport, discriminator_step, generator_step

MakeConfig = Callable[..., TrainingConfig]
FACTS = DatasetFacts(name="x", images=8, class_names=tuple("012"), height=8, width=8, channels=1, digest="")
LABELS = torch.arange(6) % 3


@pytest.fixture
def state(make_config: MakeConfig) -> TrainingState:
    """Two tiny players before their first step."""
    return new_state(make_config(), FACTS, torch.device("cpu"))


def update_discriminator(
    state: TrainingState, objective: Objective = OBJECTIVES["ns"], **options: object
) -> DiscriminatorReport:
    """One step on one fixed batch, with `options` in place of its arguments."""
    generator = torch.Generator().manual_seed(1)
    arguments = {
        "real_images": torch.rand(6, 1, 8, 8, generator=generator),
        "real_labels": LABELS,
        "fake_images": torch.rand(6, 1, 8, 8, generator=generator),
        "fake_labels": LABELS.flip(0),
    }
    return discriminator_step(state.discriminator, state.discriminator_optimizer, objective, **(arguments | options))  # type: ignore[arg-type]


def weights(network: nn.Module) -> list[torch.Tensor]:
    """The parameters as they are now."""
    return [one.detach().clone() for one in network.parameters()]


def same(before: list[torch.Tensor], network: nn.Module) -> bool:
    """Whether the parameters are those of `before`, to the bit."""
    return all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))


def test_the_discriminator_step_computes_its_formula(state: TrainingState) -> None:
    """The reported loss is that of one pass over real, fake and wrongly labelled images, before the update."""
    twin = copy.deepcopy(state.discriminator)
    images = torch.rand(12, 1, 8, 8)
    wrong = (LABELS + 1) % 3
    report = update_discriminator(
        state, real_images=images[:6], fake_images=images[6:], wrong_labels=wrong, wrong_label_weight=0.3
    )
    softplus = nn.functional.softplus
    real, fake = twin(images[:6], LABELS), twin(images[6:], LABELS.flip(0))
    expected = softplus(-real).mean() + softplus(fake).mean() + 0.3 * softplus(twin(images[:6], wrong)).mean()
    torch.testing.assert_close(report.loss, expected.detach())
    torch.testing.assert_close(report.d_real, torch.sigmoid(real).mean().detach())
    torch.testing.assert_close(report.d_fake, torch.sigmoid(fake).mean().detach())
    expected.backward()
    norm = torch.stack([one.grad.norm() for one in twin.parameters() if one.grad is not None]).norm()
    torch.testing.assert_close(report.grad_norm, norm)


def test_r1_enters_the_gradient_but_not_the_reported_loss(state: TrainingState) -> None:
    """Losses of steps with and without a lazy penalty can be compared; their updates differ."""
    other = copy.deepcopy(state)
    other.discriminator_optimizer = OPTIMIZERS["adam"](
        TrainingConfig(recipe="x").optimizer, other.discriminator.parameters()
    )
    plain, penalised = update_discriminator(state), update_discriminator(other, r1_weight=100.0)
    torch.testing.assert_close(plain.loss, penalised.loss)
    assert penalised.grad_norm > plain.grad_norm


def test_each_step_updates_its_own_player_alone(state: TrainingState) -> None:
    """Neither weights nor gradients of the other player are touched; real images want no gradient afterwards."""
    generator_before = weights(state.generator)
    fakes = state.generator(torch.randn(6, 4), LABELS)
    real = torch.rand(6, 1, 8, 8)
    update_discriminator(state, real_images=real, fake_images=fakes, r1_weight=1.0)
    assert same(generator_before, state.generator)
    assert all(one.grad is None for one in state.generator.parameters())
    assert not real.requires_grad

    discriminator_before = weights(state.discriminator)
    gradients_before = [one.grad.clone() for one in state.discriminator.parameters() if one.grad is not None]
    report = generator_step(
        state.generator,
        state.discriminator,
        state.generator_optimizer,
        OBJECTIVES["ns"],
        fake_images=fakes,
        fake_labels=LABELS,
    )
    assert same(discriminator_before, state.discriminator)
    gradients = [one.grad for one in state.discriminator.parameters() if one.grad is not None]
    assert all(torch.equal(old, new) for old, new in zip(gradients_before, gradients, strict=True))
    assert not same(generator_before, state.generator)
    assert report.loss.grad_fn is None


def test_steps_make_the_logits_go_where_they_should(state: TrainingState) -> None:
    """Thirty updates on one batch make the discriminator sure of both halves."""
    before = update_discriminator(state)
    for _ in range(30):
        after = update_discriminator(state)
    assert after.loss < before.loss
    assert after.d_real > 0.5 > after.d_fake


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_is_updated_with_what_is_not_finite(make_config: MakeConfig, optimizer: str, bad: float) -> None:
    """A loss that is NaN or infinite is reported, and leaves the weights and the optimizer's moments as they were."""
    state = new_state(make_config(f"optimizer.kind={optimizer}"), FACTS, torch.device("cpu"))
    update_discriminator(state)
    before = weights(state.discriminator)
    moments = copy.deepcopy(state.discriminator_optimizer.state_dict()["state"])
    objective = Objective(real=lambda logits: logits * bad, fake=lambda logits: logits, generator=lambda logits: logits)
    report = update_discriminator(state, objective)
    assert not (report.loss + report.grad_norm).isfinite()
    assert same(before, state.discriminator)
    for index, entry in state.discriminator_optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[index][name]) for name, value in entry.items())
    update_discriminator(state)
    assert not same(before, state.discriminator)
    assert all(one.isfinite().all() for one in state.discriminator.parameters())


class Linear(Discriminator):
    """D(x) = w . x with w = (3, 4): every penalty is known."""

    def __init__(self) -> None:
        super().__init__(2, None)
        self.logit.weight.data[:] = torch.tensor([3.0, 4.0])

    def features(self, images: torch.Tensor, *, batches: int = 1) -> torch.Tensor:
        """See `Discriminator.features`."""
        return images.flatten(1)


@pytest.mark.parametrize(
    ("options", "gradient"),
    [
        ({}, [0.0, 0.0]),
        ({"r1_weight": 0.5}, [3.0, 4.0]),  # of weight |w|^2: 2 weight w
        ({"r2_weight": 0.5}, [3.0, 4.0]),
        ({"r1_weight": 0.5, "r2_weight": 1.0}, [9.0, 12.0]),
        (
            {"gradient_weight": 0.5, "mix": torch.rand(6)},
            [2.4, 3.2],
        ),  # of weight (|w| - 1)^2: 2 weight (|w| - 1) w / |w|
    ],
    ids=["none", "r1", "r2", "both", "unit"],
)
def test_each_penalty_arrives_with_its_weight(options: dict[str, object], gradient: list[float]) -> None:
    """Of a linear discriminator that sees no difference between real and fake, the gradient is the penalty's alone."""
    discriminator = Linear()
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=1.0)
    images = torch.randn(6, 1, 1, 2)
    discriminator_step(
        discriminator,
        optimizer,
        OBJECTIVES["wasserstein"],
        real_images=images,
        real_labels=None,
        fake_images=images,
        fake_labels=None,
        **options,  # type: ignore[arg-type]
    )
    expected = torch.tensor([[3.0, 4.0]]) - torch.tensor([gradient])
    torch.testing.assert_close(discriminator.logit.weight.detach(), expected, rtol=0, atol=1e-5)


def test_clipped_weights_stay_in_their_range(state: TrainingState) -> None:
    """After a step no weight of the discriminator is beyond the limit, and some are at it."""
    update_discriminator(state, clip=0.01)
    largest = max(one.abs().max().item() for one in state.discriminator.parameters())
    assert largest == pytest.approx(0.01)


def test_a_paired_step_computes_its_formula(state: TrainingState) -> None:
    """Of `rpgan`, both players' reported losses are those of the differences of real and fake logits, by position."""
    objective, softplus = OBJECTIVES["rpgan"], nn.functional.softplus
    twin = copy.deepcopy(state.discriminator)
    real, wrong = torch.rand(6, 1, 8, 8), (LABELS + 1) % 3
    fakes = state.generator(torch.randn(6, 4), LABELS)
    generator_report = generator_step(
        state.generator,
        state.discriminator,
        state.generator_optimizer,
        objective,
        fake_images=fakes,
        fake_labels=LABELS,
        real_images=real,
        real_labels=LABELS,
    )
    lead = twin(real, LABELS) - twin(fakes, LABELS)
    torch.testing.assert_close(generator_report.loss, softplus(lead).mean().detach())

    report = update_discriminator(
        state,
        objective,  # type: ignore[arg-type]
        real_images=real,
        fake_images=fakes,
        fake_labels=LABELS,
        wrong_labels=wrong,
        wrong_label_weight=0.3,
    )
    over_wrong = twin(real, LABELS) - twin(real, wrong)
    torch.testing.assert_close(report.loss, (softplus(-lead).mean() + 0.3 * softplus(-over_wrong).mean()).detach())


def test_a_scale_beyond_float16_is_halved_and_changes_nothing(state: TrainingState) -> None:
    """Gradients that overflow make no update and are no divergence; otherwise the update is that without a scale."""
    twin = copy.deepcopy(state)
    before = copy.deepcopy(state.discriminator.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1)
    report = update_discriminator(state, scaler=scaler, real_images=1e6 * torch.rand(6, 1, 8, 8))
    assert (float(report.grad_norm), scaler.get_scale()) == (0.0, 2.0**126)
    for name, tensor in state.discriminator.state_dict().items():
        assert torch.equal(tensor, before[name])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled, plain = update_discriminator(state, scaler=scaler), update_discriminator(twin)
    assert float(scaled.grad_norm) == pytest.approx(float(plain.grad_norm))
    for name, tensor in state.discriminator.state_dict().items():
        torch.testing.assert_close(tensor, twin.discriminator.state_dict()[name])
