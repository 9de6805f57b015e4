"""Requests a second through an unmodified `bentoml serve`: ganserve beside a tutorial-style service, in one run.

    python benchmarks/serving.py [ARTIFACT] [--rounds 3] [--seconds 2]

Both serve the same artifact with one worker and one ONNX Runtime thread, and are asked for the pixels of one image of a
seed as JSON. Their answers are compared before anything is timed, and the rounds are interleaved: each server runs
alone while it is timed. The client is a process of its own, but shares the machine: these are ratios, not records.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ganserve.artifact import find_artifact

CONCURRENCY = (1, 16, 64)
HERE = Path(__file__).parent
OURS, BASELINE = "ganserve", "BentoML tutorial style"
# name -> (what `bentoml serve` is given, path, body)
CONTENDERS = {
    OURS: (".", "/v1/generate", b'{"n":1,"seed":7,"encoding":"pixels"}'),
    BASELINE: ("benchmarks.contenders.bentoml_tutorial:Tutorial", "/generate", b'{"n":1,"seed":7}'),
}


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()

    artifact, reason = find_artifact(arguments.artifact)
    path = artifact.path.resolve()
    answers = {}
    for name, (target, route, body) in CONTENDERS.items():
        with served(target, path) as port:
            answers[name] = json.loads(fetch(port, route, body))["pixels"]
    assert answers[OURS] == answers[BASELINE], "the contenders answer differently"

    rates: dict[tuple[int, str], list[float]] = {}
    latencies_s: dict[tuple[int, str], list[float]] = {}
    for _ in range(arguments.rounds):
        for name, (target, route, body) in CONTENDERS.items():
            with served(target, path) as port:
                for concurrency in CONCURRENCY:
                    spent_s = asyncio.run(load(port, route, body, concurrency, arguments.seconds))
                    rates.setdefault((concurrency, name), []).append(len(spent_s) / arguments.seconds)
                    latencies_s.setdefault((concurrency, name), []).extend(spent_s)

    table = Table("concurrency", "server", "requests/s", "p50 ms", "p99 ms", "ratio")
    for (concurrency, name), found in sorted(rates.items()):
        rate, baseline = statistics.median(found), statistics.median(rates[concurrency, BASELINE])
        ordered = sorted(latencies_s[concurrency, name])
        p50, p99 = (ordered[int(len(ordered) * share)] * 1e3 for share in (0.5, 0.99))
        table.add_row(str(concurrency), name, f"{rate:,.0f}", f"{p50:.2f}", f"{p99:.2f}", f"{rate / baseline:.1f}")
    console = Console()
    console.print(f"{artifact.path} ({reason}), one worker, median of {arguments.rounds} rounds")
    console.print(table)


@contextlib.contextmanager
def served(target: str, artifact: Path) -> Iterator[int]:
    """`bentoml serve TARGET` on a free port while the block lasts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "GANSERVE_ARTIFACT": str(artifact),
            "GANSERVE_THREADS": "1",
            "BENTOML_DO_NOT_TRACK": "True",
            "PROMETHEUS_MULTIPROC_DIR": scratch,
        }
        command = [Path(sys.executable).parent / "bentoml", "serve", target, "--port", str(port)]
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[1],
        )
        try:
            give_up_at = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > give_up_at:
                        raise SystemExit("bentoml serve did not start") from None
                    time.sleep(0.1)
            yield port
        finally:
            process.terminate()
            process.wait(30)


def fetch(port: int, path: str, body: bytes) -> bytes:
    """One answer."""
    url, headers = f"http://127.0.0.1:{port}{path}", {"content-type": "application/json"}
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request) as answer:
        return bytes(answer.read())


async def load(port: int, path: str, body: bytes, concurrency: int, seconds: float) -> list[float]:
    """Seconds of each request that `concurrency` kept-alive connections made in `seconds`."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    request = head.encode() + body
    spent_s: list[float] = []
    stop_at = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (start := time.perf_counter()) < stop_at:
            writer.write(request)
            headers = await reader.readuntil(b"\r\n\r\n")
            assert headers.startswith(b"HTTP/1.1 200"), headers
            length = headers.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
            spent_s.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return spent_s


if __name__ == "__main__":
    main()
