"""How long `bentoml serve` takes to its first answer, and what a worker weighs, beside an empty BentoML service.

    python benchmarks/startup.py [--runs 5]

The two are started in turn, so that a busy machine is as busy for both; the table has the medians. Both are given one
thread, and bytecode: a first start of each, which makes what an installation has already, is not counted. Time runs
from the command to the first 200 of `/readyz`; memory is the worker's after that, and for ganserve after a hundred
requests.
"""

import argparse
import contextlib
import http.client
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from processes import children

ROOT = Path(__file__).parents[1]
EMPTY = """import bentoml


@bentoml.service(http={"host": "127.0.0.1"})
class Empty:
    @bentoml.api
    def nothing(self) -> str:
        return ""
"""


class Start(NamedTuple):
    """One start: seconds to the first answer, and the worker's resident and proportional memory."""

    seconds: float
    rss_mb: float
    pss_mb: float


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="starts of each (default: 5)")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        ganserve, empty = Path(folder) / "ganserve", Path(folder) / "empty"
        for project in (ganserve, empty):
            project.mkdir()
        shutil.copy(ROOT / "bentofile.yaml", ganserve)
        (empty / "service.py").write_text(EMPTY)
        found: dict[str, list[Start]] = {"an empty BentoML service": [], "ganserve": []}
        start(empty, "service:Empty")
        start(ganserve, ".")
        for _ in range(runs):
            found["an empty BentoML service"].append(start(empty, "service:Empty"))
            found["ganserve"].append(start(ganserve, "."))
    print("| service | first answer, s | worker RSS, MB | worker PSS, MB |\n| --- | ---: | ---: | ---: |")
    for name, starts in found.items():
        seconds, rss, pss = (statistics.median(column) for column in zip(*starts, strict=True))
        print(f"| {name} | {seconds:.2f} | {rss:.0f} | {pss:.0f} |")
    ratios = [ours.seconds / theirs.seconds for theirs, ours in zip(*found.values(), strict=True)]
    print(f"\nfirst answer, ganserve / empty: median {statistics.median(ratios):.2f} of {runs} pairs")


def start(project: Path, target: str) -> Start:
    """Starts the server in `project`, waits for its first answer, weighs it, and ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GANSERVE_", "BENTOML_"))}
    environment |= {"PYTHONPATH": str(ROOT), "BENTOML_DO_NOT_TRACK": "True", "OMP_NUM_THREADS": "1"}
    environment |= {"BENTOML_HOME": str(project / "home"), "GANSERVE_DEVICE": "cpu", "GANSERVE_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PROMETHEUS_MULTIPROC_DIR"] = str(project / f"prometheus-{port}")
    started_at = time.perf_counter()
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "bentoml"), "serve", target, "--port", str(port)],
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    try:
        while not answers(port, "/readyz"):
            if process.poll() is not None or time.perf_counter() - started_at > 120:
                raise SystemExit(f"{project.name} did not start")
            time.sleep(0.01)
        seconds = time.perf_counter() - started_at
        if project.name == "ganserve":
            for index in range(100):
                answers(port, f"/v1/digits/{index}.png")
        worker = max(children(process.pid), key=memory)
        return Start(seconds, *memory(worker))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(port: int, path: str) -> bool:
    """Whether a path is answered with 200."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except OSError:
            return False


def memory(pid: int) -> tuple[float, float]:
    """Resident and proportional set size in MB (10^6 bytes)."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    sizes = {fields[0]: int(fields[1]) * 1024 / 1e6 for fields in lines}
    return sizes["Rss:"], sizes["Pss:"]


if __name__ == "__main__":
    main()
