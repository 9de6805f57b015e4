"""Watches the numbers of a run for what must stop it."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ganserve.errors import TrainingDivergedError


class Watch:
    """The newest quantities of a run, kept on the device; they freeze at the first step where one is not finite.

    Observing never asks the device for anything. `read` does, and raises if something had gone wrong: call it at every
    step on a CPU, where it costs microseconds, and with the log elsewhere. No update is made from a non-finite gradient
    meanwhile (`training.step`), and nothing is saved before `read`.
    """

    def __init__(self, device: torch.device) -> None:
        self._names: list[str] = []
        self._values = torch.zeros(1, device=device)  # [step, quantity, quantity, ...]
        self._finite = torch.ones((), dtype=torch.bool, device=device)

    def observe(self, step: int, quantities: Mapping[str, Tensor]) -> None:
        """Takes one float32 scalar for each name; the names are the same at every step."""
        self._names = list(quantities)
        values = torch.stack([torch.full_like(self._finite, step, dtype=torch.float64), *quantities.values()])
        self._values = torch.where(self._finite, values, self._values)
        self._finite = self._finite & values.isfinite().all()

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
