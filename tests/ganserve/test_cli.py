import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from ganserve import __version__
from tests.artifacts import make_artifact

GANSERVE = (sys.executable, "-m", "ganserve")


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    return subprocess.run(
        [*GANSERVE, *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100", "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def imported(code: str) -> set[str]:
    """Top-level modules that are loaded after running `code`."""
    script = f"{code}\nimport sys; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    return set(out.stdout.split())


def test_help_imports_nothing_heavy() -> None:
    """The command line itself loads neither torch, ONNX Runtime, BentoML nor NumPy: that is why help is instant."""
    heavy = {"torch", "onnx", "onnxruntime", "bentoml", "numpy", "training", "exporters", "matplotlib"}
    assert not imported("import ganserve.cli") & heavy


def test_sampling_needs_no_torch() -> None:
    """What `sample`, `inspect` and `doctor` load works on a serving-only installation."""
    loaded = imported("import ganserve.sampling, ganserve.doctor, ganserve.artifact, ganserve.engine")
    assert not loaded & {"torch", "onnx", "training", "exporters"}


def test_help_and_version(tmp_path: Path) -> None:
    """--help names every command, each command's help has examples, --version prints the version."""
    listed = run("--help", cwd=tmp_path)
    assert listed.returncode == 0
    for command in ("train", "report", "export", "evaluate", "sample", "bench", "inspect", "verify", "doctor"):
        assert command in listed.stdout
        assert "Example" in run(command, "--help", cwd=tmp_path).stdout
    assert run("--version", cwd=tmp_path).stdout.strip() == __version__


def test_usage_errors_are_exit_code_2(tmp_path: Path) -> None:
    """An option that does not exist is a usage error."""
    assert run("sample", "--colour", "red", cwd=tmp_path).returncode == 2


def test_errors_say_what_to_type(tmp_path: Path) -> None:
    """An error is a message and a hint on stderr, exit code 1, no traceback; --debug shows it."""
    failed = run("inspect", "nowhere", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("error: nowhere is not an artifact")
    assert "hint: " in failed.stderr
    assert "ganserve export" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "Traceback" in run("--debug", "inspect", "nowhere", cwd=tmp_path).stderr


def test_unknown_recipe_and_key_are_answered(tmp_path: Path) -> None:
    """A misspelt recipe or key names the nearest one, and nothing is written."""
    recipe = run("train", "--recipe", "quik", cwd=tmp_path)
    assert recipe.returncode == 1
    assert "quick" in recipe.stderr
    key = run("train", "--set", "optimizer.lrr=1", cwd=tmp_path)
    assert key.returncode == 1
    assert "optimizer.lr" in key.stderr
    assert list(tmp_path.iterdir()) == []


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    """--dry-run prints the resolved configuration, as text and as JSON, and writes nothing."""
    shown = run("train", "--dry-run", "--set", "optimizer.lr=1e-4", cwd=tmp_path)
    assert shown.returncode == 0
    assert "0.0001" in shown.stdout
    document = json.loads(run("train", "--dry-run", "--json", "--steps", "7", cwd=tmp_path).stdout)
    assert document["config"]["steps"] == 7
    assert list(tmp_path.iterdir()) == []


def test_sample_writes_what_it_says(tmp_path: Path) -> None:
    """`sample` takes the newest artifact, tells which, and prints the file and the rate on stdout."""
    make_artifact(tmp_path / "artifacts" / "digits")
    done = run("sample", "--n", "5", "--labels", "3", "--seed", "4", "--out", "x.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("x.npz: 5 images in ")
    assert "artifacts/digits (the only one in artifacts/)" in done.stderr
    with np.load(tmp_path / "x.npz") as data:
        assert data["labels"].tolist() == [3] * 5
        assert int(data["seed"]) == 4


def test_inspect_is_table_and_json(tmp_path: Path) -> None:
    """`inspect` shows digests whole and what an image costs, and as JSON gives both and the manifest."""
    artifact = make_artifact(tmp_path / "digits")
    shown = run("inspect", "digits", cwd=tmp_path)
    assert f"digest     {artifact.digest}\n" in shown.stdout
    for text in ("Sigmoid", "12,544", "us/image", "at batch", "64: "):
        assert text in shown.stdout
    document = json.loads(run("inspect", "digits", "--json", cwd=tmp_path).stdout)
    assert document["digest"] == artifact.digest
    assert document["manifest"]["name"] == "mnist"
    (graph,) = document["graphs"]
    assert (graph["multiply_adds"], graph["operators"]["MatMul"]) == (16 * 784, 1)
    assert set(graph["us_per_image"]) == {"1", "16", "64"}


def test_doctor_exit_code(tmp_path: Path) -> None:
    """`doctor` is 0 where all is well and 1 where something is broken; --json is one object."""
    well = run("doctor", "--json", cwd=tmp_path)
    assert well.returncode == 0
    assert json.loads(well.stdout)["healthy"] is True
    ill = run("doctor", "--json", cwd=tmp_path, GANSERVE_WORKERS="none")
    assert ill.returncode == 1
    assert json.loads(ill.stdout)["healthy"] is False


def test_debug_may_stand_anywhere(tmp_path: Path) -> None:
    """--debug shows the traceback also when it is appended to the command that failed."""
    assert "Traceback" in run("inspect", "nowhere", "--debug", cwd=tmp_path).stderr


def test_any_terminal_will_do(tmp_path: Path) -> None:
    """An output that knows ASCII only gets question marks for ticks, not a traceback."""
    for arguments in (["doctor"], ["--help"]):
        shown = run(*arguments, cwd=tmp_path, PYTHONIOENCODING="ascii")
        assert shown.returncode == 0, shown.stderr


def test_environment_names_the_artifact(tmp_path: Path) -> None:
    """GANSERVE_ARTIFACT is what `sample` and `inspect` take, as the server does; an argument goes before it."""
    for name in ("one", "two"):
        make_artifact(tmp_path / name, name=name)
    shown = json.loads(run("inspect", "--json", cwd=tmp_path, GANSERVE_ARTIFACT="one").stdout)
    assert shown["name"] == "one"
    shown = json.loads(run("inspect", "two", "--json", cwd=tmp_path, GANSERVE_ARTIFACT="one").stdout)
    assert shown["name"] == "two"
