"""The packaged evaluator, and that each number moves when that goes wrong which it is there for."""

import functools

import numpy as np
import pytest
import torch

from ganserve.artifact import PRETRAINED, open_artifact
from ganserve.engine import Engine
from ganserve.errors import EvaluationError
from ganserve.latents import draw
from training.evaluate import Reference, load_reference, quality, quick_quality, verdict
from training.evaluation.classifier import FEATURE_DIM
from training.evaluation.evaluator import Evaluator
from training.evaluation.targets import labels_like

COUNT = 1500


@functools.cache
def evaluator() -> Evaluator:
    """The packaged one."""
    return Evaluator.load()


@functools.cache
def reference() -> Reference:
    """MNIST's test split."""
    return load_reference(evaluator())


def real(count: int = COUNT, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images of the train split, uint8 [count, 28, 28, 1], and their labels."""
    train = reference().train
    return train.images[start : start + count, ..., None], train.labels[start : start + count].astype(np.int64)


def images(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Images of a kind and their labels; `real` is what they are measured by."""
    pixels, labels = real()
    if kind == "noise":
        speckle = np.random.default_rng(0).normal(0, 60, pixels.shape)
        pixels = np.clip(pixels + speckle, 0, 255).astype(np.uint8)
    elif kind == "blur":
        weights = torch.tensor([0.2, 0.6, 0.2])
        images = torch.from_numpy(pixels[..., 0].astype(np.float32))[:, None]
        kernel = (weights[:, None] * weights)[None, None]
        blurred = torch.nn.functional.conv2d(images, kernel, padding=1)[:, 0, :, :, None]
        pixels = blurred.round().clamp(0, 255).numpy().astype(np.uint8)
    elif kind == "one class":
        train = reference().train
        threes = train.images[train.labels == 3][:COUNT]
        pixels, labels = threes[..., None], np.full(COUNT, 3)
    elif kind == "few images":
        pixels, labels = np.tile(pixels[:30], (50, 1, 1, 1)), np.tile(labels[:30], 50)
    elif kind == "new images":
        pixels, labels = reference().test.images[:COUNT, ..., None], reference().test.labels[:COUNT].astype(np.int64)
    elif kind == "wrong labels":
        labels = (labels + (np.arange(COUNT) % 4 == 0)) % 10
    return pixels, labels


@functools.cache
def scores(kind: str) -> dict[str, float]:
    """What images of a kind score."""
    return quality(evaluator(), reference(), *images(kind))


def test_the_packaged_evaluator_knows_its_digits():
    """It recognises at least 99.4 % of the test split, as its facts say, and is smaller than a megabyte."""
    test = reference().test
    right = float((evaluator().predict(test.images[..., None]) == test.labels).mean())
    assert right >= 0.994
    assert right == pytest.approx(evaluator().facts.test_accuracy, abs=2e-4)


@pytest.mark.parametrize(
    ("kind", "metric", "worse"),
    [
        ("noise", "fid", lambda bad, good: bad > 10 * good),
        ("noise", "precision", lambda bad, good: bad < 0.7 * good),
        ("noise", "label_accuracy", lambda bad, good: bad < good),
        ("blur", "fid", lambda bad, good: bad > 3 * good),
        ("blur", "recall", lambda bad, good: bad < good - 0.05),
        ("one class", "class_distance", lambda bad, good: bad > 0.8),
        ("one class", "fid", lambda bad, good: bad > 10 * good),
        ("one class", "coverage", lambda bad, good: bad < 0.3),
        ("few images", "recall", lambda bad, good: bad < 0.1),
        ("few images", "coverage", lambda bad, good: bad < 0.5 * good),
        ("few images", "fid", lambda bad, good: bad > 5 * good),
        ("wrong labels", "label_accuracy", lambda bad, good: 0.7 < bad < 0.78),
        ("wrong labels", "label_accuracy_worst", lambda bad, good: bad < 0.78),
    ],
)
def test_each_number_moves_for_what_it_is_there_for(kind, metric, worse):
    """Spoilt images score worse than real ones, by the number that should tell."""
    assert worse(scores(kind)[metric], scores("real")[metric])


@pytest.mark.parametrize("kind", ["real", "noise", "few images"])
def test_fid_is_that_of_torchmetrics(kind):
    """To a thousandth, on the same features: near and far, and of images whose covariance is singular."""
    # A part of `make test`'s environment: without it there is no oracle, and the other tests of FID stand alone.
    fid = pytest.importorskip("torchmetrics.image.fid")
    through = torch.nn.Identity()
    through.num_features = FEATURE_DIM  # what is "features of images" to torchmetrics is features already
    theirs = fid.FrechetInceptionDistance(feature=through, normalize=True)
    features = evaluator().features(images(kind)[0])
    theirs.update(torch.from_numpy(reference().features), real=True)
    theirs.update(torch.from_numpy(features), real=False)
    assert scores(kind)["fid"] == pytest.approx(float(theirs.compute()), rel=1e-3)


def test_memorised_tells_copies_from_new_images():
    """Copies of training images are all memorised, and about 1 % of images that nobody trained on are."""
    assert scores("real")["memorised"] == 1.0  # they are training images
    assert scores("real")["nearest"] < 1.0  # of a grey level: the sums are float32
    assert scores("new images")["memorised"] < 0.03


def test_variety_within_a_class_is_diversity():
    """One image per class, over and over, has none of it; real images have as much as the test split."""
    pixels, labels = real()
    firsts = np.stack([pixels[labels == label][0] for label in range(10)])
    collapsed = quality(evaluator(), reference(), np.tile(firsts, (40, 1, 1, 1)), np.tile(np.arange(10), 40))
    assert collapsed["diversity"] == pytest.approx(0.0, abs=1e-6)
    assert scores("real")["diversity"] == pytest.approx(1.0, abs=0.05)


def test_quick_quality_is_a_part_of_quality():
    """The numbers for a training loop are those of the whole report; the classes' shares are those of the labels."""
    pixels, labels = real()
    values, class_shares = quick_quality(evaluator(), reference(), pixels, labels)
    assert values == pytest.approx({name: scores("real")[name] for name in values}, rel=1e-9)
    assert set(values) == {"fid", "class_distance", "diversity", "label_accuracy"}
    assert class_shares == pytest.approx(np.bincount(labels, minlength=10) / len(labels), abs=0.01)
    assert "label_accuracy" not in quick_quality(evaluator(), reference(), pixels)[0]


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (np.zeros((20, 28, 28, 1), np.uint8), None),
        (np.zeros((400, 32, 32, 1), np.uint8), None),
        (np.zeros((400, 28, 28, 1), np.uint8), np.zeros(399, np.int64)),
        (np.zeros((400, 28, 28, 1), np.uint8), np.full(400, 10)),
    ],
    ids=["too few", "another size", "too few labels", "no such class"],
)
def test_what_cannot_be_judged_is_refused(pixels, labels):
    """Images that do not fit the evaluator are an error, not a number."""
    with pytest.raises(EvaluationError):
        quality(evaluator(), reference(), pixels, labels)


