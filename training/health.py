"""Watches the numbers of a run: for what must stop it, and for what has gone wrong with it."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from ganserve.errors import TrainingDivergedError
from training.config import TrainingConfig
from training.losses import OBJECTIVES

WINDOW_STEPS: Final = 50  # a verdict is about as many steps
_MOST: Final = 0.8  # of them

Window = Mapping[str, list[float]]  # quantity -> its values over the newest steps


class Watch:
    """The newest quantities of a run, kept on the device; they freeze at the first step where one is not finite.

    Observing never asks the device for anything. `read` does, and raises if something had gone wrong: call it at every
    step on a CPU, where it costs microseconds, and with the log elsewhere. No update is made from a non-finite gradient
    meanwhile (`training.step`), and nothing is saved before `read`.
    """

    def __init__(self, device: torch.device, recent: list[list[float]] | None = None) -> None:
        """`recent` is what `recent` said when the run was interrupted."""
        self._names: list[str] = []
        self._device = device
        self._values = torch.zeros(1, device=device)  # [step, quantity, quantity, ...]
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._recent = torch.tensor(recent, dtype=torch.float64, device=device) if recent else None

    def observe(self, step: int, quantities: Mapping[str, Tensor]) -> None:
        """Takes one float32 scalar for each name; the names are the same at every step."""
        self._names = list(quantities)
        values = torch.stack([torch.full_like(self._finite, step, dtype=torch.float64), *quantities.values()])
        self._values = torch.where(self._finite, values, self._values)
        self._finite = self._finite & values.isfinite().all()
        if self._recent is None or self._recent.shape[1] != len(values):  # resumed from other quantities
            self._recent = torch.zeros(WINDOW_STEPS, len(values), dtype=torch.float64, device=self._device)
        self._recent[step % WINDOW_STEPS] = values

    def read(self) -> dict[str, float]:
        """The quantities of the newest step.

        Raises:
            TrainingDivergedError: one of them was not finite, at this or an earlier step.
        """
        step, *values = self._values.tolist()
        for name, value in zip(self._names, values, strict=True):
            if not math.isfinite(value):
                raise TrainingDivergedError(step=int(step), quantity=name, value=value)
        return dict(zip(self._names, values, strict=True))

    def recent(self) -> list[list[float]]:
        """The newest steps for a checkpoint: rows [step, quantity, ...], zeros where there was no step yet."""
        return [] if self._recent is None else self._recent.tolist()

    def window(self) -> dict[str, list[float]]:
        """The last `WINDOW_STEPS` values of each quantity, the oldest first; nothing before there are as many."""
        rows = sorted(self.recent())
        if not rows or rows[0][0] == 0:
            return {}
        return dict(zip(self._names, map(list, zip(*(row[1:] for row in rows), strict=True)), strict=True))


def check_weights(step: int, networks: Mapping[str, nn.Module]) -> None:
    """Refuses networks that no later step could mend: an optimizer can spoil weights with the best of gradients.

    Args:
        step: where the run is.
        networks: by the name that the error gives them.

    Raises:
        TrainingDivergedError: a parameter or batch statistic is not finite; `quantity` names it.
    """
    for player, network in networks.items():
        for name, tensor in network.state_dict().items():
            bad = ~tensor.isfinite()
            if bad.any():
                raise TrainingDivergedError(step=step, quantity=f"{player}.{name}", value=float(tensor[bad][0]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Symptom:
    """Something that is wrong with a run.

    Attributes:
        name: of the kind, for programs.
        what: what is wrong, with the numbers that say so.
        remedy: what to try.
    """

    name: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; try {self.remedy}"


@torch.no_grad()
def layer_gradients(network: nn.Module) -> dict[str, float]:
    """The norm of each weight's newest gradient, by the parameter's name; biases and scales are left out."""
    weights = [(name, one.grad) for name, one in network.named_parameters() if one.grad is not None and one.ndim > 1]
    if not weights:
        return {}
    norms = torch.stack([torch.linalg.vector_norm(grad) for _, grad in weights]).tolist()  # one wait for the device
    return dict(zip((name for name, _ in weights), norms, strict=True))


def diagnose(
    config: TrainingConfig,
    *,
    step: int,
    window: Window,
    gradients: Mapping[str, Mapping[str, float]],
    judged: Mapping[str, float],
    class_shares: list[float] | None,
) -> list[Symptom]:
    """What is wrong with a run, the most telling first; nothing if nothing is.

    Args:
        config: the run's.
        step: where it is.
        window: `Watch.window`; empty if there is none yet.
        gradients: `layer_gradients` of both players.
        judged: `training.judge.Judgement.values`; empty between checkpoints.
        class_shares: of the same, if known.
    """
    found: list[Symptom] = []
    if window:
        found += filter(None, (rule(config, window) for rule in (_exploding, _saturated, _vanishing, _undecided)))
    found += filter(None, [_dead_layers(gradients)])
    if judged:
        young = step * config.images_per_step < _YOUNG_IMAGES
        late = step >= config.steps * _EARLY
        found += filter(
            None,
            [
                None if young else _collapsed(config, judged, class_shares),
                _mislabelled(config, judged) if late and not young else None,
            ],
        )
    return found


def episodes(points: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The symptoms in the lines of metrics.jsonl, each kind once, in the order in which they began.

    Returns:
        Dictionaries of `name`, `what` and `remedy` as the last line had them, `first_step`, `last_step` and in how many
        `lines` it was.
    """
    found: dict[str, dict[str, Any]] = {}
    for point in points:
        for symptom in point.get("health", ()):
            known = found.setdefault(symptom["name"], {"first_step": point["step"], "lines": 0})
            known |= symptom | {"last_step": point["step"], "lines": known["lines"] + 1}
    return list(found.values())


