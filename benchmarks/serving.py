"""ganserve beside other servers: the same artifact, one core each, in one run.

    python benchmarks/serving.py [ARTIFACT] [--mlp] [--rounds 3] [--seconds 2] [--quick]

Each contender is started alone on core 0, has to answer like `Engine.run`, and is then timed by `wrk` on core 1; that
is one round of one contender. The rounds are interleaved (A B C, A B C, ...), so that whatever else this machine does
hits all of them; the tables show medians. docs/serving-benchmark.md says what the contenders are and how to read it.
"""

import argparse
import importlib.util
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from load import SERVER_CORE, Call, Sample, Server, can_pin, pinned, started, time_server
from mlp import mlp_artifact
from PIL import Image
from rich.console import Console
from rich.table import Table

from ganserve import imaging, latents
from ganserve.artifact import ONNX, Artifact, find_artifact
from ganserve.engine import Engine

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent / "contenders"
OURS, RAW = "ganserve", "raw ONNX Runtime"
BULK = 64
CHECKED = 16  # different requests at once, before anything is timed
READY_S = 60
CONTRACTS = {
    "binary": "one latent, binary",
    "json": "one latent, JSON",
    "png": "one latent to one PNG",
    "bulk": f"{BULK} latents, binary",
}

Latents = np.ndarray
Labels = np.ndarray | None
Dialect = Callable[[str, str, Latents, Labels], Call | None]


# How each contender is asked. A dialect makes the call of (contract, model name, latents, labels), or None: cannot.


def v2(contract: str, model: str, rows: Latents, labels: Labels) -> Call:
    """The Open Inference Protocol, with JSON or binary tensors."""
    binary = contract != "json"
    tensors = [("latents", "FP32", rows)] + ([] if labels is None else [("labels", "INT64", labels[:, None])])
    inputs = [
        {"name": name, "datatype": datatype, "shape": list(values.shape)}
        | ({"parameters": {"binary_data_size": values.nbytes}} if binary else {"data": values.ravel().tolist()})
        for name, datatype, values in tensors
    ]
    path = f"/v2/models/{model}/infer"
    if not binary:
        return Call(path, {"content-type": "application/json"}, json.dumps({"inputs": inputs}).encode())
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(header))}
    return Call(path, headers, header + b"".join(values.tobytes() for _, _, values in tensors))


def ours(contract: str, model: str, rows: Latents, labels: Labels) -> Call:
    """V2; PNG has a route of its own, which takes latents as .npy."""
    if contract != "png":
        return v2(contract, model, rows, labels)
    body = io.BytesIO()
    np.save(body, rows)
    query = "" if labels is None else f"?labels={labels[0]}"
    return Call(f"/v1/generate{query}", {"content-type": "application/x-npy", "accept": "image/png"}, body.getvalue())


def triton(contract: str, model: str, rows: Latents, labels: Labels) -> Call:
    """V2; PNG is a model of its own."""
    return v2(contract, "png" if contract == "png" else "pixels", rows, labels)


def raw(contract: str, model: str, rows: Latents, labels: Labels) -> Call:
    """Bytes of the latents and labels, or a plain JSON object."""
    if contract == "json":
        return plain_json(contract, model, rows, labels)
    body = rows.tobytes() + (b"" if labels is None else labels.tobytes())
    path = "/png" if contract == "png" else "/binary"
    return Call(path, {"content-type": "application/octet-stream"}, body)


def plain_json(contract: str, model: str, rows: Latents, labels: Labels) -> Call:
    """A plain JSON object for everything: LitServe's requests are JSON or forms."""
    path = {"json": "/json", "png": "/png"}.get(contract, "/binary")
    document = {"latents": rows.tolist()} | ({} if labels is None else {"labels": labels.tolist()})
    return Call(path, {"content-type": "application/json"}, json.dumps(document).encode())


def no_bytes(contract: str, model: str, rows: Latents, labels: Labels) -> Call | None:
    """BentoML's tutorials: JSON in, JSON or an image out."""
    return plain_json(contract, model, rows, labels) if contract in ("json", "png") else None


