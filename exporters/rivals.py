"""What PyTorch makes of an artifact's latents: contenders for `ganserve bench`, which itself knows no torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from exporters.torchscript_export import torchscript_runner
from ganserve.artifact import TORCHSCRIPT, Artifact, open_artifact
from ganserve.errors import CheckpointError
from ganserve.proof import Labels, Latents, Pixels, Runner
from training.checkpoint import load_generator
from training.data.batches import pixels_from_images


def open_torchscript(path: Path, threads: int) -> Runner:
    """The artifact's `generator.ts`. It is code, and runs here: only for artifacts that you trust.

    Raises:
        ArtifactError: the artifact has none, or not the one that the manifest pins.
    """
    runner = torchscript_runner(open_artifact(path).read(TORCHSCRIPT))
    torch.set_num_threads(threads)
    return runner


def find_checkpoint(artifact: Artifact, runs: Path) -> Path:
    """The checkpoint that an artifact was made of, if it is still there with the same weights.

    Raises:
        CheckpointError: it is not: a network cannot be rebuilt from what was exported.
    """
    source = artifact.manifest.source
    path = runs / source.run / "checkpoints" / source.checkpoint
    if not path.is_dir():
        raise CheckpointError(
            f"PyTorch needs the checkpoint that {artifact.path} was made of, and there is no {path}",
            hint="run this where runs/ has it, or leave torch out of --against",
        )
    found = load_generator(path).digest
    if found != source.weights_sha256:
        raise CheckpointError(
            f"{path} has other weights than {artifact.path} was made of: expected sha256 "
            f"{source.weights_sha256[:12]}…, found {found[:12]}…",
            hint="export the run again, or leave torch out of --against",
        )
    return path


@dataclass(frozen=True)
class Eager:
    """Opens a checkpoint's network, run by PyTorch as it was trained, layer by layer."""

    checkpoint: Path

    def __call__(self, path: Path, threads: int) -> Runner:
        """Of the artifact's own directory `path` nothing is needed."""
        network = load_generator(self.checkpoint).network
        torch.set_num_threads(threads)

        @torch.no_grad()
        def run(rows: Latents, labels: Labels | None) -> Pixels:
            images = network(torch.from_numpy(rows), None if labels is None else torch.from_numpy(labels))
            return np.asarray(pixels_from_images(images, network.value_range).numpy())

        return run
