"""An artifact proven again, wherever it is: every check of export that does not need the trained network itself.

Nothing here imports torch. What only PyTorch can tell is listed as not checked, with the reason, never left out.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from ganserve import imaging, proof
from ganserve.artifact import (
    GOLDEN,
    MANIFEST,
    ONNX,
    ONNX_FLOAT16,
    ONNX_IMAGES,
    TORCHSCRIPT,
    Artifact,
    Golden,
    Manifest,
    TensorSpec,
    find_artifact,
)
from ganserve.cost import check_cost, multiply_adds
from ganserve.engine import Engine, Precision
from ganserve.errors import ArtifactError, ExportError, GanserveError, NoArtifactError, ParityError
from ganserve.fitness import OPSETS, describe, fitness
from ganserve.onnx_reader import Model, Value

Result = Literal["pass", "fail", "skip"]
Figures = dict[str, int | float | str | list[int]]
_T = TypeVar("_T")

_PROBE_BYTES: Final = 64 << 20  # of pixels at once: of large images, fewer are made
_MIN_PROBES: Final = 2  # images that differ
_NUMBERS: Final = ("max_abs_diff", "differing_share", "batch_rows")  # of an error, where it has them
_GRAPHS: Final = (ONNX, ONNX_FLOAT16, ONNX_IMAGES)
_PRECISIONS: Final[Mapping[str, Precision]] = {ONNX: "float32", ONNX_FLOAT16: "float16"}
_READ_CHECKS: Final = ("structure", "signature", "opset", "checker", "gpu", "cost", "metadata")
_RUN_CHECKS: Final = ("golden", "batches", "reruns", "threads", "variety", "labels")


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of one file: what was found, in words and in numbers; of one that was skipped, why."""

    file: str
    name: str
    result: Result
    detail: str
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """Every check of an artifact, in order. `digest` and `name` are None where the manifest cannot be read."""

    path: str
    reason: str
    name: str | None
    digest: str | None
    checks: tuple[Check, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.count("fail")

    def count(self, result: Result) -> int:
        """How many checks ended so."""
        return sum(check.result == result for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "path": self.path,
            "name": self.name,
            "digest": self.digest,
            "passed": self.passed,
            "seconds": round(self.seconds, 3),
            "checks": [asdict(check) for check in self.checks],
        }


def verify(explicit: str | None = None, *, on_check: Callable[[Check], None] = lambda check: None) -> Verification:
    """Checks an artifact from its manifest to its images, and goes on after a failure where it can.

    Args:
        explicit: a directory or `bento:NAME[:VERSION]`; by default what `find_artifact` finds.
        on_check: hears of each check as it is done.

    Raises:
        ArtifactError: there is none, or none of that name. One that is broken is a check that failed.
    """
    started = time.monotonic()
    book = _Book(on_check)
    try:
        artifact, reason = find_artifact(explicit)
    except NoArtifactError:
        raise
    except ArtifactError as err:
        if explicit is not None and not os.path.lexists(Path(explicit) / MANIFEST):
            raise  # there is nothing to verify
        book.fail(MANIFEST, "schema", err)
        return Verification(
            path=str(explicit or "artifacts"),
            reason="named" if explicit else "found",
            name=None,
            digest=None,
            checks=tuple(book.checks),
            seconds=time.monotonic() - started,
        )
    manifest = artifact.manifest
    book.note(
        MANIFEST,
        "schema",
        "pass",
        f"schema version {manifest.schema_version}, no unknown keys, signature and latents agree",
        {"schema_version": manifest.schema_version, "files": len(manifest.files)},
    )
    golden: Golden | None = None
    for file in (GOLDEN, *_GRAPHS, *sorted(manifest.files.keys() - {GOLDEN, *_GRAPHS})):
        if file not in manifest.files:
            continue
        intact = book.attempt(file, "digest", partial(_digest, artifact, file))
        if file == GOLDEN:
            golden = book.attempt(file, "shapes", lambda: _golden(artifact)) if intact else None
        elif file in _GRAPHS:
            _verify_graph(book, artifact, file, golden, intact=bool(intact))
        if file in proof.LIMITS:
            _note_parity(book, manifest, file)
    book.note(MANIFEST, "quality", "skip", "needs torch: the evaluator is a PyTorch network (ganserve evaluate)")
    return Verification(
        path=str(artifact.path),
        reason=reason,
        name=manifest.name,
        digest=artifact.digest,
        checks=tuple(book.checks),
        seconds=time.monotonic() - started,
    )


class _Book:
    """Where checks are written down as they are done."""

    def __init__(self, on_check: Callable[[Check], None]) -> None:
        self.checks: list[Check] = []
        self.on_check = on_check

    def note(self, file: str, name: str, result: Result, detail: str, figures: Figures | None = None) -> None:
        self.checks.append(Check(file=file, name=name, result=result, detail=detail, figures=figures or {}))
        self.on_check(self.checks[-1])

    def skip(self, file: str, names: Sequence[str], reason: str) -> None:
        for name in names:
            self.note(file, name, "skip", reason)

    def fail(self, file: str, name: str, err: GanserveError) -> None:
        numbers = {key: getattr(err, key) for key in _NUMBERS if hasattr(err, key)}
        self.note(file, name, "fail", str(err), numbers)

    def attempt(self, file: str, name: str, check: Callable[[], tuple[_T, str, Figures]]) -> _T | None:
        """What the check found, or None where it failed."""
        try:
            found, detail, figures = check()
        except GanserveError as err:
            self.fail(file, name, err)
            return None
        self.note(file, name, "pass", detail, figures)
        return found


def _digest(artifact: Artifact, file: str) -> tuple[bool, str, Figures]:
    size = len(artifact.read(file))
    return True, f"{size:,} bytes, sha256 {artifact.manifest.files[file].sha256[:12]}…", {"bytes": size}


def _golden(artifact: Artifact) -> tuple[Golden, str, Figures]:
    golden = artifact.read_golden()
    count = len(golden.latents)
    shape = " x ".join(map(str, artifact.manifest.pixel_shape))
    return golden, f"{count} images of {shape}, stored plain, no pickle", {"images": count}


def _verify_graph(book: _Book, artifact: Artifact, file: str, golden: Golden | None, *, intact: bool) -> None:
    """One ONNX file: what it holds, and if that is sound, what it computes."""
    manifest = artifact.manifest
    if not intact:
        book.skip(file, (*_READ_CHECKS, *_RUN_CHECKS), "not tried: these are not the bytes that were exported")
        return
    opened = book.attempt(file, "structure", lambda: _structure(artifact, file))
    if opened is None:
        book.skip(file, (*_READ_CHECKS[1:], *_RUN_CHECKS), "not tried: the file itself is not sound")
        return
    content, model = opened
    sound = [
        book.attempt(file, "signature", lambda: _signature(manifest, file, model)),
        book.attempt(file, "opset", lambda: _opset(manifest, file, model)),
        _checker(book, file, content),
        book.attempt(file, "gpu", lambda: _gpu(manifest, file, model)),
        book.attempt(file, "cost", lambda: _cost(manifest, file, model)),
    ]
    _metadata(book, manifest, file, model)
    if golden is None:
        book.skip(file, _RUN_CHECKS, f"not run: {GOLDEN} cannot be read")
    elif not all(sound):
        book.skip(file, _RUN_CHECKS, "not run: the graph is not what an artifact holds")
    else:
        _verify_images(book, artifact, file, content, golden)


def _structure(artifact: Artifact, file: str) -> tuple[tuple[bytes, Model], str, Figures]:
    content, model = artifact.read_onnx(file)
    held = sum(tensor.bytes for tensor in model.weights.values())
    detail = f"standard operators alone, {held:,} bytes of {model.precision} weights, all inside the file"
    figures: Figures = {"nodes": len(model.nodes), "weight_bytes": held, "ir_version": model.ir_version}
    return (content, model), detail, figures


def _signature(manifest: Manifest, file: str, model: Model) -> tuple[bool, str, Figures]:
    height, width, channels = manifest.pixel_shape
    outputs = manifest.signature.outputs
    if file == ONNX_IMAGES:
        outputs = (TensorSpec(name="images", dtype="float32", shape=("batch", channels, height, width)),)
    for kind, values, specs in (
        ("inputs", model.inputs, manifest.signature.inputs),
        ("outputs", model.outputs, outputs),
    ):
        found = [_described(value) for value in values]
        expected = [_described(spec) for spec in specs]
        if found != expected:
            raise ArtifactError(f"{file}: the graph's {kind} are {', '.join(found)}; expected {', '.join(expected)}")
    inputs = ", ".join(_described(value) for value in model.inputs)
    return True, f"{inputs} -> {', '.join(_described(value) for value in model.outputs)}", {}


def _described(value: Value | TensorSpec) -> str:
    # The batch dimension's own name is the exporter's business; that it varies is not.
    shape = ["batch" if isinstance(size, str) else str(size) for size in value.shape]
    return f"{value.name} {value.dtype} [{', '.join(shape)}]"


def _opset(manifest: Manifest, file: str, model: Model) -> tuple[bool, str, Figures]:
    if model.opset not in OPSETS:
        raise ArtifactError(f"{file}: opset must be {OPSETS[0]} to {OPSETS[-1]}, got {model.opset}")
    stated = (manifest.graphs or {}).get(file)
    if stated is not None and stated.opset != model.opset:
        raise ArtifactError(f"{file}: the manifest says opset {stated.opset}, the file {model.opset}")
    return True, f"opset {model.opset}", {"opset": model.opset}


def _checker(book: _Book, file: str, content: bytes) -> bool:
    """Whether nothing speaks against the graph: `onnx` itself may not be there to ask."""
    try:
        import onnx
    except ModuleNotFoundError:
        book.note(file, "checker", "skip", "needs onnx, which a serving installation lacks")
        return True
    try:
        onnx.checker.check_model(onnx.load_model_from_string(content), full_check=True)
    except Exception as err:  # the checker and its shape inference raise classes of their own, protobuf others
        book.fail(file, "checker", ArtifactError(f"{file} is not valid ONNX: {err}"))
        return False
    book.note(file, "checker", "pass", f"onnx {onnx.__version__} finds a valid graph, shapes inferred")
    return True


def _gpu(manifest: Manifest, file: str, model: Model) -> tuple[bool, str, Figures]:
    spec = fitness(file, model)
    stated = (manifest.graphs or {}).get(file)
    if stated is not None and stated != spec:
        raise ExportError(f"{file}: the manifest says {stated!r}, the file {spec!r}")
    return True, describe(spec), {"nodes": spec.nodes, "compute_islands": spec.compute_islands}


def _cost(manifest: Manifest, file: str, model: Model) -> tuple[bool, str, Figures]:
    numbers = check_cost(model, file, math.prod(manifest.pixel_shape))
    products = multiply_adds(model, file)
    figures: Figures = {"numbers": numbers, "multiply_adds": products}
    return True, f"an image takes {products:,} multiply-adds and {numbers:,} numbers on the way", figures


def _metadata(book: _Book, manifest: Manifest, file: str, model: Model) -> None:
    expected = {
        "ganserve.dataset": manifest.source.dataset,
        "ganserve.labels": ",".join(manifest.labels or ()),
        "ganserve.latent_dim": str(manifest.latent.dim),
        "ganserve.name": manifest.name,
        "ganserve.sampler": manifest.latent.sampler,
        "ganserve.value_range": ",".join(f"{bound:g}" for bound in manifest.model.image.value_range),
        "ganserve.weights_sha256": manifest.source.weights_sha256,
    }
    stated = {key: value for key, value in model.metadata.items() if key in expected}
    wrong = {key: value for key, value in stated.items() if value != expected[key]}
    if wrong:
        faults = "; ".join(f"{key} is {value!r}, the manifest says {expected[key]!r}" for key, value in wrong.items())
        book.fail(file, "metadata", ArtifactError(f"{file}: {faults}"))
    elif not stated:
        book.note(file, "metadata", "skip", "the file says nothing of itself")
    else:
        book.note(
            file, "metadata", "pass", f"{len(stated)} statements agree with the manifest", {"stated": len(stated)}
        )


def _verify_images(book: _Book, artifact: Artifact, file: str, content: bytes, golden: Golden) -> None:
    """Runs the graph as it is served: golden images, every batch size, again, with other threads, label by label."""
    manifest = artifact.manifest
    runners = book.attempt(file, "golden", lambda: _open(artifact, file, content, golden))
    if runners is None:
        book.skip(file, _RUN_CHECKS[1:], "not run: the graph does not give the golden images")
        return
    run, run_threaded = runners
    height, width, channels = manifest.pixel_shape
    count = min(proof.PROBES, max(_MIN_PROBES, _PROBE_BYTES // (height * width * channels)))
    batch_sizes = [rows for rows in proof.BATCH_ROWS if rows <= count]
    rows, labels = proof.probes(manifest.latent.dim, manifest.num_classes, count)

    def batches() -> tuple[proof.Pixels, str, Figures]:
        pixels = proof.prove_batches(file, run, rows, labels, batch_sizes)
        sizes = ", ".join(map(str, batch_sizes))
        figures: Figures = {"images": count, "batches": batch_sizes, "max_abs_diff": 0}
        return pixels, f"{count:,} images are the same to the last bit at batches {sizes}", figures

    pixels = book.attempt(file, "batches", batches)
    if pixels is None:
        book.skip(file, _RUN_CHECKS[2:], "not run: images depend on their batch")
        return

    def again(other: proof.Runner, fault: str, detail: str) -> tuple[bool, str, Figures]:
        proof.prove_same(file, other, pixels, rows, labels, fault)
        return True, detail, {"images": count, "max_abs_diff": 0}

    fault = "images depend on the number of threads"
    book.attempt(file, "reruns", lambda: again(run, "a rerun changes images", "the same bits when made again"))
    book.attempt(
        file, "threads", lambda: again(run_threaded, fault, f"the same bits with 1 and {proof.THREADS} threads")
    )
    book.attempt(file, "variety", lambda: _variety(file, pixels))
    if manifest.num_classes is None:
        book.note(file, "labels", "skip", "the model takes none")
    else:
        book.attempt(file, "labels", lambda: _labels(file, run, rows, manifest.num_classes or 0))


def _open(
    artifact: Artifact, file: str, content: bytes, golden: Golden
) -> tuple[tuple[proof.Runner, proof.Runner], str, Figures]:
    """The file with one thread and with several, after both gave the golden images."""
    if file == ONNX_IMAGES:
        value_range = artifact.manifest.model.image.value_range
        run, run_threaded = (
            proof.as_pixels(proof.open_images(content, threads), value_range) for threads in (1, proof.THREADS)
        )
    else:
        run, run_threaded = (
            Engine(artifact, device="cpu", precision=_PRECISIONS[file], threads=threads, max_batch_rows=64).run_batch
            for threads in (1, proof.THREADS)
        )
    pixels = run(golden.latents, golden.labels)
    if pixels.shape != golden.pixels.shape:
        raise ArtifactError(
            f"{file} gives {list(pixels.shape)} for the golden latents, not {list(golden.pixels.shape)}"
        )
    max_abs_diff, differing_share = imaging.difference(pixels, golden.pixels)
    limits = proof.LIMITS[file]
    detail = (
        f"{differing_share:.4%} of the pixels of {len(pixels)} images differ, by at most "
        f"{imaging.levels(max_abs_diff)} (allowed: {limits.differing_share:.1%}, {imaging.levels(limits.max_abs_diff)})"
    )
    if max_abs_diff > limits.max_abs_diff or differing_share > limits.differing_share:
        raise ParityError(
            f"{file}: {detail}",
            format=file,
            batch_rows=len(pixels),
            max_abs_diff=max_abs_diff,
            differing_share=differing_share,
        )
    return (run, run_threaded), detail, {"max_abs_diff": max_abs_diff, "differing_share": differing_share}


def _variety(file: str, pixels: proof.Pixels) -> tuple[bool, str, Figures]:
    share = proof.prove_alive(file, pixels)
    detail = f"images differ; {share:.1%} of the pixels are black or white (allowed: {proof.MAX_EXTREME_SHARE:.1%})"
    return True, detail, {"extreme_share": share}


def _labels(file: str, run: proof.Runner, rows: proof.Latents, num_classes: int) -> tuple[bool, str, Figures]:
    proof.prove_labels(file, run, rows, num_classes)
    tried = min(num_classes, proof.MAX_LABELS)
    return True, f"the same latents give other images with each of {tried} labels", {"labels": tried}


def _note_parity(book: _Book, manifest: Manifest, file: str) -> None:
    """What only PyTorch can tell, with what the export found; that, at least, must be within the limits."""
    source = manifest.source
    needs = f"needs torch, and {source.checkpoint} of run {source.run}"
    if file == TORCHSCRIPT:
        book.note(file, "images", "skip", "needs torch; TorchScript is code, and never run here")
    recorded = [row for row in manifest.parity if row.format == file]
    if not recorded:
        book.note(file, "parity", "skip", f"{needs}; the manifest has no record of it")
        return
    max_abs_diff = max(row.max_abs_diff for row in recorded)
    differing_share = max(row.differing_share for row in recorded)
    limits = proof.LIMITS[file]
    figures: Figures = {"max_abs_diff": max_abs_diff, "differing_share": differing_share}
    told = f"{differing_share:.4%} of the pixels differ, by at most {imaging.levels(max_abs_diff)}"
    allowed = f"allowed: {limits.differing_share:.1%}, {imaging.levels(limits.max_abs_diff)}"
    error = max((row.max_abs_error for row in recorded if row.max_abs_error is not None), default=None)
    if error is not None:
        figures["max_abs_error"] = error
        told += f"; images by at most {error:.1e}"
        allowed += f"; {proof.IMAGES_MAX_ERROR:.0e}"
    beyond = max_abs_diff > limits.max_abs_diff or differing_share > limits.differing_share
    if beyond or (error is not None and error > proof.IMAGES_MAX_ERROR):
        book.note(file, "parity", "fail", f"the manifest records that {told} ({allowed})", figures)
    else:
        book.note(file, "parity", "skip", f"{needs}; at export, {told}", figures)
