import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from ganserve import engine as engine_module
from ganserve import imaging, latents
from ganserve.artifact import GOLDEN, MANIFEST, ONNX, Artifact, Golden, open_artifact
from ganserve.engine import CPU, CUDA, Engine, _cheapest, cuda_obstacle
from ganserve.errors import ArtifactError, EngineError, GoldenMismatchError, InferenceError, ProviderError
from tests.artifacts import make_artifact, make_graph


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A conditional artifact of MNIST's shape."""
    return make_artifact(tmp_path_factory.mktemp("conditional") / "a")


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    """The same without labels."""
    return make_artifact(tmp_path_factory.mktemp("unconditional") / "a", num_classes=None)


@pytest.fixture(scope="module")
def engine(artifact):
    """It, opened."""
    return Engine(artifact, device="cpu")


def _with(path: Path, **files: bytes) -> Artifact:
    """A small artifact with these files in place of its own, digests fitting."""
    made = make_artifact(path, latent_dim=4, num_classes=3, height=8, width=8)
    document = json.loads((path / MANIFEST).read_bytes())
    for name, content in {{"graph": ONNX, "golden": GOLDEN}[key]: content for key, content in files.items()}.items():
        (path / name).write_bytes(content)
        document["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (path / MANIFEST).write_text(json.dumps(document))
    return open_artifact(made.path)


# What it computes.


@pytest.mark.parametrize("bind_buckets", [False, True])
@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("max_batch_rows", [1, 24, 256])
def test_row_does_not_know_its_batch(artifact, unconditional, bind_buckets, conditional, max_batch_rows):
    """A row gives the same pixels alone and in batches of 2, 17, 64 and 300, padded or not, split or not."""
    chosen = artifact if conditional else unconditional
    engine = Engine(chosen, device="cpu", bind_buckets=bind_buckets, max_batch_rows=max_batch_rows)
    rows, labels = latents.draw(5, 300, 16, chosen.manifest.num_classes)
    whole = engine.run(rows, labels)
    assert whole.shape == (300, 28, 28, 1)
    assert whole.dtype == np.uint8
    for size in (1, 2, 17, 64):
        for start in (0, 3, 300 - size):
            part = slice(start, start + size)
            pixels = engine.run(rows[part], None if labels is None else labels[part])
            assert pixels.tobytes() == whole[part].tobytes()


def test_pixels_are_the_graphs(artifact, engine):
    """What comes out is what a plain session of the same file gives."""
    rows, labels = latents.draw(5, 40, 16, 10)
    session = onnxruntime.InferenceSession(artifact.read(ONNX), providers=[CPU])
    assert (engine.run(rows, labels) == session.run(None, {"latents": rows, "labels": labels})[0]).all()


def test_bound_buckets_do_not_share_their_results(artifact):
    """On fixed buffers a result is a copy: the next batch, smaller or larger, does not change it."""
    engine = Engine(artifact, device="cpu", bind_buckets=True, max_batch_rows=8)
    rows, labels = latents.draw(5, 8, 16, 10)
    first = engine.run(rows[:8], labels[:8])
    kept = first.copy()
    second = engine.run(rows[4:7], labels[4:7])
    engine.run(rows[:8][::-1], labels[:8][::-1])
    assert (first == kept).all()
    assert (second == kept[4:7]).all()


def test_a_bucket_that_gives_other_pixels_is_not_used(artifact, engine, monkeypatch):
    """Rows get the same pixels in every batch: a bucket whose kernels say otherwise is left out, its rows padded."""
    real = engine_module._BoundBucket.run

    def run(self, rows, labels):
        pixels = real(self, rows, labels)
        if len(self._latents) == 2 and labels is not None and 9 in labels:
            pixels[-1, 0, 0] ^= 1
        return pixels

    monkeypatch.setattr(engine_module._BoundBucket, "run", run)
    found = Engine(artifact, device="cpu", bind_buckets=True, max_batch_rows=8)
    assert found.buckets == tuple(found.bucket_ms) == (1, 4, 8)
    rows, _ = latents.draw(5, 2, 16, 10)
    labels = np.array([3, 9])
    assert (found.run(rows, labels) == engine.run(rows, labels)).all()
    assert found.cost_ms(2) == found.bucket_ms[4]


@pytest.mark.parametrize("bind_buckets", [False, True])
def test_no_rows_are_no_images(artifact, bind_buckets):
    """An empty batch is an empty array of the right shape."""
    engine = Engine(artifact, device="cpu", bind_buckets=bind_buckets, max_batch_rows=4)
    pixels = engine.run(np.zeros((0, 16), np.float32), np.zeros(0, np.int64))
    assert pixels.shape == (0, 28, 28, 1)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("bind_buckets", [False, True])
def test_bad_rows_are_an_inference_error(artifact, unconditional, bind_buckets):
    """A label that does not exist, and labels missing or too many, are one exception, and the engine works on."""
    engine = Engine(artifact, device="cpu", bind_buckets=bind_buckets, max_batch_rows=4)
    rows, labels = latents.draw(5, 3, 16, 10)
    with pytest.raises(InferenceError, match="inference failed on 3 rows"):
        engine.run(rows, np.array([0, 999, 0]))
    with pytest.raises(InferenceError, match="inference failed on 3 rows"):
        engine.run(rows, None)
    without = Engine(unconditional, device="cpu", bind_buckets=bind_buckets, max_batch_rows=4)
    with pytest.raises(InferenceError, match="inference failed on 3 rows"):
        without.run(rows, labels)
    assert engine.run(rows, labels).shape == (3, 28, 28, 1)


# What it costs.


def test_costs_are_measured_for_cheap_buckets(engine):
    """The warm-up has a positive figure for every bucket of a generator that costs next to nothing."""
    assert tuple(engine.bucket_ms) == engine.buckets == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert all(0 < cost < 1000 for cost in engine.bucket_ms.values())
    assert engine.cheapest_rows in engine.buckets


@pytest.mark.parametrize(
    ("row_ms", "bind_buckets", "warm"),
    [
        (lambda rows: 0.1, False, (1, 2, 4, 8, 16, 32)),  # 64 would take 6.4 ms
        (lambda rows: 0.1, True, (1, 2, 4, 8, 16, 32, 64, 128, 256)),  # captured, so all of them
        (lambda rows: 10.0 / rows, False, (1, 2, 4, 8, 16, 32, 64, 128, 256)),  # each cheaper than the one before
        (lambda rows: 10.0 / rows if rows <= 16 else 1.0, False, (1, 2, 4, 8, 16, 32)),  # but this one
    ],
)
def test_large_buckets_that_gain_nothing_are_not_run(artifact, monkeypatch, row_ms, bind_buckets, warm):
    """Where a bucket was no cheaper a row than smaller ones, none is tried that would keep others waiting."""
    monkeypatch.setattr(Engine, "time_ms", lambda self, rows: rows * row_ms(rows))
    made = Engine(artifact, device="cpu", bind_buckets=bind_buckets)
    assert tuple(made.bucket_ms) == warm


@pytest.mark.parametrize(
    ("limit", "buckets"), [(1, (1,)), (24, (1, 2, 4, 8, 16, 24)), (300, (1, 2, 4, 8, 16, 32, 64, 128, 256, 300))]
)
def test_no_bucket_is_above_the_limit(artifact, limit, buckets):
    """The largest bucket is the limit itself."""
    assert Engine(artifact, device="cpu", max_batch_rows=limit).buckets == buckets


def test_cost_of_a_batch_is_that_of_its_pieces(artifact):
    """A batch costs its bucket; beyond the cheapest bucket it is run in pieces and costs their sum."""
    engine = Engine(artifact, device="cpu", max_batch_rows=4)
    engine.bucket_ms = {1: 1.0, 2: 1.5, 4: 5.0}
    engine.cheapest_rows = 2
    assert [engine.cost_ms(rows) for rows in (1, 2, 3, 4, 5, 8)] == [1.0, 1.5, 2.5, 3.0, 4.0, 6.0]


# What it refuses.


def test_spoilt_golden_images_stop_it_with_numbers(tmp_path):
    """A graph that computes something else than its golden images is not opened, and the error carries how far."""
    spoilt = make_artifact(tmp_path / "a", spoil_golden=True)
    with pytest.raises(GoldenMismatchError, match="golden images differ by up to 255 grey levels on 100") as caught:
        Engine(spoilt, device="cpu")
    assert caught.value.max_abs_diff == 255
    assert caught.value.differing_share > 0.99
    assert "do not serve it" in caught.value.hint


@pytest.mark.parametrize(
    ("levels", "pixels", "fits"),
    [
        (0, 0, True),
        (1, 1, True),  # 1 of 1,024 is 0.098 %
        (1, 2, False),  # 0.195 %
        (2, 1, False),
    ],
)
def test_golden_tolerance_is_one_level_on_a_thousandth(tmp_path, levels, pixels, fits):
    """Another CPU's rounding, one grey level on 0.1 % of the pixels, passes; more of either does not."""
    golden = make_artifact(tmp_path / "made", latent_dim=4, num_classes=3, height=8, width=8).read_golden()
    moved = golden.pixels.copy()
    places = np.flatnonzero(moved < 200)[:pixels]
    moved.ravel()[places] += np.uint8(levels)
    artifact = _with(
        tmp_path / "a", golden=Golden(latents=golden.latents, labels=golden.labels, pixels=moved).to_bytes()
    )
    if fits:
        Engine(artifact, device="cpu")
    else:
        with pytest.raises(GoldenMismatchError, match=f"differ by up to {levels} grey levels") as caught:
            Engine(artifact, device="cpu")
        assert (caught.value.max_abs_diff, caught.value.differing_share) == (levels, pixels / 1024)


def graph_of_tomorrow() -> bytes:
    """A graph that is well-formed, in a version of ONNX that there is not yet."""
    model = onnx.load_from_string(make_graph(4, 3, 8, 8))
    model.ir_version = 999
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (make_graph(5, 3, 8, 8), "the graph's inputs are"),
        (make_graph(4, None, 8, 8), "the graph's inputs are"),
        (make_graph(4, 3, 8, 9), "the graph's outputs are"),
        (graph_of_tomorrow(), "ONNX Runtime cannot open the graph"),
    ],
    ids=["latent_dim", "labels", "width", "tomorrow"],
)
def test_graph_that_is_not_what_the_manifest_says_is_refused(tmp_path, graph, message):
    """Inputs and outputs of the graph must be the manifest's."""
    with pytest.raises(EngineError, match=message):
        Engine(_with(tmp_path / "a", graph=graph), device="cpu")


