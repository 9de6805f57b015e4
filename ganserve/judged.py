"""What `ganserve evaluate` is asked about: a run, a checkpoint, an artifact, an .npz, or a folder of PNGs."""

from pathlib import Path

import numpy as np

from ganserve import latents, store
from ganserve.artifact import MANIFEST, find_artifact
from ganserve.engine import Engine
from ganserve.errors import EvaluationError
from training.checkpoint import STATE_FILE
from training.data import Dataset
from training.evaluate import Reference
from training.evaluation import targets
from training.evaluation.evaluator import Evaluator
from training.evaluation.targets import Images, labels_like
from training.run_dir import CONFIG_FILE, best_checkpoint, resolve_run

_BATCH_ROWS = 256


def find_images(
    target: str | None, evaluator: Evaluator, reference: Reference, count: int, seed: int, *, runs: Path
) -> Images:
    """The images of a target, in words where they are from, and their labels if they are known.

    Args:
        target: a path, a run's name, `bento:NAME[:VERSION]`, or None for the newest run.
        evaluator: what will judge them.
        reference: what they will be compared with; labels that a target does not give are as frequent as in it.
        count: how many images; fewer if a file has fewer.
        seed: of latents and labels, or of which images of a file are taken.
        runs: where runs have their names.

    Raises:
        RunError: there is no such run.
        CheckpointError: it has no intact checkpoint.
        ArtifactError: the artifact is broken.
        EvaluationError: the images are not there, cannot be read, or are of other classes.
    """
    path = Path(target) if target is not None else None
    if target is not None and (store.is_stored(target) or (Path(target) / MANIFEST).is_file()):
        return _artifact_images(target, reference.test, count, seed)
    if path is not None and path.suffix == ".npz":
        return targets.read_npz(path, count, seed)
    if path is not None and next(path.glob("*.png"), None) and not (path / CONFIG_FILE).exists():
        return targets.read_folder(path, count, seed, channels=evaluator.facts.image_shape[2])
    if path is not None and (path / STATE_FILE).is_file():
        checkpoint = path
    else:
        checkpoint, _ = best_checkpoint(resolve_run(target, runs))
    return targets.checkpoint_images(checkpoint, reference.train, reference.test, count, seed)


def _artifact_images(target: str, test: Dataset, count: int, seed: int) -> Images:
    """An artifact's images through the engine that serves them; labels as frequent as in the test split."""
    artifact, _ = find_artifact(target)
    manifest = artifact.manifest
    if manifest.num_classes not in (None, test.num_classes):
        raise EvaluationError(
            f"{target} makes {manifest.num_classes} classes, and {test.name} has {test.num_classes}",
            hint="pass --data DIR and --evaluator FILE of the data it was trained on",
        )
    engine = Engine(artifact, device="cpu")
    labels = None if manifest.num_classes is None else labels_like(test, count, seed)
    rows, _ = latents.draw(seed, count, manifest.latent.dim)
    pixels = [
        engine.run(rows[start : start + _BATCH_ROWS], None if labels is None else labels[start : start + _BATCH_ROWS])
        for start in range(0, count, _BATCH_ROWS)
    ]
    return Images(pixels=np.concatenate(pixels), labels=labels, source=f"{target} (CPU), seed {seed}")
