"""Name -> builder of every optimizer, and the learning rate as a function of the training clock."""

import math
from collections.abc import Callable, Iterable
from typing import Final

from torch import nn
from torch.optim import Adam, AdamW, Optimizer, RMSprop

from training.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, *, images_seen: int, total_images: int) -> float:
    """Half a cosine from `lr` at no image seen to `final_lr_share * lr` at `total_images`."""
    progress = min(images_seen / total_images, 1.0)
    share = config.final_lr_share + (1 - config.final_lr_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * share


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """What the next step moves by."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def build_adam(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Adam (Kingma and Ba 2015), as one fused kernel: it can be told on the device not to update (`training.step`)."""
    return Adam(parameters, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def build_adamw(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019): Adam whose weight decay does not go through the moments; fused as Adam is."""
    betas = (config.beta1, config.beta2)
    return AdamW(parameters, lr=config.lr, betas=betas, eps=config.eps, weight_decay=config.weight_decay, fused=True)


def build_rmsprop(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """RMSprop (Tieleman and Hinton 2012): `beta2` decays the second moment, `beta1` is the momentum."""
    return RMSprop(parameters, lr=config.lr, alpha=config.beta2, momentum=config.beta1, eps=config.eps, foreach=True)


OPTIMIZERS: Final[dict[str, Callable[[OptimizerConfig, Iterable[nn.Parameter]], Optimizer]]] = {
    "adam": build_adam,
    "adamw": build_adamw,
    "rmsprop": build_rmsprop,
}
