"""One checkpoint to one artifact: export, run what was written, compare, and only then write."""

import datetime
import platform
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch

from exporters import document
from exporters.onnx_export import OPSET, check_opset, export_onnx
from exporters.parity import probes, pytorch_images
from exporters.quality import Quality, measure_quality
from exporters.torchscript_export import export_torchscript, torchscript_runner
from exporters.wrapper import ExportedGenerator
from ganserve import __version__, imaging
from ganserve.artifact import (
    CARD,
    GOLDEN,
    NAME_PATTERN,
    ONNX,
    ONNX_FLOAT16,
    ONNX_IMAGES,
    SAMPLES,
    TORCHSCRIPT,
    Artifact,
    Golden,
    GraphSpec,
    ImageSpec,
    LatentSpec,
    Manifest,
    ModelSpec,
    ParityResult,
    SourceSpec,
    check_target,
    entries,
    signature_of,
    write_artifact,
)
from ganserve.engine import Engine, Precision
from ganserve.errors import ExportError, GoldenMismatchError, ParityError
from ganserve.fitness import describe, fitness
from ganserve.latents import SAMPLER
from ganserve.onnx_reader import read_model
from ganserve.proof import (
    RERUN_ROWS,
    THREADS,
    Labels,
    Runner,
    as_pixels,
    open_images,
    pixels_of,
    prove,
    prove_images,
    prove_labels,
    prove_same,
    run_in_batches,
)
from training.checkpoint import TrainedGenerator, load_generator

GOLDEN_ROWS = 32
SAMPLE_COLUMNS = 10

_MNIST_DIGEST = "13ac2e4806765d408110b8374885bda339ed9a0e43e088b6cc249b4fcee92259"  # of the packaged training images
_CAPTIONS = {ONNX: "ONNX", ONNX_FLOAT16: "ONNX float16", ONNX_IMAGES: "ONNX float", TORCHSCRIPT: "TorchScript"}


class Step(NamedTuple):
    """One thing that was done, for whoever shows progress: its name and the figures."""

    name: str
    detail: str


