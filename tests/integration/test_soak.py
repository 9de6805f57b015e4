"""What a long or hostile day does to a real server: it stays as small and as exact as it was.

And as quick: `benchmarks/hostile.py` measures that, as time never fails a test.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.artifacts import make_artifact
from tests.connection import Connection
from tests.integration.serving import ROOT, Server, serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory and processes are looked up in /proc"),
]

_BODY = json.dumps({"n": 4, "seed": 1}).encode()
_HEAD = b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
_REQUEST = _HEAD + b"content-length: %d\r\n\r\n" % len(_BODY) + _BODY


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder that `bentoml serve` serves."""
    folder = tmp_path_factory.mktemp("soak")
    shutil.copy(ROOT / "bentofile.yaml", folder)
    make_artifact(folder / "artifacts" / "made")
    return folder


@pytest.fixture(scope="module")
def server(project) -> Iterator[Server]:
    """One worker, with little patience for slow clients."""
    limits = {"GANSERVE_BODY_TIMEOUT_MS": "3000", "GANSERVE_HEADER_TIMEOUT_MS": "3000"}
    with serve(project, GANSERVE_DEVICE="cpu", GANSERVE_THREADS="1", **limits) as server:
        yield server


@pytest.fixture(scope="module")
def sockets() -> int:
    """How many connections a test may open: 1,000, or what this process is allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1200 if hard == resource.RLIM_INFINITY else min(1200, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return min(1000, wanted - 200)


def _workers(server: Server) -> list[int]:
    """Process ids of the workers that serve."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            ours = int(stat.read_text().rpartition(") ")[2].split()[1]) == server.process.pid
            if ours and "service" in (stat.parent / "cmdline").read_text():
                found.append(int(stat.parent.name))
    return found


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _sample(server: Server, name: str) -> float:
    """One series of `/metrics`, summed over its labels."""
    with Connection(server.port) as connection:
        lines = connection.ask("GET", "/metrics")[2].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition(" ")[0].partition("{")[0] == name)


def _until(condition, timeout_s: float = 15.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "it did not happen in time"
        time.sleep(0.1)


def _connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def test_ten_thousand_clients_that_leave(server):
    """10,000 requests whose clients are gone at once or a little later: no rows, sockets or memory stay behind."""
    (worker,) = _workers(server)

    def round_of_400(delay_s: float) -> None:
        clients = [_connect(server) for _ in range(400)]
        for client in clients:
            client.sendall(_REQUEST)
        time.sleep(delay_s)
        for client in clients:
            client.close()

    for _ in range(3):  # what the first ones need is needed once
        round_of_400(0.0)
    _until(lambda: len(os.listdir(f"/proc/{worker}/fd")) < 100)
    before_mb = _resident_mb(worker)
    for index in range(25):
        round_of_400(0.0 if index % 2 else 0.02)
    _until(lambda: len(os.listdir(f"/proc/{worker}/fd")) < 100)
    assert _resident_mb(worker) - before_mb < 40
    _until(lambda: _sample(server, "ganserve_queue_rows") == 0)
    with Connection(server.port) as connection:
        assert connection.pixels({"n": 3, "seed": 1}).shape == (3, 28, 28, 1)
        assert connection.ask("GET", "/readyz")[0] == 200


@pytest.mark.parametrize(
    ("sent", "share"),
    [
        (b"", 1.0),
        (_HEAD, 0.3),
        (_HEAD + b"content-length: 9\r\n\r\n{", 0.3),
    ],
    ids=["idle", "slow head", "slow body"],
)
def test_clients_that_do_nothing_cost_nothing(server, sockets, sent, share):
    """Beside idle connections, slow heads and slow bodies others are served; they cost little memory, and they end."""
    (worker,) = _workers(server)
    before_mb = _resident_mb(worker)
    clients = [_connect(server) for _ in range(int(sockets * share))]
    try:
        for client in clients:
            client.sendall(sent)
        _until(lambda: len(os.listdir(f"/proc/{worker}/fd")) >= len(clients))
        with Connection(server.port) as connection:
            for _ in range(100):
                assert connection.pixels({"seed": 1}).shape == (1, 28, 28, 1)
        assert _resident_mb(worker) - before_mb < 40
        if sent:
            assert clients[0].recv(12) == b"HTTP/1.1 408"
    finally:
        for client in clients:
            client.close()
    _until(lambda: len(os.listdir(f"/proc/{worker}/fd")) < 100)
    assert _sample(server, "ganserve_queue_rows") == 0


def test_clients_that_do_not_read(server):
    """Clients that ask for much and read nothing are cut off, and others are served as before."""
    (worker,) = _workers(server)
    open_files = Path(f"/proc/{worker}/fd")
    before = len(os.listdir(open_files))
    body = json.dumps({"n": 256, "seed": 1, "encoding": "pixels"}).encode()
    request = _HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    clients = []
    for _ in range(6):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(request * 10)
        clients.append(client)
    _until(lambda: len(os.listdir(open_files)) >= before + len(clients))
    _until(lambda: len(os.listdir(open_files)) <= before + 2, timeout_s=25)  # none of them has left by itself
    for client in clients:
        client.close()
    _until(lambda: _sample(server, "ganserve_queue_rows") == 0)
    with Connection(server.port) as connection:
        assert connection.pixels({"n": 3, "seed": 1}).shape == (3, 28, 28, 1)


def test_a_killed_worker_is_replaced_and_nothing_is_forgotten(project):
    """Of two workers one is killed: others answer within seconds, and `/metrics` adds up what the dead one did."""

    def images(count: int) -> int:
        done = 0
        for _ in range(count):  # a connection each: both workers get some
            with contextlib.suppress(OSError, AssertionError), Connection(server.port) as connection:
                connection.pixels({"seed": 1, "n": 2})
                done += 2
        return done

    with serve(project, GANSERVE_DEVICE="cpu", GANSERVE_THREADS="1", GANSERVE_WORKERS="2") as server:
        _until(lambda: len(_workers(server)) == 2)
        made = images(40)
        assert made == 80
        _until(lambda: _sample(server, "ganserve_images_total") == 80)  # handed over once a second
        victim = _workers(server)[0]
        os.kill(victim, signal.SIGKILL)
        _until(lambda: images(1) == 2, timeout_s=10)
        made += 2
        _until(lambda: len(_workers(server)) == 2 and victim not in _workers(server), timeout_s=30)
        time.sleep(1.5)
        found = _sample(server, "ganserve_images_total")
        assert found >= made
        more = images(40)
        assert more == 80
        _until(lambda: _sample(server, "ganserve_images_total") == found + more)
        assert _sample(server, "ganserve_queue_rows") == 0
