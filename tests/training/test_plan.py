import json
import tomllib
from collections.abc import Callable
from pathlib import Path

from training.config import TrainingConfig, from_dict
from training.plan import plan


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


def test_what_a_plan_prints_is_a_recipe(make_config: Callable[..., TrainingConfig], tmp_path: Path) -> None:
    """Everything after the first empty line is TOML that describes the same run."""
    config = make_config()
    printed = str(plan(config, tmp_path / "x", device="cpu")).split("\n\n", 1)[1]
    assert from_dict(tomllib.loads(printed)) == config
