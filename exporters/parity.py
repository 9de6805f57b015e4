"""What PyTorch makes of the probes: the reference that written files are compared with (ganserve.proof)."""

import numpy as np
import torch

from exporters.wrapper import ExportedGenerator
from ganserve import proof
from ganserve.proof import Images, Labels, Latents, Pixels
from training.models import Generator

_REFERENCE_ROWS = 256


def probes(generator: Generator | ExportedGenerator, count: int | None = None) -> tuple[Latents, Labels | None]:
    """`proof.probes` for this generator."""
    return proof.probes(generator.latent_dim, generator.num_classes, count)


@torch.no_grad()
def pytorch_images(generator: Generator, rows: Latents, labels: Labels | None) -> Images:
    """What the trained network itself makes of these rows, before anything was folded or exported.

    Args:
        generator: in evaluation mode.
        rows: float32 [N, latent_dim].
        labels: int64 [N], or None.

    Returns:
        float32 [N, C, H, W] in the generator's value range.
    """
    pieces = [
        generator(torch.from_numpy(piece), None if some is None else torch.from_numpy(some)).numpy()
        for piece, some in proof.batches(rows, labels, _REFERENCE_ROWS)
    ]
    return np.concatenate(pieces)


def pytorch_pixels(generator: Generator, rows: Latents, labels: Labels | None) -> Pixels:
    """`pytorch_images` as pixels: the reference, uint8 [N, H, W, C]."""
    return proof.pixels_of(pytorch_images(generator, rows, labels), generator.value_range)
