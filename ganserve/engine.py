"""The ONNX Runtime session: the one place where latents become pixels.

An `Engine` that exists has proven itself: the provider is the one that was asked for, every bucket has run, and the
golden images came out. Exporters prove parity through this class, `ganserve sample` and the server run on it.
"""

import contextlib
import ctypes
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime

from ganserve import cuda, imaging
from ganserve import latents as sampler
from ganserve.artifact import ONNX, ONNX_FLOAT16, Artifact, Manifest
from ganserve.cost import check_cost
from ganserve.errors import EngineError, GoldenMismatchError, InferenceError, ProviderError

logger = logging.getLogger(__name__)

Latents = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["float32", "float16"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Golden images are float32's. Another CPU's or a GPU's arithmetic may round differently: one grey level on 0.1 % of the
# pixels, no more. In float16 a digit's edges move: trained generators were seen to change 0.8 to 3.3 % by one level.
GOLDEN_MAX_ABS_DIFF = 1
GOLDEN_DIFFERING_SHARE = {"float32": 0.001, "float16": 0.05}

_GRAPHS = {"float32": ONNX, "float16": ONNX_FLOAT16}
_PATIENCE_MS = 5.0
_PROBES, _PROBE_SEED = 256, 20_260_103  # latents that buckets have to agree on: 200,704 pixels of 28 x 28 images
INLINE_MS = 0.5  # a cheaper batch runs on the event loop: handing it to a thread and back costs about a tenth of that


class Engine:
    """A warmed-up, proven session for one artifact.

    `run` may be called from several threads at once, unless buckets are bound: those share buffers.

    Attributes:
        manifest: what the artifact says of itself.
        digest: the artifact's digest.
        provider: the execution provider that runs the graph.
        provider_reason: in words, why this provider.
        buckets: batch sizes that were warmed up, rising; where they are bound, every batch is padded to one of them.
        precision: float32 or float16: which of the artifact's graphs runs.
        threads: intra-op threads of the session (CPU).
        cheapest_rows: the bucket to run at most, by the warm-up's figures; larger batches are run in pieces of it.
        bucket_ms: bucket -> milliseconds of its fastest warm-up run; none of those that are too large to be worth it.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: Device = "auto",
        device_id: int = 0,
        precision: Precision = "float32",
        threads: int = 1,
        max_batch_rows: int = BUCKETS[-1],
        bind_buckets: bool | None = None,
    ) -> None:
        """Opens, warms up and proves the artifact's graph.

        Args:
            artifact: its files are verified as they are read.
            device: `cuda` is CUDA or a refusal; `auto` takes CUDA if it works here; `cpu` never looks for it.
            device_id: which CUDA device.
            precision: float16 runs `generator.fp16.onnx`. A CPU gains nothing by it, and a GPU little: see docs/gpu.md.
            threads: intra-op threads on the CPU.
            max_batch_rows: no bucket is larger.
            bind_buckets: pad batches to buckets and run them through IO binding on fixed buffers. By default on CUDA
                only, where it is what CUDA graphs need; the CPU runs any shape as cheaply.

        Raises:
            ArtifactError: a file is not what the manifest pins, or is not an ONNX file of a generator's.
            ProviderError: `device` cannot be had.
            EngineError: the graph does not load, or is not what the manifest describes.
            GoldenMismatchError: it loads and computes something else.
        """
        self.manifest = artifact.manifest
        self.digest = artifact.digest
        self.threads = threads
        self.buckets = (*(rows for rows in BUCKETS if rows < max_batch_rows), max_batch_rows)
        self.precision = precision
        self._session, self.provider, self.provider_reason = _open_session(
            artifact, device, device_id, precision, threads
        )
        _check_signature(self._session, self.manifest)
        bind = self.provider == CUDA if bind_buckets is None else bind_buckets
        self._bound = self._bind(device_id) if bind else None
        self._golden = artifact.read_golden()
        self.bucket_ms = self._warm_up()
        if self._bound is not None:
            self.buckets = self._agreeing_buckets(self._bound)
            self.bucket_ms = {rows: self.bucket_ms[rows] for rows in self.buckets}
        self.cheapest_rows = _cheapest(self.bucket_ms)
        self.prove()

    def run(self, latents: Latents, labels: Labels | None = None) -> Pixels:
        """The images of these latents.

        Args:
            latents: finite float32 [N, latent_dim], any N.
            labels: int64 [N] in range(num_classes); None if and only if the model takes none.

        Returns:
            uint8 [N, H, W, C]. Row i depends on row i alone.

        Raises:
            InferenceError: the session failed, or did not return that shape.
        """
        count = len(latents)
        if count <= self.cheapest_rows:
            return self.run_batch(latents, labels)
        pixels = np.empty((count, *self.manifest.pixel_shape), dtype=np.uint8)
        for start in range(0, count, self.cheapest_rows):
            rows = slice(start, start + self.cheapest_rows)
            pixels[rows] = self.run_batch(latents[rows], None if labels is None else labels[rows])
        return pixels

    def cost_ms(self, rows: int) -> float:
        """What the warm-up says a batch of `rows` takes."""
        if rows > self.cheapest_rows:
            pieces, rest = divmod(rows, self.cheapest_rows)
            return pieces * self.bucket_ms[self.cheapest_rows] + (self.cost_ms(rest) if rest else 0.0)
        return next(cost for bucket, cost in self.bucket_ms.items() if bucket >= rows)

    def run_batch(self, latents: Latents, labels: Labels | None = None) -> Pixels:
        """`run` in one piece, whatever it costs: what proves that images do not depend on their batch.

        Where buckets are bound, no more rows than the largest of them.
        """
        count = len(latents)
        expected = (count, *self.manifest.pixel_shape)
        if count == 0:
            return np.empty(expected, dtype=np.uint8)
        try:
            if self._bound is not None:
                bucket = next(rows for rows in self.buckets if rows >= count)
                pixels = self._bound[bucket].run(latents, labels)
            else:
                feeds: dict[str, npt.NDArray[Any]] = {"latents": latents}
                if labels is not None:
                    feeds["labels"] = labels
                pixels = self._session.run(None, feeds)[0]
        except Exception as err:  # ONNX Runtime raises its own unrelated classes, one per status code
            raise InferenceError(f"inference failed on {count} rows: {err}") from err
        if pixels.shape != expected:
            raise InferenceError(
                f"the session returned {list(pixels.shape)} for {count} rows, expected {list(expected)}"
            )
        return pixels

    def _bind(self, device_id: int) -> dict[int, "_BoundBucket"]:
        kind = "cuda" if self.provider == CUDA else "cpu"
        return {
            rows: _BoundBucket(self._session, self.manifest, rows, graph_id=index, device=(kind, device_id))
            for index, rows in enumerate(self.buckets, start=1)
        }

    def _warm_up(self) -> dict[int, float]:
        """`time_ms` of the buckets, the smallest first, as long as a larger one may be the cheapest to run.

        Those that are not may take more memory and time than all others together: 256 rows of the pretrained generator
        have activations of 40 MB, which the session would keep. Buffers that are bound are all captured, though.
        """
        costs: dict[int, float] = {}
        row_ms = least = math.inf
        for rows in self.buckets:
            if self._bound is None and rows * row_ms > _PATIENCE_MS and row_ms > 0.95 * least:
                break  # the last one gained nothing by its size, and this one would take too long
            least = min(least, row_ms)
            costs[rows] = self.time_ms(rows)
            row_ms = costs[rows] / rows
        return costs

    def time_ms(self, rows: int) -> float:
        """Milliseconds of the fastest of some runs of one batch; the first one, which does not count, warms it up."""
        golden = self._golden
        latents = np.resize(golden.latents, (rows, self.manifest.latent.dim))
        labels = None if golden.labels is None else np.resize(golden.labels, rows)
        times: list[float] = []
        spent_ms = 0.0
        while len(times) < 3 or (spent_ms < 5.0 and len(times) < 20):
            start = time.perf_counter()
            self.run_batch(latents, labels)
            times.append((time.perf_counter() - start) * 1e3)
            spent_ms += times[-1]
        return min(times[1:])  # the first one pays for allocation, algorithm search and graph capture

    def _agreeing_buckets(self, bound: Mapping[int, "_BoundBucket"]) -> tuple[int, ...]:
        """Those of the bound buckets in which rows get the same bits as in the largest.

        A GPU's libraries choose other kernels for other shapes, which add in another order. Who asks again may be in
        another batch, and has to get the same pixels.
        """
        rows, labels = sampler.draw(_PROBE_SEED, _PROBES, self.manifest.latent.dim, self.manifest.num_classes)

        def pixels(bucket: int) -> Pixels:
            parts = [slice(start, start + bucket) for start in range(0, _PROBES, bucket)]
            return np.concatenate([bound[bucket].run(rows[p], None if labels is None else labels[p]) for p in parts])

        expected = pixels(self.buckets[-1])
        agreeing = tuple(bucket for bucket in self.buckets if np.array_equal(pixels(bucket), expected))
        if agreeing != self.buckets:
            dropped = sorted(set(self.buckets) - set(agreeing))
            logger.info("batches of %s give other pixels here and are padded", ", ".join(map(str, dropped)))
        return agreeing

    def prove(self) -> None:
        """Returns if the session gives the artifact's golden images, now.

        Raises:
            InferenceError: it fails.
            GoldenMismatchError: it computes something else.
        """
        golden = self._golden
        max_abs_diff, differing_share = imaging.difference(self.run(golden.latents, golden.labels), golden.pixels)
        allowed = GOLDEN_DIFFERING_SHARE[self.precision]
        if max_abs_diff > GOLDEN_MAX_ABS_DIFF or differing_share > allowed:
            raise GoldenMismatchError(
                f"golden images differ by up to {max_abs_diff} grey levels on {differing_share:.2%} of the pixels "
                f"(allowed: {GOLDEN_MAX_ABS_DIFF} on {allowed:.1%}) with {self.provider} in {self.precision}",
                max_abs_diff=max_abs_diff,
                differing_share=differing_share,
            )


def _cheapest(bucket_ms: Mapping[int, float]) -> int:
    """The bucket to run at most: the largest within 5 % of the least time per row, but none above `_PATIENCE_MS`.

    Larger batches have less overhead around them; but nobody else is served while one runs. One below `INLINE_MS` with
    rows enough to share its overhead is worth another 10 %: a thread costs more.
    """
    per_row_ms = {rows: cost_ms / rows for rows, cost_ms in bucket_ms.items()}
    least = min(per_row_ms.values())
    short = [rows for rows, cost_ms in bucket_ms.items() if cost_ms < INLINE_MS and per_row_ms[rows] <= 1.15 * least]
    if short and max(short) >= 16:
        return max(short)
    cheap = [rows for rows in bucket_ms if per_row_ms[rows] <= 1.05 * least]
    return max((rows for rows in cheap if bucket_ms[rows] <= _PATIENCE_MS), default=min(cheap))


class _BoundBucket:
    """One fixed batch size with its device buffers, alive as long as the session: what a CUDA graph is captured on."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        manifest: Manifest,
        rows: int,
        *,
        graph_id: int,
        device: tuple[str, int],
    ) -> None:
        self._session = session
        self._latents = np.zeros((rows, manifest.latent.dim), dtype=np.float32)
        self._labels = None if manifest.num_classes is None else np.zeros(rows, dtype=np.int64)
        self._device_latents = onnxruntime.OrtValue.ortvalue_from_numpy(self._latents, *device)
        self._device_pixels = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            (rows, *manifest.pixel_shape), np.uint8, *device
        )
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("latents", self._device_latents)
        if self._labels is not None:
            self._device_labels = onnxruntime.OrtValue.ortvalue_from_numpy(self._labels, *device)
            self._binding.bind_ortvalue_input("labels", self._device_labels)
        self._binding.bind_ortvalue_output("pixels", self._device_pixels)
        self._options = onnxruntime.RunOptions()
        if device[0] == "cuda":
            self._options.add_run_config_entry("gpu_graph_id", str(graph_id))

    def run(self, latents: Latents, labels: Labels | None) -> Pixels:
        assert (labels is None) == (self._labels is None), "labels come if and only if the model takes them"
        count = len(latents)
        # Rows beyond `count` keep what an earlier batch left there: rows do not see each other.
        self._latents[:count] = latents
        self._device_latents.update_inplace(self._latents)
        if labels is not None and self._labels is not None:
            self._labels[:count] = labels
            self._device_labels.update_inplace(self._labels)
        self._session.run_with_iobinding(self._binding, self._options)
        # A copy: on the CPU numpy() is a view of the buffer that the next batch overwrites.
        pixels: Pixels = self._device_pixels.numpy()[:count].copy()
        return pixels