_EARLY: Final = 0.25  # of a run: labels take time
_YOUNG_IMAGES: Final = 5_000  # until then a generator has not begun, and its noise looks like anything
_WON: Final = 0.02  # of the loss of a discriminator that cannot tell
_FAINT: Final = 1e-4  # of a generator's gradient
_HUGE_LOSS: Final = 50.0  # times that of a discriminator that cannot tell
_HUGE_NORM: Final = 1e4  # of a gradient
_ALIKE: Final = 0.5  # of the difference that two real images of a class have
_RARE: Final = 0.1  # of a class's fair share
_WRONG: Final = 0.8  # label accuracy


def _exploding(config: TrainingConfig, window: Window) -> Symptom | None:
    undecided = _undecided_loss(config)
    loss = np.abs([window["loss_discriminator"], window["loss_generator"]]).max(axis=0)
    norm = np.max([window["grad_norm_discriminator"], window["grad_norm_generator"]], axis=0)
    huge = (loss > _HUGE_LOSS * undecided) if undecided else norm > _HUGE_NORM
    if huge.mean() < 0.5:
        return None
    return Symptom(
        name="exploding",
        what=f"training explodes: losses up to {loss.max():.2g} and gradients up to {norm.max():.2g} "
        f"in {_steps(huge)} steps",
        remedy=_either(
            (config.optimizer.discriminator_lr_share > 2, "optimizer.discriminator_lr_share=1"),
            (True, f"a lower optimizer.lr than {config.optimizer.lr:g}"),
            (config.discriminator.norm == "none" and not config.penalty.clip, "discriminator.norm=spectral"),
        ),
    )


def _saturated(config: TrainingConfig, window: Window) -> Symptom | None:
    undecided = _undecided_loss(config)
    if not undecided:
        return None
    won = np.array(window["loss_discriminator"]) < _WON * undecided
    if won.mean() < _MOST:
        return None
    return Symptom(
        name="saturated",
        what=f"the discriminator has won: its loss is {np.mean(window['loss_discriminator']):.2g}, an undecided one's "
        f"{undecided:.2g}, in {_steps(won)} steps, D(real) {np.mean(window['d_real']):.3f}, "
        f"D(fake) {np.mean(window['d_fake']):.3f}",
        remedy=_either(*_calmer_discriminator(config)),
    )


def _vanishing(config: TrainingConfig, window: Window) -> Symptom | None:
    norms = np.array(window["grad_norm_generator"])
    faint = norms < _FAINT
    if faint.mean() < _MOST:
        return None
    return Symptom(
        name="vanishing",
        what=f"generator gradients vanish: norm {np.median(norms):.0e} in {_steps(faint)} steps, "
        f"D(real) {np.mean(window['d_real']):.3f}",
        remedy=_either(
            (config.objective not in ("ns", "bce", "bce_mse", "rpgan"), "objective=ns"), *_calmer_discriminator(config)
        ),
    )


