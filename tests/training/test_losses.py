import math

import pytest
import torch

from training.losses import (
    OBJECTIVES,
    Objective,
    between,
    cross_entropy_to_one,
    cross_entropy_to_zero,
    gradient_penalty,
    squared_error_to_one,
    unit_gradient_penalty,
)


def test_an_undecided_discriminator_costs_log_two() -> None:
    """Binary cross-entropy of logit 0 is log 2 whatever the target; the squared error of probability 1/2 is 1/4."""
    zero = torch.zeros(3)
    assert cross_entropy_to_one(zero).tolist() == pytest.approx([math.log(2)] * 3)
    assert cross_entropy_to_zero(zero).tolist() == pytest.approx([math.log(2)] * 3)
    assert squared_error_to_one(zero).tolist() == [0.25] * 3


def test_cross_entropy_is_that_of_torch() -> None:
    """The oracle is torch's binary cross-entropy with logits."""
    logits = torch.linspace(-20, 20, 41)
    oracle = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(cross_entropy_to_one(logits), oracle(logits, torch.ones(41), reduction="none"))
    torch.testing.assert_close(cross_entropy_to_zero(logits), oracle(logits, torch.zeros(41), reduction="none"))


def test_a_sure_discriminator_costs_nothing_and_an_infinite_one_is_not_nan() -> None:
    """Logits of +-1000 give 0 or 1000, not infinity: the loss is taken of the logit, not of its probability."""
    sure = torch.tensor([1000.0])
    assert cross_entropy_to_one(sure).item() == 0.0
    assert cross_entropy_to_zero(sure).item() == 1000.0
    assert squared_error_to_one(sure).item() == 0.0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_rewards_what_it_should(name: str) -> None:
    """Higher logits of reals, lower ones of fakes and wrong labels, and for the generator higher ones of fakes."""
    objective = OBJECTIVES[name]
    low, high = torch.zeros(4), torch.ones(4)
    assert objective.discriminator_loss(high, low) < objective.discriminator_loss(low, low)
    assert objective.discriminator_loss(high, low) < objective.discriminator_loss(high, high)
    assert objective.wrong_label_loss(high, low) < objective.wrong_label_loss(high, high)
    assert objective.generator_loss(high, low) < objective.generator_loss(low, low)
    assert objective.discriminator_loss(low, high).shape == objective.generator_loss(low, high).shape == ()
    if not objective.paired:
        assert torch.equal(objective.generator_loss(high, None), objective.generator_loss(high, low))


# Of D(x) = 2 x, reals at 0 and 1, and fakes at -1 and 3: logits 0, 2 and -2, 6.
REAL, FAKE = torch.tensor([0.0, 2.0]), torch.tensor([-2.0, 6.0])
BCE_FAKE = (math.log1p(math.exp(-2)) + math.log1p(math.exp(6))) / 2
BCE_GENERATOR = (math.log1p(math.exp(2)) + math.log1p(math.exp(-6))) / 2
BCE = (math.log(2) + math.log1p(math.exp(-2))) / 2 + BCE_FAKE


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("bce", BCE, BCE_GENERATOR),
        ("ns", BCE, BCE_GENERATOR),
        ("bce_mse", (0.25 + (1 / (1 + math.exp(-2)) - 1) ** 2) / 2 + BCE_FAKE, BCE_GENERATOR),
        ("lsgan", (1 + 1) / 4 + (4 + 36) / 4, (9 + 25) / 4),
        ("hinge", (1 + 0) / 2 + (0 + 7) / 2, -(-2 + 6) / 2),
        ("wasserstein", -1 + 2, -2),
        # The leads of the reals are 2 and -4.
        (
            "rpgan",
            (math.log1p(math.exp(-2)) + math.log1p(math.exp(4))) / 2,
            (math.log1p(math.exp(2)) + math.log1p(math.exp(-4))) / 2,
        ),
    ],
)
def test_an_objective_has_its_closed_form(name: str, discriminator: float, generator: float) -> None:
    """Both losses of a linear discriminator at four points are those of the papers' formulas, worked out by hand."""
    objective = OBJECTIVES[name]
    assert objective.discriminator_loss(REAL, FAKE).item() == pytest.approx(discriminator, rel=1e-6)
    assert objective.generator_loss(FAKE, REAL).item() == pytest.approx(generator, rel=1e-6)


