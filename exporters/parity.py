"""The proof: what was written is run, and compared with PyTorch pixel by pixel."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from exporters.wrapper import ExportedGenerator
from ganserve import imaging, latents
from ganserve.artifact import ParityResult
from ganserve.errors import ParityError
from training.data.batches import pixels_from_images
from training.models import Generator

Latents = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Runner = Callable[[Latents, Labels | None], Pixels]

BATCH_ROWS = (1, 2, 3, 17, 64)
PROBES = 512  # images compared at each batch size; 0.1 % of their pixels is 400 of MNIST's size
MAX_ABS_DIFF = 1  # grey levels: a float32 that is rounded on the other side of a half
DIFFERING_SHARE = 0.001

_SEED = 20_260_101  # of the probes; any seed would do, a fixed one makes a failure repeatable


def probes(generator: Generator | ExportedGenerator, count: int = PROBES) -> tuple[Latents, Labels | None]:
    """Fixed latents float32 [count, latent_dim], and for a conditional generator every label in turn, int64 [count]."""
    drawn, _ = latents.draw(_SEED, count, generator.latent_dim)
    if generator.num_classes is None:
        return drawn, None
    return drawn, np.arange(count, dtype=np.int64) % generator.num_classes


@torch.no_grad()
def pytorch_pixels(generator: Generator, rows: Latents, labels: Labels | None) -> Pixels:
    """What the trained network itself makes of these rows, before anything was folded or exported: the reference.

    Args:
        generator: in evaluation mode.
        rows: float32 [N, latent_dim].
        labels: int64 [N], or None.

    Returns:
        uint8 [N, H, W, C].
    """
    images = generator(torch.from_numpy(rows), None if labels is None else torch.from_numpy(labels))
    return np.asarray(pixels_from_images(images, generator.value_range).numpy())


def prove(
    format: str, run: Runner, reference: Pixels, rows: Latents, labels: Labels | None, *, served: bool
) -> list[ParityResult]:
    """Runs the probes at every batch size and compares each with PyTorch.

    Args:
        format: for the report: the file's name.
        run: runs one batch through the written file.
        reference: PyTorch's pixels of all probes, uint8 [N, H, W, C].
        rows: the probes, float32 [N, latent_dim].
        labels: int64 [N], or None.
        served: whether the server runs this format: then an image must not depend on its batch, to the last bit.

    Returns:
        One result for each of `BATCH_ROWS`.

    Raises:
        ParityError: too many pixels differ, or one by too much; or an image depends on its batch.
    """
    results: list[ParityResult] = []
    alone: Pixels | None = None
    for batch_rows in BATCH_ROWS:
        pixels = np.concatenate([run(*batch) for batch in _batches(rows, labels, batch_rows)])
        if pixels.shape != reference.shape or pixels.dtype != np.uint8:
            raise ParityError(
                f"{format}: PyTorch gives uint8 {list(reference.shape)}, got {pixels.dtype} {list(pixels.shape)}",
                format=format,
                batch_rows=batch_rows,
                max_abs_diff=255,
                differing_share=1.0,
            )
        max_abs_diff, differing_share = imaging.difference(pixels, reference)
        if max_abs_diff > MAX_ABS_DIFF or differing_share > DIFFERING_SHARE:
            raise ParityError(
                f"{format} at batch {batch_rows}: {differing_share:.3%} of the pixels differ from PyTorch, by up to "
                f"{max_abs_diff} grey levels (allowed: {DIFFERING_SHARE:.1%}, {MAX_ABS_DIFF})",
                format=format,
                batch_rows=batch_rows,
                max_abs_diff=max_abs_diff,
                differing_share=differing_share,
            )
        alone = pixels if alone is None else alone
        moved, moved_share = imaging.difference(pixels, alone)
        if served and moved:
            raise ParityError(
                f"{format} at batch {batch_rows}: images depend on their batch: {moved_share:.3%} of the pixels differ "
                f"from batch {BATCH_ROWS[0]}, by up to {moved} grey levels (allowed: none)",
                format=format,
                batch_rows=batch_rows,
                max_abs_diff=moved,
                differing_share=moved_share,
            )
        results.append(
            ParityResult(
                format=format, batch_rows=batch_rows, max_abs_diff=max_abs_diff, differing_share=differing_share
            )
        )
    return results


def _batches(rows: Latents, labels: Labels | None, batch_rows: int) -> Iterator[tuple[Latents, Labels | None]]:
    for start in range(0, len(rows), batch_rows):
        piece = slice(start, start + batch_rows)
        yield rows[piece], None if labels is None else labels[piece]