class Contender(NamedTuple):
    """How one is started and asked; `missing` says what is not installed, if anything."""

    name: str
    command: list[str]
    dialect: Dialect
    missing: str | None


def contenders(triton_python: Path, workers: int) -> list[Contender]:
    """All of them, installed or not, in the order in which they are timed."""
    python = sys.executable
    bentoml = [python, "-m", "bentoml", "serve", "{0}", "--host", "127.0.0.1", "--port", "{{port}}"]

    def serve(target: str) -> list[str]:
        return [part.format(target) for part in bentoml]

    def needs(package: str) -> str | None:
        return None if importlib.util.find_spec(package) else f"{package} is not installed (`make bench` installs it)"

    uvicorn = [python, "-m", "uvicorn", "fastapi_app:app", "--app-dir", str(HERE), "--port", "{port}"]
    uvicorn += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    uvicorn += ["--workers", str(workers)]
    mosec = [python, str(HERE / "mosec_app.py"), "--address", "127.0.0.1", "--port", "{port}"]
    mosec += ["--log-level", "warning", "--timeout", "30000", "--path", "{scratch}/ipc"]
    no_triton = None if triton_python.exists() else f"no {triton_python} (docs/serving-benchmark.md makes one)"
    return [
        Contender(OURS, serve("."), ours, None),
        Contender("mosec", mosec, raw, needs("mosec")),
        Contender(
            "Triton", [str(triton_python), str(HERE / "triton_server.py"), "{scratch}", "{port}"], triton, no_triton
        ),
        Contender("FastAPI", uvicorn, raw, needs("fastapi")),
        Contender("LitServe", [python, str(HERE / "litserve_app.py")], plain_json, needs("litserve")),
        Contender("BentoML tutorial", serve("benchmarks.contenders.bentoml_tutorial:Tutorial"), no_bytes, None),
    ]


class Request(NamedTuple):
    """A call and the pixels that its answer must have."""

    call: Call
    expected: np.ndarray


Requests = dict[str, list[Request]]  # contract -> different requests


def requests_for(contender: Contender, contracts: Sequence[str], engine: Engine) -> Requests:
    """What one contender is asked, by contract; a contract that it does not have is left out."""
    manifest = engine.manifest
    found: Requests = {}
    for contract in contracts:
        rows = BULK if contract == "bulk" else 1
        drawn = [latents.draw(seed, rows, manifest.latent.dim, manifest.num_classes) for seed in range(CHECKED)]
        calls = [contender.dialect(contract, manifest.name, *given) for given in drawn]
        found[contract] = [
            Request(call, engine.run(*given)) for call, given in zip(calls, drawn, strict=True) if call is not None
        ]
    return {contract: requests for contract, requests in found.items() if requests}


def check(server: Server, requests: Requests) -> None:
    """Waits until the server answers every contract, then compares the answers of requests that it gets at once.

    Raises:
        RuntimeError: it does not start, or answers something else than the engine.
    """
    for contract, (first, *_) in requests.items():
        give_up_at = time.monotonic() + READY_S
        while True:
            try:
                fetch(server.port, first.call)
                break
            except OSError as err:  # also every status that is no 2xx
                if time.monotonic() > give_up_at or not server.process.is_running():
                    raise RuntimeError(f"no answer to {contract}: {err}") from err
                time.sleep(0.1)
    with ThreadPoolExecutor(CHECKED) as pool:
        for contract, several in requests.items():
            answers = pool.map(lambda request: fetch(server.port, request.call), several)
            for request, (headers, body) in zip(several, answers, strict=True):
                found = pixels_of(headers, body).reshape(request.expected.shape)
                max_abs_diff, _ = imaging.difference(found, request.expected)
                if max_abs_diff > 1:  # another release of ONNX Runtime may round differently
                    raise RuntimeError(f"other pixels than the engine's for {contract}: off by {max_abs_diff}")


