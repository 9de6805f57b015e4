import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient
import tritonclient.http
from google.protobuf import json_format, text_format

from exporters import triton
from ganserve import latents
from ganserve.artifact import ONNX, ONNX_FLOAT16, Artifact, open_artifact
from ganserve.engine import Engine
from ganserve.errors import ArtifactError, ExportError
from tests.artifacts import make_artifact

# docs/serving-benchmark.md: an environment of its own, made with a Python that is linked as Debian's is.
TRITON = Path(os.environ.get("TRITON_VENV", Path(sys.prefix) / "triton"))
ROWS, LABELS = latents.draw(5, 40, 16, 10)
CONDITIONAL = {"conditional": 10, "unconditional": None}


def parse(config: str) -> Any:
    """A config through Triton's own schema, which knows no other keys; of tritonclient, without its gRPC."""
    path = Path(tritonclient.__path__[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.get(spec.name)
    if module is None:
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return text_format.Parse(config, module.ModelConfig())


@pytest.fixture(params=CONDITIONAL.values(), ids=CONDITIONAL.keys())
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    """A small artifact."""
    return make_artifact(tmp_path / "digits", name="digits.v1", num_classes=request.param)


def test_config_is_what_triton_reads(artifact: Artifact) -> None:
    """Triton's schema parses the config, and it says what the manifest says."""
    config = parse(triton.config_pbtxt(artifact))
    assert (config.name, config.backend, config.max_batch_size) == ("digits.v1", "python", 256)
    given = [(entry.name, list(entry.dims)) for entry in config.input]
    assert given == [("latents", [16]), ("labels", [1])][: len(artifact.manifest.signature.inputs)]
    assert [(entry.name, list(entry.dims)) for entry in config.output] == [("pixels", [28, 28, 1])]
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert [group.count for group in config.instance_group] == [1]
    assert [warm_up.batch_size for warm_up in config.model_warmup] == [1, 8, 64]
    for warm_up in config.model_warmup:
        assert set(warm_up.inputs) == {name for name, _ in given}
    digest = hashlib.sha256(artifact.read(ONNX)).hexdigest()
    assert config.parameters["float32"].string_value == f"generator.onnx {digest}"
    assert config.parameters["artifact"].string_value == artifact.digest


def test_unknown_keys_are_found(artifact: Artifact) -> None:
    """The schema that these tests parse with refuses a key that Triton does not have."""
    with pytest.raises(text_format.ParseError, match="max_batch_sice"):
        parse(triton.config_pbtxt(artifact).replace("max_batch_size", "max_batch_sice"))


def test_repository_holds_what_was_exported(artifact: Artifact, tmp_path: Path) -> None:
    """The repository's graph and golden images are the artifact's bytes, in Triton's layout."""
    place = triton.path_beside(artifact.path)
    assert place == tmp_path / "digits-triton"
    files = triton.write(artifact, place)
    assert files == [
        "digits.v1/1/generator.onnx",
        "digits.v1/1/golden.npz",
        "digits.v1/1/model.py",
        "digits.v1/config.pbtxt",
    ]
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()) == files
    assert (place / "digits.v1/1/generator.onnx").read_bytes() == artifact.read(ONNX)


def test_damaged_artifact_is_not_packaged(artifact: Artifact, tmp_path: Path) -> None:
    """A file that is not what the manifest pins never gets into a repository."""
    content = bytearray((artifact.path / ONNX).read_bytes())
    content[-1] ^= 1
    (artifact.path / ONNX).write_bytes(content)
    with pytest.raises(ArtifactError, match="is not what was exported"):
        triton.write(artifact, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_repositories_are_replaced(artifact: Artifact, tmp_path: Path) -> None:
    """A repository is replaced when that was asked for, and never with anything else in it."""
    place = tmp_path / "out"
    triton.write(artifact, place)
    with pytest.raises(ExportError, match="exists already"):
        triton.write(artifact, place)
    triton.write(artifact, place, replace=True)
    (place / "digits.v1" / "notes.txt").write_text("precious")
    with pytest.raises(ExportError, match=r"notes\.txt was not written by an export"):
        triton.write(artifact, place, replace=True)
    assert (place / "digits.v1" / "notes.txt").read_text() == "precious"
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(ExportError, match="was not written by an export"):
        triton.check(link, replace=True)


@dataclasses.dataclass
class _Tensor:
    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


class _TritonModelException(Exception):
    pass


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """Makes a repository's model as Triton's stub does, where there is no Triton."""
    utils = types.ModuleType("triton_python_backend_utils")
    vars(utils).update(
        Tensor=_Tensor,
        TritonModelException=_TritonModelException,
        InferenceResponse=lambda tensors: {tensor.name: tensor.array for tensor in tensors},
        get_input_tensor_by_name=lambda request, name: _Tensor(name, request[name]),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)

    def load(folder: Path) -> Any:
        spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = json_format.MessageToDict(
            parse((folder / "config.pbtxt").read_text()), preserving_proto_field_name=True
        )
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_repository": str(folder),
                "model_version": "1",
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
            }
        )
        return model

    return load


def test_each_request_gets_its_own_rows(artifact: Artifact, tmp_path: Path, load: Callable[[Path], Any]) -> None:
    """Requests that were joined into one batch are answered with the engine's pixels, each with its own."""
    triton.write(artifact, tmp_path / "out")
    model = load(tmp_path / "out" / "digits.v1")
    labels = None if artifact.manifest.num_classes is None else LABELS
    expected = Engine(artifact, device="cpu").run(ROWS, labels)
    parts = [slice(0, 1), slice(1, 18), slice(18, 40)]
    requests = [{"latents": ROWS[part]} | ({} if labels is None else {"labels": labels[part, None]}) for part in parts]
    for part, answer in zip(parts, model.execute(requests), strict=True):
        np.testing.assert_array_equal(answer["pixels"], expected[part])