def build_artifact(
    checkpoint: Path,
    out: Path,
    *,
    run_name: str,
    name: str | None = None,
    opset: int = OPSET,
    float16: bool = False,
    float_output: bool = False,
    torchscript: bool = False,
    replace: bool = False,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Artifact:
    """Exports a checkpoint and proves it.

    ONNX is always in the artifact: it is what serves. The files are written once to a scratch directory, opened by the
    engine that serves them, compared with PyTorch, and put in place with the report.

    Args:
        checkpoint: a checkpoint directory of a run.
        out: the artifact's directory.
        run_name: for the manifest.
        name: the model's name on every protocol; by default the data set's.
        opset: of every ONNX file; one of `OPSETS`.
        float16: whether to add `generator.fp16.onnx`, for a GPU.
        float_output: whether to add `generator.float.onnx`, which returns images in the network's range.
        torchscript: whether to add `generator.ts`.
        replace: whether an artifact at `out` gives way.
        on_step: hears of each step as it is done.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        ExportError: the generator cannot be exported.
        ParityError: it was, and computes something else. Nothing is written.
        QualityError: it was, and its images are worse. Nothing is written.
        ArtifactError: `out` is taken or cannot be written.
    """
    out = out.resolve() if out.name in ("", "..") else out  # "." has no name to put a temporary neighbour beside
    check_target(out, replace=replace)
    check_opset(opset)
    trained = load_generator(checkpoint)
    name = check_name(name) if name is not None else default_name(trained.dataset.name)
    network = trained.network
    on_step(Step("load", f"{checkpoint} (step {trained.step:,}, {parameters(trained):,} parameters)"))
    metadata = _metadata(trained, name)
    exported = ExportedGenerator(network).eval()
    variants = {ONNX: exported}
    if float16:
        variants[ONNX_FLOAT16] = ExportedGenerator(network, float16=True).eval()
    if float_output:
        variants[ONNX_IMAGES] = ExportedGenerator(network, pixels=False).eval()

    files: dict[str, bytes] = {}
    graphs: dict[str, GraphSpec] = {}
    for file, variant in variants.items():
        files[file] = export_onnx(variant, metadata, opset)
        graphs[file] = graph = fitness(file, read_model(files[file], file))
        on_step(Step("onnx", f"{file} {_kib(files[file])}, {graph.nodes} nodes, opset {graph.opset}"))
    on_step(Step("gpu", describe(graphs[ONNX])))
    if torchscript:
        files[TORCHSCRIPT] = export_torchscript(ExportedGenerator(network, torchscript=True).eval(), metadata)
        on_step(Step("torchscript", f"{TORCHSCRIPT} {_kib(files[TORCHSCRIPT])}"))

    rows, labels = probes(network)
    images = pytorch_images(network, rows, labels)
    reference = pixels_of(images, network.value_range)
    # Its golden images are PyTorch's, so that opening the candidate is the first proof.
    golden = Golden(latents=rows[:GOLDEN_ROWS], labels=_first(labels, GOLDEN_ROWS), pixels=reference[:GOLDEN_ROWS])
    runners = _open_candidates(trained, name, files, golden)
    parity: list[ParityResult] = []
    shown = {"PyTorch": reference[:SAMPLE_COLUMNS]}
    for file, (run, run_threaded) in runners.items():
        results = prove(file, run, reference, rows, labels)
        if run_threaded is not None:
            first = run_in_batches(run, rows, labels, RERUN_ROWS)
            prove_same(file, run_threaded, first, rows, labels, "images depend on the number of threads")
        if network.num_classes is not None:
            prove_labels(file, run, rows, network.num_classes)
        error = None
        if file == ONNX_IMAGES:
            error = prove_images(file, open_images(files[file])(rows, labels), images)
            results = [result.model_copy(update={"max_abs_error": error}) for result in results]
        parity += results
        shown[_CAPTIONS[file]] = run(rows[:SAMPLE_COLUMNS], _first(labels, SAMPLE_COLUMNS))
        on_step(Step("parity", _told(file, results, len(rows))))

    alone = {file: run for file, (run, _) in runners.items()}
    quality = measure_quality(trained, alone, lambda text: on_step(Step("quality", text))) or None

    run = runners[ONNX][0]
    golden = Golden(latents=golden.latents, labels=golden.labels, pixels=run(golden.latents, golden.labels))
    prove_same(ONNX, run, golden.pixels, golden.latents, golden.labels, "golden images are not replayed")
    files[GOLDEN] = golden.to_bytes()
    files[SAMPLES] = document.samples_png(shown)
    manifest = _manifest(trained, name, run_name, files, tuple(parity), graphs, quality)
    sizes = {file: len(content) for file, content in files.items()}
    files[CARD] = document.model_card(manifest, sizes)
    manifest = manifest.model_copy(update={"files": entries(files)})
    artifact = write_artifact(out, manifest, files, replace=replace)
    on_step(Step("write", f"{out} ({', '.join(sorted(files))})"))
    return artifact


def check_name(name: str) -> str:
    """`name`, if a model may be called that.

    Raises:
        ExportError: it may not.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ExportError(
            f"a model's name has up to 64 letters, digits and ._- and starts with a letter or digit, got {name!r}",
            hint="--name digits",
        )
    return name


def default_name(dataset: str) -> str:
    """A model's name made of its data set's: what a name may not have becomes a hyphen."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", dataset).strip("._-")[:64]
    return plain or "digits"


def parameters(trained: TrainedGenerator) -> int:
    """How many numbers the generator has learned."""
    return sum(parameter.numel() for parameter in trained.network.parameters())


def _told(file: str, results: Sequence[ParityResult], rows: int) -> str:
    """A line about a format that passed: the worst of all its batches."""
    max_abs_diff = max(result.max_abs_diff for result in results)
    differing_share = max(result.differing_share for result in results)
    max_abs_error = max((result.max_abs_error for result in results if result.max_abs_error is not None), default=None)
    batches = ", ".join(str(result.batch_rows) for result in results)
    error = "" if max_abs_error is None else f"; images by at most {max_abs_error:.1e}"
    return (
        f"{file} = PyTorch on {rows:,} images at batches {batches}: "
        f"{differing_share:.4%} of the pixels differ, by at most {imaging.levels(max_abs_diff)}{error}"
    )


