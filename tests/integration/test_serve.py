import base64
import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import pytest
from bentoml.exceptions import BentoMLException
from PIL import Image

from ganserve import imaging, latents
from ganserve.artifact import MANIFEST, ONNX, PRETRAINED, Artifact, open_artifact
from ganserve.engine import Engine, cuda_obstacle
from tests.artifacts import make_artifact
from tests.connection import Connection
from tests.integration.serving import ROOT, Server, serve, start

pytestmark = pytest.mark.skipif(os.name != "posix", reason="BentoML serves on POSIX")


def _workers(server: Server) -> list[int]:
    """Process ids of the server's workers."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if int(status.read_text().rpartition(") ")[2].split()[1]) == server.process.pid:
                found.append(int(status.parent.name))
    return found


def _project(folder: Path, **options: Any) -> Path:
    """A folder that `bentoml serve` serves: bentofile.yaml, and an artifact beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "bentofile.yaml", folder)
    make_artifact(folder / "artifacts" / "made", **options)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The project that most tests are about."""
    return _project(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def artifact(project) -> Artifact:
    """What it serves."""
    return open_artifact(project / "artifacts" / "made")


@pytest.fixture(scope="module")
def engine(artifact) -> Engine:
    """The same artifact in this process."""
    return Engine(artifact, device="cpu")


@pytest.fixture(scope="module")
def server(project) -> Iterator[Server]:
    """It, served with no argument, with small limits."""
    limits = {"GANSERVE_BODY_TIMEOUT_MS": "500", "GANSERVE_MAX_BODY_BYTES": "300000"}
    with serve(project, GANSERVE_DEVICE="cpu", **limits) as server:
        yield server


@pytest.fixture
def connection(server) -> Iterator[Connection]:
    """One connection to it."""
    with Connection(server.port) as connection:
        yield connection


# What it answers.


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_health_is_bentomls(connection, path):
    """BentoML's health routes say that it lives and is ready."""
    assert connection.ask("GET", path)[0] == 200


def test_model_names_the_artifact_by_the_digest_of_its_manifest(connection, project):
    """`/v1/model` has the SHA-256 of manifest.json, so anyone can check what is served."""
    status, _, body = connection.ask("GET", "/v1/model")
    assert status == 200
    manifest = (project / "artifacts" / "made" / MANIFEST).read_bytes()
    document = json.loads(body)
    assert document["digest"] == f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    assert document["artifact"] == "artifacts/made"
    assert document["provider"] == "CPUExecutionProvider"


def test_choice_of_artifact_is_logged(server, artifact):
    """The log says which artifact was chosen, why, its digest and the provider."""
    log = server.log.read_text()
    assert f"serving artifact=artifacts/made (the only one in artifacts/) digest={artifact.digest}" in log
    assert "provider=CPUExecutionProvider" in log


def test_pixels_are_the_engines(connection, engine):
    """What comes over HTTP is, bit for bit, what the engine makes of the seed, of latents, and of a text."""
    rows, labels = latents.draw(7, 20, 16, 10)
    expected = engine.run(rows, labels)
    assert (connection.pixels({"seed": 7, "n": 20}) == expected).all()
    assert (connection.pixels({"latents": rows.tolist(), "labels": labels.tolist()}) == expected).all()
    _, _, png = connection.ask("GET", "/v1/digits/2026.png?seed=7")
    with Image.open(io.BytesIO(png)) as image:
        written = engine.run(latents.draw(7, 4, 16)[0], np.array([2, 0, 2, 6]))
        assert (np.asarray(image)[:, :, None] == imaging.strip(written)).all()