@pytest.mark.parametrize("graph", [b"not a graph", b""], ids=["no graph", "empty"])
def test_what_is_not_onnx_is_refused(tmp_path, graph):
    """What is no ONNX file at all does not reach ONNX Runtime."""
    with pytest.raises(ArtifactError, match=r"generator\.onnx is not an ONNX model"):
        Engine(_with(tmp_path / "a", graph=graph), device="cpu")


def test_fixed_batch_is_refused(tmp_path):
    """A graph with a fixed batch cannot serve, though its rank and types are right."""
    model = onnx.load_from_string(make_graph(4, 3, 8, 8))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(EngineError, match="the graph's inputs are"):
        Engine(_with(tmp_path / "a", graph=model.SerializeToString()), device="cpu")


def test_graph_that_gains_rows_is_refused(tmp_path):
    """A graph that gives each image twice is caught in the warm-up, not by the client."""
    model = onnx.load_from_string(make_graph(4, 3, 8, 8))
    model.graph.node[-1].output[0] = "once"
    model.graph.node.append(helper.make_node("Concat", ["once", "once"], ["pixels"], axis=0))
    with pytest.raises(InferenceError, match=r"returned \[2, 8, 8, 1\] for 1 rows"):
        Engine(_with(tmp_path / "a", graph=model.SerializeToString()), device="cpu")