def test_an_evaluator_is_saved_and_loaded_whole_or_not_at_all(tmp_path):
    """Saved and loaded it judges the same; damaged it is refused."""
    path = tmp_path / "mine.safetensors"
    evaluator().save(path)
    pixels = real(300)[0]
    assert np.array_equal(Evaluator.load(path).logits(pixels), evaluator().logits(pixels))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(EvaluationError):
        Evaluator.load(path)
    with pytest.raises(EvaluationError):
        Evaluator.load(tmp_path / "none.safetensors")


@pytest.mark.slow
def test_the_pretrained_digits_are_what_the_docs_say():
    """10,000 of them: FID at most 1.4 x that of real training images, variety and labels as real ones, no copies."""
    engine = Engine(open_artifact(PRETRAINED), device="cpu")
    labels = labels_like(reference().test, 10_000, 0)
    rows, _ = draw(0, 10_000, engine.manifest.latent.dim, 10)
    found, floor = quality(evaluator(), reference(), engine.run(rows, labels), labels), evaluator().facts.real
    assert found["fid"] <= 1.4 * floor["fid"]
    assert found["recall"] >= 0.95 * floor["recall"]
    assert found["coverage"] >= 0.95 * floor["coverage"]
    assert found["label_accuracy"] >= floor["label_accuracy"] - 0.001
    assert found["memorised"] <= floor["memorised"]


@pytest.mark.parametrize(
    ("name", "value", "mark", "words"),
    [
        ("fid", 0.04, 0.0388, "as real images"),
        ("fid", 0.0515, 0.0388, "near real images: 1.33 x real images'"),
        ("fid", 0.146, 0.0388, "good: 3.76 x real images'"),
        ("fid", 1.0, 0.0388, "visibly worse: 25.8 x real images'"),
        ("fid", 66.0, 0.0388, "broken: 1.7e+03 x real images'"),
        ("recall", 0.9497, 0.9508, "as real images"),
        ("recall", 0.9097, 0.9508, "95.7% of real images'"),
        ("recall", 0.3, 0.95, "31.6% of real images': variety is lost"),
        ("memorised", 0.002, 0.01, "fine"),
        ("memorised", 0.5, 0.01, "copies of training images"),
        ("class_distance", 0.9, 0.02, "some classes come too often"),
        ("kid", 0.0012, 0.0005, "as real images"),
        ("kid", 0.0027, 0.0005, "2.2 x kid_std above real images'"),
        ("nearest", 40.0, 39.5, "as real images"),
        ("nearest", 0.0, 39.5, "0.0% of real images': nearer to training images"),
        ("nearest", 79.0, 39.5, "200.0% of real images': farther from training images"),
        ("fid_class_3", 0.2, 0.1, "good: 2 x real images'"),
        ("kid_std", 0.002, 0.001, ""),
    ],
)
def test_numbers_are_put_into_words(name: str, value: float, mark: float, words: str) -> None:
    """Beside real images' number, which says how much there is to reach."""
    assert verdict(name, value, {"kid_std": 0.001, name: mark}) == words
