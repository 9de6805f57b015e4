import json
import signal
from pathlib import Path

import pytest
import torch

from ganserve.errors import ConfigError
from tests.runs import write_idx_folder
from tests.training.test_loop import At, outcome
from training import distributed
from training.config import TrainingConfig, load_recipe
from training.loop import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


def _config(folder: Path, *overrides: str, recipe: str = "quick") -> TrainingConfig:
    """A short run at the recipe's own size, on random images."""
    data = folder / "data"
    if not data.exists():
        write_idx_folder(data, images=512)
    short = [
        f"data.dir={data}",
        "steps=24",
        "log.every_steps=4",
        "log.sheet_every_steps=12",
        "log.checkpoint_every_steps=12",
        "log.evaluate_images=256",
    ]
    return load_recipe(recipe, [*short, *overrides])


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["precision=bfloat16"],
        ["precision=float16"],
        ["compile=true"],
        ["generator.kind=subpixel", "discriminator.minibatch_deviation=true", "augment.translation=0.1"],
        ["generator.kind=residual", "generator.width=8", "objective=rpgan", "penalty.r2=1"],
    ],
    ids=["float32", "bfloat16", "float16", "compiled", "subpixel", "residual"],
)
def test_a_run_goes_on_to_the_bit(overrides: list[str], tmp_path: Path) -> None:
    """On a GPU too, an interrupted and resumed run ends with the bits of one that was not."""
    config = _config(tmp_path, *overrides)
    whole = train(config, tmp_path / "whole", device="cuda")
    half = train(config, tmp_path / "half", device="cuda", progress=At(12, lambda: signal.raise_signal(signal.SIGINT)))
    assert (half.steps, half.interrupted_by) == (12, signal.SIGINT)
    torch.cuda.manual_seed(12345)
    resumed = train(config, tmp_path / "half", device="cuda", resume=True)
    assert resumed.steps == 24
    assert outcome(whole.run) == outcome(resumed.run)


def test_a_run_goes_on_elsewhere(tmp_path: Path) -> None:
    """A run of a GPU goes on on a CPU, and the other way round, though not to the bit."""
    config = _config(tmp_path)
    for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
        interrupt = At(12, lambda: signal.raise_signal(signal.SIGINT))
        half = train(config, tmp_path / first, device=first, progress=interrupt)
        assert (half.steps, train(config, half.run, device=second, resume=True).steps) == (12, 24)


def test_it_learns_what_the_cpu_learns(tmp_path: Path) -> None:
    """The first steps' losses are the CPU's."""
    config = _config(tmp_path, "steps=3", "log.every_steps=1", "log.evaluate_images=0", "optimizer.lr=1e-4")
    points = []
    for device in ("cpu", "cuda"):
        result = train(config, tmp_path / device, device=device)
        lines = (result.run / "metrics.jsonl").read_text().splitlines()
        points.append([json.loads(line)["loss_discriminator"] for line in lines])
    assert points[0] == pytest.approx(points[1], rel=0.02)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose number no GPU has is an error with both numbers."""
    there = torch.cuda.device_count()
    monkeypatch.setenv("LOCAL_RANK", str(there))
    with pytest.raises(ConfigError):
        distributed.choose_gpu()
