import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import training.evaluation.evaluator
from ganserve.errors import ConfigError, EvaluationError, RunError
from training.config import TrainingConfig, load_recipe
from training.loop import train
from training.plan import plan

MakeConfig = Callable[..., TrainingConfig]
MakeData = Callable[..., Path]


def test_a_plan_says_what_would_happen_and_writes_nothing(
    make_config: Callable[..., TrainingConfig], tmp_path: Path
) -> None:
    """Data, sizes of both players, epochs, place and the whole configuration, as text and as JSON; no directory."""
    config = make_config()
    planned = plan(config, tmp_path / "runs" / "quick-1", device="cpu")
    assert not (tmp_path / "runs").exists()
    assert planned.epochs == 4 * 8 / 40
    text = str(planned)
    for expected in (
        "runs/quick-1",
        "digits: 40 images of 8 x 8, 3 classes",
        "4 steps of 8 images: 0.80 epochs",
        "cpu",
    ):
        assert expected in text
    assert json.loads(json.dumps(planned.to_dict()))["generator_parameters"] == planned.generator_parameters > 0


def test_what_a_plan_prints_is_a_recipe(make_config: MakeConfig, make_data: MakeData, tmp_path: Path) -> None:
    """`--dry-run > x.toml` is a recipe of the same run, whatever the folders are called."""
    folder = make_data(name='a "b" \\ \x7f\nc')
    config = make_config(f"data.dir={folder}")
    (tmp_path / "x.toml").write_text(str(plan(config, tmp_path / "r\nun", device="cpu")) + "\n")
    assert load_recipe(str(tmp_path / "x.toml")) == config


def test_a_plan_refuses_what_training_refuses(make_config: MakeConfig, make_data: MakeData, tmp_path: Path) -> None:
    """Wrong labels of one class, an existing run, and resuming nothing, or with another configuration or other data."""
    ones, other = make_data(classes=1, name="ones"), make_data(classes=5, name="other")
    with pytest.raises(ConfigError, match="has one class only"):
        plan(make_config(f"data.dir={ones}"), tmp_path / "x")
    run = train(make_config("steps=2"), tmp_path / "run").run
    with pytest.raises(RunError, match="exists already"):
        plan(make_config(), run)
    with pytest.raises(RunError, match=r"another configuration: optimizer\.lr"):
        plan(make_config("optimizer.lr=0.5"), run, resume=True)
    with pytest.raises(RunError, match="was trained on digits"):
        plan(make_config(f"data.dir={other}"), run, resume=True)
    with pytest.raises(RunError, match="is not a run"):
        plan(make_config(), tmp_path / "nowhere", resume=True)
    with pytest.raises(RunError, match="File name too long"):
        plan(make_config(), tmp_path / ("x" * 300))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert plan(make_config("steps=9"), run, resume=True).config.steps == 9
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_what_is_missing_is_said_before_a_directory_is_made(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluator that is not there or is of other data, and TensorBoard: a plan and a training refuse alike."""
    mnist = Path(training.evaluation.evaluator.__file__).with_name("mnist.safetensors")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for change, error, says in (
        (f"log.evaluator={tmp_path / 'nowhere.safetensors'}", EvaluationError, "cannot be read"),
        (f"log.evaluator={mnist}", EvaluationError, "was made for mnist"),
        ("log.tensorboard=true", ConfigError, "TensorBoard is not installed"),
    ):
        for start in (plan, train):
            with pytest.raises(error, match=says):
                start(make_config(change, "log.evaluate_images=256"), tmp_path / "run", device="cpu")
            assert not (tmp_path / "run").exists()