def _open_session(
    artifact: Artifact, device: Device, device_id: int, precision: Precision, threads: int
) -> tuple[onnxruntime.InferenceSession, str, str]:
    """A session, its provider, and why that one."""
    graph = read_graph(artifact, _GRAPHS[precision])
    if device == "cpu":
        return cpu_session(graph, threads), CPU, "asked for"
    obstacle = cuda_obstacle()
    if obstacle is None:
        try:
            session = _cuda_session(graph, device_id)
            return session, CUDA, "asked for" if device == "cuda" else "CUDA works here"
        except ProviderError as err:
            obstacle = str(err)
    if device == "cuda":
        raise no_cuda(obstacle)
    return cpu_session(graph, threads), CPU, f"no CUDA: {obstacle}"


def read_graph(artifact: Artifact, file: str) -> bytes:
    """An ONNX file's bytes, fit to be given to ONNX Runtime.

    Raises:
        ArtifactError: not what the manifest pins, or not what an export writes.
    """
    content, model = artifact.read_onnx(file)
    check_cost(model, str(artifact.path / file), math.prod(artifact.manifest.pixel_shape))
    return content


def no_cuda(obstacle: str) -> ProviderError:
    """What is raised where CUDA was asked for and cannot be had."""
    return ProviderError(
        f"CUDA was requested but cannot be used: {obstacle}",
        hint="install the NVIDIA driver and ganserve[cuda], or set GANSERVE_DEVICE=auto (--device auto)",
    )


