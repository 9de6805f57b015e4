import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from ganserve import bench
from ganserve.artifact import ONNX, ONNX_IMAGES, Artifact
from ganserve.bench import Labels, Latents, Pixels, Runner
from ganserve.errors import ArtifactError, ConfigError, InferenceError
from tests.artifacts import make_artifact
from tests.ganserve.test_cli import imported, run
from tests.ganserve.test_verify import expanding, graph, outside, put

SLOWER_S = 0.004


def open_slow(path: Path, threads: int) -> Runner:
    """A contender that sleeps before it answers, one grey level too bright in the first pixel of each image."""
    fast = bench.open_float32(path, threads)

    def run(rows: Latents, labels: Labels | None) -> Pixels:
        time.sleep(SLOWER_S)
        pixels = fast(rows, labels).copy()
        pixels[:, 0, 0] ^= 1
        return pixels

    return run


def open_hungry(path: Path, threads: int) -> Runner:
    """A contender that keeps 64 MB more from its first batch of 8 on."""
    fast = bench.open_float32(path, threads)
    kept: list[Pixels] = []

    def run(rows: Latents, labels: Labels | None) -> Pixels:
        if len(rows) >= 8 and not kept:
            kept.append(np.ones(64_000_000, dtype=np.uint8))
        return fast(rows, labels)

    return run


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """One artifact, in float32 alone."""
    return make_artifact(tmp_path_factory.mktemp("bench") / "artifact")


@pytest.mark.parametrize(("text", "batches"), [("1", (1,)), ("64,8,8,1", (1, 8, 64)), (" 3, 2", (2, 3))])
def test_batches_are_sorted(text: str, batches: tuple[int, ...]) -> None:
    """Batch sizes come in any order; each is timed once, smallest first."""
    assert bench.parse_batches(text) == batches


@pytest.mark.parametrize("text", ["", "1,", "0", "-1,2", "eight", "1.5", "65537"])
def test_batches_that_are_none_are_refused(text: str) -> None:
    """What is no batch size is an error that says what is."""
    with pytest.raises(ConfigError, match="--batch must be numbers from 1 to 65536"):
        bench.parse_batches(text)


def test_contenders_are_compared_with_the_served_graph(artifact: Artifact) -> None:
    """A contender's row tells how much slower it is than the served graph, and by how much its pixels differ."""
    contenders = {**bench.formats(artifact), "slow": open_slow}
    rows = bench.measure(artifact, contenders, batches=(1, 8), rounds=3, span_s=0.01)
    assert [(row.batch_rows, row.format) for row in rows] == [(1, ONNX), (1, "slow"), (8, ONNX), (8, "slow")]
    for fast, slow in (rows[:2], rows[2:]):
        assert (fast.speedup, fast.max_abs_diff, fast.differing_share) == (1.0, 0, 0.0)
        assert slow.p50_ms >= SLOWER_S * 1e3
        assert slow.p50_ms > fast.p50_ms
        assert slow.speedup < 1.0
        assert slow.images_per_s <= slow.batch_rows / SLOWER_S
        assert (slow.max_abs_diff, slow.differing_share) == (1, 1 / (28 * 28))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's peak memory")
def test_memory_is_each_contenders_own(artifact: Artifact) -> None:
    """64 MB that one contender takes at batch 8 are in its rows from then on, and in nobody else's."""
    contenders = {"hungry": open_hungry, **bench.formats(artifact)}
    rows = bench.measure(artifact, contenders, batches=(1, 8), rounds=1, span_s=0.0)
    grown = {(row.format, row.batch_rows): row.memory_bytes or 0 for row in rows}
    assert 60e6 < grown["hungry", 8] - grown["hungry", 1] < 80e6
    assert grown[ONNX, 8] < 60e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (outside, "holds external data: weights outside the file"),
        (expanding, "numbers for an image, at most 1,048,576 are expected"),
    ],
)
def test_float_images_are_read_before_they_are_opened(
    tmp_path: Path, change: Callable[[onnx.ModelProto], object], message: str
) -> None:
    """ONNX Runtime is given no file that a server would not give it, the one that is never served neither."""
    made = make_artifact(tmp_path / "a", latent_dim=4, num_classes=3, height=8, width=8)
    put(made.path, ONNX_IMAGES, graph(change))
    with pytest.raises(ArtifactError, match=message):
        bench.open_images(made.path, 1)


def test_images_of_another_size_cannot_be_compared(artifact: Artifact) -> None:
    """A contender whose images have another shape is an error that names it."""

    def open_narrow(path: Path, threads: int) -> Runner:
        fast = bench.open_float32(path, threads)
        return lambda rows, labels: fast(rows, labels)[:, :, :27]

    contenders = {**bench.formats(artifact), "narrow": open_narrow}
    with pytest.raises(InferenceError, match=r"narrow gives \[1, 28, 27, 1\], generator\.onnx gives \[1, 28, 28, 1\]"):
        bench.measure(artifact, contenders, batches=(1,), rounds=1, span_s=0.0, unweighed=contenders)


def test_it_needs_no_torch() -> None:
    """`ganserve bench` works on a serving-only installation."""
    assert not imported("import ganserve.bench") & {"torch", "onnx", "training", "exporters"}


def test_the_command_prints_rows(artifact: Artifact, tmp_path: Path) -> None:
    """--json is one object with a row for each batch; the table names threads and formats within 80 columns."""
    options = ("bench", str(artifact.path), "--device", "cpu")
    found = json.loads(run(*options, "--batch", "1,2", "--json", cwd=tmp_path).stdout)
    assert found["digest"] == artifact.digest
    assert (found["threads"], [row["batch_rows"] for row in found["rows"]]) == (1, [1, 2])
    assert all(row["p50_ms"] > 0 and row["images_per_s"] > 0 for row in found["rows"])
    table = run(*options, "--batch", "1", "--threads", "2", cwd=tmp_path, COLUMNS="80").stdout
    assert "CPU, 2 threads" in table
    assert ONNX in table
    assert "1.00 x" in table


def test_what_cannot_be_compared_is_an_error(artifact: Artifact, tmp_path: Path) -> None:
    """Unknown contenders, a checkpoint that is gone and a TorchScript that was never exported say what to do."""
    unknown = run("bench", str(artifact.path), "--against", "jax", cwd=tmp_path)
    assert unknown.returncode == 1
    assert "--against takes torch and torchscript, got 'jax'" in unknown.stderr
    gone = run("bench", str(artifact.path), "--against", "torch", cwd=tmp_path)
    assert gone.returncode == 1
    assert "there is no runs/by-hand/checkpoints/step-00000000" in gone.stderr
    missing = run("bench", str(artifact.path), "--against", "torchscript", cwd=tmp_path)
    assert missing.returncode == 1
    assert "has no generator.ts" in missing.stderr