def test_clients_at_once_get_what_they_get_alone(server, engine):
    """32 clients at once, sharing batches, get what each would get alone."""
    rows, labels = latents.draw(11, 32, 16, 10)
    found: dict[int, np.ndarray] = {}

    def client(index: int) -> None:
        with Connection(server.port) as connection:
            for _ in range(5):
                found[index] = connection.pixels(
                    {"latents": rows[index : index + 1].tolist(), "labels": int(labels[index])}
                )

    clients = [threading.Thread(target=client, args=(index,)) for index in range(32)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    for index in range(32):
        assert (found[index] == engine.run(rows[index : index + 1], labels[index : index + 1])).all()


def test_bentomls_own_client_works_unmodified(server, connection):
    """`bentoml.SyncHTTPClient` finds `generate` in the schema and gets what `/v1/generate` answers."""
    _, _, body = connection.ask("POST", "/v1/generate", {"n": 2, "seed": 7, "labels": [3]})
    with bentoml.SyncHTTPClient(server.url) as client:
        assert client.generate(n=2, seed=7, labels=[3]) == json.loads(body)
        assert client.generate(n=2, seed=7, labels=[3], encoding="pixels", truncation=None)["n"] == 2
    with Image.open(io.BytesIO(base64.b64decode(json.loads(body)["images"][0]))) as image:
        assert image.size == (28, 28)


def test_bentomls_client_sees_the_status_and_the_reason(server):
    """A refused call reaches BentoML's client as its exception, with our reason in it."""
    with (
        bentoml.SyncHTTPClient(server.url) as client,
        pytest.raises(BentoMLException, match="n must be 1 to 1024, got 0") as caught,
    ):
        client.generate(n=0)
    assert caught.value.error_code == 400


def test_schema_describes_generate(connection):
    """BentoML's schema and OpenAPI page know `/generate` and its fields."""
    _, _, schema = connection.ask("GET", "/schema.json")
    (route,) = json.loads(schema)["routes"]
    assert route["route"] == "/generate"
    assert set(route["input"]["properties"]) == {"n", "seed", "labels", "truncation", "latents", "encoding"}
    status, _, document = connection.ask("GET", "/docs.json")
    assert status == 200
    assert "/generate" in json.loads(document)["paths"]


# What it refuses.


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/v1/generate", {"n": 0}, {}, 400),
        ("POST", "/v1/generate", {"n": True}, {}, 400),
        ("POST", "/v1/generate", {"latents": [[0.0] * 15], "labels": 0}, {}, 400),
        ("POST", "/generate", {"n": "3"}, {}, 400),
        ("POST", "/generate", {"nn": 3}, {}, 400),
        ("POST", "/generate", b'{"latents": [[NaN]], "labels": 0}', {"content_type": "application/json"}, 400),
        ("GET", "/v1/digits/x.png", None, {}, 400),
        ("GET", "/static_content/index.html", None, {}, 404),
        ("GET", "/generate", None, {}, 405),
        ("POST", "/v1/generate", {}, {"accept": "text/html"}, 406),
        ("POST", "/v1/generate", b"x" * 400_000, {"content_type": "application/json"}, 413),
        ("POST", "/generate", b"x" * 400_000, {"content_type": "application/json"}, 413),
        ("POST", "/v1/generate", b"\x80\x04.", {"content_type": "application/vnd.bentoml+pickle"}, 415),
        ("POST", "/generate", b"\x80\x04.", {"content_type": "application/vnd.bentoml+pickle"}, 415),
    ],
)
def test_refused_and_then_a_good_request(connection, engine, method, path, body, headers, status):
    """A bad request gets its status, its reason as a problem document, and the connection serves a good one."""
    found, answered, content = connection.ask(method, path, body, **headers)
    assert found == status, content
    assert answered["content-type"] == "application/problem+json"
    assert json.loads(content)["status"] == status
    rows, labels = latents.draw(1, 1, 16, 10)
    assert (connection.pixels({"seed": 1}) == engine.run(rows, labels)).all()