def test_operator_that_no_export_writes_is_refused(tmp_path):
    """Of an operator that is not known here nobody can tell what it takes, so it does not reach ONNX Runtime."""
    model = onnx.load_from_string(make_graph(4, 3, 8, 8))
    model.graph.node[-1].output[0] = "all"
    model.graph.node.append(helper.make_node("Expand", ["all", "shape"], ["pixels"]))
    with pytest.raises(ArtifactError, match="the shape that Expand makes is not known here"):
        Engine(_with(tmp_path / "a", graph=model.SerializeToString()), device="cpu")


def test_damaged_file_is_refused_before_onnx_runtime_sees_it(tmp_path):
    """ONNX Runtime loads a bit-flipped model without a word; the digest does not."""
    made = make_artifact(tmp_path / "a")
    content = bytearray((made.path / ONNX).read_bytes())
    content[5000] ^= 1
    (made.path / ONNX).write_bytes(content)
    with pytest.raises(ArtifactError, match="is not what was exported"):
        Engine(made, device="cpu")


# Where it runs.


def test_cpu_is_asked_for(engine):
    """On the CPU, provider and reason say so."""
    assert (engine.provider, engine.provider_reason) == (CPU, "asked for")


@pytest.mark.skipif(cuda_obstacle() is None, reason="CUDA may work here")
def test_cuda_is_cuda_or_a_refusal(artifact):
    """Where CUDA cannot be had, asking for it is refused with the reason and what to do; `auto` says why it did not."""
    obstacle = cuda_obstacle()
    with pytest.raises(ProviderError, match="CUDA was requested but cannot be used") as caught:
        Engine(artifact, device="cuda")
    assert obstacle in str(caught.value)
    assert "GANSERVE_DEVICE=auto" in caught.value.hint
    automatic = Engine(artifact, device="auto", max_batch_rows=1)
    assert (automatic.provider, automatic.provider_reason) == (CPU, f"no CUDA: {obstacle}")


