import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from exporters.build import Step, build_artifact
from exporters.quality import PYTORCH, check_drift, told
from ganserve.artifact import ONNX, ONNX_FLOAT16
from ganserve.errors import QualityError
from ganserve.proof import Labels, Latents, Pixels
from tests.runs import make_checkpoint
from training.config import load_recipe
from training.loop import train


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps on MNIST, which has an evaluator."""
    tiny = ["steps=30", "batch_size=8", "generator.width=4", "discriminator.width=4", "log.evaluate_images=0"]
    return train(load_recipe("quick", tiny), tmp_path_factory.mktemp("run") / "quick", device="cpu").checkpoint


def test_every_format_has_its_quality_in_the_manifest(checkpoint: Path, tmp_path: Path) -> None:
    """FID and label accuracy of the same 10,000 latents, and how far from PyTorch's; on the card too."""
    steps: list[Step] = []
    artifact = build_artifact(checkpoint, tmp_path / "a", run_name="quick", float16=True, on_step=steps.append)
    quality = artifact.manifest.quality
    assert quality is not None
    assert list(quality) == [PYTORCH, ONNX, ONNX_FLOAT16]
    for format, values in quality.items():
        assert values["images"] == 10_000
        assert values["fid"] > 1.0  # thirty steps
        if format != PYTORCH:
            assert values["fid_drift"] == values["fid"] - quality[PYTORCH]["fid"]
            assert abs(values["fid_drift"]) < 0.02 * values["fid"]
    assert [step.detail for step in steps if step.name == "quality"] == [told(*item) for item in quality.items()]
    card = (tmp_path / "a" / "README.md").read_text()
    assert f"| {ONNX} | {quality[ONNX]['fid']:.5g} |" in card
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["quality"] == quality


def test_data_without_an_evaluator_have_no_quality(tmp_path: Path) -> None:
    """Nothing is guessed: the manifest says null, and the card has no table."""
    artifact = build_artifact(make_checkpoint(tmp_path), tmp_path / "a", run_name="x")
    assert artifact.manifest.quality is None
    assert "Quality of" not in (tmp_path / "a" / "README.md").read_text()


def test_a_format_that_drifts_leaves_no_artifact(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worse image here and there, which no comparison of pixels was asked about, is an error with the numbers."""
    from exporters import quality

    whole = quality.run_in_batches

    def darkened(run: object, rows: Latents, labels: Labels | None, batch_rows: int) -> Pixels:
        pixels = whole(run, rows, labels, batch_rows)  # type: ignore[arg-type]
        return np.where(np.arange(len(pixels))[:, None, None, None] % 5 == 0, np.uint8(0), pixels)

    monkeypatch.setattr(quality, "run_in_batches", darkened)
    with pytest.raises(QualityError, match=r"generator\.onnx: FID is [\d.]+, [+-][\d.]+ from PyTorch's") as caught:
        build_artifact(checkpoint, tmp_path / "a", run_name="x")
    assert "no artifact was written" in str(caught.value.hint)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("fid", "drift", "accuracy_drift", "fine"),
    [
        (0.05, 0.002, 0.0, True),  # two per cent of so little is rounding
        (0.05, 0.0021, 0.0, False),
        (10.0, -0.19, 0.0, True),
        (10.0, -0.25, 0.0, False),  # better is not the same either
        (0.05, 0.0, 0.002, True),
        (0.05, 0.0, -0.003, False),
        (math.nan, math.nan, 0.0, False),
        (0.05, 0.0, math.nan, False),
    ],
)
def test_drift_has_limits(fid: float, drift: float, accuracy_drift: float, fine: bool) -> None:
    """Of FID a share or a floor, of label accuracy 0.2 %."""
    values = {"fid": fid, "fid_drift": drift, "label_accuracy": 0.99, "label_accuracy_drift": accuracy_drift}
    if fine:
        check_drift("x", values)
        return
    with pytest.raises(QualityError, match="allowed"):
        check_drift("x", values)


def test_lost_data_are_no_reason_to_fail(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The export goes on without FID where the data set is no longer where it was; the log says so."""
    from exporters import build
    from training.checkpoint import load_generator

    def moved(path: Path) -> object:
        trained = load_generator(path)
        data = dataclasses.replace(trained.config.data, dir=str(tmp_path / "gone"))
        return dataclasses.replace(trained, config=dataclasses.replace(trained.config, data=data))

    monkeypatch.setattr(build, "load_generator", moved)
    assert build_artifact(checkpoint, tmp_path / "a", run_name="x").manifest.quality is None
