import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ganserve.cli import app
from ganserve.errors import DataError, RunError
from training import run_dir
from training.config import list_recipes

MakeData = Callable[..., Path]
TINY = ("batch_size=8", "generator.latent_dim=4", "generator.width=4", "discriminator.width=4")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to the test's own directory."""
    monkeypatch.chdir(tmp_path)


def ganserve(*arguments: str) -> Result:
    """The command in this process: torch takes seconds to import. An error of ours is raised."""
    return CliRunner().invoke(app, [*arguments], catch_exceptions=False)


def tiny(*arguments: str) -> Result:
    """`ganserve train` of one step with small networks."""
    return ganserve("train", "--steps", "1", *(part for one in TINY for part in ("--set", one)), *arguments)


@pytest.mark.parametrize("name", ["none", "null", " spaced "])
def test_a_data_folder_may_have_any_name(make_data: MakeData, tmp_path: Path, name: str) -> None:
    """`--data none` is a folder called none, and not the packaged MNIST; a missing one is an error."""
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        tiny("--data", name, "--run", "r")
    folder = make_data(name=name)
    tiny("--data", name, "--run", "r")
    assert run_dir.load_config(tmp_path / "runs" / "r").data.dir == str(folder)


def test_a_run_is_resumed_from_any_directory(
    make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the data was given relative to where training was started, and is found from elsewhere."""
    make_data(name="digits")
    tiny("--data", "digits")
    tiny("--set", "data.dir=digits")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for run in ("quick-1", "quick-2"):
        done = ganserve("train", "--run", f"../runs/{run}", "--resume", "--steps", "2")
        assert "step 2, 16 images" in done.stdout


def test_automatic_names_do_not_collide(make_data: MakeData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that another process began with the same number is left alone; a run that cannot start leaves no name."""
    digits = str(make_data(name="digits"))
    with pytest.raises(DataError):
        tiny("--data", "missing")
    assert not (tmp_path / "runs").exists()
    numbered = run_dir.new_run
    taken: list[Path] = []

    def slow(runs: Path, recipe: str) -> Path:
        run = numbered(runs, recipe)
        if len(taken) == 1:  # the second look is the claim
            run.mkdir(parents=True)
        taken.append(run)
        return run

    monkeypatch.setattr(run_dir, "new_run", slow)
    assert "next: ganserve export quick-2 --onnx" in tiny("--data", digits).stdout
    assert list((tmp_path / "runs" / "quick-1").iterdir()) == []


def test_the_next_command_can_be_pasted(make_data: MakeData) -> None:
    """Names are quoted as a shell wants them, and names that are markup or formulas do no harm."""
    digits = str(make_data(name="digits"))
    for name in ("my run", "$x", "[/x]"):
        told = tiny("--data", digits, "--run", name).stdout.splitlines()[-1]
        assert shlex.split(told) == ["next:", "ganserve", "export", name, "--onnx"]


def test_a_dry_run_is_a_recipe_and_refuses_what_training_refuses(make_data: MakeData, tmp_path: Path) -> None:
    """What it prints trains the same run; an existing run is refused; nothing is written."""
    make_data(name="digits")
    shown = tiny("--data", "digits", "--dry-run", "--set", "seed=5").stdout
    assert not (tmp_path / "runs").exists()
    (tmp_path / "x.toml").write_text(shown)
    ganserve("train", "--recipe", "./x.toml", "--run", "x")
    assert run_dir.load_config(tmp_path / "runs" / "x").seed == 5
    assert (
        ganserve("train", "--recipe", "./x.toml", "--dry-run").stdout.split("\n\n", 1)[1] == shown.split("\n\n", 1)[1]
    )
    with pytest.raises(RunError, match="exists already"):
        tiny("--data", "digits", "--run", "x", "--dry-run")


def test_help_lists_the_recipes() -> None:
    """Every recipe with its description, however often it is asked."""
    for _ in range(2):
        shown = " ".join(ganserve("train", "--help").stdout.split())
        for name, text in list_recipes().items():
            assert shown.count(f"{name} — {text}") == 1


def test_ctrl_c_during_the_imports_ends_at_once(tmp_path: Path) -> None:
    """Code in torch's import that takes a KeyboardInterrupt for a failure is not asked: SIGINT ends the process."""
    (tmp_path / "torch.py").write_text(
        "import time\nprint('importing', flush=True)\ntry:\n    time.sleep(30)\nexcept BaseException:\n    pass\n"
        "raise SystemExit(7)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    with subprocess.Popen(
        [sys.executable, "-m", "ganserve", "train"],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == -signal.SIGINT  # 130 in a shell
