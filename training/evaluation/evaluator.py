"""A classifier on disk, with what real images score by it: `NAME.safetensors`, and `NAME.json` beside it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import safetensors
import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors

from ganserve import atomic
from ganserve.errors import DataError, EvaluationError
from training.checkpoint import environment
from training.data import Dataset, load_dataset
from training.evaluation.classifier import (
    Classifier,
    ClassifierRecipe,
    Features,
    Labels,
    Pixels,
    Progress,
    run_classifier,
    train_classifier,
)
from training.evaluation.metrics import nearest_distances

SCHEMA_VERSION: Final = 1
PACKAGED: Final = Path(__file__).parent / "mnist.safetensors"
# A fake that is nearer to a training image than this share of the unseen real images are looks memorised.
MEMORISED_SHARE: Final = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatorFacts:
    """What the JSON beside the weights says.

    Attributes:
        dataset: the data set's name.
        train_digest: of the train split, which the classifier was trained on.
        test_digest: of the test split, which everything is compared with.
        class_names: what label 0, 1, ... are called.
        image_shape: height, width and channels.
        recipe: how the classifier was trained.
        test_accuracy: share of the test split that it recognises, with the weights as they are on disk.
        memorised_below: distance to the nearest training image, in grey levels, that 1 % of the test split is within.
        nearest_median: the median of that distance over the test split.
        real: what images of the train split score (`training.evaluate.real_quality`).
        real_images: how many they were.
        weights_sha256: of the safetensors file.
        environment: where it was made.
    """

    dataset: str
    train_digest: str
    test_digest: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    recipe: ClassifierRecipe
    test_accuracy: float
    memorised_below: float
    nearest_median: float
    real: Mapping[str, float]
    real_images: int
    weights_sha256: str
    environment: Mapping[str, str]


class Evaluator:
    """Features, logits and labels of pixels, by a classifier that was trained for it.

    `Evaluator.load()` is the packaged one, of MNIST.
    """

    def __init__(self, network: Classifier, facts: EvaluatorFacts) -> None:
        self.network = network
        self.facts = facts

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """The evaluator in a .safetensors file with its .json beside it; None is the packaged one.

        Raises:
            EvaluationError: a file is missing or damaged, or they do not belong together.
        """
        path = path or PACKAGED
        try:
            body, document = path.read_bytes(), path.with_suffix(".json").read_bytes()
        except OSError as err:
            raise EvaluationError(
                f"evaluator {path} cannot be read: {err.strerror}: {err.filename}",
                hint="make one with: ganserve train-evaluator --data DIR --out FILE.safetensors",
            ) from err
        try:
            facts = _facts(json.loads(document))
            if hashlib.sha256(body).hexdigest() != facts.weights_sha256:
                raise EvaluationError(f"evaluator {path} is damaged: its SHA-256 is not the one in its .json")
            network = Classifier(facts.image_shape[2], len(facts.class_names))
            network.load_state_dict({name: tensor.float() for name, tensor in parse_safetensors(body).items()})
        except (ValueError, KeyError, TypeError, RuntimeError, RecursionError, safetensors.SafetensorError) as err:
            raise EvaluationError(f"evaluator {path} is damaged: {err}") from err
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(network.eval().requires_grad_(False), facts)

    def save(self, path: Path) -> None:
        """Writes the weights at `path` and the facts beside it.

        Raises:
            OSError: the disk said no.
        """
        body = _packed(self.network)
        facts = dataclasses.replace(self.facts, weights_sha256=hashlib.sha256(body).hexdigest())
        document = {"schema_version": SCHEMA_VERSION} | dataclasses.asdict(facts)
        atomic.write_file(path, body)
        atomic.write_file(path.with_suffix(".json"), (json.dumps(document, indent=2) + "\n").encode())

    def features(self, pixels: Pixels) -> Features:
        """Features float32 [N, 128] of pixels uint8 [N, H, W, C].

        Raises:
            EvaluationError: they are not images of the evaluator's size.
        """
        return self.run(pixels)[0]

    def logits(self, pixels: Pixels) -> Features:
        """Logits float32 [N, num_classes] of pixels uint8 [N, H, W, C].

        Raises:
            EvaluationError: they are not images of the evaluator's size.
        """
        return self.run(pixels)[1]

    def predict(self, pixels: Pixels) -> Labels:
        """Labels int64 [N] of pixels uint8 [N, H, W, C].

        Raises:
            EvaluationError: they are not images of the evaluator's size.
        """
        return np.asarray(self.logits(pixels).argmax(axis=1), dtype=np.int64)

    def run(self, pixels: Pixels, *, on_rows: Progress = lambda rows: None) -> tuple[Features, Features]:
        """Features and logits in one pass; `on_rows` hears of rows as they are done.

        Raises:
            EvaluationError: they are not images of the evaluator's size.
        """
        self.check(pixels)
        return run_classifier(self.network, pixels, on_rows=on_rows)

    def check(self, pixels: Pixels) -> None:
        """Refuses what is not pixels uint8 [N, H, W, C] of the evaluator's size, N >= 1.

        Raises:
            EvaluationError: it is not.
        """
        if (
            pixels.dtype != np.uint8
            or pixels.ndim != 4
            or pixels.shape[1:] != self.facts.image_shape
            or not len(pixels)
        ):
            height, width, channels = self.facts.image_shape
            raise EvaluationError(
                f"the evaluator of {self.facts.dataset} takes pixels uint8 [N, {height}, {width}, {channels}], "
                f"got {pixels.dtype} {list(pixels.shape)}",
                hint="pass --evaluator FILE; ganserve train-evaluator --data DIR makes one for other images",
            )


def load_splits(directory: Path | None) -> tuple[Dataset, Dataset]:
    """The train and the test split of a folder of IDX files; None is the packaged MNIST.

    Raises:
        DataError: they cannot be read, or have images of different sizes.
    """
    train, test = load_dataset(directory, "train"), load_dataset(directory, "test")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"both splits of {train.name} must have images of one size, "
            f"got {list(train.images.shape[1:])} and {list(test.images.shape[1:])}"
        )
    return train, test


def make_evaluator(
    train: Dataset, test: Dataset, recipe: ClassifierRecipe, *, on_step: Any, on_rows: Progress = lambda rows: None
) -> Evaluator:
    """A classifier trained on one split and measured on the other; what real images score is not in it yet.

    Args:
        train: what it learns.
        test: what it is measured on.
        recipe: how it learns.
        on_step: hears of each step that is done, and of how many there are.
        on_rows: hears of test images as they are compared with the training images.
    """
    network = train_classifier(train, recipe, on_step=on_step)
    body = _packed(network)
    network.load_state_dict({name: tensor.float() for name, tensor in parse_safetensors(body).items()})
    _, logits = run_classifier(network, test.images[..., None])
    nearest = nearest_distances(test.images, train.images, on_rows=on_rows)
    facts = EvaluatorFacts(
        dataset=train.name,
        train_digest=train.digest,
        test_digest=test.digest,
        class_names=train.facts.class_names,
        image_shape=(train.facts.height, train.facts.width, train.facts.channels),
        recipe=recipe,
        test_accuracy=float((logits.argmax(axis=1) == test.labels).mean()),
        memorised_below=float(np.quantile(nearest, MEMORISED_SHARE)),
        nearest_median=float(np.median(nearest)),
        real={},
        real_images=0,
        weights_sha256=hashlib.sha256(body).hexdigest(),
        environment=environment(torch.device("cpu")) | {"threads": "1"},
    )
    return Evaluator(network, facts)


def _packed(network: Classifier) -> bytes:
    """The weights as a safetensors file: what was learnt in half precision, batch statistics as they are."""
    learnt = dict(network.named_parameters())
    return to_safetensors(
        {
            name: (tensor.half() if name in learnt else tensor).contiguous()
            for name, tensor in network.state_dict().items()
        }
    )


def _facts(document: dict[str, Any]) -> EvaluatorFacts:
    if document.pop("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"its schema version is not {SCHEMA_VERSION}")
    height, width, channels = document["image_shape"]
    return EvaluatorFacts(
        **document
        | {
            "recipe": ClassifierRecipe(**document["recipe"]),
            "class_names": tuple(document["class_names"]),
            "image_shape": (height, width, channels),
        }
    )
