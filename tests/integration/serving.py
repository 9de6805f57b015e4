"""A real `bentoml serve` as a subprocess, for tests."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answers."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path


def start(directory: Path, *, cwd: Path | None = None, **environment: str) -> Server:
    """`bentoml serve` in `directory`, on a free port and with nothing shared with another server; not yet ready.

    With `cwd` it is started there, and the directory is its argument.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    scratch = directory / f"bentoml-{port}"
    scratch.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GANSERVE_", "BENTOML_"))}
    log = scratch / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "bentoml"),
                "serve",
                *([] if cwd is None else [str(directory)]),
                "--port",
                str(port),
            ],
            cwd=cwd or directory,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **inherited,
                "PYTHONPATH": str(ROOT),
                "BENTOML_DO_NOT_TRACK": "True",
                "BENTOML_HOME": str(scratch / "home"),
                "PROMETHEUS_MULTIPROC_DIR": str(scratch / "prometheus"),
                **environment,
            },
            start_new_session=True,  # so that its workers can be ended with it
        )
    return Server(url=f"http://127.0.0.1:{port}", port=port, process=process, log=log)


def wait_until_ready(server: Server, timeout_s: float = 60.0) -> None:
    """Returns when /readyz is 200; fails with the log if it never is."""
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                return
        if server.process.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(f"the server did not become ready:\n{server.log.read_text()}")


@contextlib.contextmanager
def serve(directory: Path, *, cwd: Path | None = None, **environment: str) -> Iterator[Server]:
    """A ready server while the block lasts; it must then end by SIGTERM with exit code 0."""
    server = start(directory, cwd=cwd, **environment)
    try:
        wait_until_ready(server)
        yield server
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0, server.log.read_text()
    finally:
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait()
