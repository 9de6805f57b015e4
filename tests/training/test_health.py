import json
import math
from pathlib import Path

import pytest
import torch

from ganserve.errors import TrainingDivergedError
from training.config import load_recipe
from training.health import WINDOW_STEPS, Symptom, Watch, check_weights, diagnose, episodes, layer_gradients
from training.loop import train
from training.losses import OBJECTIVES
from training.run_dir import read_metrics


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


def windows(**quantities: float) -> dict[str, list[float]]:
    """Fifty steps of a run that is well, but for what is said otherwise."""
    well = {
        "loss_discriminator": 1.1,
        "loss_generator": 0.9,
        "d_real": 0.6,
        "d_fake": 0.4,
        "logit_margin": 1.0,
        "grad_norm_discriminator": 1.0,
        "grad_norm_generator": 0.5,
    }
    return {name: [value] * WINDOW_STEPS for name, value in (well | quantities).items()}


def found(
    *overrides: str,
    step: int = 2000,
    gradients: dict[str, dict[str, float]] | None = None,
    judged: dict[str, float] | None = None,
    class_shares: list[float] | None = None,
    recipe: str = "quick",
    **quantities: float,
) -> list[Symptom]:
    """What is wrong with such a run."""
    return diagnose(
        load_recipe(recipe, overrides),
        step=step,
        window=windows(**quantities),
        gradients=gradients or {"generator": {"a.weight": 0.1}, "discriminator": {"b.weight": 0.1}},
        judged=judged or {},
        class_shares=class_shares,
    )


WELL = {"fid": 0.2, "diversity": 0.95, "class_distance": 0.01, "label_accuracy": 0.99}


def test_nothing_is_wrong_with_a_run_that_is_well() -> None:
    """With every number at hand, and with none of them."""
    assert found(judged=WELL, class_shares=[0.1] * 10) == []
    assert found() == []
    nothing = diagnose(load_recipe("quick"), step=1, window={}, gradients={}, judged={}, class_shares=None)
    assert nothing == []


@pytest.mark.parametrize(
    ("name", "quantities"),
    [
        ("saturated", {"loss_discriminator": 0.01, "d_real": 0.999, "d_fake": 0.001}),
        ("vanishing", {"grad_norm_generator": 3e-7, "d_real": 0.999}),
        ("exploding", {"loss_generator": 3e4}),
        ("exploding", {"loss_discriminator": 3e4}),
        ("undecided", {"logit_margin": 1e-4, "grad_norm_discriminator": 1e-6}),
    ],
)
def test_each_trouble_has_its_name(name: str, quantities: dict[str, float]) -> None:
    """The numbers that say so are in one line, with something to try; other troubles are not claimed."""
    (symptom,) = found(**quantities)
    assert symptom.name == name
    assert "50 of 50 steps" in symptom.what
    assert "\n" not in str(symptom)
    assert "; try " in str(symptom)


def test_a_few_bad_steps_are_no_symptom() -> None:
    """Four of five steps must be bad before anything is said."""
    window = windows()
    window["grad_norm_generator"][:39] = [0.0] * 39
    plain = load_recipe("quick")
    assert diagnose(plain, step=9, window=window, gradients={}, judged={}, class_shares=None) == []
    window["grad_norm_generator"][:40] = [0.0] * 40
    (symptom,) = diagnose(plain, step=9, window=window, gradients={}, judged={}, class_shares=None)
    assert symptom.what == "generator gradients vanish: norm 0e+00 in 40 of 50 steps, D(real) 0.600"


@pytest.mark.parametrize("objective", ["bce", "bce_mse", "hinge", "lsgan", "rpgan"])
def test_a_won_game_is_known_by_the_objective_of_it(objective: str) -> None:
    """Far below the loss of a discriminator that cannot tell, whatever that is; at it, nothing is wrong."""
    overrides = [f"objective={objective}", "wrong_label_weight=0"]
    zero = torch.zeros(1)
    undecided = float(OBJECTIVES[objective].discriminator_loss(zero, zero))
    assert [one.name for one in found(*overrides, loss_discriminator=0.01 * undecided)] == ["saturated"]
    assert found(*overrides, loss_discriminator=undecided) == []


def test_wasserstein_has_no_scale_to_win_on() -> None:
    """Its losses may be anything, also negative; what explodes there is the gradients."""
    assert found(recipe="wgan-gp", loss_discriminator=-300.0, loss_generator=500.0) == []
    (symptom,) = found(recipe="wgan-gp", grad_norm_discriminator=1e6)
    assert symptom.name == "exploding"


