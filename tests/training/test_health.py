import math

import pytest
import torch

from ganserve.errors import TrainingDivergedError
from training.health import Watch, check_weights


def scalar(value: float) -> torch.Tensor:
    """A quantity as the steps report it."""
    return torch.tensor(value)


def test_the_newest_quantities_are_read() -> None:
    """What was observed last is what is read, by name."""
    watch = Watch(torch.device("cpu"))
    watch.observe(1, {"loss": scalar(3.0), "norm": scalar(1.0)})
    watch.observe(2, {"loss": scalar(2.0), "norm": scalar(0.5)})
    assert watch.read() == {"loss": 2.0, "norm": 0.5}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_bad_step_is_remembered(bad: float) -> None:
    """However late it is read, the error has the step, the quantity and the value of when it went wrong."""
    watch = Watch(torch.device("cpu"))
    watch.observe(1, {"loss": scalar(3.0), "norm": scalar(1.0)})
    watch.observe(2, {"loss": scalar(2.0), "norm": scalar(bad)})
    watch.observe(3, {"loss": scalar(math.nan), "norm": scalar(1.0)})
    watch.observe(4, {"loss": scalar(1.0), "norm": scalar(1.0)})
    with pytest.raises(TrainingDivergedError, match="diverged at step 2: norm is") as caught:
        watch.read()
    assert (caught.value.step, caught.value.quantity) == (2, "norm")
    assert caught.value.value == bad or (math.isnan(bad) and math.isnan(caught.value.value))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_spoilt_weight_is_named(bad: float) -> None:
    """The first parameter or batch statistic that is not finite is the error; counters and finite weights are not."""
    networks = {"generator": torch.nn.Linear(2, 2), "discriminator": torch.nn.BatchNorm1d(3)}
    check_weights(5, networks)
    networks["discriminator"].get_buffer("running_var")[1] = bad
    with pytest.raises(TrainingDivergedError, match=f"step 5: discriminator.running_var is {bad}") as caught:
        check_weights(5, networks)
    assert (caught.value.step, caught.value.quantity) == (5, "discriminator.running_var")
