import math

import pytest
import torch

from training.losses import (
    OBJECTIVES,
    cross_entropy_to_one,
    cross_entropy_to_zero,
    gradient_penalty,
    squared_error_to_one,
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
    """Higher logits of real images, lower ones of fakes, and for the generator higher ones of fakes: one value each."""
    objective = OBJECTIVES[name]
    low, high = torch.full((4,), -1.0), torch.full((4,), 1.0)
    assert objective.real(high).shape == (4,)
    assert (objective.real(high) < objective.real(low)).all()
    assert (objective.fake(low) < objective.fake(high)).all()
    assert (objective.generator(high) < objective.generator(low)).all()


def test_the_article_text_differs_from_its_code_in_the_real_term_alone() -> None:
    """`bce_mse` is `bce` with the mean squared error of the probability on real images."""
    logits = torch.linspace(-3, 3, 7)
    text, code = OBJECTIVES["bce_mse"], OBJECTIVES["bce"]
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