def test_collapse_is_seen_in_images() -> None:
    """Images of a class that are all alike, or classes that do not come; the advice is for the kind of generator."""
    (alike,) = found(judged=WELL | {"diversity": 0.1}, class_shares=[0.1] * 10)
    assert (alike.name, "10% of what real ones do" in alike.what) == ("collapse", True)
    assert found(judged=WELL | {"diversity": 0.1}, class_shares=[0.1] * 10, step=200) == []  # 4,800 images: not begun
    shares = [0.0] * 8 + [0.3, 0.7]
    (missing,) = found("conditional=false", "wrong_label_weight=0", judged=WELL, class_shares=shares)
    assert "8 of 10 classes are missing, 70% are of one" in missing.what
    assert missing.remedy.startswith("conditional=true, or ")


def test_wrong_labels_count_once_there_was_time() -> None:
    """Labels take a quarter of a run; then images of the wrong class are a symptom."""
    wrong = WELL | {"label_accuracy": 0.31}
    (symptom,) = found("steps=1000", step=250, judged=wrong)
    assert "label accuracy 31.0%" in symptom.what
    assert found("steps=1000", step=249, judged=wrong) == []


def test_a_layer_without_gradient_is_named() -> None:
    """Exactly none at all: its units are dead, or it is cut off."""
    (symptom,) = found(gradients={"generator": {"a.weight": 0.0, "b.weight": 0.1}, "discriminator": {"c.weight": 0.2}})
    assert symptom.what == "no gradient reaches generator.a.weight"


def test_gradients_are_by_layer() -> None:
    """Norms of weights, not of biases, and nothing before there was a backward pass."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1, bias=False))
    assert layer_gradients(network) == {}
    network(torch.rand(4, 3)).sum().backward()
    weight = network[0].get_parameter("weight")
    assert weight.grad is not None
    assert layer_gradients(network) == {
        "0.weight": pytest.approx(float(weight.grad.norm())),
        "2.weight": pytest.approx(float(network[2].get_parameter("weight").grad.norm())),  # type: ignore[union-attr]
    }


def test_advice_is_not_what_the_run_already_does() -> None:
    """With R1 and spectral normalisation, the next in line is proposed; every advice with = is a setting there is."""
    won = {"loss_discriminator": 0.001}
    (plain,) = found("penalty.r1=0", **won)
    assert plain.remedy == "penalty.r1=1, or discriminator.norm=spectral"
    (armed,) = found("penalty.r1=1", "discriminator.norm=spectral", **won)
    assert armed.remedy == "optimizer.discriminator_lr_share=0.5, or augment.translation=0.125"
    for symptom in (plain, armed):
        for setting in symptom.remedy.split(", or "):
            load_recipe("quick", [setting])


def test_the_window_is_the_newest_steps_and_survives_an_interruption() -> None:
    """Nothing until it is full; then the oldest goes; a watch that was restored says the same."""
    watch = Watch(torch.device("cpu"))
    for step in range(1, 76):
        if step == 60:  # through JSON, as in a checkpoint
            watch = Watch(torch.device("cpu"), json.loads(json.dumps(watch.recent())))
        watch.observe(step, {"loss": scalar(step / 2), "norm": scalar(1.0)})
        assert bool(watch.window()) == (step >= WINDOW_STEPS)
    assert watch.window() == {"loss": [step / 2 for step in range(26, 76)], "norm": [1.0] * 50}


def test_symptoms_of_a_run_are_told_once() -> None:
    """First and last step, how many lines, and the last words; in the order in which they began."""
    one, two = ({"name": name, "what": "w1", "remedy": "r"} for name in ("collapse", "vanishing"))
    points = [
        {"step": 1},
        {"step": 2, "health": [one]},
        {"step": 3, "health": [one | {"what": "w2"}, two]},
        {"step": 4},
    ]
    assert episodes(points) == [
        {"name": "collapse", "what": "w2", "remedy": "r", "first_step": 2, "last_step": 3, "lines": 2},
        {"name": "vanishing", "what": "w1", "remedy": "r", "first_step": 3, "last_step": 3, "lines": 1},
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "overrides", "expected"),
    [
        ("seed", ["steps=2000"], {"collapse", "saturated"}),
        ("quick", ["steps=300", "optimizer.lr=0.05"], {"exploding"}),
    ],
)
def test_real_failures_are_diagnosed(tmp_path: Path, recipe: str, overrides: list[str], expected: set[str]) -> None:
    """The article's recipe, and a learning rate that is far too high, on MNIST: the run's result says so."""
    config = load_recipe(recipe, [*overrides, "log.checkpoint_every_steps=1000", "log.evaluate_images=1000"])
    result = train(config, tmp_path / "run", device="cpu")
    assert expected <= {episode["name"] for episode in result.health}
    assert result.health == episodes(read_metrics(result.run))