def _open_candidates(
    trained: TrainedGenerator, name: str, files: dict[str, bytes], golden: Golden
) -> dict[str, tuple[Runner, Runner | None]]:
    """Each written file as something that runs a batch, and that with two threads where they must make no difference.

    What is served is opened by the engine that serves it.

    Raises:
        ParityError: the engine opened a graph, and it computes something else.
    """
    runners: dict[str, tuple[Runner, Runner | None]] = {}
    contents = {**files, GOLDEN: golden.to_bytes()}
    with tempfile.TemporaryDirectory(prefix="ganserve-export-") as scratch:
        candidate = write_artifact(
            Path(scratch) / "candidate", _manifest(trained, name, "candidate", contents, (), None, None), contents
        )
        precisions: dict[str, Precision] = {ONNX: "float32", ONNX_FLOAT16: "float16"}
        for file, precision in precisions.items():
            if file in files:
                alone, threaded = (_open_engine(candidate, file, precision, threads) for threads in (1, THREADS))
                runners[file] = (alone.run_batch, threaded.run_batch)
    value_range = trained.network.value_range
    if ONNX_IMAGES in files:
        runners[ONNX_IMAGES] = (
            as_pixels(open_images(files[ONNX_IMAGES]), value_range),
            as_pixels(open_images(files[ONNX_IMAGES], THREADS), value_range),
        )
    if TORCHSCRIPT in files:
        runners[TORCHSCRIPT] = (torchscript_runner(files[TORCHSCRIPT]), None)
    return runners


def _open_engine(candidate: Artifact, file: str, precision: Precision, threads: int) -> Engine:
    try:
        return Engine(candidate, device="cpu", precision=precision, threads=threads, max_batch_rows=64)
    except GoldenMismatchError as err:
        raise ParityError(
            f"{file} does not compute what PyTorch computes: {err}",
            format=file,
            batch_rows=GOLDEN_ROWS,
            max_abs_diff=err.max_abs_diff,
            differing_share=err.differing_share,
        ) from err


def _manifest(
    trained: TrainedGenerator,
    name: str,
    run_name: str,
    files: dict[str, bytes],
    parity: tuple[ParityResult, ...],
    graphs: dict[str, GraphSpec] | None,
    quality: Quality | None,
) -> Manifest:
    dataset, network = trained.dataset, trained.network
    shape = (dataset.height, dataset.width, dataset.channels)
    assert dataset.channels == 1, "IDX images are grey"
    return Manifest(
        name=name,
        model=ModelSpec(
            generator=trained.config.generator.kind,
            parameters=parameters(trained),
            image=ImageSpec(
                height=dataset.height,
                width=dataset.width,
                channels=1,
                value_range=network.value_range,
            ),
        ),
        signature=signature_of(network.latent_dim, network.num_classes, shape),
        latent=LatentSpec(dim=network.latent_dim, sampler=SAMPLER),
        labels=None if network.num_classes is None else dataset.class_names,
        files=entries(files),
        source=SourceSpec(
            run=run_name,
            checkpoint=trained.path.name,
            recipe=trained.config.recipe,
            step=trained.step,
            images_seen=trained.images_seen,
            weights_sha256=trained.digest,
            dataset=dataset.name,
            dataset_sha256=dataset.digest,
        ),
        training={key: float(value) for key, value in trained.metrics.items()},
        parity=parity,
        graphs=graphs,
        quality=quality,
        created_at=datetime.datetime.now(datetime.UTC),
        versions={
            "ganserve": __version__,
            "numpy": np.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    )


def _metadata(trained: TrainedGenerator, name: str) -> dict[str, str]:
    """What the exported files say of themselves."""
    network = trained.network
    labels = "" if network.num_classes is None else ",".join(trained.dataset.class_names)
    # Of other data sets nobody told us.
    licence = {"ganserve.dataset_license": "CC-BY-SA-3.0"} if trained.dataset.digest == _MNIST_DIGEST else {}
    return licence | {
        "ganserve.dataset": trained.dataset.name,
        "ganserve.labels": labels,
        "ganserve.latent_dim": str(network.latent_dim),
        "ganserve.name": name,
        "ganserve.sampler": SAMPLER,
        "ganserve.value_range": ",".join(f"{bound:g}" for bound in network.value_range),
        "ganserve.version": __version__,
        "ganserve.weights_sha256": trained.digest,
    }


def _first(labels: Labels | None, count: int) -> Labels | None:
    return None if labels is None else labels[:count]


def _kib(content: bytes) -> str:
    return f"{len(content) / 1024:,.0f} KiB"