def cuda_obstacle() -> str | None:
    """What stands in the way of a CUDA session on this machine, or None. A session may still fail to be made."""
    if CUDA not in onnxruntime.get_available_providers():
        return f"this onnxruntime {onnxruntime.__version__} is built without it"
    try:
        ctypes.CDLL(cuda.DRIVER)
    except OSError:
        return f"{cuda.DRIVER} is not on this machine"
    return None


def _cuda_session(graph: bytes, device_id: int) -> onnxruntime.InferenceSession:
    onnxruntime.preload_dlls()
    options = _session_options()
    # Without this, a node that CUDA cannot run goes to the CPU and nobody hears of it.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with _load_errors(ProviderError):
        session = open_session(graph, options, (CUDA, {"device_id": str(device_id), **cuda.provider_options()}))
    if session.get_providers()[0] != CUDA:
        raise ProviderError(
            f"the session runs on {session.get_providers()[0]}: the CUDA or cuDNN libraries do not load"
        )
    return session


def open_session(graph: bytes, options: onnxruntime.SessionOptions, provider: Any) -> onnxruntime.InferenceSession:
    """A session of one provider: what fails raises, now and in every run.

    By itself ONNX Runtime would print that it falls back to the CPU, and do so, in the middle of serving too. And it
    calls each plan of cuDNN's that does not fit an error, in red, before it takes the next.
    """
    if provider != CPU:
        onnxruntime.set_default_logger_severity(4)
    return onnxruntime.InferenceSession(graph, options, providers=[provider], enable_fallback=0)


