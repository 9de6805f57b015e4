"""One server at a time on one core, `wrk` on another, and what the kernel says they cost."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

SERVER_CORE, CLIENT_CORE = 0, 1
STOP_S = 15

# wrk sends what it was given as fast as it is answered; without request() or response() no Lua runs between requests.
SCRIPT = """
local body = io.open("{body}", "rb")
wrk.method, wrk.body = "POST", body:read("*a")
body:close()
{headers}
done = function(summary, latency, requests)
  local errors = summary.errors
  local broken = errors.connect + errors.read + errors.write + errors.timeout
  print(string.format("\\nRESULT %d %d %d %d %d %d", summary.requests, summary.duration, errors.status, broken,
    latency:percentile(50), latency:percentile(99)))
end
"""


class Call(NamedTuple):
    """One POST."""

    path: str
    headers: dict[str, str]
    body: bytes


class Sample(NamedTuple):
    """What one server did in one timing.

    Attributes:
        rate: good answers a second.
        p50_ms: of the time to an answer; also `p99_ms`.
        cpu_us: user and system time of the server's whole process tree, a good answer.
        failed: share of the requests that got another status than 2xx, or none.
        others: share of the server's core that neither the server nor idleness had.
    """

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    failed: float
    others: float


class Server(NamedTuple):
    """A started server."""

    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        """User and system seconds of the process tree so far."""
        seconds = 0.0
        for process in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds += times.user + times.system
        return seconds


def pinned(core: int, command: Sequence[str]) -> list[str]:
    """`command`, on this core only, where it can be had and is wanted."""
    return ["taskset", "-c", str(core), *command] if can_pin() else list(command)


def can_pin() -> bool:
    """Whether `pinned` pins: there are `taskset` and two cores, and nobody said UNPINNED."""
    wanted = "UNPINNED" not in os.environ
    return wanted and shutil.which("taskset") is not None and {SERVER_CORE, CLIENT_CORE} <= os.sched_getaffinity(0)


@contextlib.contextmanager
def started(command: Sequence[str], environment: Mapping[str, str], directory: Path) -> Iterator[Server]:
    """A server while the block lasts; `{port}` and `{scratch}` in the command are filled in. It may not answer yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="bench", ignore_cleanup_errors=True) as scratch:
        log = Path(scratch) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                pinned(SERVER_CORE, [part.format(port=port, scratch=scratch) for part in command]),
                env={**os.environ, **environment, "PORT": str(port), "PROMETHEUS_MULTIPROC_DIR": scratch},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                start_new_session=True,
            )
        family = psutil.Process(process.pid)
        try:
            yield Server(port, family)
        except Exception:
            print(log.read_text(errors="replace")[-3000:])
            raise
        finally:
            members = [family, *_children(family)]
            process.terminate()
            _, alive = psutil.wait_procs(members, STOP_S)
            for member in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def time_server(server: Server, call: Call, concurrency: int, seconds: int) -> Sample:
    """Sends `call` on so many kept-alive connections for so long."""
    with tempfile.TemporaryDirectory(prefix="wrk") as scratch:
        body, script = Path(scratch) / "body", Path(scratch) / "post.lua"
        body.write_bytes(call.body)
        headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in call.headers.items())
        script.write_text(SCRIPT.format(body=body, headers=headers))
        command = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script)]
        cpu_s, busy_s = server.cpu_s(), _busy_s(SERVER_CORE)
        output = subprocess.run(
            pinned(CLIENT_CORE, [*command, f"http://127.0.0.1:{server.port}{call.path}"]),
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        cpu_s, busy_s = server.cpu_s() - cpu_s, _busy_s(SERVER_CORE) - busy_s
    answers, duration_us, refused, broken, p50_us, p99_us = map(int, output.rpartition("RESULT ")[2].split())
    good = answers - refused
    return Sample(
        rate=good / duration_us * 1e6,
        p50_ms=p50_us / 1e3,
        p99_ms=p99_us / 1e3,
        cpu_us=cpu_s / max(good, 1) * 1e6,
        failed=(refused + broken) / max(answers + broken, 1),
        others=max(0.0, busy_s - cpu_s) / (duration_us / 1e6) if can_pin() else 0.0,
    )


def _busy_s(core: int) -> float:
    times = psutil.cpu_times(percpu=True)[core]
    return sum(times) - times.idle - times.iowait - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