def test_only_leads_count_for_pairs() -> None:
    """A relativistic loss does not change when every logit does by the same amount."""
    objective = OBJECTIVES["rpgan"]
    moved = objective.discriminator_loss(REAL + 5, FAKE + 5)
    torch.testing.assert_close(moved, objective.discriminator_loss(REAL, FAKE))
    assert objective.paired
    assert not any(other.paired for name, other in OBJECTIVES.items() if name != "rpgan")


def test_the_article_text_differs_from_its_code_in_the_real_term_alone() -> None:
    """`bce_mse` is `bce` with the mean squared error of the probability on real images."""
    logits = torch.linspace(-3, 3, 7)
    text, code = OBJECTIVES["bce_mse"], OBJECTIVES["bce"]
    assert isinstance(text, Objective)
    assert isinstance(code, Objective)
    assert torch.equal(text.fake(logits), code.fake(logits))
    assert torch.equal(text.generator(logits), code.generator(logits))
    torch.testing.assert_close(text.real(logits), (torch.sigmoid(logits) - 1) ** 2)


def test_the_penalty_of_a_linear_discriminator_is_its_squared_weight() -> None:
    """D(x) = w . x has gradient w everywhere, so R1 is |w|^2 for every sample, and its gradient is 2 w."""
    weight = torch.tensor([[3.0, 4.0]], requires_grad=True)
    samples = torch.randn(5, 1, 1, 2, requires_grad=True)
    penalty = gradient_penalty(samples, (samples.flatten(1) @ weight.T).squeeze(1))
    assert penalty.tolist() == [25.0] * 5
    penalty.mean().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[6.0, 8.0]]


def test_the_penalty_is_per_sample() -> None:
    """Of D(x) = |x|^2 / 2 the gradient is x itself: each sample pays for its own."""
    samples = torch.randn(5, 1, 2, 2, requires_grad=True)
    penalty = gradient_penalty(samples, samples.square().flatten(1).sum(dim=1) / 2)
    torch.testing.assert_close(penalty, samples.square().flatten(1).sum(dim=1))


def test_the_unit_penalty_of_a_linear_discriminator_is_known() -> None:
    """D(x) = w . x with |w| = 5 pays (5 - 1)^2 everywhere, and its gradient is 2 (|w| - 1) w / |w|."""
    weight = torch.tensor([[3.0, 4.0]], requires_grad=True)
    samples = torch.randn(5, 1, 1, 2, requires_grad=True)
    penalty = unit_gradient_penalty(samples, (samples.flatten(1) @ weight.T).squeeze(1))
    assert penalty.tolist() == [16.0] * 5
    penalty.mean().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([[4.8, 6.4]]))


def test_the_unit_penalty_of_a_flat_discriminator_is_finite() -> None:
    """Where the gradient is zero, as of a dead network, its length has a gradient of zero and not NaN."""
    weight = torch.zeros(1, 2, requires_grad=True)
    samples = torch.randn(5, 1, 1, 2, requires_grad=True)
    penalty = unit_gradient_penalty(samples, (samples.flatten(1) @ weight.T).squeeze(1))
    assert penalty.tolist() == [1.0] * 5
    penalty.mean().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.0, 0.0]]


def test_points_lie_between_the_images_of_a_pair() -> None:
    """At 0 of the way it is the real image, at 1 the fake, and each pair has its own place."""
    real, fake = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    points = between(real, fake, torch.tensor([0.0, 0.25, 1.0]))
    assert points.flatten(1).mean(dim=1).tolist() == [0.0, 0.25, 1.0]
    assert points.shape == (3, 1, 2, 2)
