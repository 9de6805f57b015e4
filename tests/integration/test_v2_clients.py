import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from ganserve import __version__, latents
from ganserve.artifact import open_artifact
from ganserve.engine import Engine
from tests.artifacts import make_artifact
from tests.integration.serving import ROOT, Server, serve

pytestmark = pytest.mark.skipif(os.name != "posix", reason="BentoML serves on POSIX")

CLIENTS = Path(sys.prefix) / "clients"  # `make clients`: an environment for each of those that do not fit into this one
ROWS, LABELS = latents.draw(5, 4, 16, 10)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project with one artifact."""
    folder = tmp_path_factory.mktemp("clients")
    shutil.copy(ROOT / "bentofile.yaml", folder)
    make_artifact(folder / "artifacts" / "made")
    return folder


@pytest.fixture(scope="module")
def server(project) -> Iterator[Server]:
    """It, served."""
    with serve(project, GANSERVE_DEVICE="cpu") as server:
        yield server


@pytest.fixture(scope="module")
def expected(project) -> np.ndarray:
    """What the engine makes of ROWS and LABELS."""
    return Engine(open_artifact(project / "artifacts" / "made"), device="cpu").run(ROWS, LABELS)


@pytest.fixture
def triton(server) -> Iterator[Any]:
    """The unmodified tritonclient."""
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def _inputs(module: Any, *, binary: bool = True, rows: np.ndarray = ROWS, labels: np.ndarray = LABELS) -> list[Any]:
    inputs = [
        module.InferInput("latents", list(rows.shape), "FP32"),
        module.InferInput("labels", list(labels.shape), "INT64"),
    ]
    for tensor, array in zip(inputs, (rows, labels), strict=True):
        tensor.set_data_from_numpy(array, binary_data=binary)
    return inputs


# tritonclient.


def test_tritonclient_finds_server_and_model(triton):
    """Health, readiness and metadata as Triton's own client reads them."""
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("mnist")
    assert triton.is_model_ready("mnist", "1")
    assert not triton.is_model_ready("mnist", "2")
    assert not triton.is_model_ready("other")
    metadata = triton.get_server_metadata()
    assert (metadata["name"], metadata["version"]) == ("ganserve", __version__)
    assert "binary_tensor_data" in metadata["extensions"]
    assert triton.get_model_metadata("mnist", "1")["inputs"][0]["shape"] == [-1, 16]
    assert triton.get_model_config("mnist")["input"][0]["data_type"] == "TYPE_FP32"
    assert triton.get_model_repository_index() == [{"name": "mnist", "version": "1", "state": "READY", "reason": ""}]


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("outputs", [None, False, True])
def test_tritonclient_infers(triton, expected, binary_in, outputs):
    """Binary and JSON in, binary, JSON and nothing requested out: the engine's pixels, with the request's id."""
    module = tritonclient.http
    requested = None if outputs is None else [module.InferRequestedOutput("pixels", binary_data=outputs)]
    found = triton.infer("mnist", _inputs(module, binary=binary_in), outputs=requested, request_id="t-1")
    assert (found.as_numpy("pixels") == expected).all()
    assert found.get_response()["id"] == "t-1"
    assert (found.get_response()["model_name"], found.get_response()["model_version"]) == ("mnist", "1")
    binary = "binary_data_size" in found.get_output("pixels").get("parameters", {})
    assert binary is (outputs is not False)


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
def test_tritonclient_compresses(triton, expected, request_coding, response_coding):
    """Each compression in each direction."""
    found = triton.infer(
        "mnist",
        _inputs(tritonclient.http),
        model_version="1",
        request_compression_algorithm=request_coding,
        response_compression_algorithm=response_coding,
    )
    assert (found.as_numpy("pixels") == expected).all()


def test_tritonclient_sends_what_is_for_others(triton, expected):
    """Sequence, priority, time-out, parameters and query parameters of other servers do no harm."""
    found = triton.infer(
        "mnist",
        _inputs(tritonclient.http),
        sequence_id=9,
        sequence_start=True,
        priority=3,
        timeout=1_000_000,
        parameters={"mine": 1},
        query_params={"x": 1},
    )
    assert (found.as_numpy("pixels") == expected).all()


def test_tritonclient_infers_without_waiting(triton):
    """`async_infer`, many at once: each gets its own pixels."""
    requests = [triton.async_infer("mnist", _inputs(tritonclient.http), request_id=str(index)) for index in range(8)]
    assert [request.get_result().get_response()["id"] for request in requests] == [str(index) for index in range(8)]


def test_tritonclient_reads_statistics(triton):
    """Four rows are four inferences, on each of the three routes."""
    before = triton.get_inference_statistics()["model_stats"][0]
    triton.infer("mnist", _inputs(tritonclient.http))
    for after in (
        triton.get_inference_statistics(),
        triton.get_inference_statistics("mnist"),
        triton.get_inference_statistics("mnist", "1"),
    ):
        assert after["model_stats"][0]["inference_count"] - before["inference_count"] == 4
    assert after["model_stats"][0]["inference_stats"]["compute_infer"]["ns"] > 0