def _undecided(config: TrainingConfig, window: Window) -> Symptom | None:
    apart = np.abs(window["logit_margin"])
    still = np.array(window["grad_norm_discriminator"]) < _FAINT
    if still.mean() < _MOST or apart.mean() > 0.01:
        return None
    return Symptom(
        name="undecided",
        what=f"the discriminator learns nothing: logits of real images and fakes are {apart.mean():.1g} apart, "
        f"and its gradients below {_FAINT:g} in {_steps(still)} steps",
        remedy=_either(
            (config.discriminator.activation == "relu", "discriminator.activation=leaky_relu"),
            (bool(config.penalty.clip), f"penalty.gradient=10 in place of penalty.clip={config.penalty.clip:g}"),
            (config.penalty.r1 > 1, f"penalty.r1={config.penalty.r1 / 10:g}"),
            (True, "a larger optimizer.discriminator_lr_share"),
        ),
    )


def _dead_layers(gradients: Mapping[str, Mapping[str, float]]) -> Symptom | None:
    dead = [f"{player}.{name}" for player, norms in gradients.items() for name, norm in norms.items() if norm == 0.0]
    if not dead:
        return None
    listed = ", ".join(dead[:3]) + (f" and {len(dead) - 3} more" if len(dead) > 3 else "")
    return Symptom(
        name="dead_layers",
        what=f"no gradient reaches {listed}",
        remedy="leaky_relu or prelu as the activation, or a lower optimizer.lr",
    )


def _collapsed(config: TrainingConfig, judged: Mapping[str, float], class_shares: list[float] | None) -> Symptom | None:
    shares = class_shares or []
    missing = [label for label, share in enumerate(shares) if share < _RARE / len(shares)]
    signs = []
    if judged["diversity"] < _ALIKE:
        signs.append(f"two images of a class differ by {judged['diversity']:.0%} of what real ones do")
    if missing:
        signs.append(f"{len(missing)} of {len(shares)} classes are missing, {max(shares):.0%} are of one")
    if not signs:
        return None
    return Symptom(
        name="collapse",
        what=f"the generator collapses: {' and '.join(signs)}",
        remedy=_either(
            (bool(missing) and not config.conditional, "conditional=true"),
            (not config.discriminator.minibatch_deviation, "discriminator.minibatch_deviation=true"),
            *_calmer_discriminator(config),
        ),
    )


def _mislabelled(config: TrainingConfig, judged: Mapping[str, float]) -> Symptom | None:
    accuracy = judged.get("label_accuracy")
    if accuracy is None or accuracy >= _WRONG:
        return None
    return Symptom(
        name="mislabelled",
        what=f"images do not show the class that was asked for: label accuracy {accuracy:.1%}",
        remedy=_either(
            (config.objective != "wasserstein", f"wrong_label_weight={2 * config.wrong_label_weight or 0.1:g}"),
            (True, "more steps"),
        ),
    )


def _calmer_discriminator(config: TrainingConfig) -> Iterator[tuple[bool, str]]:
    """What holds a discriminator back, as far as the run does not have it."""
    penalty, augment, share = config.penalty, config.augment, config.optimizer.discriminator_lr_share
    yield not (penalty.r1 or penalty.gradient or penalty.clip), "penalty.r1=1"
    yield config.discriminator.norm == "none" and not penalty.clip, "discriminator.norm=spectral"
    yield share > 0.25, f"optimizer.discriminator_lr_share={share / 2:g}"
    yield not any(dataclasses.astuple(augment)), "augment.translation=0.125"
    yield config.discriminator_steps > 1, "discriminator_steps=1"
    yield True, "a smaller discriminator.width"


def _either(*options: tuple[bool, str]) -> str:
    """The first two that apply."""
    return ", or ".join(itertools.islice((text for applies, text in options if applies), 2))


def _undecided_loss(config: TrainingConfig) -> float:
    """The loss of a discriminator whose every logit is 0; 0 where losses have no scale (Wasserstein)."""
    objective, nothing = OBJECTIVES[config.objective], torch.zeros(1)
    loss = objective.discriminator_loss(nothing, nothing)
    if config.wrong_label_weight:
        loss = loss + config.wrong_label_weight * objective.wrong_label_loss(nothing, nothing)
    return abs(float(loss))


def _steps(which: Any) -> str:
    return f"{int(which.sum())} of {len(which)}"