def fetch(port: int, call: Call) -> tuple[Any, bytes]:
    """Headers and body of one answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{call.path}", data=call.body, headers=call.headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers, answer.read()


def pixels_of(headers: Any, body: bytes) -> np.ndarray:
    """The uint8 pixels in an answer, whichever form they have."""
    if (length := headers.get("inference-header-content-length")) is not None:
        body = body[int(length) :]
        if body[4:8] == b"\x89PNG":  # a BYTES tensor: each value behind its length
            body = body[4:]
    elif headers.get_content_type() == "application/json":
        document = json.loads(body)
        return np.array(document["outputs"][0]["data"] if "outputs" in document else document["pixels"], np.uint8)
    if headers.get_content_maintype() == "image" or body[:4] == b"\x89PNG":
        return np.asarray(Image.open(io.BytesIO(body)))
    return np.frombuffer(body, np.uint8)


Samples = dict[tuple[str, int, str], list[Sample]]  # (contract, concurrency, contender) -> one a round


def one_round(
    contender: Contender, requests: Requests, concurrency: Sequence[int], seconds: int, environment: dict[str, str]
) -> Samples:
    """Starts one contender, checks it, and times every contract."""
    found: Samples = {}
    with started(contender.command, environment, ROOT) as server:
        check(server, requests)
        time_server(server, next(iter(requests.values()))[0].call, 16, 1)  # not counted
        for contract, (first, *_) in requests.items():
            for clients in concurrency:
                sample = time_server(server, first.call, clients, seconds)
                found[contract, clients, contender.name] = [sample]
    return found


def raw_costs(environment: dict[str, str]) -> dict[int, float]:
    """Rows in a batch -> microseconds an image, of ONNX Runtime in a process that does nothing else."""
    command = pinned(SERVER_CORE, [sys.executable, str(HERE / "raw.py"), "3"])
    output = subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment}).stdout
    return {int(rows): cost for rows, cost in json.loads(output).items()}


def show(console: Console, contracts: Sequence[str], samples: Samples, raws: dict[int, list[float]]) -> None:
    """One table for each contract."""
    raw_us = {rows: statistics.median(costs) for rows, costs in raws.items()}
    for contract in contracts:
        cells = {key[1:]: found for key, found in samples.items() if key[0] == contract}
        table = Table(
            "clients", "server", "req/s", "p50 ms", "p99 ms", "CPU us/req", f"{OURS} is", title=CONTRACTS[contract]
        )
        for clients in sorted({clients for clients, _ in cells}):
            limit_us = limit(contract, clients, raw_us)
            rates = {name: median(found, "rate") for (c, name), found in cells.items() if c == clients}
            for name, rate in rates.items():
                found = cells[clients, name]
                failed = max(sample.failed for sample in found)
                table.add_row(
                    str(clients),
                    name + (f" ({failed:.0%} failed)" if failed else ""),
                    f"{rate:,.0f}",
                    *(f"{median(found, figure):.2f}" for figure in ("p50_ms", "p99_ms")),
                    f"{median(found, 'cpu_us'):.0f}",
                    f"{rates[OURS] / rate:.2f} x" if OURS in rates and rate else "",
                )
            if limit_us:
                ratio = f"{rates[OURS] * limit_us / 1e6:.2f} x" if OURS in rates else ""
                table.add_row(
                    str(clients), RAW, f"{1e6 / limit_us:,.0f}", "", "", f"{limit_us:.0f}", ratio, end_section=True
                )
        console.print(table)
    if raw_us:
        console.print(f"{RAW}, CPU us an image by batch:", ", ".join(f"{n}: {us:.1f}" for n, us in raw_us.items()))
    others = sorted(sample.others for found in samples.values() for sample in found)
    if others:
        share = statistics.median(others), others[int(len(others) * 0.9)]
        console.print(
            f"others on the server's core while it was timed: median {share[0]:.0%}, 9 of 10 below {share[1]:.0%}"
        )


def limit(contract: str, clients: int, raw_us: dict[int, float]) -> float | None:
    """CPU microseconds a request of raw ONNX Runtime, at the cheapest batch that so many clients can fill."""
    rows = BULK if contract == "bulk" else 1
    possible = [cost for batch, cost in raw_us.items() if batch <= clients * rows]
    return rows * min(possible) if possible else None


def median(samples: Sequence[Sample], figure: str) -> float:
    """Of one figure over the rounds."""
    return statistics.median(getattr(sample, figure) for sample in samples)


def main() -> None:
    """Prints a table for each contract."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="?", type=Path)
    parser.add_argument("--mlp", action="store_true", help="serve a small untrained MLP instead of an artifact")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of one timing")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--contracts", nargs="+", choices=CONTRACTS, default=list(CONTRACTS))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contenders")
    parser.add_argument("--batch", type=int, default=64, help="requests that mosec, LitServe and Triton may join")
    parser.add_argument("--triton", type=Path, default=Path(".venv/triton"), help="environment with nvidia-pytriton")
    parser.add_argument("--quick", action="store_true", help="1 and 64 clients, one second, one round: under 3 minutes")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes of ganserve, mosec and FastAPI; with more than one, none is pinned",
    )
    arguments = parser.parse_args()
    if arguments.workers > 1:
        os.environ["UNPINNED"] = "1"
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.concurrency = 1, 1, [1, 64]
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed\nhint: apt-get install wrk")
    console = Console()
    if arguments.workers > 1:
        console.print(f"{arguments.workers} workers, and nothing is pinned")
    elif not can_pin():
        console.print("not pinned: there is no taskset, or no cores 0 and 1; the client takes CPU from the server")

    with tempfile.TemporaryDirectory() as scratch:
        artifact, reason = chosen(arguments, Path(scratch))
        engine = Engine(artifact, device="cpu", threads=1)
        environment = {
            "GANSERVE_ARTIFACT": str(artifact.path.resolve()),
            "GANSERVE_DEVICE": "cpu",
            "GANSERVE_THREADS": "1",
            "GRAPH": str((artifact.path / ONNX).resolve()),
            "BATCH": str(arguments.batch),
            "WORKERS": str(arguments.workers),
            "GANSERVE_WORKERS": str(arguments.workers),
            "OMP_NUM_THREADS": "1",
            "BENTOML_DO_NOT_TRACK": "True",
        }
        asked: list[tuple[Contender, Requests]] = []
        for contender in contenders(arguments.triton.absolute() / "bin" / "python", arguments.workers):
            if arguments.only and contender.name not in arguments.only:
                continue
            if contender.missing:
                console.print(f"without {contender.name}: {contender.missing}")
            elif requests := requests_for(contender, arguments.contracts, engine):
                asked.append((contender, requests))

        samples: Samples = {}
        raws: dict[int, list[float]] = {}
        done = 0
        try:
            for _ in range(arguments.rounds):
                for contender, requests in list(asked):
                    try:
                        found = one_round(contender, requests, arguments.concurrency, arguments.seconds, environment)
                    except (RuntimeError, ValueError) as err:
                        console.print(f"without {contender.name}: {err}")
                        asked.remove((contender, requests))
                        continue
                    for key, value in found.items():
                        samples.setdefault(key, []).extend(value)
                for rows, cost in raw_costs(environment).items():
                    raws.setdefault(rows, []).append(cost)
                done += 1
        except KeyboardInterrupt:
            console.print("interrupted: what there is")
    console.print(
        f"{artifact.path} ({reason}), workers: {arguments.workers}, of one thread; "
        f"medians of {done} rounds of {arguments.seconds} s"
    )
    show(console, arguments.contracts, samples, raws)


def chosen(arguments: argparse.Namespace, scratch: Path) -> tuple[Artifact, str]:
    """The artifact to serve, and why that one."""
    if arguments.mlp:
        return mlp_artifact(scratch / "mlp"), "a small untrained MLP"
    return find_artifact(arguments.artifact)


if __name__ == "__main__":
    main()
