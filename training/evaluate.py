"""How good generated images are: compared, as features of a classifier of our own, with images that nobody trained on.

Everything is compared with the test split. A generator that repeats its training images comes no nearer to those than
new images of the train split would, and what such images score is the mark to reach: it stands beside every number.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from ganserve.errors import EvaluationError
from training.data import Dataset
from training.evaluation.classifier import FEATURE_DIM, ClassifierRecipe, Features, Labels, Pixels
from training.evaluation.evaluator import MEMORISED_SHARE, Evaluator, load_splits, make_evaluator
from training.evaluation.metrics import (
    Gaussian,
    class_spread,
    frechet_distance,
    gaussian_of,
    kernel_distance,
    manifolds,
    nearest_distances,
    total_variation,
)

REFERENCE_IMAGES: Final = 10_000  # what the numbers are stated for: FID of fewer images reads higher
MIN_IMAGES: Final = 2 * FEATURE_DIM  # below it a covariance of the features says nothing
_MIN_CLASS_IMAGES: Final = 50  # below it a class has no FID

MEANINGS: Final = {
    "fid": "distance of both sets of features: 0 is none, fewer images read higher",
    "kid": "the same by a kernel: 0 but for chance, whatever the number of images",
    "kid_std": "how much kid differs from one draw of 1,000 to the next",
    "precision": "share that lies among real images: falls with bad images",
    "recall": "share of real images that lie among these: falls with lost variety",
    "density": "precision that no outlier raises",
    "coverage": "recall that no outlier raises",
    "class_distance": "share of images that another class should have had",
    "diversity": "difference of two images of a class: 1 as in the test split",
    "memorised": "share nearer to a training image than 1 % of unseen real images are",
    "nearest": "median distance to the nearest training image, in grey levels",
    "label_accuracy": "share that is recognised as what was asked for",
    "label_accuracy_worst": "the same, of the class where it is least",
}

_FAULTS: Final = {  # what it means when a number is far below real images'
    "precision": "bad images",
    "density": "bad images",
    "recall": "variety is lost",
    "coverage": "variety is lost",
    "diversity": "images are alike",
    "label_accuracy": "wrong classes",
    "label_accuracy_worst": "a class is often wrong",
}
_MOST: Final = {  # what may not be exceeded, and what it means when it is
    "memorised": (0.03, "copies of training images"),
    "class_distance": (0.05, "some classes come too often"),
}


def verdict(name: str, value: float, real: Mapping[str, float]) -> str:
    """In a few words, what a number says beside those of real images; nothing for one that has no better or worse.

    Args:
        name: of a metric.
        value: the images'.
        real: every metric of as many real images; `fid_class_I` without this one is no metric here.
    """
    return _verdict(name, value, real[name], real.get("kid_std", 0.0))


def _verdict(name: str, value: float, real: float, kid_std: float) -> str:
    if name == "kid":
        excess = (value - real) / kid_std if kid_std else float("inf")
        return "as real images" if excess < 1 else f"{excess:.3g} x kid_std above real images'"
    if name == "nearest":
        share = value / real if real else float("inf")
        where = "nearer to training images" if share < 0.9 else "farther from training images" if share > 1.1 else ""
        return f"{share:.1%} of real images': {where}" if where else "as real images"
    if name.startswith("fid"):
        times = value / real if real else float("inf")
        if times < 1.15:
            return "as real images"
        grade = (
            "near real images" if times < 2 else "good" if times < 6 else "visibly worse" if times < 50 else "broken"
        )
        return f"{grade}: {times:.3g} x real images'"
    if name in _MOST:
        limit, fault = _MOST[name]
        return "fine" if value <= limit else fault
    if name not in _FAULTS:
        return ""
    share = value / real if real else float("inf")
    if share >= 0.99:
        return "as real images"
    return f"{share:.1%} of real images'" + (f": {_FAULTS[name]}" if share < 0.9 else "")


class Metric(NamedTuple):
    """A number of `quality`, what real images score (None where they have none), and both in words."""

    name: str
    value: float
    real: float | None
    verdict: str
    meaning: str


def told(found: Mapping[str, float], real: Mapping[str, float], class_names: Sequence[str]) -> list[Metric]:
    """Every metric of `quality`, in words; those of the classes are last.

    Args:
        found: the images'.
        real: those of as many real images.
        class_names: of the evaluator.
    """
    per_class = {name: value for name, value in found.items() if name.startswith("fid_class_")}
    worst = max(per_class, key=lambda name: per_class[name], default="")
    meanings = MEANINGS | {
        name: f"fid of class {class_names[int(name.removeprefix('fid_class_'))]} alone"
        + (", the worst" if name == worst else "")
        for name in per_class
    }
    return [
        Metric(
            name=name,
            value=value,
            real=real.get(name),
            verdict=verdict(name, value, real) if name in real else "",
            meaning=meanings[name],
        )
        for name, value in sorted(found.items(), key=lambda item: item[0] in per_class)
    ]


Report = Callable[[str, int, int], None]  # stage, done, total


def _silent(stage: str, done: int, total: int) -> None:
    """Shows nothing."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """What images are compared with: both splits, and the features of the test split."""

    train: Dataset
    test: Dataset
    features: Features
    gaussian: Gaussian
    class_gaussians: dict[int, Gaussian]
    spread: float  # of the test split: `class_spread`, 1.0 if it has none


def load_reference(evaluator: Evaluator, data: Path | None = None) -> Reference:
    """The data set that `evaluator` was made for, with the features of its test split.

    Raises:
        DataError: the data set cannot be read.
        EvaluationError: it is another one, or too small.
    """
    train, test = load_splits(data)
    if (train.digest, test.digest) != (evaluator.facts.train_digest, evaluator.facts.test_digest):
        raise EvaluationError(
            f"the evaluator was made for {evaluator.facts.dataset} (digest {evaluator.facts.train_digest[:12]}…), "
            f"not for this {train.name} (digest {train.digest[:12]}…)",
            hint="name both: --data DIR --evaluator FILE; ganserve train-evaluator makes one",
        )
    return _reference(evaluator, train, test)


def quality(
    evaluator: Evaluator,
    reference: Reference,
    pixels: Pixels,
    labels: Labels | None = None,
    *,
    report: Report = _silent,
) -> dict[str, float]:
    """Numbers by name for pixels uint8 [N, H, W, C] and, if they are known, the labels int64 [N] they were made for.

    `fid`, `kid`, `kid_std`, `precision`, `recall`, `density`, `coverage`, `class_distance`, `diversity`, `memorised`,
    `nearest`, and `fid_class_I` for each class I of which there are enough images; with labels `label_accuracy` and
    `label_accuracy_worst`. docs/evaluation.md says what they mean.

    Raises:
        EvaluationError: too few images, not of the evaluator's size, or labels that do not fit.
    """
    check_images(evaluator, pixels, labels)
    count = len(pixels)
    features, logits = evaluator.run(pixels, on_rows=_counted(report, "features", count))
    recognised = logits.argmax(axis=1)
    kinds = recognised if labels is None else labels
    nearest = nearest_distances(
        pixels[..., 0], reference.train.images, on_rows=_counted(report, "nearest training images", count)
    )
    rows = 2 * len(reference.features) + count
    hoods = manifolds(reference.features, features, on_rows=_counted(report, "neighbourhoods", rows))
    kid, kid_std = kernel_distance(reference.features, features)
    values = {
        "fid": frechet_distance(reference.gaussian, gaussian_of(features)),
        "kid": kid,
        "kid_std": kid_std,
        **dataclasses.asdict(hoods),
        "class_distance": total_variation(recognised, reference.test.labels, reference.test.num_classes),
        "diversity": class_spread(pixels, kinds) / reference.spread,
        "memorised": float((nearest < evaluator.facts.memorised_below).mean()),
        "nearest": float(np.median(nearest)),
    }
    if labels is not None:
        right = recognised == labels
        values["label_accuracy"] = float(right.mean())
        values["label_accuracy_worst"] = min(float(right[labels == label].mean()) for label in np.unique(labels))
    for label, gaussian in reference.class_gaussians.items():
        mine = features[kinds == label]
        if len(mine) >= _MIN_CLASS_IMAGES:
            values[f"fid_class_{label}"] = frechet_distance(gaussian, gaussian_of(mine))
    return values


def quick_quality(
    evaluator: Evaluator, reference: Reference, pixels: Pixels, labels: Labels | None = None
) -> tuple[dict[str, float], list[float]]:
    """What a run is told of its images while it trains: a second where `quality` takes half a minute.

    Args:
        evaluator: the judge.
        reference: what to compare with.
        pixels: uint8 [N, H, W, C].
        labels: int64 [N] that they were made for, if known.

    Returns:
        `fid`, `class_distance`, `diversity` and, with labels, `label_accuracy`, as `quality` has them; and each class's
        share of the images, as the evaluator recognises them.

    Raises:
        EvaluationError: too few images, not of the evaluator's size, or labels that do not fit.
    """
    check_images(evaluator, pixels, labels)
    features, logits = evaluator.run(pixels)
    recognised, test = logits.argmax(axis=1), reference.test
    values = {
        "fid": frechet_distance(reference.gaussian, gaussian_of(features)),
        "class_distance": total_variation(recognised, test.labels, test.num_classes),
        "diversity": class_spread(pixels, recognised if labels is None else labels) / reference.spread,
    }
    if labels is not None:
        values["label_accuracy"] = float((recognised == labels).mean())
    return values, (np.bincount(recognised, minlength=test.num_classes) / len(recognised)).tolist()


def real_quality(
    evaluator: Evaluator, reference: Reference, count: int, *, report: Report = _silent
) -> dict[str, float]:
    """What `count` images of the train split score: the mark to reach. Stored with the evaluator for 10,000.

    The images of the train split are their own nearest ones: `memorised` and `nearest` are those of the test split.
    """
    if count == evaluator.facts.real_images:
        return dict(evaluator.facts.real)
    train = reference.train
    rows = np.random.default_rng(0).permutation(len(train.images))[:count]
    values = quality(evaluator, reference, train.images[rows, ..., None], train.labels[rows], report=report)
    return values | {"memorised": MEMORISED_SHARE, "nearest": evaluator.facts.nearest_median}


def train_evaluator(data: Path | None, recipe: ClassifierRecipe, *, report: Report = _silent) -> Evaluator:
    """An evaluator for a folder of IDX files, or for the packaged MNIST, with what real images score.

    Raises:
        DataError: the data set cannot be read.
        EvaluationError: it is too small.
    """
    train, test = load_splits(data)
    _check_count("a split", min(len(train.images), len(test.images)))
    evaluator = make_evaluator(
        train,
        test,
        recipe,
        on_step=lambda step, steps: report("training", step, steps),
        on_rows=_counted(report, "nearest training images", len(test.images)),
    )
    reference = _reference(evaluator, train, test)
    count = min(REFERENCE_IMAGES, len(train.images))
    real = real_quality(evaluator, reference, count, report=report)
    return Evaluator(evaluator.network, dataclasses.replace(evaluator.facts, real=real, real_images=count))


def _reference(evaluator: Evaluator, train: Dataset, test: Dataset) -> Reference:
    _check_count("the test split", len(test.images))
    features = evaluator.features(test.images[..., None])
    return Reference(
        train=train,
        test=test,
        features=features,
        gaussian=gaussian_of(features),
        class_gaussians={
            label: gaussian_of(features[test.labels == label])
            for label in range(test.num_classes)
            if (test.labels == label).sum() >= _MIN_CLASS_IMAGES
        },
        spread=class_spread(test.images, test.labels) or 1.0,
    )


def check_images(evaluator: Evaluator, pixels: Pixels, labels: Labels | None) -> None:
    """Refuses what `quality` would refuse.

    Raises:
        EvaluationError: too few images, not of the evaluator's size, or labels that do not fit.
    """
    evaluator.check(pixels)
    _check_count("an evaluation", len(pixels))
    if labels is None:
        return
    classes = len(evaluator.facts.class_names)
    if labels.shape != (len(pixels),) or labels.min() < 0 or labels.max() >= classes:
        raise EvaluationError(
            f"labels must have shape [{len(pixels)}] and be in 0-{classes - 1}, got {list(labels.shape)} "
            f"in {labels.min()}-{labels.max()}"
        )


def _check_count(what: str, count: int) -> None:
    if count < MIN_IMAGES:
        raise EvaluationError(
            f"{what} needs at least {MIN_IMAGES} images, got {count}",
            hint=f"--n {REFERENCE_IMAGES} is what the numbers of others are stated for",
        )


def _counted(report: Report, stage: str, total: int) -> Callable[[int], None]:
    """A callback that adds up rows for `report`."""
    done = 0

    def add(rows: int) -> None:
        nonlocal done
        done += rows
        report(stage, done, total)

    return add
