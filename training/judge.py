"""How good a run's images are while it trains: of the same latents at every checkpoint."""

import dataclasses
import functools
import logging
from pathlib import Path

import numpy as np
import torch

from ganserve.errors import EvaluationError
from training.config import TrainingConfig
from training.data import Dataset
from training.evaluate import Reference, load_reference, quick_quality
from training.evaluation.evaluator import Evaluator
from training.evaluation.metrics import class_spread
from training.evaluation.targets import draw_images, labels_like
from training.models import Generator

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a generator's images score.

    Attributes:
        values: `diversity` (difference of two images of a class: 1 as in real images); with an evaluator also `fid`,
            `class_distance` and, of a conditional generator, `label_accuracy`.
        class_shares: each class's share of the images, as the evaluator recognises them; None without one.
    """

    values: dict[str, float]
    class_shares: list[float] | None = None


class Judge:
    """Judges generators of one run by `config.log.evaluate_images` images.

    The packaged evaluator judges runs on MNIST; another data set needs one of its own, `log.evaluator`. Without any,
    diversity is all that can be told.
    """

    def __init__(self, config: TrainingConfig, dataset: Dataset, device: torch.device) -> None:
        """Reads the evaluator, and what it judges by at the first checkpoint.

        Raises:
            EvaluationError: `log.evaluator` was made for other data, or cannot be read.
        """
        self._config = config
        self._dataset = dataset
        self._device = device
        self._evaluator = find_evaluator(config.log.evaluator, dataset.name, dataset.digest)

    def __call__(self, generator: Generator) -> Judgement:
        """Latents of seed 0, and labels as frequent as in real images."""
        real = self._dataset if self._evaluator is None else self._reference.test
        count = self._config.log.evaluate_images
        labels = None if generator.num_classes is None else labels_like(real, count, seed=0)
        pixels = draw_images(generator, labels, count, seed=0, device=self._device)
        if self._evaluator is not None:
            values, class_shares = quick_quality(self._evaluator, self._reference, pixels, labels)
            return Judgement(values=values, class_shares=class_shares)
        kinds = np.zeros(count, dtype=np.int64) if labels is None else labels
        return Judgement(values={"diversity": class_spread(pixels, kinds) / self._real_spread})

    @functools.cached_property
    def _reference(self) -> Reference:
        assert self._evaluator is not None, "nothing is compared without an evaluator"
        directory = self._config.data.dir
        return load_reference(self._evaluator, None if directory is None else Path(directory))

    @functools.cached_property
    def _real_spread(self) -> float:
        images, labels = self._dataset.images, self._dataset.labels
        return class_spread(images, labels if self._config.conditional else np.zeros_like(labels)) or 1.0


def find_evaluator(path: str | None, dataset: str, train_digest: str) -> Evaluator | None:
    """What can judge a data set's images: the evaluator at `path`, or the packaged one if the data are MNIST.

    Args:
        path: `log.evaluator` of a run, or None.
        dataset: the data set's name, for the log and the error.
        train_digest: of its train split.

    Raises:
        EvaluationError: the one at `path` was made for other data, or cannot be read.
    """
    evaluator = Evaluator.load(None if path is None else Path(path))
    if evaluator.facts.train_digest == train_digest:
        return evaluator
    if path is not None:
        raise EvaluationError(
            f"evaluator {path} was made for {evaluator.facts.dataset}, not for this {dataset}",
            hint="ganserve train-evaluator --data DIR --out FILE.safetensors makes one",
        )
    logger.info("no evaluator for %s: FID is not measured; ganserve train-evaluator makes one", dataset)
    return None