def cpu_session(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU, with the options that serve.

    Raises:
        EngineError: ONNX Runtime cannot open the graph.
    """
    options = _session_options()
    options.intra_op_num_threads = threads
    # Idle threads that spin take the core that the event loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with _load_errors(EngineError):
        return open_session(graph, options, CPU)


def _session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors; its warnings speak of fallbacks that are checked above
    options.add_session_config_entry("session.load_model_format", "ONNX")  # not to be guessed from the bytes
    return options


@contextlib.contextmanager
def _load_errors(error: Callable[[str], EngineError]) -> Iterator[None]:
    try:
        yield
    except EngineError:
        raise
    except Exception as err:  # ONNX Runtime raises its own unrelated classes, one per status code
        raise error(f"ONNX Runtime cannot open the graph: {err}") from err


def _check_signature(session: onnxruntime.InferenceSession, manifest: Manifest) -> None:
    """The graph's own inputs and outputs against the manifest's."""
    names = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}

    def describe(nodes: Sequence[Any]) -> list[tuple[str, str, list[int | str]]]:
        # The batch dimension's symbolic name is the exporter's business; that it varies is not.
        return [
            (node.name, names.get(node.type, node.type), ["batch" if isinstance(d, str) else d for d in node.shape])
            for node in nodes
        ]

    for kind, found, specs in (
        ("inputs", describe(session.get_inputs()), manifest.signature.inputs),
        ("outputs", describe(session.get_outputs()), manifest.signature.outputs),
    ):
        expected = [(spec.name, spec.dtype, list(spec.shape)) for spec in specs]
        if found != expected:
            raise EngineError(f"the graph's {kind} are {found}, the manifest says {expected}")