def test_slow_body_is_408(server):
    """A body that does not come is a 408 in time, here and on BentoML's own routes."""
    for path in (b"/v1/generate", b"/livez"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(b"POST " + path + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{")
            assert raw.recv(12) == b"HTTP/1.1 408"


def test_clients_faults_are_no_tracebacks(server, connection):
    """Whatever clients did wrong in this file, on our routes and on BentoML's, the log has no traceback of it."""
    for path in ("/v1/generate", "/generate"):
        connection.ask("POST", path, {"n": -1})
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "ERROR" not in log


# How it runs.


def test_it_listens_on_one_socket_of_this_machine_only(server):
    """Of all processes of the server, TCP, UDP and UNIX, one socket takes connections: that of HTTP, on 127.0.0.1.

    So every listening socket answers documented routes alone: BentoML's supervisor, which would take commands on two
    ports of its own, has none.
    """
    held = set()
    for pid in (server.process.pid, *_workers(server)):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it was closed meanwhile
                held.add(os.readlink(descriptor))
    inet = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}  # listening; bound and not connected
    listening = []
    for table, state in inet.items():
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == state and f"socket:[{fields[9]}]" in held:
                    listening.append((table, fields[1]))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) & 0x10000 and f"socket:[{fields[6]}]" in held:  # it accepts connections
            listening.append(("unix", line))
    assert listening == [("tcp", f"0100007F:{server.port:04X}")]


def test_worker_has_no_torch(server):
    """Neither torch nor onnx is loaded into the worker: serving does without the training stack."""
    (worker,) = [pid for pid in _workers(server) if "service" in Path(f"/proc/{pid}/cmdline").read_text()]
    maps = Path(f"/proc/{worker}/maps").read_text()
    assert "onnxruntime" in maps
    assert not re.search(r"libtorch|/torch/|site-packages/onnx/", maps)


def test_importing_the_service_imports_no_training():
    """The service module reaches neither torch, onnx, training nor exporters, whatever lies installed."""
    script = (
        "import sys, ganserve.service; "
        "print([name for name in ('torch', 'onnx', 'onnxscript', 'safetensors', 'matplotlib', 'training', 'exporters')"
        " if name in sys.modules])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GANSERVE_")}
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_two_servers_give_the_same_bytes(connection, tmp_path):
    """Another server, started from elsewhere with the project as its argument, answers with the same bytes and ETag."""
    project = _project(tmp_path / "project")
    with serve(project, cwd=tmp_path, GANSERVE_DEVICE="cpu") as other, Connection(other.port) as second:
        for ask in (
            ("POST", "/v1/generate", {"seed": 2**64 - 1, "n": 5}),
            ("GET", "/v1/digits/31415.png?seed=3&scale=2"),
        ):
            mine, theirs = connection.ask(*ask), second.ask(*ask)
            assert mine[0] == theirs[0] == 200
            assert mine[2] == theirs[2]
            assert mine[1].get("etag") == theirs[1].get("etag")
        assert "serving artifact=artifacts/made" in other.log.read_text()


def test_sigterm_under_load_loses_nothing(tmp_path):
    """SIGTERM to two workers while 16 clients ask without pause: what was accepted is answered whole; exit status 0.

    The access log says what was accepted. A client that asks too late finds its connection closed, no answer begun.
    """
    settings = {"GANSERVE_WORKERS": "2", "GANSERVE_THREADS": "1", "GANSERVE_ACCESS_LOG": "true"}
    answers: list[int] = []
    faults: list[Exception] = []

    def client(port: int, index: int) -> None:
        fields = {"seed": index, "n": 1 + index % 3}
        with Connection(port) as connection:
            while True:
                try:
                    connection.send_request("POST", "/v1/generate", fields)
                    response = connection.getresponse()
                except (OSError, http.client.NotConnected):  # it was closed before this request was accepted
                    return
                try:
                    assert response.status == 200
                    assert json.loads(response.read())["n"] == fields["n"]
                    answers.append(index)
                except Exception as err:
                    faults.append(err)
                    return

    with serve(_project(tmp_path), GANSERVE_DEVICE="cpu", GANSERVE_MAX_DELAY_MS="2", **settings) as server:
        clients = [threading.Thread(target=client, args=(server.port, index)) for index in range(16)]
        for thread in clients:
            thread.start()
        while len(answers) < 200:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        for thread in clients:
            thread.join(30)
        assert server.process.wait(30) == 0
    assert not faults
    assert set(answers) == set(range(16))
    logged = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    accepted = [entry for entry in logged if entry["route"] == "/v1/generate"]
    assert {entry["status"] for entry in accepted} == {200}
    assert len(accepted) == len(answers)


def test_draining_is_unready_but_answers(tmp_path):
    """After SIGTERM the server is not ready, and answers all the same until its drain time is over; then it exits 0."""
    with serve(_project(tmp_path), GANSERVE_DEVICE="cpu", GANSERVE_DRAIN_MS="4000") as server:
        with Connection(server.port) as connection:
            assert connection.ask("GET", "/v2/health/ready")[0] == 200
            before = connection.pixels({"n": 2, "seed": 1})
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)  # well inside the drain time
            assert connection.ask("GET", "/readyz")[0] == 503
            assert connection.ask("GET", "/v2/health/ready")[0] == 503
            np.testing.assert_array_equal(connection.pixels({"n": 2, "seed": 1}), before)
        assert server.process.wait(30) == 0


