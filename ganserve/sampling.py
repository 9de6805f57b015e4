"""Images by the million: a sheet, a labelled data set or a folder of PNGs, streamed in constant memory."""

import contextlib
import errno
import itertools
import shutil
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ganserve import atomic, imaging, latents
from ganserve.engine import Engine
from ganserve.errors import ConfigError

CHUNK_ROWS = 2048  # of a digit's size: 1.6 MB of pixels, small beside a session and long beside a call
MAX_SHEET_IMAGES = 10_000

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which images.

    Attributes:
        count: how many.
        seed: image i is what the server gives for (seed, index i).
        labels: repeated in this order for as long as there are images; None: drawn from the seed, as the server does.
        truncation: see `ganserve.latents.draw`.
    """

    count: int
    seed: int
    labels: tuple[int, ...] | None
    truncation: float = 1.0


class Chunk(NamedTuple):
    """Consecutive images: the first one's index, pixels uint8 [N, H, W, C], labels int64 [N] or None, maybe N PNGs."""

    start: int
    pixels: Pixels
    labels: Labels | None
    pngs: list[bytes]


def parse_labels(text: str | None, num_classes: int | None) -> tuple[int, ...] | None:
    """`0-9`, `3,7`, `0-4,9` or `balanced` (each class in turn); None stays None.

    Raises:
        ConfigError: not that, a label that the model does not have, or a model without labels.
    """
    if text is None:
        return None
    if num_classes is None:
        raise ConfigError("this model takes no labels", hint="leave --labels out")
    if text == "balanced":
        return tuple(range(num_classes))
    labels: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (_is_number(first) and (_is_number(last) if dash else True)):
            raise ConfigError(f"--labels must be like 0-9, 3,7 or balanced, got {text!r}")
        low, high = int(first), int(last or first)
        if low > high or high >= num_classes:
            raise ConfigError(f"--labels must be in 0-{num_classes - 1}, got {part.strip()!r}")
        labels.extend(range(low, high + 1))
    return tuple(labels)


def write(
    engine: Engine, plan: Plan, out: Path, *, workers: int = 1, replace: bool = False, on_rows: Callable[[int], None]
) -> None:
    """Writes the images in the form that `out` names: `.png` a sheet, `.npz` a data set, anything else a folder.

    Args:
        engine: with one thread a session if there are several workers.
        plan: which images.
        out: appears when it is complete, and not at all otherwise.
        workers: calls of the engine that may run side by side.
        replace: whether a file that is there gives way. A folder never does.
        on_rows: hears of rows as they are done.

    Raises:
        ConfigError: too many images for a sheet, or `out` is there already or cannot be written.
        InferenceError: the session failed.
    """
    _check_out(out, plan, replace=replace)
    with (
        contextlib.closing(_chunks(engine, plan, workers, on_rows, as_png=not out.suffix)) as chunks,
        _named_errors(out),
    ):
        if out.suffix == ".png":
            columns = len(plan.labels) if plan.labels and 1 < len(plan.labels) <= plan.count else None
            pixels = np.concatenate([chunk.pixels for chunk in chunks])
            atomic.write_file(out, imaging.encode_png(imaging.contact_sheet(pixels, columns=columns)))
        elif out.suffix == ".npz":
            with atomic.open_file(out) as file:
                _write_npz(file, chunks, plan, engine.manifest.pixel_shape)
        else:
            with atomic.directory(out, durable=False) as folder:
                _write_pngs(folder, chunks)


def _check_out(out: Path, plan: Plan, *, replace: bool) -> None:
    """What can be known before the work."""
    if out.suffix not in ("", ".png", ".npz"):
        raise ConfigError(f"--out must be a .png, a .npz or a folder, got {out}")
    if out.suffix == ".png" and plan.count > MAX_SHEET_IMAGES:
        raise ConfigError(
            f"a sheet holds at most {MAX_SHEET_IMAGES:,} images, got {plan.count:,}",
            hint="write a data set: --out digits.npz",
        )
    if out.is_dir() or (out.exists() and not out.suffix):
        raise ConfigError(f"{out} exists already, and a folder is never replaced", hint="choose another --out")
    if out.exists() and not replace:
        raise ConfigError(f"{out} exists already", hint="pass --force to replace it, or choose another --out")
    with _named_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _named_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        hint = "make room, or choose another --out" if err.errno == errno.ENOSPC else "choose another --out"
        raise ConfigError(f"cannot write {out}: {err.strerror or err}", hint=hint) from err


def _chunks(
    engine: Engine, plan: Plan, workers: int, on_rows: Callable[[int], None], *, as_png: bool
) -> Generator[Chunk, None, None]:
    """The images in order, a few chunks ahead of whoever writes them."""

    def make(start: int) -> Chunk:
        count = min(CHUNK_ROWS, plan.count - start)
        manifest = engine.manifest
        rows, labels = latents.draw(
            plan.seed, count, manifest.latent.dim, manifest.num_classes, start=start, truncation=plan.truncation
        )
        if plan.labels is not None:
            labels = np.array(plan.labels, dtype=np.int64)[np.arange(start, start + count) % len(plan.labels)]
        pixels = engine.run(rows, labels)
        return Chunk(start, pixels, labels, [imaging.encode_png(image) for image in pixels] if as_png else [])

    ahead: deque[Future[Chunk]] = deque()
    starts = iter(range(0, plan.count, CHUNK_ROWS))
    with ThreadPoolExecutor(workers, thread_name_prefix="ganserve-sample") as pool:
        try:
            ahead.extend(pool.submit(make, start) for start in itertools.islice(starts, workers + 1))
            while ahead:
                chunk = ahead.popleft().result()
                ahead.extend(pool.submit(make, start) for start in itertools.islice(starts, 1))
                yield chunk
                on_rows(len(chunk.pixels))
        finally:
            for future in ahead:
                future.cancel()


def _write_npz(file: IO[bytes], chunks: Iterator[Chunk], plan: Plan, shape: Sequence[int]) -> None:
    """`pixels` uint8 [N, H, W, C], `labels` int64 [N] (if the model has any) and `seed`, as numpy.load reads them."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive, tempfile.TemporaryFile() as labels_file:
        with _member(archive, "pixels", np.dtype(np.uint8), (plan.count, *shape)) as member:
            for chunk in chunks:
                member.write(chunk.pixels.data.cast("B"))
                if chunk.labels is not None:
                    labels_file.write(chunk.labels.data.cast("B"))
        if labels_file.tell():
            labels_file.seek(0)
            with _member(archive, "labels", np.dtype(np.int64), (plan.count,)) as member:
                shutil.copyfileobj(labels_file, member, 1 << 20)
        with _member(archive, "seed", np.dtype(np.uint64), ()) as member:
            member.write(np.uint64(plan.seed).tobytes())


def _member(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> IO[bytes]:
    """A member of an .npz whose header is written and whose content may now be streamed."""
    member = archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    return member


def _write_pngs(folder: Path, chunks: Iterator[Chunk]) -> None:
    """`00000042-7.png`: the image's index and its label."""
    for chunk in chunks:
        for offset, png in enumerate(chunk.pngs):
            label = "" if chunk.labels is None else f"-{chunk.labels[offset]}"
            (folder / f"{chunk.start + offset:08d}{label}.png").write_bytes(png)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
