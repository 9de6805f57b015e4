"""What a format costs in quality: FID and label accuracy of the same latents, through PyTorch and through each file."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from exporters.parity import pytorch_pixels
from ganserve import latents
from ganserve.errors import DataError, EvaluationError, QualityError
from ganserve.proof import Pixels, Runner, run_in_batches
from training.checkpoint import TrainedGenerator
from training.evaluate import load_reference, quick_quality
from training.evaluation.targets import labels_like
from training.judge import find_evaluator

logger = logging.getLogger(__name__)

IMAGES: Final = 10_000  # what FIDs are stated for
PYTORCH: Final = "PyTorch"  # the first of the measured, which the others drift from
_SEED: Final = 0
_BATCH_ROWS: Final = 64


class Limits(NamedTuple):
    """How far a format may be from PyTorch, in either direction.

    Attributes:
        fid_share: of PyTorch's FID.
        fid: and at any rate so much, because rounding moves a small FID by a larger share.
        label_accuracy: of 1.
    """

    fid_share: float
    fid: float
    label_accuracy: float


LIMITS: Final = Limits(fid_share=0.02, fid=0.002, label_accuracy=0.002)

Quality = dict[str, dict[str, float]]


def measure_quality(
    trained: TrainedGenerator, runners: Mapping[str, Runner], on_format: Callable[[str], None]
) -> Quality:
    """What `training.evaluate.quick_quality` says of `IMAGES` images, by PyTorch and by each format.

    Args:
        trained: the generator; its data set's evaluator judges, the packaged one of MNIST or the run's `log.evaluator`.
        runners: format -> what runs a batch through the written file.
        on_format: hears of each format, in words, as it is measured.

    Returns:
        `PYTORCH` and each format -> `images`, `fid`, `diversity`, `class_distance`, and of a conditional generator
        `label_accuracy`; of formats also `fid_drift`, and `label_accuracy_drift`, the format's less PyTorch's. Nothing
        where there is no evaluator for the generator's data, or the data are no longer there; the log says which.

    Raises:
        QualityError: a format has drifted too far.
    """
    dataset, log = trained.dataset, trained.config.log
    try:
        evaluator = find_evaluator(log.evaluator, dataset.name, dataset.digest)
        if evaluator is None:
            return {}
        directory = trained.config.data.dir
        reference = load_reference(evaluator, None if directory is None else Path(directory))
    except (DataError, EvaluationError) as err:
        logger.warning("quality is not measured: %s", err)
        return {}
    network = trained.network
    rows, _ = latents.draw(_SEED, IMAGES, network.latent_dim)
    labels = None if network.num_classes is None else labels_like(reference.test, IMAGES, _SEED)

    def measured(pixels: Pixels) -> dict[str, float]:
        return {"images": IMAGES} | quick_quality(evaluator, reference, pixels, labels)[0]

    found: Quality = {PYTORCH: measured(pytorch_pixels(network, rows, labels))}
    on_format(told(PYTORCH, found[PYTORCH]))
    for format, run in runners.items():
        values = measured(run_in_batches(run, rows, labels, _BATCH_ROWS))
        for name in ("fid", "label_accuracy"):
            if name in values:
                values[f"{name}_drift"] = values[name] - found[PYTORCH][name]
        check_drift(format, values)
        found[format] = values
        on_format(told(format, values))
    return found


def check_drift(format: str, values: Mapping[str, float]) -> None:
    """Refuses a format whose images are of another quality than PyTorch's.

    Raises:
        QualityError: one of its drifts is above its limit.
    """
    fid, drift = values["fid"], values["fid_drift"]
    allowed = max(LIMITS.fid, LIMITS.fid_share * (fid - drift))
    if not abs(drift) <= allowed:  # what is no number is too much
        raise QualityError(f"{format}: FID is {fid:.4f}, {drift:+.4f} from PyTorch's (allowed: {allowed:.4f})")
    drift = values.get("label_accuracy_drift", 0.0)
    if not abs(drift) <= LIMITS.label_accuracy:
        raise QualityError(
            f"{format}: label accuracy is {values['label_accuracy']:.2%}, {drift:+.2%} from PyTorch's "
            f"(allowed: {LIMITS.label_accuracy:.2%})"
        )


def told(format: str, values: Mapping[str, float]) -> str:
    """A line about one format."""
    drift = f" ({values['fid_drift']:+.5f})" if "fid_drift" in values else ""
    text = f"{format}: FID {values['fid']:.4f}{drift}"
    if "label_accuracy" in values:
        drift = f" ({values['label_accuracy_drift']:+.2%})" if "label_accuracy_drift" in values else ""
        text += f", label accuracy {values['label_accuracy']:.2%}{drift}"
    return f"{text}, of {values['images']:,.0f} images"
