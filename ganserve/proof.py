"""The proof: what was written is run, and compared pixel by pixel with a reference and with itself.

At export the reference is PyTorch. What needs none is proven again by `ganserve verify`, wherever the artifact is.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ganserve import imaging, latents
from ganserve.artifact import ONNX, ONNX_FLOAT16, ONNX_IMAGES, TORCHSCRIPT, ParityResult
from ganserve.engine import cpu_session
from ganserve.errors import InferenceError, ParityError

Latents = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Images = npt.NDArray[np.float32]
Runner = Callable[[Latents, Labels | None], Pixels]


class Limits(NamedTuple):
    """What a format may differ from PyTorch by, and from itself.

    Attributes:
        max_abs_diff: grey levels.
        differing_share: of the pixels.
        exact: whether an image must be the same to the last bit in every batch, rerun and number of threads.
    """

    max_abs_diff: int
    differing_share: float
    exact: bool


LIMITS: Final = {
    ONNX: Limits(max_abs_diff=1, differing_share=0.001, exact=True),  # rounded on the other side of a half
    ONNX_FLOAT16: Limits(max_abs_diff=1, differing_share=0.05, exact=True),  # trained generators: 0.8 to 3.3 %
    ONNX_IMAGES: Limits(max_abs_diff=1, differing_share=0.001, exact=True),
    # The server never runs it, and PyTorch's own kernels depend on the batch in the last bit.
    TORCHSCRIPT: Limits(max_abs_diff=1, differing_share=0.001, exact=False),
}
IMAGES_MAX_ERROR = 1e-4  # of float images, in their own range of 1 or 2: a fortieth of a grey level

BATCH_ROWS = (1, 2, 3, 17, 64, 256)
RERUN_ROWS = 64  # the batch size at which reruns and thread counts are compared
THREADS = 2  # of the second session that each ONNX file is run in: their number must make no difference
PROBES = 4096  # images compared at each batch size; 0.1 % of their pixels is 3,211 of MNIST's size
LABEL_PROBES = 16  # latents that get one label after the other
MAX_EXTREME_SHARE = 0.999  # of pixels that are black or white; of MNIST's own, 0.82 are

_SEED = 20_260_101  # of the probes; any seed would do, a fixed one makes a failure repeatable
MAX_LABELS = 64  # that are tried: a model may have thousands


def probes(latent_dim: int, num_classes: int | None, count: int | None = None) -> tuple[Latents, Labels | None]:
    """Fixed latents float32 [count, latent_dim], and for a conditional model every label in turn, int64 [count].

    `count` is `PROBES` unless it is told.
    """
    count = PROBES if count is None else count
    drawn, _ = latents.draw(_SEED, count, latent_dim)
    return drawn, None if num_classes is None else np.arange(count, dtype=np.int64) % num_classes


def pixels_of(images: Images, value_range: tuple[float, float]) -> Pixels:
    """Images float32 [N, C, H, W] in `value_range` as pixels uint8 [N, H, W, C], as training and graphs round them."""
    low, high = value_range
    levels = (images - np.float32(low)) * np.float32(255 / (high - low))
    return np.clip(np.round(levels), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def prove(format: str, run: Runner, reference: Pixels, rows: Latents, labels: Labels | None) -> list[ParityResult]:
    """Runs the probes at every batch size and compares each with PyTorch; looks at what comes out.

    Args:
        format: the file's name, which has its row in `LIMITS`.
        run: runs one batch through the written file.
        reference: PyTorch's pixels of all probes, uint8 [N, H, W, C].
        rows: the probes, float32 [N, latent_dim].
        labels: int64 [N], or None.

    Returns:
        One result for each of `BATCH_ROWS`.

    Raises:
        ParityError: too many pixels differ, or one by too much; an image depends on its batch, or on when it is made;
            or all images are the same, or nothing but black and white.
    """
    limits = LIMITS[format]
    results: list[ParityResult] = []
    first: Pixels | None = None
    for batch_rows in BATCH_ROWS:
        pixels = run_in_batches(run, rows, labels, batch_rows)
        if pixels.shape != reference.shape or pixels.dtype != np.uint8:
            raise ParityError(
                f"{format}: PyTorch gives uint8 {list(reference.shape)}, got {pixels.dtype} {list(pixels.shape)}",
                format=format,
                batch_rows=batch_rows,
                max_abs_diff=255,
                differing_share=1.0,
            )
        max_abs_diff, differing_share = imaging.difference(pixels, reference)
        if max_abs_diff > limits.max_abs_diff or differing_share > limits.differing_share:
            raise ParityError(
                f"{format} at batch {batch_rows}: {differing_share:.3%} of the pixels differ from PyTorch, by up to "
                f"{max_abs_diff} grey levels (allowed: {limits.differing_share:.1%}, {limits.max_abs_diff})",
                format=format,
                batch_rows=batch_rows,
                max_abs_diff=max_abs_diff,
                differing_share=differing_share,
            )
        first = pixels if first is None else first
        if limits.exact:
            _check_same(format, batch_rows, pixels, first, "images depend on their batch", f"batch {BATCH_ROWS[0]}")
        results.append(
            ParityResult(
                format=format, batch_rows=batch_rows, max_abs_diff=max_abs_diff, differing_share=differing_share
            )
        )
    assert first is not None, "there is a batch size"
    if limits.exact:
        prove_same(format, run, first, rows, labels, "a rerun changes images")
    prove_alive(format, first)
    return results


def prove_batches(
    format: str, run: Runner, rows: Latents, labels: Labels | None, batch_sizes: Sequence[int] = BATCH_ROWS
) -> Pixels:
    """Runs the probes at every batch size, and expects the same bits from each.

    Args:
        format: the file's name.
        run: runs one batch through the written file.
        rows: the probes, float32 [N, latent_dim].
        labels: int64 [N], or None.
        batch_sizes: the first is what the others are compared with.

    Returns:
        The pixels of all probes, uint8 [N, H, W, C].

    Raises:
        ParityError: an image depends on its batch.
    """
    first = run_in_batches(run, rows, labels, batch_sizes[0])
    for batch_rows in batch_sizes[1:]:
        pixels = run_in_batches(run, rows, labels, batch_rows)
        _check_same(format, batch_rows, pixels, first, "images depend on their batch", f"batch {batch_sizes[0]}")
    return first


def prove_same(format: str, run: Runner, first: Pixels, rows: Latents, labels: Labels | None, fault: str) -> None:
    """Runs the probes once more and expects the same bits.

    Args:
        format: the file's name.
        run: the same file, in whatever circumstances must make no difference.
        first: the pixels of all probes, uint8 [N, H, W, C].
        rows: the probes, float32 [N, latent_dim].
        labels: int64 [N], or None.
        fault: what a difference means, in words.

    Raises:
        ParityError: there is one.
    """
    _check_same(format, RERUN_ROWS, run_in_batches(run, rows, labels, RERUN_ROWS), first, fault, "the first run")


def prove_labels(format: str, run: Runner, rows: Latents, num_classes: int) -> None:
    """Gives the same latents one label after the other, and expects other pixels from each.

    Args:
        format: the file's name.
        run: runs one batch through the written file.
        rows: float32 [N, latent_dim]; the first few are used.
        num_classes: labels are in range(num_classes).

    Raises:
        ParityError: two labels give the same images.
    """
    rows = rows[:LABEL_PROBES]
    seen: dict[bytes, int] = {}
    for label in range(min(num_classes, MAX_LABELS)):
        pixels = run(rows, np.full(len(rows), label, dtype=np.int64))
        twin = seen.setdefault(pixels.tobytes(), label)
        if twin != label:
            raise ParityError(
                f"{format}: labels {twin} and {label} give the same {len(rows)} images: labels are not respected",
                format=format,
                batch_rows=len(rows),
                max_abs_diff=0,
                differing_share=0.0,
            )


def prove_images(format: str, images: Images, reference: Images) -> float:
    """Compares float images with PyTorch's, both float32 [N, C, H, W]: the largest error, in their own range.

    Raises:
        ParityError: it is above `IMAGES_MAX_ERROR`, or an image is not finite.
    """
    distance = np.abs(images - reference)
    error = float(distance.max()) if np.isfinite(distance).all() else float("inf")
    if error > IMAGES_MAX_ERROR:
        raise ParityError(
            f"{format}: images are up to {error:.3g} away from PyTorch's (allowed: {IMAGES_MAX_ERROR:.0e})",
            format=format,
            batch_rows=len(images),
            max_abs_diff=255,
            differing_share=float(np.mean(distance > IMAGES_MAX_ERROR)),
        )
    return error


def run_in_batches(run: Runner, rows: Latents, labels: Labels | None, batch_rows: int) -> Pixels:
    """All rows through `run`, `batch_rows` at a time."""
    return np.concatenate([run(*batch) for batch in batches(rows, labels, batch_rows)])


def _check_same(format: str, batch_rows: int, pixels: Pixels, first: Pixels, fault: str, other: str) -> None:
    moved, moved_share = imaging.difference(pixels, first)
    if moved:
        raise ParityError(
            f"{format} at batch {batch_rows}: {fault}: {moved_share:.3%} of the pixels differ from {other}, by up to "
            f"{moved} grey levels (allowed: none)",
            format=format,
            batch_rows=batch_rows,
            max_abs_diff=moved,
            differing_share=moved_share,
        )


def prove_alive(format: str, pixels: Pixels) -> float:
    """A generator that draws one image, or black and white alone, is as wrong in every format as in PyTorch.

    Args:
        format: the file's name.
        pixels: of all probes, uint8 [N, H, W, C].

    Returns:
        The share of the pixels that are black or white.

    Raises:
        ParityError: all images are the same, or too many pixels are.
    """
    extreme_share = float(np.mean((pixels == 0) | (pixels == 255)))
    constant = bool((pixels == pixels[:1]).all())
    if not constant and extreme_share <= MAX_EXTREME_SHARE:
        return extreme_share
    fault = f"all {len(pixels)} images are the same" if constant else f"{extreme_share:.2%} of the pixels are 0 or 255"
    raise ParityError(
        f"{format}: {fault}: the generator has learned nothing, or its weights are damaged"
        + ("" if constant else f" (allowed: {MAX_EXTREME_SHARE:.1%})"),
        format=format,
        batch_rows=BATCH_ROWS[0],
        max_abs_diff=0,
        differing_share=0.0,
    )


def batches(rows: Latents, labels: Labels | None, batch_rows: int) -> Iterator[tuple[Latents, Labels | None]]:
    """The rows, and their labels where there are any, `batch_rows` at a time."""
    for start in range(0, len(rows), batch_rows):
        piece = slice(start, start + batch_rows)
        yield rows[piece], None if labels is None else labels[piece]


def open_images(content: bytes, threads: int = 1) -> Callable[[Latents, Labels | None], Images]:
    """The graph that returns float images; the engine serves pixels alone, so this is a plain session.

    Args:
        content: an ONNX file that was read by `onnx_reader`.
        threads: of the session.

    Raises:
        EngineError: ONNX Runtime cannot open it; and what is returned, an InferenceError where it cannot run it.
    """
    session = cpu_session(content, threads)

    def run(rows: Latents, labels: Labels | None) -> Images:
        feeds = {"latents": rows} if labels is None else {"latents": rows, "labels": labels}
        try:
            return np.asarray(session.run(["images"], feeds)[0])
        except Exception as err:  # ONNX Runtime raises its own unrelated classes, one per status code
            raise InferenceError(f"{ONNX_IMAGES} fails on {len(rows)} rows: {err}") from err

    return run


def as_pixels(run: Callable[[Latents, Labels | None], Images], value_range: tuple[float, float]) -> Runner:
    """A runner of float images as one of pixels."""
    return lambda rows, labels: pixels_of(run(rows, labels), value_range)
