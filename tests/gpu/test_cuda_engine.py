import concurrent.futures
import json
from pathlib import Path

import numpy as np
import pytest

from exporters.build import build_artifact
from ganserve import imaging, latents
from ganserve.artifact import ONNX, PRETRAINED, Artifact, open_artifact
from ganserve.engine import CUDA, GOLDEN_DIFFERING_SHARE, GOLDEN_MAX_ABS_DIFF, Engine, Labels, Latents
from ganserve.fitness import OPSETS
from ganserve.sampling import Plan, write
from tests.ganserve.test_cli import run
from tests.runs import make_checkpoint

FAMILIES = {
    "conv": [],
    "conv, unconditional": ["conditional=false", "wrong_label_weight=0"],
    "subpixel": ["generator.kind=subpixel"],
    "residual": ["generator.kind=residual", "generator.width=4"],
    "mlp": ["generator.kind=mlp", "discriminator.kind=mlp"],
}


@pytest.fixture(scope="module")
def pretrained() -> Artifact:
    """The artifact that ships with ganserve: trained, convolutional, conditional."""
    return open_artifact(PRETRAINED)


@pytest.fixture(scope="module")
def on_cuda(pretrained: Artifact) -> Engine:
    """It, on the GPU, as it is served there."""
    return Engine(pretrained, device="cuda")


@pytest.fixture(scope="module")
def drawn(pretrained: Artifact) -> tuple[Latents, Labels | None]:
    """1,000 latents and labels of its."""
    return latents.draw(7, 1000, pretrained.manifest.latent.dim, pretrained.manifest.num_classes)


def close(found: np.ndarray, expected: np.ndarray, precision: str = "float32") -> bool:
    """Whether pixels are as near as golden images have to be."""
    max_abs_diff, share = imaging.difference(found, expected)
    return max_abs_diff <= GOLDEN_MAX_ABS_DIFF and share <= GOLDEN_DIFFERING_SHARE[precision]


def test_auto_takes_it(pretrained: Artifact) -> None:
    """Where CUDA works, `auto` is CUDA, and says so."""
    engine = Engine(pretrained)
    assert (engine.provider, engine.provider_reason) == (CUDA, "CUDA works here")


def test_pixels_are_the_cpus(pretrained: Artifact, on_cuda: Engine, drawn: tuple[Latents, Labels]) -> None:
    """A thousand images on the GPU are those of the CPU, but for one grey level in a thousand pixels."""
    assert on_cuda.provider == CUDA
    assert close(on_cuda.run(*drawn), Engine(pretrained, device="cpu").run(*drawn))


def test_every_size_is_replayed_right(on_cuda: Engine, drawn: tuple[Latents, Labels]) -> None:
    """Batches of all sizes in turns, each on the recording of its bucket, give every row its own image."""
    rows, labels = drawn
    whole = on_cuda.run(rows, labels)
    sizes = np.random.default_rng(3)
    for _ in range(100):
        count = int(sizes.integers(1, 257))
        start = int(sizes.integers(0, 1000 - count + 1))
        part = slice(start, start + count)
        assert close(on_cuda.run(rows[part], labels[part]), whole[part])


def test_buckets_agree(on_cuda: Engine, drawn: tuple[Latents, Labels]) -> None:
    """In every bucket that is used a row has the same bits, so that asking again gives the same image."""
    rows, labels = drawn[0][:256], drawn[1][:256]
    whole = on_cuda.run_batch(rows, labels)
    for bucket in on_cuda.buckets[:-1]:
        parts = [slice(start, start + bucket) for start in range(0, 256, bucket)]
        assert (np.concatenate([on_cuda.run_batch(rows[part], labels[part]) for part in parts]) == whole).all()


def test_a_row_does_not_know_its_neighbours(on_cuda: Engine, drawn: tuple[Latents, Labels]) -> None:
    """In one bucket a row has the same bits, whatever stands beside it and wherever it stands."""
    rows, labels = drawn
    for bucket in on_cuda.buckets:
        first = on_cuda.run_batch(rows[:bucket], labels[:bucket])
        turned = on_cuda.run_batch(rows[:bucket][::-1], labels[:bucket][::-1])[::-1]
        assert (first == turned).all()
        others = np.concatenate([rows[:1], rows[500 : 500 + bucket - 1]])
        beside = on_cuda.run_batch(others, np.concatenate([labels[:1], labels[500 : 500 + bucket - 1]]))
        assert (beside[0] == first[0]).all()


def test_another_thread_gets_the_same(on_cuda: Engine, drawn: tuple[Latents, Labels]) -> None:
    """The recordings were made by this thread; the server runs dear batches in another."""
    rows, labels = drawn
    expected = [on_cuda.run(rows[:size], labels[:size]) for size in (1, 5, 64, 256)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            found = [pool.submit(on_cuda.run, rows[:size], labels[:size]).result() for size in (1, 5, 64, 256)]
            assert all((one == other).all() for one, other in zip(found, expected, strict=True))
    assert (on_cuda.run(rows[:5], labels[:5]) == expected[1]).all()


@pytest.mark.parametrize("overrides", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family_is_recorded(overrides: list[str], tmp_path: Path) -> None:
    """Each family's graphs, float32 and float16, run on CUDA alone, are recorded, and give the CPU's pixels."""
    artifact = build_artifact(make_checkpoint(tmp_path, overrides), tmp_path / "a", run_name="run", float16=True)
    rows, labels = latents.draw(7, 300, artifact.manifest.latent.dim, artifact.manifest.num_classes)
    expected = Engine(artifact, device="cpu").run(rows, labels)
    assert close(Engine(artifact, device="cuda").run(rows, labels), expected)
    half = Engine(artifact, device="cuda", precision="float16")
    assert close(half.run(rows, labels), expected, "float16")


@pytest.mark.parametrize("opset", OPSETS)
def test_opsets_have_their_kernels(opset: int, tmp_path: Path) -> None:
    """Every opset that is offered runs on CUDA alone with this ONNX Runtime."""
    artifact = build_artifact(make_checkpoint(tmp_path), tmp_path / "a", run_name="run", opset=opset)
    assert Engine(artifact, device="cuda").provider == CUDA


def test_data_sets_are_made_on_it(pretrained: Artifact, on_cuda: Engine, tmp_path: Path) -> None:
    """`ganserve sample` streams the same images through it."""
    plan = Plan(count=600, seed=3, labels=None, truncation=1.0)
    for name, engine in (("cuda", on_cuda), ("cpu", Engine(pretrained, device="cpu"))):
        write(engine, plan, tmp_path / f"{name}.npz", workers=1, on_rows=lambda rows: None)
    found, expected = (np.load(tmp_path / f"{name}.npz") for name in ("cuda", "cpu"))
    assert (found["labels"] == expected["labels"]).all()
    assert close(found["pixels"], expected["pixels"])


def test_bench_times_it_beside_the_cpu(tmp_path: Path) -> None:
    """`ganserve bench` has rows of the GPU beside the CPU's, without memory, which is not the process's."""
    found = json.loads(run("bench", str(PRETRAINED), "--batch", "1,300", "--json", cwd=tmp_path).stdout)
    rows = {(row["format"], row["batch_rows"]): row for row in found["rows"]}
    assert set(rows) == {(name, size) for name in (ONNX, "CUDA, float32") for size in (1, 300)}
    assert rows["CUDA, float32", 300]["memory_bytes"] is None
    assert rows["CUDA, float32", 300]["max_abs_diff"] <= 1