def test_tritonclient_is_told_what_is_wrong(triton, expected):
    """Errors arrive with their status and reason, and the client goes on."""
    module = tritonclient.http
    for call, status, reason in (
        (lambda: triton.infer("other", _inputs(module)), "404", "model 'other' is not served here"),
        (lambda: triton.infer("mnist", _inputs(module)[:1]), "400", "input labels is missing"),
        (lambda: triton.infer("mnist", _inputs(module, labels=LABELS + 10)), "400", "labels must be 0 to 9"),
        (lambda: triton.infer("mnist", _inputs(module, rows=ROWS * np.nan)), "400", "must be finite"),
        (
            lambda: triton.infer(
                "mnist", _inputs(module), outputs=[module.InferRequestedOutput("pixels", class_count=3)]
            ),
            "400",
            "classification is not supported",
        ),
        (lambda: triton.load_model("mnist"), "404", "no loading or unloading"),
        (lambda: triton.unload_model("mnist"), "404", "no loading or unloading"),
        (lambda: triton.register_system_shared_memory("x", "/x", 8), "404", "no shared memory"),
        (lambda: triton.get_log_settings(), "404", "no trace or log setting"),
        (lambda: triton.update_trace_settings(settings={}), "404", "no trace or log setting"),
    ):
        with pytest.raises(InferenceServerException, match=reason) as caught:
            call()
        assert caught.value.status() == status
        assert (triton.infer("mnist", _inputs(module)).as_numpy("pixels") == expected).all()


def test_tritonclient_aio(server, expected):
    """The asyncio client, which always says that it accepts gzip and deflate, and reads metadata uncompressed."""
    module = tritonclient.http.aio

    async def scenario() -> None:
        async with module.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("mnist")
            assert (await client.get_server_metadata())["name"] == "ganserve"
            assert (await client.get_model_metadata("mnist"))["platform"] == "onnxruntime_onnx"
            assert (await client.get_model_config("mnist"))["max_batch_size"] == 0
            assert (await client.get_model_repository_index())[0]["state"] == "READY"
            for coding in (None, "gzip", "deflate"):
                found = await asyncio.gather(
                    *(
                        client.infer(
                            "mnist",
                            _inputs(module, binary=binary),
                            request_id=str(binary),
                            request_compression_algorithm=coding,
                            response_compression_algorithm=coding,
                        )
                        for binary in (False, True)
                    )
                )
                assert [one.get_response()["id"] for one in found] == ["False", "True"]
                assert all((one.as_numpy("pixels") == expected).all() for one in found)
            assert (await client.get_inference_statistics("mnist"))["model_stats"][0]["execution_count"] > 0
            with pytest.raises(InferenceServerException, match="model 'other'"):
                await client.infer("other", _inputs(module))

    asyncio.run(scenario())


# Clients in environments of their own.


def _environment(name: str) -> Path:
    """The programs of a client's environment."""
    found = CLIENTS / name / "bin"
    if not found.is_dir():
        pytest.skip(f"{found.parent} is not there: `make clients` makes it")
    return found


def _run(*command: Any, given: str | None = None) -> str:
    # Not our warnings filter, nor our sys.path: it is their code.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    found = subprocess.run(
        [str(part) for part in command], input=given, env=environment, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def _ask(name: str, server: Server) -> dict[str, Any]:
    """What a client's script prints about ROWS and LABELS."""
    script = Path(__file__).parent / "clients" / f"{name}_client.py"
    given = json.dumps({"latents": ROWS.tolist(), "labels": LABELS.tolist()})
    printed = _run(_environment(name) / "python", script, server.url, given=given)
    answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return answer


def test_kserve_client(server, expected):
    """The unmodified `kserve` InferenceRESTClient: health, JSON and binary, in and out."""
    found = _ask("kserve", server)
    assert (found["live"], found["ready"], found["model_ready"], found["other_ready"]) == (True, True, True, False)
    assert found["answers"] == [expected.ravel().tolist()] * 4


def test_mlserver_codecs(server, expected):
    """MLServer's types and NumPy codec, which sends every optional field as null, and labels as [N, 1]."""
    found = _ask("mlserver", server)
    assert (found["server"], found["inputs"]) == ("ganserve", ["latents", "labels"])
    assert found["answers"] == [expected.ravel().tolist()]


@pytest.mark.parametrize("options", [["-s", "1"], ["-s", "3"], ["-s", "2", "-b"]])
def test_mlserver_infer(server, expected, tmp_path, options):
    """The unmodified `mlserver infer` command: a file of requests, alone and merged, in JSON and in binary."""
    requests = [
        {
            "id": str(index),
            "inputs": [
                {"name": "latents", "shape": [1, 16], "datatype": "FP32", "data": ROWS[index].tolist()},
                {"name": "labels", "shape": [1], "datatype": "INT64", "data": [int(LABELS[index])]},
            ],
        }
        for index in range(4)
    ]
    asked, answered = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    asked.write_text("".join(json.dumps(request) + "\n" for request in requests))
    program = _environment("mlserver") / "mlserver"
    _run(program, "infer", "-u", f"127.0.0.1:{server.port}", "-m", "mnist", "-i", asked, "-o", answered, *options)
    answers = {answer["id"]: answer for answer in map(json.loads, answered.read_text().splitlines())}
    assert sorted(answers) == ["0", "1", "2", "3"]
    for index in range(4):
        (output,) = answers[str(index)]["outputs"]
        assert output["shape"] == [1, 28, 28, 1]
        assert output["data"] == expected[index].ravel().tolist()
