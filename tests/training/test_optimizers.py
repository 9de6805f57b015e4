import pytest
import torch

from training.config import OptimizerConfig
from training.optimizers import OPTIMIZERS, learning_rate, set_learning_rate


def test_the_rate_falls_along_a_cosine() -> None:
    """It starts at `lr`, is half-way in the middle, and ends at its final share; beyond the end it stays there."""
    config = OptimizerConfig(lr=1.0, final_lr_share=0.2)
    rates = [learning_rate(config, images_seen=seen, total_images=100) for seen in (0, 50, 100, 200)]
    assert rates == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_a_final_share_of_one_keeps_the_rate() -> None:
    """The article's rate does not change."""
    config = OptimizerConfig(lr=2e-4, final_lr_share=1.0)
    assert {learning_rate(config, images_seen=seen, total_images=100) for seen in range(0, 100, 7)} == {2e-4}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_downhill_at_the_rate_it_is_set_to(name: str) -> None:
    """A step at rate 0 moves nothing; at a positive rate it goes against the gradient."""
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = OPTIMIZERS[name](OptimizerConfig(kind=name, lr=0.1), [parameter])
    parameter.grad = torch.tensor([2.0])
    set_learning_rate(optimizer, 0.0)
    optimizer.step()
    assert parameter.item() == 1.0
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    assert parameter.item() < 1.0


def test_every_optimizer_setting_arrives() -> None:
    """Learning rate, both betas and eps are what the optimizers are made with; RMSprop takes beta1 as its momentum."""
    config = OptimizerConfig(lr=0.3, beta1=0.4, beta2=0.8, eps=1e-3)
    adam = OPTIMIZERS["adam"](config, [torch.nn.Parameter(torch.zeros(1))]).defaults
    assert (adam["lr"], adam["betas"], adam["eps"]) == (0.3, (0.4, 0.8), 1e-3)
    rmsprop = OPTIMIZERS["rmsprop"](config, [torch.nn.Parameter(torch.zeros(1))]).defaults
    assert (rmsprop["lr"], rmsprop["momentum"], rmsprop["alpha"], rmsprop["eps"]) == (0.3, 0.4, 0.8, 1e-3)
    config = OptimizerConfig(kind="adamw", lr=0.3, beta1=0.4, beta2=0.8, eps=1e-3, weight_decay=0.25)
    adamw = OPTIMIZERS["adamw"](config, [torch.nn.Parameter(torch.zeros(1))]).defaults
    assert (adamw["lr"], adamw["betas"], adamw["eps"], adamw["weight_decay"]) == (0.3, (0.4, 0.8), 1e-3, 0.25)


def test_weight_decay_shrinks_what_has_no_gradient() -> None:
    """AdamW takes lr * weight_decay of a weight at each step, whatever the moments are."""
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = OPTIMIZERS["adamw"](OptimizerConfig(kind="adamw", lr=0.1, weight_decay=0.5), [parameter])
    parameter.grad = torch.tensor([0.0])
    optimizer.step()
    assert parameter.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))
