"""Thousands of requests of every kind at once, over both transports: nobody gets what was for somebody else."""

import json
import random
import re
import socket
import threading
from collections.abc import Callable
from typing import Any

from ganserve import latents
from tests.ganserve.api.inference import PATH, document

_SEEDS, _CLIENTS, _EACH, _PIPELINED = 25, 10, 500, 5  # 5,000 requests over each transport


def _post(path: str, body: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *headers, "", ""])
    return head.encode() + body


def _infer(seed: int, identity: str, *, binary: bool) -> bytes:
    rows, labels = latents.draw(seed, 1 + seed % 3, 16, 10)
    asked = document(rows, labels, binary=binary, id=identity, parameters={"binary_data_output": binary})
    header = json.dumps(asked).encode()
    if not binary:
        return _post(PATH, header, "content-type: application/json")
    body = header + rows.tobytes() + labels.tobytes()
    return _post(PATH, body, f"inference-header-content-length: {len(header)}")


def _json(path: str, accept: str = "*/*", **fields: Any) -> bytes:
    return _post(path, json.dumps(fields).encode(), "content-type: application/json", f"accept: {accept}")


_KINDS: list[Callable[[int, str], bytes]] = [
    lambda seed, identity: _infer(seed, identity, binary=True),
    lambda seed, identity: _infer(seed, identity, binary=True),
    lambda seed, identity: _infer(seed, identity, binary=False),
    lambda seed, identity: _json("/v1/generate", seed=seed, n=1 + seed % 4),
    lambda seed, identity: _json("/v1/generate", "application/x-npy", seed=seed, n=1 + seed % 40),
    lambda seed, identity: _json("/v1/generate", seed=seed, n=0),  # a 400 among them
    lambda seed, identity: _json("/v1/interpolate", "application/x-npy", seeds=[seed, 1], label=3, steps=2 + seed % 5),
    lambda seed, identity: _json("/v1/images/generations", prompt=str(2000 + seed), seed=seed),
    lambda seed, identity: f"GET /v1/digits/{seed}.png?seed={seed} HTTP/1.1\r\nhost: x\r\n\r\n".encode(),
    lambda seed, identity: b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n",  # BentoML's
]


def _answer(file: Any) -> tuple[int, bytes]:
    """Status and body of the next answer; a time that is told in it is left out."""
    status = int(file.readline().split()[1])
    length = 0
    while (line := file.readline()) != b"\r\n":
        if line.startswith(b"content-length: "):
            length = int(line[16:])
    return status, re.sub(rb'"created":[0-9]+', b"", file.read(length))


def test_mixed_requests_never_swap_answers(serve):
    """Ten clients pipeline 500 requests each of ten kinds: each answer is, to the byte, what its request gets alone."""
    server = serve(dear=True, max_batch_rows=64)
    alone: dict[tuple[int, int], tuple[int, bytes]] = {}
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw, raw.makefile("rb") as file:
        for kind, make in enumerate(_KINDS):
            for seed in range(_SEEDS):
                raw.sendall(make(seed, "0000"))
                alone[kind, seed] = _answer(file)
    assert {status for status, _ in alone.values()} == {200, 400}
    told_apart = {body for (kind, _), (_, body) in alone.items() if kind not in (1, 5, 9)}
    assert len(told_apart) == _SEEDS * 7  # the answers of two requests differ, or nothing would be proven
    swapped: list[tuple[int, int]] = []
    answered: list[int] = []

    def client(number: int) -> None:
        dice = random.Random(number)
        asked = [(dice.randrange(len(_KINDS)), dice.randrange(_SEEDS), f"{number}{index:03}") for index in range(_EACH)]
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw, raw.makefile("rb") as file:
            for start in range(0, _EACH, _PIPELINED):
                some = asked[start : start + _PIPELINED]
                raw.sendall(b"".join(_KINDS[kind](seed, identity) for kind, seed, identity in some))
                for kind, seed, identity in some:
                    status, body = alone[kind, seed]
                    expected = status, body.replace(b'"id":"0000"', b'"id":"%s"' % identity.encode())
                    if _answer(file) != expected:
                        swapped.append((kind, seed))
                    answered.append(number)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(_CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert not swapped
    assert len(answered) == _CLIENTS * _EACH
    assert max(server.gate.batches) > 40  # they shared batches
    assert server.batcher.queue_rows == 0