def test_without_an_artifact_it_serves_the_one_that_ships_with_ganserve(tmp_path):
    """In a folder with nothing but bentofile.yaml, the pretrained digits are served, and the log says so."""
    shutil.copy(ROOT / "bentofile.yaml", tmp_path)
    pretrained = open_artifact(PRETRAINED)
    golden = pretrained.read_golden()
    with serve(tmp_path, GANSERVE_DEVICE="cpu") as server, Connection(server.port) as connection:
        assert json.loads(connection.ask("GET", "/v1/model")[2])["digest"] == pretrained.digest
        shown = connection.pixels({"latents": golden.latents[:4].tolist(), "labels": golden.labels[:4].tolist()})
        assert imaging.difference(shown, golden.pixels[:4])[0] <= 1
        assert "the pretrained one that ships with ganserve" in server.log.read_text()


# What it does not start with.


def _flipped_bit(folder: Path) -> None:
    graph = _project(folder) / "artifacts" / "made" / ONNX
    content = bytearray(graph.read_bytes())
    content[1000] ^= 1
    graph.write_bytes(content)


def _missing_file(folder: Path) -> None:
    (_project(folder) / "artifacts" / "made" / "README.md").unlink()


def _leaving_path(folder: Path) -> None:
    manifest = _project(folder) / "artifacts" / "made" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"README.md"', '"../README.md"'))


def _spoilt(folder: Path) -> None:
    _project(folder, spoil_golden=True)


@pytest.mark.parametrize(
    ("prepare", "settings", "message", "hint"),
    [
        (_flipped_bit, {}, r"artifacts/made/generator\.onnx is not what was exported", "restore the artifact"),
        (_missing_file, {}, r"cannot read artifacts/made/README\.md: No such file", ""),
        (_leaving_path, {}, r"must lie in the artifact's own directory.*'\.\./README\.md'", ""),
        (_spoilt, {}, "golden images differ by up to 255 grey levels", "do not serve it"),
        (_project, {"GANSERVE_ARTIFACT": "artifacts/other"}, "artifacts/other is not an artifact", "ganserve export"),
        (_project, {"GANSERVE_MAX_BODY": "9"}, "GANSERVE_MAX_BODY is not a setting", "GANSERVE_MAX_BODY_BYTES?"),
        (_project, {"GANSERVE_WORKERS": "many"}, "GANSERVE_WORKERS: .*, got 'many'", "ganserve doctor"),
        pytest.param(
            _project,
            {"GANSERVE_DEVICE": "cuda"},
            "CUDA was requested but cannot be used",
            "GANSERVE_DEVICE=auto",
            marks=pytest.mark.skipif(cuda_obstacle() is None, reason="CUDA may work here"),
        ),
    ],
)
def test_it_does_not_start_and_says_why(
    tmp_path: Path, prepare: Callable[[Path], Any], settings: dict[str, str], message: str, hint: str
):
    """With nothing whole to serve or a wrong setting, `bentoml serve` ends at once with the reason and what to do."""
    prepare(tmp_path)
    server = start(tmp_path, **({"GANSERVE_DEVICE": "cpu"} | settings))
    assert server.process.wait(60) == 1
    log = server.log.read_text()
    assert re.search(message, log)
    assert hint in log
    assert "Traceback" not in log
    assert "Starting production" not in log  # no worker was started, so none was started again and again


def _series(connection) -> dict[str, float]:
    """The server's own series: name with labels -> value."""
    lines = connection.ask("GET", "/metrics")[2].decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("ganserve_")}


def test_metrics_count_routes_and_not_paths(connection):
    """A thousand paths that do not exist add one series; images, batches and the model are counted."""
    connection.pixels({"n": 3, "seed": 1})
    connection.ask("GET", "/nope/0")
    time.sleep(1.5)  # handed over once a second
    before = _series(connection)
    assert any(name.startswith("ganserve_model_info{") and value == 1 for name, value in before.items())
    for index in range(1000):
        connection.ask("GET", f"/nope/{index}")
    connection.pixels({"n": 3, "seed": 1})
    time.sleep(1.5)
    after = _series(connection)
    assert set(after) == set(before)
    unknown = 'ganserve_requests_total{route="unknown",status="404"}'
    assert after[unknown] == before[unknown] + 1000
    assert after["ganserve_images_total"] == before["ganserve_images_total"] + 3
    assert after["ganserve_batch_rows_sum"] == before["ganserve_batch_rows_sum"] + 3


def test_answers_say_where_the_time_went(connection):
    """An answer that was computed tells queue, inference and encoding in milliseconds, and its batch."""
    _, headers, _ = connection.ask("GET", "/v1/digits/7.png")
    assert re.fullmatch(
        r'queue;dur=[0-9.]+, infer;dur=[0-9.]+, encode;dur=[0-9.]+, batch;desc="1 rows"', headers["server-timing"]
    )
