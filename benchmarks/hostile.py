"""What hostile clients cost the others: latency, memory and gauges of a real `bentoml serve` while somebody does harm.

    python benchmarks/hostile.py [--rounds 3] [--requests 1000]

One worker serves the newest artifact (else the pretrained one) on one core, this program is on another. One good client
asks for single images, one after the other, alone and beside each kind of bad ones, in turn; the table has the median
over the rounds of its p50 and p99, of the ratio of p99 to the p99 alone of the same round, and the most memory that the
worker had. Then the queue is filled, and the time from a request that does not fit to its 503 is measured.
"""

import argparse
import collections
import contextlib
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from processes import children

ROOT = Path(__file__).parents[1]
HEAD = b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
NPY = HEAD + b"accept: application/x-npy\r\n"
SLOW_S = 2.0  # between two bytes of a slow client


def post(head: bytes, fields: dict[str, object]) -> bytes:
    """A whole request."""
    body = json.dumps(fields).encode()
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


ONE = post(NPY, {"seed": 1})
FOUR = post(HEAD, {"seed": 1, "n": 4})


class Server:
    """A `bentoml serve` with one worker."""

    def __init__(self, folder: Path, core: int, **settings: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GANSERVE_", "BENTOML_"))}
        environment = kept | {"PYTHONPATH": str(ROOT), "BENTOML_DO_NOT_TRACK": "True"}
        environment["BENTOML_HOME"] = str(folder / "home")
        environment |= {"GANSERVE_DEVICE": "cpu", "GANSERVE_THREADS": "1", "OMP_NUM_THREADS": "1", **settings}
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(folder / f"prometheus-{self.port}")
        self.process = subprocess.Popen(
            [str(Path(sys.executable).parent / "bentoml"), "serve", "--port", str(self.port)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        give_up_at = time.monotonic() + 120
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                raise SystemExit("the server did not start")
            time.sleep(0.1)
        self.worker = max(children(self.process.pid), key=lambda pid: memory_mb(pid, "VmRSS"))
        for pid in (self.process.pid, self.worker):
            os.sched_setaffinity(pid, {core})

    def connect(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def ready(self) -> bool:
        """Whether /readyz is 200."""
        try:
            return self.get("/readyz").startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def get(self, path: str) -> bytes:
        """A whole answer."""
        with self.connect() as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))

    def gauge(self) -> float:
        """Rows that wait."""
        lines = self.get("/metrics").decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("ganserve_queue_rows"))

    def cpu_s(self) -> float:
        """What its worker has used."""
        fields = Path(f"/proc/{self.worker}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """Ends it; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()


def memory_mb(pid: int, field: str) -> float:
    """`VmRSS` or `VmHWM` (the most there was) of a process."""
    try:
        return int(Path(f"/proc/{pid}/status").read_text().partition(f"{field}:")[2].split()[0]) / 1024
    except (OSError, IndexError):
        return 0.0


def read_answer(file) -> int:
    """Reads the next answer; its status."""
    status = int(file.readline().split()[1])
    length = 0
    while (line := file.readline()) != b"\r\n":
        if line.startswith(b"content-length: "):
            length = int(line[16:])
    file.read(length)
    return status


def latencies_ms(server: Server, requests: int) -> list[float]:
    """Of single images, sorted; the good client."""
    times = []
    with server.connect() as connection, connection.makefile("rb") as file:
        for _ in range(requests):
            started_at = time.perf_counter()
            connection.sendall(ONE)
            assert read_answer(file) == 200
            times.append((time.perf_counter() - started_at) * 1e3)
    return sorted(times)


# The bad ones: each harms while the block lasts, and is gone after it.


@contextlib.contextmanager
def nobody(server: Server) -> Iterator[None]:
    """Alone."""
    yield


def dribbling(count: int, start: bytes, more: bytes) -> Callable[[Server], contextlib.AbstractContextManager[None]]:
    """Connections that send `start` and then, every now and then, a byte of `more`; cut off, they come again."""

    @contextlib.contextmanager
    def harm(server: Server) -> Iterator[None]:
        over = threading.Event()
        clients = [server.connect() for _ in range(count)]
        for client in clients:
            client.sendall(start)

        def dribble() -> None:
            while not over.wait(SLOW_S):
                for index, client in enumerate(clients):
                    try:
                        client.sendall(more)
                    except OSError:
                        client.close()
                        clients[index] = server.connect()
                        clients[index].sendall(start)

        thread = threading.Thread(target=dribble)
        if more:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if more:
                thread.join()
            for client in clients:
                client.close()

    return harm


@contextlib.contextmanager
def not_reading(server: Server) -> Iterator[None]:
    """Twenty clients that ask for 20 x 256 images as nested integers each, and read nothing.

    What the sockets hold is computed for them as for anybody; it begins when that is done.
    """
    asked = post(HEAD, {"seed": 1, "n": 256, "encoding": "pixels"}) * 20

    def greedy() -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.settimeout(5)
        client.sendall(asked)
        return client

    clients = [greedy() for _ in range(20)]
    busy_s = -1.0
    while server.cpu_s() - busy_s > 0.02:
        busy_s = server.cpu_s()
        time.sleep(0.5)
    try:
        yield
    finally:
        for client in clients:
            client.close()


def coming(*, leave: bool) -> Callable[[Server], contextlib.AbstractContextManager[None]]:
    """Clients that ask for an image on a connection of their own, 250 a second, and leave at once or read it."""

    @contextlib.contextmanager
    def harm(server: Server) -> Iterator[None]:
        over = threading.Event()

        def come() -> None:
            count = 0
            stayed: collections.deque[socket.socket] = collections.deque()
            while not over.wait(0.004):
                client = server.connect()
                client.sendall(ONE)
                if leave:
                    client.close()
                    count += 1
                    continue
                stayed.append(client)
                if len(stayed) > 25:  # a tenth of a second ago: its answer is there
                    stayed[0].recv(1 << 16)
                    stayed.popleft().close()
            for client in stayed:
                client.close()
            LEFT.append(count)

        thread = threading.Thread(target=come)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    return harm


def leave_at_once(server: Server, clients: int) -> None:
    """So many requests for four images each whose clients are gone, 200 at a time, while they wait or are computed."""
    for start in range(0, clients, 200):
        leaving = [server.connect() for _ in range(200)]
        for client in leaving:
            client.sendall(FOUR)
        time.sleep(0.0 if start % 400 else 0.02)
        for client in leaving:
            client.close()


LEFT: list[int] = []
HARMS: dict[str, Callable[[Server], contextlib.AbstractContextManager[None]]] = {
    "nobody": nobody,
    "1,000 idle connections": dribbling(1000, b"", b""),
    "300 slow heads": dribbling(300, HEAD[:-2], b"x"),
    "300 slow bodies": dribbling(300, HEAD + b"content-length: 1000\r\n\r\n{", b" "),
    "20 clients that do not read": not_reading,
    "250 a second that stay": coming(leave=False),
    "250 a second that leave": coming(leave=True),
}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of all kinds (default: 3)")
    parser.add_argument("--requests", type=int, default=1000, help="of the good client in each (default: 1000)")
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})

    with tempfile.TemporaryDirectory() as folder:
        # So patient that none of the bad ones is cut off while it is measured.
        patient = {"GANSERVE_BODY_TIMEOUT_MS": "120000", "GANSERVE_HEADER_TIMEOUT_MS": "120000"}
        server = Server(Path(folder), cores[0], **patient)
        latencies_ms(server, 300)
        p50: dict[str, list[float]] = {name: [] for name in HARMS}
        p99: dict[str, list[float]] = {name: [] for name in HARMS}
        most: dict[str, float] = {}
        for _ in range(given.rounds):
            for name, harm in HARMS.items():
                with harm(server):
                    times = latencies_ms(server, given.requests)
                    most[name] = max(most.get(name, 0.0), memory_mb(server.worker, "VmRSS"))
                p50[name].append(times[len(times) // 2])
                p99[name].append(times[int(0.99 * len(times))])
                give_up_at = time.monotonic() + 30
                while len(os.listdir(f"/proc/{server.worker}/fd")) > 100 and time.monotonic() < give_up_at:
                    time.sleep(0.1)
        print("| beside | p50, ms | p99, ms | p99 / p99 alone | RSS, MB |\n| --- | ---: | ---: | ---: | ---: |")
        for name in HARMS:
            ratios = [mine / alone for mine, alone in zip(p99[name], p99["nobody"], strict=True)]
            row = [statistics.median(column) for column in (p50[name], p99[name], ratios)]
            print(f"| {name} | {row[0]:.2f} | {row[1]:.2f} | {row[2]:.2f} | {most[name]:.0f} |")
        before_mb = memory_mb(server.worker, "VmRSS")
        leave_at_once(server, 10_000)
        time.sleep(3.0)
        print(
            f"\n{sum(LEFT):,} left there, 10,000 more as fast as they could; then {server.gauge():g} rows wait,", end=""
        )
        after_mb, most_mb = (memory_mb(server.worker, field) for field in ("VmRSS", "VmHWM"))
        print(f" RSS {after_mb:.0f} MB (before those: {before_mb:.0f} MB), at most {most_mb:.0f} MB in all")
        print(f"exit status {server.stop()}")
        full = Server(Path(folder), cores[0], GANSERVE_MAX_QUEUE_ROWS="1024")
        print_refusals(full)
        print(f"exit status {full.stop()}")


def print_refusals(server: Server) -> None:
    """The time from a request that does not fit into the queue to its 503."""
    large = post(NPY, {"seed": 1, "n": 1024})
    over = threading.Event()

    def fill() -> None:
        with server.connect() as connection, connection.makefile("rb") as file:
            while not over.is_set():
                connection.sendall(large)
                if read_answer(file) == 503:
                    time.sleep(0.01)

    fillers = [threading.Thread(target=fill) for _ in range(4)]
    for thread in fillers:
        thread.start()
    times: list[float] = []
    give_up_at = time.monotonic() + 20
    with server.connect() as connection, connection.makefile("rb") as file:
        asked = post(NPY, {"seed": 1, "n": 1000})
        while len(times) < 200 and time.monotonic() < give_up_at:
            started_at = time.perf_counter()
            connection.sendall(asked)
            if read_answer(file) == 503:
                times.append((time.perf_counter() - started_at) * 1e3)
            else:
                time.sleep(0.002)
    over.set()
    for thread in fillers:
        thread.join()
    times.sort()
    if times:
        middle, late = times[len(times) // 2], times[int(0.99 * len(times))]
        print(f"503 for rows that do not fit: p50 {middle:.2f} ms, p99 {late:.2f} ms of {len(times)}")


if __name__ == "__main__":
    main()
