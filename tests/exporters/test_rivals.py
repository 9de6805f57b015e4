import shutil
from pathlib import Path

import pytest

from exporters import rivals
from exporters.build import build_artifact
from ganserve import bench
from ganserve.artifact import ONNX, ONNX_FLOAT16, ONNX_IMAGES, TORCHSCRIPT, open_artifact
from ganserve.errors import ArtifactError, CheckpointError
from tests.artifacts import make_artifact
from tests.runs import make_checkpoint


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run and an artifact of it, in every format."""
    root = tmp_path_factory.mktemp("project")
    checkpoint = make_checkpoint(root / "made")
    shutil.copytree(checkpoint, root / "runs" / "digits" / "checkpoints" / checkpoint.name)
    build_artifact(checkpoint, root / "artifact", run_name="digits", float16=True, float_output=True, torchscript=True)
    return root


@pytest.mark.slow
def test_every_contender_makes_the_served_images(project: Path) -> None:
    """PyTorch, TorchScript and all ONNX formats race on the same latents, and differ by a grey level at most."""
    artifact = open_artifact(project / "artifact")
    eager = rivals.Eager(rivals.find_checkpoint(artifact, project / "runs"))
    contenders = {**bench.formats(artifact), "eager": eager, TORCHSCRIPT: rivals.open_torchscript}
    rows = bench.measure(artifact, contenders, batches=(3,), rounds=1, span_s=0.0)
    assert [row.format for row in rows] == [ONNX, ONNX_FLOAT16, ONNX_IMAGES, "eager", TORCHSCRIPT]
    for row in rows:
        assert row.max_abs_diff <= 1
        assert row.differing_share <= (0.05 if row.format == ONNX_FLOAT16 else 0.001)


def test_another_checkpoint_is_refused(project: Path, tmp_path: Path) -> None:
    """A checkpoint of the right name with other weights is no contender, and neither is one that is gone."""
    artifact = open_artifact(project / "artifact")
    with pytest.raises(CheckpointError, match="there is no"):
        rivals.find_checkpoint(artifact, tmp_path)
    other = make_checkpoint(tmp_path / "other", ["seed=1"])
    shutil.copytree(other, tmp_path / "runs" / "digits" / "checkpoints" / artifact.manifest.source.checkpoint)
    with pytest.raises(CheckpointError, match="has other weights than"):
        rivals.find_checkpoint(artifact, tmp_path / "runs")


def test_no_torchscript_is_an_error(tmp_path: Path) -> None:
    """An artifact without TorchScript says so."""
    made = make_artifact(tmp_path / "artifact")
    with pytest.raises(ArtifactError, match=r"has no generator\.ts"):
        rivals.open_torchscript(made.path, 1)
