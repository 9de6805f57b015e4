import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ganserve.errors import ConfigError
from training import run_dir
from training.config import TrainingConfig
from training.loop import train

MakeConfig = Callable[..., TrainingConfig]


def read(run: Path) -> Any:
    """Everything in a run's event files, as TensorBoard itself reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))  # type: ignore[no-untyped-call]
    return events.Reload()  # type: ignore[no-untyped-call]


def test_tensorboard_shows_what_the_metrics_say(make_config: MakeConfig, tmp_path: Path) -> None:
    """Every number of every line, gradients by layer, and the sheets."""
    run = train(make_config("log.tensorboard=true"), tmp_path / "run").run
    events = read(run)
    points = run_dir.read_metrics(run)
    for name in ("loss_discriminator", "loss_generator", "d_real", "images_per_s", "diversity"):
        told = [(event.step, event.value) for event in events.Scalars(name)]
        assert told == [(point["step"], pytest.approx(point[name])) for point in points if name in point]
    layer, norm = next(iter(points[0]["gradients"]["generator"].items()))
    assert events.Scalars(f"gradients/generator/{layer}")[0].value == pytest.approx(norm)
    assert [event.step for event in events.Images("sheet")] == [2, 4]


def test_a_resumed_run_goes_on_in_tensorboard(make_config: MakeConfig, tmp_path: Path) -> None:
    """Steps that are made again are there once."""
    run = train(make_config("log.tensorboard=true", "steps=3"), tmp_path / "run").run
    for path in run_dir.checkpoints(run)[1:]:
        (path / "state.json").unlink()  # so that it goes back to step 2
    train(make_config("log.tensorboard=true", "steps=5"), run, resume=True)
    assert [event.step for event in read(run).Scalars("d_real")] == [1, 2, 3, 4, 5]


def test_without_the_extra_nothing_starts(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install, and no run is left behind; runs that do not ask for it need nothing."""
    whole = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "tensorboard":
            raise ImportError(name)
        return whole(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="TensorBoard is not installed") as caught:
        train(make_config("log.tensorboard=true"), tmp_path / "run")
    assert caught.value.hint == "pip install 'ganserve[tensorboard]'"
    assert not (tmp_path / "run" / "config.json").exists()
    train(make_config(), tmp_path / "plain")
