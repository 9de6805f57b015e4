import json
from pathlib import Path

import pytest

from ganserve.artifact import ONNX, ONNX_FLOAT16, ONNX_IMAGES, TORCHSCRIPT, open_artifact
from tests.ganserve.test_cli import run
from tests.runs import make_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one short run."""
    root = tmp_path_factory.mktemp("project")
    make_checkpoint(root / "runs")  # the run is runs/run
    return root


@pytest.mark.slow
def test_every_format_in_one_json_object(folder: Path) -> None:
    """One command writes every format and package, and --json tells of each in one object on stdout."""
    formats = ("--onnx", "--fp16", "--float-output", "--torchscript", "--triton", "--kserve")
    result = run("export", "run", *formats, "--opset", "18", "--out", "all", "--name", "digits", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    artifact = open_artifact(folder / "all")
    artifact.verify()
    assert told["digest"] == artifact.digest
    assert told["name"] == "digits"
    assert [row["file"] for row in told["formats"]] == [ONNX, ONNX_FLOAT16, ONNX_IMAGES, TORCHSCRIPT]
    for row in told["formats"]:
        assert row["bytes"] == (folder / "all" / row["file"]).stat().st_size
        assert row["max_abs_diff"] <= 1
        assert row["batches"] == [1, 2, 3, 17, 64, 256]
    assert {spec["opset"] for spec in told["graphs"].values()} == {18}
    packages = {Path(place).name: files for place, files in told["packages"].items()}
    assert set(packages) == {"all-triton", "all-kserve"}
    assert all((folder / name / file).is_file() for name, files in packages.items() for file in files)


@pytest.mark.slow
def test_a_line_for_each_step(folder: Path) -> None:
    """The command tells each step with its sizes and worst difference, the opset that was written, and what is next."""
    result = run("export", "run", "--fp16", "--triton", cwd=folder)
    assert result.returncode == 0, result.stderr
    manifest = open_artifact(folder / "artifacts" / "run").manifest
    assert manifest.graphs is not None
    size, nodes = manifest.files[ONNX].bytes, manifest.graphs[ONNX].nodes
    for expected in (
        f"generator.onnx {size / 1024:,.0f} KiB, {nodes} nodes, opset 20",
        "generator.fp16.onnx = PyTorch on 4,096 images",
        "fit for CUDA graphs in one piece",
        "run-triton (",
    ):
        assert expected in result.stderr
    assert result.stdout.endswith("next: bentoml serve ganserve.service:GanServe\n")


def test_a_wrong_opset_is_an_error(folder: Path) -> None:
    """An opset out of range is a message with the range, exit code 1, and nothing written."""
    result = run("export", "run", "--onnx", "--opset", "27", "--out", "wrong", cwd=folder)
    assert result.returncode == 1
    assert "opset must be 17 to 26, got 27" in result.stderr
    assert not (folder / "wrong").exists()


def test_what_must_stay_stops_everything(folder: Path) -> None:
    """A directory of the user's own where a package would go is kept, and then there is no artifact either."""
    (folder / "mine-triton").mkdir()
    (folder / "mine-triton" / "notes.txt").write_text("precious")
    result = run("export", "run", "--triton", "--out", "mine", "--force", cwd=folder)
    assert result.returncode == 1
    assert "notes.txt was not written by an export" in result.stderr
    assert not (folder / "mine").exists()
    assert (folder / "mine-triton" / "notes.txt").read_text() == "precious"


@pytest.mark.slow
def test_an_export_goes_into_bentoml_and_is_read_from_there(folder: Path) -> None:
    """`--bentoml` stores what was written, and `inspect` takes it as `bento:NAME`."""
    store = {"BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "true"}
    (folder / "kept-triton").mkdir()  # of an earlier export
    told = run("export", "run", "--onnx", "--out", "kept", "--bentoml", "tiny", "--json", cwd=folder, **store)
    assert told.returncode == 0, told.stderr
    assert "kept-triton stays as it is, made of an earlier artifact" in told.stderr
    digest = open_artifact(folder / "kept").digest
    assert json.loads(told.stdout)["bentoml"] == f"tiny:{digest.removeprefix('sha256:')[:16]}"
    shown = run("inspect", "--json", cwd=folder, GANSERVE_ARTIFACT="bento:tiny", **store)
    assert shown.returncode == 0, shown.stderr
    assert digest in shown.stdout
    refused = run("inspect", "bento:other", cwd=folder, **store)
    assert refused.returncode == 1
    assert "BentoML's model store has no 'other'" in refused.stderr
    assert "the store has bento:tiny:" in refused.stderr