def test_a_changed_graph_does_not_load(artifact: Artifact, tmp_path: Path, load: Callable[[Path], Any]) -> None:
    """A graph with one flipped byte is refused by its digest."""
    triton.write(artifact, tmp_path / "out")
    graph = tmp_path / "out" / "digits.v1" / "1" / ONNX
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(_TritonModelException, match=r"generator\.onnx is not what was exported"):
        load(tmp_path / "out" / "digits.v1")


def test_wrong_golden_images_do_not_load(tmp_path: Path, load: Callable[[Path], Any]) -> None:
    """A model that does not make its golden images never becomes ready."""
    artifact = make_artifact(tmp_path / "digits", spoil_golden=True)
    triton.write(artifact, tmp_path / "out")
    with pytest.raises(_TritonModelException, match="golden images differ by up to"):
        load(tmp_path / "out" / "mnist")


def test_float16_travels_with_its_digest(tmp_path: Path) -> None:
    """An artifact with a float16 graph has it in the repository, and its digest in the config."""
    made = make_artifact(tmp_path / "digits")
    graph = made.read(ONNX)
    files = {**made.manifest.files, ONNX_FLOAT16: made.manifest.files[ONNX]}
    (made.path / ONNX_FLOAT16).write_bytes(graph)
    manifest = made.manifest.model_copy(update={"files": files})
    (made.path / "manifest.json").write_text(manifest.model_dump_json())
    artifact = open_artifact(made.path)
    assert "mnist/1/generator.fp16.onnx" in triton.write(artifact, tmp_path / "out")
    assert parse(triton.config_pbtxt(artifact)).parameters["float16"].string_value.startswith(ONNX_FLOAT16)


@contextlib.contextmanager
def real_triton(repository: Path, scratch: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """The tritonserver of the nvidia-pytriton wheel on a free port; it may still be loading, or give up."""
    packages = next(TRITON.glob("lib/python3*/site-packages"))
    home = packages / "pytriton" / "tritonserver"
    backends = scratch / "backends"
    shutil.copytree(home / "backends", backends)
    version = packages.parent.name.removeprefix("python")
    shutil.copy(home / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
        # The stub embeds a Python that takes its packages from the environment whose `python3` comes first.
        "PATH": f"{TRITON / 'bin'}:{os.environ['PATH']}",
    }
    with (scratch / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(home / "bin" / "tritonserver"), f"--model-repository={repository}"),
                *(f"--backend-directory={backends}", "--http-address=127.0.0.1", f"--http-port={port}"),
                *("--allow-grpc=false", "--allow-metrics=false"),
                f"--backend-config=python,shm-region-prefix-name=ganserve{port}",
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield port, process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


needs_triton = pytest.mark.skipif(
    not list(TRITON.glob("lib/python3*/site-packages/pytriton/tritonserver")),
    reason="Triton is not installed: docs/export.md",
)


@needs_triton
@pytest.mark.slow
def test_real_triton_answers_with_our_pixels(artifact: Artifact, tmp_path: Path) -> None:
    """NVIDIA's server loads the repository and gives the engine's pixels, alone and from forty clients at once.

    One grey level on 0.1 % of the pixels is forgiven: its environment may have another release of ONNX Runtime.
    """
    place = triton.path_beside(artifact.path)
    triton.write(artifact, place)
    labels = None if artifact.manifest.num_classes is None else LABELS
    expected = Engine(artifact, device="cpu").run(ROWS, labels)

    def ask(port: int, rows: slice) -> np.ndarray:
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}") as client:
            inputs = [tritonclient.http.InferInput("latents", [*ROWS[rows].shape], "FP32")]
            inputs[0].set_data_from_numpy(ROWS[rows])
            if labels is not None:
                inputs.append(tritonclient.http.InferInput("labels", [len(labels[rows]), 1], "INT64"))
                inputs[1].set_data_from_numpy(labels[rows, None])
            return client.infer("digits.v1", inputs).as_numpy("pixels")

    with real_triton(place, tmp_path) as (port, process):
        _wait_until_ready(port, process, tmp_path / "log")
        together = ask(port, slice(0, 40))
        with ThreadPoolExecutor(16) as pool:
            alone = np.concatenate(list(pool.map(lambda row: ask(port, slice(row, row + 1)), range(40))))
    np.testing.assert_array_equal(together, alone)
    distance = np.abs(together.astype(int) - expected.astype(int))
    assert distance.max() <= 1
    assert np.count_nonzero(distance) <= 1e-3 * distance.size


@needs_triton
@pytest.mark.slow
def test_real_triton_refuses_a_changed_graph(tmp_path: Path) -> None:
    """NVIDIA's server does not start on a repository whose graph is not what was exported, and says why."""
    triton.write(make_artifact(tmp_path / "digits"), tmp_path / "out")
    graph = tmp_path / "out" / "mnist" / "1" / ONNX
    graph.write_bytes(graph.read_bytes() + b"\0")
    with real_triton(tmp_path / "out", tmp_path) as (_, process):
        assert process.wait(60) != 0
    assert b"generator.onnx is not what was exported" in (tmp_path / "log").read_bytes()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}") as client:
        for _ in range(300):
            assert process.poll() is None, log.read_text(errors="replace")
            with contextlib.suppress(Exception):  # not listening yet
                if client.is_server_ready() and client.is_model_ready("digits.v1"):
                    return
            time.sleep(0.2)
    pytest.fail(log.read_text(errors="replace"))