def test_wheel_without_cuda_is_the_obstacle(monkeypatch):
    """An onnxruntime that is built without CUDA is named as such, driver or not."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    assert "is built without it" in cuda_obstacle()


class _CudaSession:
    """A CPU session that says it is one of CUDA, and remembers how it was made."""

    def __init__(self, graph, options, providers, enable_fallback):
        self.options, self.providers = options, providers
        assert not enable_fallback  # a GPU that fails while it serves must not become a CPU in silence
        if providers != [CPU]:
            _CudaSession.asked = self
        self._real = onnxruntime.capi.onnxruntime_inference_collection.InferenceSession(
            graph, onnxruntime.SessionOptions(), providers=[CPU]
        )

    def get_providers(self):
        return [CUDA, CPU]

    def __getattr__(self, name):
        return getattr(self._real, name)


@pytest.fixture
def cuda_machine(monkeypatch):
    """A machine where nothing stands in CUDA's way, as far as can be told before a session is made."""
    monkeypatch.setattr(engine_module, "cuda_obstacle", lambda: None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    return monkeypatch


def test_cuda_session_is_asked_for_without_a_way_out(artifact, cuda_machine):
    """The CUDA session gets its device, deterministic options, and no leave to fall back to the CPU."""
    cuda_machine.setattr(onnxruntime, "InferenceSession", _CudaSession)
    engine = Engine(artifact, device="auto", device_id=3, bind_buckets=False, max_batch_rows=2)
    assert (engine.provider, engine.provider_reason) == (CUDA, "CUDA works here")
    ((provider, options),) = _CudaSession.asked.providers
    assert provider == CUDA
    assert options["device_id"] == "3"
    assert options["use_tf32"] == "0"
    assert options["cudnn_conv_algo_search"] == "HEURISTIC"
    assert _CudaSession.asked.options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


def test_cuda_session_that_is_none_is_refused(artifact, cuda_machine):
    """ONNX Runtime gives a CPU session without an exception when libraries are missing: that is not CUDA."""

    class Fallen(_CudaSession):
        def get_providers(self):
            return [CPU]

    cuda_machine.setattr(onnxruntime, "InferenceSession", Fallen)
    with pytest.raises(ProviderError, match=f"the session runs on {CPU}: the CUDA or cuDNN libraries do not load"):
        Engine(artifact, device="cuda")
    automatic = Engine(artifact, device="auto", max_batch_rows=1)
    assert automatic.provider == CPU
    assert "libraries do not load" in automatic.provider_reason


def test_cuda_session_that_fails_says_why(artifact, cuda_machine):
    """What ONNX Runtime says about a session that it cannot make is in the refusal, and in the reason of `auto`."""
    real = onnxruntime.InferenceSession

    def broken(graph, options, providers, **others):
        if providers != [CPU]:
            raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
        return real(graph, options, providers=providers, **others)

    cuda_machine.setattr(onnxruntime, "InferenceSession", broken)
    with pytest.raises(ProviderError, match="no CUDA-capable device"):
        Engine(artifact, device="cuda")
    assert "no CUDA-capable device" in Engine(artifact, device="auto", max_batch_rows=1).provider_reason


def test_threads_do_not_change_pixels(artifact, engine):
    """One thread and two give the same pixels."""
    rows, labels = latents.draw(5, 100, 16, 10)
    two = Engine(artifact, device="cpu", threads=2)
    assert two.threads == 2
    assert imaging.difference(two.run(rows, labels), engine.run(rows, labels)) == (0, 0.0)


@pytest.mark.parametrize(
    ("bucket_ms", "cheapest"),
    [
        ({1: 0.1, 8: 0.5, 64: 4.0, 256: 17.0}, 64),  # 62.5 us a row at 8 and at 64, 66 at 256
        ({1: 0.03, 8: 0.05, 64: 0.27, 256: 1.0}, 64),  # the larger the cheaper, but this one needs no thread
        ({1: 0.03, 8: 0.05, 64: 0.27, 256: 0.9}, 256),  # and here it is much cheaper
        ({1: 0.1, 8: 0.8, 64: 6.4, 256: 25.6}, 8),  # all the same: the largest that others wait for patiently
        ({1: 7.0, 8: 56.0}, 1),  # none of them: the smallest
    ],
)
def test_the_cheapest_bucket_is_chosen(bucket_ms, cheapest):
    """Of the buckets within 5 % of the least time per row the largest is run, if nobody waits too long for it.

    One that the event loop itself can run is preferred within 15 %.
    """
    assert _cheapest(bucket_ms) == cheapest
