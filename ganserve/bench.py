"""How fast an artifact's formats are beside each other: latency, images a second, memory and what they differ by.

Everything is timed in one process and in turns, so that a machine that slows down slows all of them: trust the ratios.
"""

import concurrent.futures
import functools
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ganserve import imaging, latents, proof
from ganserve.artifact import ONNX, ONNX_FLOAT16, ONNX_IMAGES, Artifact, open_artifact
from ganserve.engine import Device, Engine, Precision, cuda_obstacle, no_cuda, read_graph
from ganserve.errors import ConfigError, InferenceError
from ganserve.proof import Labels, Latents, Pixels, Runner

# Opens a contender of the artifact in a directory, to be run with so many threads. A function of a module, so that
# another process can call it: that is where memory is measured.
Opener = Callable[[Path, int], Runner]

BATCHES: Final = (1, 8, 64, 256)
MAX_BATCH_ROWS: Final = 65536
ROUNDS: Final = 9
SPAN_S: Final = 0.1  # how long a contender runs in one round

_SEED = 20_260_102  # of the latents; any would do


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender at one batch size.

    Attributes:
        format: the contender's name: a file of the artifact, or what it was made of.
        batch_rows: latents in one call.
        p50_ms: median of all calls of all rounds.
        images_per_s: the median round's.
        speedup: how many times as fast as `generator.onnx` it is: the median over rounds of the ratio of their medians.
        memory_bytes: by how much a process of its own grew at most, libraries not counted, from before it was opened
            until after one call of this size and of each smaller one; None on a GPU, and where the system does not
            tell.
        max_abs_diff: in grey levels, from `generator.onnx`.
        differing_share: of the pixels.
    """

    format: str
    batch_rows: int
    p50_ms: float
    images_per_s: float
    speedup: float
    memory_bytes: int | None
    max_abs_diff: int
    differing_share: float


def parse_batches(text: str) -> tuple[int, ...]:
    """Batch sizes from "1,8,64", in rising order, each once.

    Raises:
        ConfigError: something else is in it.
    """
    try:
        batches = sorted({int(part) for part in text.split(",")})
    except ValueError:
        batches = []
    if not batches or not 1 <= batches[0] <= batches[-1] <= MAX_BATCH_ROWS:
        raise ConfigError(
            f"--batch must be numbers from 1 to {MAX_BATCH_ROWS} with commas between them, got {text!r}",
            hint="--batch 1,8,64",
        )
    return tuple(batches)


def measure(
    artifact: Artifact,
    contenders: Mapping[str, Opener],
    *,
    batches: Sequence[int] = BATCHES,
    threads: int = 1,
    rounds: int = ROUNDS,
    span_s: float = SPAN_S,
    unweighed: Container[str] = (),
    on_stage: Callable[[str], None] = lambda stage: None,
) -> list[Row]:
    """Times contenders in turns, at one batch size after the other.

    Args:
        artifact: what they are contenders of; in a directory of its own, so that another process can open it.
        contenders: name -> opener; `generator.onnx` must be among them: the others are compared with it.
        batches: each is run in one piece.
        threads: what openers are given.
        rounds: at each batch size.
        span_s: how long one contender runs in one round, at least one call.
        unweighed: names of those whose memory is not asked for: most of theirs is a GPU's.
        on_stage: hears what is done now.

    Returns:
        A row for each contender in each batch.

    Raises:
        ArtifactError: a file is not what the manifest pins.
        EngineError: a contender cannot be opened, or fails.
    """
    runners: dict[str, Runner] = {}
    for name, opener in contenders.items():
        on_stage(f"opening {name}")
        runners[name] = opener(artifact.path, threads)
    memory: dict[str, list[int | None]] = {}
    for name, opener in contenders.items():
        if name in unweighed:
            memory[name] = [None] * len(batches)
            continue
        on_stage(f"weighing {name}")
        memory[name] = _memory_elsewhere(opener, artifact.path, threads, batches)
    rows: list[Row] = []
    for index, batch_rows in enumerate(batches):
        on_stage(f"timing batches of {batch_rows}")
        given = _inputs(artifact, batch_rows)
        reference = runners[ONNX](*given)
        differences = {name: _difference(name, run(*given), reference) for name, run in runners.items()}
        calls = race(runners, given, rounds=rounds, span_s=span_s)
        for name, spans in calls.items():
            max_abs_diff, differing_share = differences[name]
            seconds = [second for span in spans for second in span]
            rows.append(
                Row(
                    format=name,
                    batch_rows=batch_rows,
                    p50_ms=statistics.median(seconds) * 1e3,
                    images_per_s=batch_rows * statistics.median(len(span) / sum(span) for span in spans),
                    speedup=statistics.median(
                        statistics.median(theirs) / statistics.median(ours)
                        for theirs, ours in zip(calls[ONNX], spans, strict=True)
                    ),
                    memory_bytes=memory[name][index],
                    max_abs_diff=max_abs_diff,
                    differing_share=differing_share,
                )
            )
    return rows


def race(
    runners: Mapping[str, Runner],
    given: tuple[Latents, Labels | None],
    *,
    rounds: int = ROUNDS,
    span_s: float = SPAN_S,
) -> dict[str, list[list[float]]]:
    """Runs contenders in turns on the same inputs.

    Args:
        runners: by name.
        given: latents float32 [N, latent_dim], and labels int64 [N] or None.
        rounds: how often each has its turn.
        span_s: how long a turn is, at least one call.

    Returns:
        Seconds of each call of each round, by name.
    """
    calls: dict[str, list[list[float]]] = {name: [] for name in runners}
    for run in runners.values():
        run(*given)  # pays for the memory of this size
    gc.collect()
    for _ in range(rounds):
        for name, run in runners.items():
            run(*given)  # refills the caches that another one has emptied
            seconds: list[float] = []
            until = time.perf_counter() + span_s
            while not seconds or time.perf_counter() < until:
                start = time.perf_counter()
                run(*given)
                seconds.append(time.perf_counter() - start)
            calls[name].append(seconds)
    return calls


def formats(artifact: Artifact) -> dict[str, Opener]:
    """The artifact's ONNX files; TorchScript is code and needs torch: whoever wants it timed brings its opener."""
    openers: dict[str, Opener] = {ONNX: open_float32, ONNX_FLOAT16: open_float16, ONNX_IMAGES: open_images}
    return {name: opener for name, opener in openers.items() if name in artifact.manifest.files}


