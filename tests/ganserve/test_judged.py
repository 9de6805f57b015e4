import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ganserve import imaging, store
from ganserve.artifact import PRETRAINED
from ganserve.cli import app
from ganserve.errors import ArtifactError, EvaluationError, RunError
from ganserve.judged import find_images
from tests.runs import make_checkpoint, write_idx_folder
from training.checkpoint import load_generator
from training.data import load_dataset
from training.evaluate import Reference, load_reference
from training.evaluation.evaluator import Evaluator
from training.evaluation.targets import Images, labels_like

COUNT = 30


@functools.cache
def evaluator() -> Evaluator:
    """The packaged one."""
    return Evaluator.load()


@functools.cache
def reference() -> Reference:
    """MNIST."""
    return load_reference(evaluator())


def find(target: Path | str | None, *, count: int = COUNT, seed: int = 7, runs: Path = Path("runs")) -> Images:
    """The images of a target."""
    return find_images(None if target is None else str(target), evaluator(), reference(), count, seed, runs=runs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run on random blobs of MNIST's size."""
    return make_checkpoint(tmp_path_factory.mktemp("trained"))


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Some real ones, with their labels."""
    test = load_dataset(None, "test")
    return test.images[:COUNT, ..., None], test.labels[:COUNT]


def test_a_run_and_its_checkpoint_are_one_generator(trained: Path) -> None:
    """By name, by path, as the newest, or the checkpoint itself: the same pixels, of labels as in the test split."""
    run = trained.parents[1]
    images = find(trained)
    assert images.pixels.shape == (COUNT, 28, 28, 1)
    assert images.labels is not None
    np.testing.assert_array_equal(images.labels, labels_like(reference().test, COUNT, 7))
    for target, runs in ((run, Path("elsewhere")), (run.name, run.parent), (None, run.parent)):
        again = find(target, runs=runs)
        np.testing.assert_array_equal(again.pixels, images.pixels)
    assert not np.array_equal(find(trained, seed=8).pixels, images.pixels)


def test_other_training_data_are_named(trained: Path) -> None:
    """A part of MNIST may be judged by the whole of it, but nobody is left to guess that it was one."""
    digest = load_generator(trained).dataset.digest
    assert f"trained on other data (data, digest {digest[:12]}…)" in find(trained).source


def test_other_classes_are_refused(tmp_path: Path) -> None:
    """A generator of three classes has no label for a seven."""
    write_idx_folder(tmp_path / "three", num_classes=3)
    checkpoint = make_checkpoint(tmp_path, [f"data.dir={tmp_path / 'three'}"])
    with pytest.raises(EvaluationError, match=r"makes 3 classes, and mnist has 10"):
        find(checkpoint)


def test_an_artifact_is_judged_through_the_engine_that_serves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its directory or in BentoML's model store; a broken one is an error, not a run that is not there."""
    images = find(PRETRAINED)
    assert images.labels is not None
    assert (evaluator().predict(images.pixels) == images.labels).mean() > 0.9
    monkeypatch.setattr(store, "resolve", {"bento:digits:1": PRETRAINED}.__getitem__)
    np.testing.assert_array_equal(find("bento:digits:1").pixels, images.pixels)
    shutil.copytree(PRETRAINED, tmp_path / "broken")
    (tmp_path / "broken" / "generator.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError):
        find(tmp_path / "broken")


def test_an_npz_is_taken_as_it_is(tmp_path: Path) -> None:
    """Pixels with labels or without, and some of them by the seed if there are more."""
    pixels, labels = digits()
    np.savez(tmp_path / "both.npz", pixels=pixels, labels=labels)
    images = find(tmp_path / "both.npz")
    np.testing.assert_array_equal(images.pixels, pixels)
    np.testing.assert_array_equal(images.labels, labels)  # type: ignore[arg-type]
    few = find(tmp_path / "both.npz", count=5)
    assert len(few.pixels) == 5
    rows = [int(np.flatnonzero((pixels == one).all(axis=(1, 2, 3)))[0]) for one in few.pixels]
    assert rows == sorted(rows)
    np.testing.assert_array_equal(few.labels, labels[rows])  # type: ignore[arg-type]
    np.savez(tmp_path / "plain.npz", pixels=pixels)
    assert find(tmp_path / "plain.npz").labels is None
    np.savez(tmp_path / "uneven.npz", pixels=pixels, labels=labels[:3])
    with pytest.raises(EvaluationError, match=r"\[30, 28, 28, 1\] and labels \[3\]"):
        find(tmp_path / "uneven.npz")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"no zip"),
        lambda path: np.savez(path, pixels=np.zeros((2, 28, 28, 1), np.uint8), labels=np.array([3.7, 1.0])),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path, images=np.zeros((3, 28, 28, 1), np.uint8)),
        lambda path: np.savez(path, pixels=np.array([{}], dtype=object)),
        lambda path: None,
    ],
    ids=["text", "labels that are no integers", "empty", "other names", "objects", "missing"],
)
def test_what_is_no_npz_is_refused(tmp_path: Path, write: Callable[[Path], object]) -> None:
    """One error with the hint that makes one; nothing in it is executed."""
    write(tmp_path / "x.npz")
    with pytest.raises(EvaluationError, match=r"must be an \.npz with pixels") as caught:
        find(tmp_path / "x.npz")
    assert caught.value.hint == "ganserve sample --out digits.npz writes one"


def test_a_folder_of_pngs_has_labels_if_their_names_do(tmp_path: Path) -> None:
    """As `ganserve sample` names them: all of them or none."""
    pixels, labels = digits()
    for index, (one, label) in enumerate(zip(pixels, labels, strict=True)):
        (tmp_path / f"{index:04}-{label}.png").write_bytes(imaging.encode_png(one))
    images = find(tmp_path)
    np.testing.assert_array_equal(images.pixels, pixels)
    np.testing.assert_array_equal(images.labels, labels)  # type: ignore[arg-type]
    (tmp_path / "0000-photo.png").write_bytes(imaging.encode_png(pixels[0]))
    assert find(tmp_path, count=99).labels is None
    (tmp_path / "small.png").write_bytes(imaging.encode_png(pixels[0][:5]))
    with pytest.raises(EvaluationError, match=r"small\.png is \(5, 28\), and "):
        find(tmp_path, count=99)
    (tmp_path / "small.png").write_bytes(b"\x89PNG but no more")
    with pytest.raises(EvaluationError, match=r"small\.png is not a PNG that can be read"):
        find(tmp_path, count=99)


def test_nothing_there_is_a_run_that_is_not_there(tmp_path: Path) -> None:
    """A misspelt name lists the runs there are."""
    with pytest.raises(RunError, match="there is no run 'quick-9'"):
        find("quick-9", runs=tmp_path)


def test_the_command_puts_numbers_beside_those_of_real_images(tmp_path: Path) -> None:
    """As a table with verdicts, and as JSON with both."""
    test = load_dataset(None, "test")
    np.savez(tmp_path / "real.npz", pixels=test.images[:300, ..., None], labels=test.labels[:300])
    target = str(tmp_path / "real.npz")
    told = json.loads(CliRunner().invoke(app, ["evaluate", target, "--json"]).stdout)
    assert (told["target"], told["n"], told["data"]) == (target, 300, "mnist")
    assert told["quality"]["label_accuracy"] > 0.98
    assert told["quality"].keys() >= told["real"].keys() & {"fid", "recall", "memorised"}
    shown = CliRunner().invoke(app, ["evaluate", target], env={"COLUMNS": "200"}).stdout
    assert "as real images" in shown
    assert "share of real images that lie among these" in shown
