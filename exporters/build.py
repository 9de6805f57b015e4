"""One checkpoint to one artifact: export, run what was written, compare, and only then write."""

import datetime
import platform
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch

from exporters import document
from exporters.onnx_export import OPSET, export_onnx
from exporters.parity import (
    Labels,
    Latents,
    Pixels,
    probes,
    prove,
    pytorch_pixels,
)
from exporters.torchscript_export import export_torchscript, load_torchscript
from exporters.wrapper import ExportedGenerator
from ganserve import __version__
from ganserve.artifact import (
    CARD,
    GOLDEN,
    NAME_PATTERN,
    ONNX,
    SAMPLES,
    TORCHSCRIPT,
    Artifact,
    Golden,
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
from ganserve.engine import Engine
from ganserve.errors import ExportError, GoldenMismatchError, ParityError
from ganserve.latents import SAMPLER
from training.checkpoint import TrainedGenerator, load_generator

GOLDEN_ROWS = 32
SAMPLE_COLUMNS = 10


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
        torchscript: whether to add `generator.ts`.
        replace: whether an artifact at `out` gives way.
        on_step: hears of each step as it is done.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        ExportError: the generator cannot be exported.
        ParityError: it was, and computes something else. Nothing is written.
        ArtifactError: `out` is taken or cannot be written.
    """
    out = out.resolve() if out.name in ("", "..") else out  # "." has no name to put a temporary neighbour beside
    check_target(out, replace=replace)
    trained = load_generator(checkpoint)
    name = check_name(name) if name is not None else default_name(trained.dataset.name)
    network = trained.network
    on_step(Step("load", f"{checkpoint} (step {trained.step:,}, {parameters(trained):,} parameters)"))
    exported = ExportedGenerator(network).eval()
    metadata = _metadata(trained, name)

    files = {ONNX: export_onnx(exported, metadata)}
    on_step(Step("onnx", f"{ONNX} {_kib(files[ONNX])}, {_nodes(files[ONNX])} nodes, opset {OPSET}"))
    if torchscript:
        files[TORCHSCRIPT] = export_torchscript(exported, metadata)
        on_step(Step("torchscript", f"{TORCHSCRIPT} {_kib(files[TORCHSCRIPT])}"))

    rows, labels = probes(network)
    reference = pytorch_pixels(network, rows, labels)
    engine = _open_candidate(trained, name, files, Golden(latents=rows, labels=labels, pixels=reference))
    parity: list[ParityResult] = []
    shown = {"PyTorch": reference[:SAMPLE_COLUMNS]}
    runners: dict[str, Callable[[Latents, Labels | None], Pixels]] = {ONNX: engine.run}
    if torchscript:
        runners[TORCHSCRIPT] = _torchscript_runner(files[TORCHSCRIPT])
    for file, run in runners.items():
        results = prove(file, run, reference, rows, labels, served=file == ONNX)
        parity += results
        worst = max(results, key=lambda result: (result.max_abs_diff, result.differing_share))
        shown["ONNX" if file == ONNX else "TorchScript"] = run(*_head(rows, labels, SAMPLE_COLUMNS))
        batches = ", ".join(str(result.batch_rows) for result in results)
        on_step(
            Step(
                "parity",
                f"{file} = PyTorch on {len(rows)} images at batches {batches}: "
                f"{worst.differing_share:.4%} of the pixels differ, by at most {worst.max_abs_diff} grey level",
            )
        )

    golden_rows, golden_labels = _head(rows, labels, GOLDEN_ROWS)
    golden = Golden(latents=golden_rows, labels=golden_labels, pixels=engine.run(golden_rows, golden_labels))
    files[GOLDEN] = golden.to_bytes()
    files[SAMPLES] = document.samples_png(shown)
    manifest = _manifest(trained, name, run_name, files, tuple(parity))
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


def _open_candidate(trained: TrainedGenerator, name: str, files: dict[str, bytes], golden: Golden) -> Engine:
    """The written file in the engine that serves it; its golden images are PyTorch's, so opening it is the first proof.

    Raises:
        ParityError: the engine opened the graph, and it computes something else.
    """
    contents = {**files, GOLDEN: golden.to_bytes()}
    with tempfile.TemporaryDirectory(prefix="ganserve-export-") as scratch:
        candidate = write_artifact(
            Path(scratch) / "candidate", _manifest(trained, name, "candidate", contents, ()), contents
        )
        try:
            return Engine(candidate, device="cpu", max_batch_rows=64)
        except GoldenMismatchError as err:
            raise ParityError(
                f"{ONNX} does not compute what PyTorch computes: {err}",
                format=ONNX,
                batch_rows=len(golden.latents),
                max_abs_diff=err.max_abs_diff,
                differing_share=err.differing_share,
            ) from err


def _torchscript_runner(content: bytes) -> Callable[[Latents, Labels | None], Pixels]:
    module = load_torchscript(content)

    @torch.no_grad()
    def run(rows: Latents, labels: Labels | None) -> Pixels:
        inputs = [torch.from_numpy(rows)] + ([] if labels is None else [torch.from_numpy(labels)])
        try:
            return np.asarray(module(*inputs).numpy())
        except RuntimeError as err:
            raise ExportError(f"{TORCHSCRIPT} fails on {len(rows)} rows: {err}") from err

    return run


def _manifest(
    trained: TrainedGenerator,
    name: str,
    run_name: str,
    files: dict[str, bytes],
    parity: tuple[ParityResult, ...],
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
    return {
        "ganserve.dataset": trained.dataset.name,
        "ganserve.labels": labels,
        "ganserve.latent_dim": str(network.latent_dim),
        "ganserve.name": name,
        "ganserve.sampler": SAMPLER,
        "ganserve.version": __version__,
        "ganserve.weights_sha256": trained.digest,
    }


def _head(rows: Latents, labels: Labels | None, count: int) -> tuple[Latents, Labels | None]:
    return rows[:count], None if labels is None else labels[:count]


def _nodes(graph: bytes) -> int:
    return len(onnx.load_model_from_string(graph).graph.node)


def _kib(content: bytes) -> str:
    return f"{len(content) / 1024:,.0f} KiB"