def cuda_formats(artifact: Artifact, device: Device, batches: Sequence[int]) -> dict[str, Opener]:
    """The artifact's graphs as CUDA serves them: padded to these batches, on fixed buffers, replayed as CUDA graphs.

    Args:
        artifact: what is timed.
        device: `cpu` has none; `auto` has them where CUDA works here; `cuda` insists.
        batches: the sizes that will be run.

    Raises:
        ProviderError: `cuda`, and it does not work here.
    """
    obstacle = "asked for the CPU" if device == "cpu" else cuda_obstacle()
    if obstacle is not None:
        if device == "cuda":
            raise no_cuda(obstacle)
        return {}
    graphs: dict[str, Precision] = {ONNX: "float32", ONNX_FLOAT16: "float16"}
    return {
        f"CUDA, {precision}": functools.partial(_open_on_cuda, precision=precision, largest=max(batches))
        for name, precision in graphs.items()
        if name in artifact.manifest.files
    }


def _open_on_cuda(path: Path, threads: int, *, precision: Precision, largest: int) -> Runner:
    engine = Engine(open_artifact(path), device="cuda", precision=precision, threads=threads, max_batch_rows=largest)
    return engine.run_batch


def open_float32(path: Path, threads: int) -> Runner:
    """`generator.onnx` in the engine that serves it, on the CPU."""
    return _engine(path, threads, "float32").run_batch


def open_float16(path: Path, threads: int) -> Runner:
    """`generator.fp16.onnx` in the engine that serves it, on the CPU."""
    return _engine(path, threads, "float16").run_batch


def _engine(path: Path, threads: int, precision: Precision) -> Engine:
    # Of its buckets only one row is warmed up: whatever else ran here would count as memory of the first batch.
    return Engine(open_artifact(path), device="cpu", precision=precision, threads=threads, max_batch_rows=1)


def open_images(path: Path, threads: int) -> Runner:
    """`generator.float.onnx` in a plain session on the CPU; the conversion to pixels is part of the time."""
    artifact = open_artifact(path)
    content = read_graph(artifact, ONNX_IMAGES)
    return proof.as_pixels(proof.open_images(content, threads), artifact.manifest.model.image.value_range)


def _difference(name: str, pixels: Pixels, reference: Pixels) -> tuple[int, float]:
    if pixels.shape != reference.shape:
        raise InferenceError(f"{name} gives {list(pixels.shape)}, {ONNX} gives {list(reference.shape)}")
    return imaging.difference(pixels, reference)


def _inputs(artifact: Artifact, batch_rows: int) -> tuple[Latents, Labels | None]:
    manifest = artifact.manifest
    return latents.draw(_SEED, batch_rows, manifest.latent.dim, manifest.num_classes)


def _memory_elsewhere(opener: Opener, path: Path, threads: int, batches: Sequence[int]) -> list[int | None]:
    """`_memory` in a process of its own: what one contender leaves behind would be the next one's for nothing."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_memory, opener, path, threads, tuple(batches)).result()


def _memory(opener: Opener, path: Path, threads: int, batches: Sequence[int]) -> list[int | None]:
    """By how many bytes this process has grown at most, after a call of each of the rising batch sizes."""
    inputs = [_inputs(open_artifact(path), batch_rows) for batch_rows in batches]
    before = _status_bytes("VmRSS")
    run = opener(path, threads)
    grown: list[int | None] = []
    for given in inputs:
        run(*given)
        # Of this process alone: what getrusage tells is also the parent's, who was it before.
        peak = _status_bytes("VmHWM")
        grown.append(None if before is None or peak is None else peak - before)
    return grown


def _status_bytes(key: str) -> int | None:
    """A size in /proc/self/status; None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)
