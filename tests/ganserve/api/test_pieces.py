"""A stream of requests, cut anywhere and sent with pauses or without, is answered as it is uncut."""

import io
import itertools
import json
import random
import socket
import threading
import time

import numpy as np
import pytest

from ganserve import latents
from ganserve.api import connection as connection_module
from tests.ganserve.api.inference import PATH, document
from tests.served import Served

NPY = "application/x-npy"
BODY_BYTES = 20
Answer = tuple[int, bytes]


def _request(method: str, path: str, body: bytes = b"", *, chunks: int = 0, **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    if chunks:
        lines.append("transfer-encoding: chunked")
        size = -(-len(body) // chunks)
        parts = [body[start : start + size] for start in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    elif body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _npy(seed: int) -> bytes:
    content = io.BytesIO()
    np.save(content, latents.draw(seed, 1, 16, None)[0])
    return content.getvalue()


def _v2(seed: int) -> bytes:
    rows, _ = latents.draw(seed, 1, 16, None)
    header = document(rows, np.array([seed % 10]), binary=True, parameters={"binary_data_output": True})
    text = json.dumps(header).encode()
    body = text + rows.tobytes() + np.array([seed % 10], np.int64).tobytes()
    return _request("POST", PATH, body, inference_header_content_length=str(len(text)))


def _kinds() -> list[bytes]:
    """Requests of every way that they can take: remembered and repeated, ours, BentoML's, nobody's, and wrong ones."""
    json_type = {"accept": NPY, "content_type": "application/json"}
    generate = [json.dumps({"seed": seed, "n": 2}).encode() for seed in (11, 12)]
    assert {len(body) for body in generate} == {BODY_BYTES}
    return [
        *(_request("POST", "/v1/generate", body, **json_type) for body in generate),
        *(
            _request("POST", "/v1/generate", body, chunks=count, **json_type)
            for body in generate
            for count in (1, 2, 5)
        ),
        *(_request("POST", "/livez", body, **json_type) for body in generate),
        *(_request("POST", "/v1/generate?labels=3", _npy(seed), accept=NPY, content_type=NPY) for seed in (1, 2, 3)),
        *(_v2(seed) for seed in (4, 5, 6)),
        _request("GET", "/v1/digits/7.png?seed=3"),
        _request("HEAD", "/v1/digits/7.png?seed=3"),
        _request("GET", "/livez"),
        _request("GET", "/nope"),
        _request("POST", "/v1/generate", b"{", **json_type),
    ]


def _read(file: io.BufferedReader, method: bytes) -> Answer:
    status = int(file.readline().split()[1])
    length = 0
    while (line := file.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    content = b"" if method == b"HEAD" else file.read(length)
    # An error's own identity is in its body.
    return status, content if status < 400 else b""


@pytest.fixture(scope="module")
def alone(served: Served) -> dict[bytes, Answer]:
    """What each kind of request is answered when it comes first and alone."""
    answers = {}
    for kind in _kinds():
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as peer, peer.makefile("rb") as file:
            peer.sendall(kind)
            answers[kind] = _read(file, kind.split()[0])
    return answers


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are looked at so often that a pause is enough for a head without its body to be parsed."""
    monkeypatch.setattr(connection_module, "_WATCH_S", 0.02)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("seed", range(12))
def test_cuts_and_pauses_change_no_answer(served: Served, alone: dict[bytes, Answer], seed: int) -> None:
    """Ten connections of thirty requests each; all share what the server remembers."""
    kinds, wrong = random.Random(seed).sample(_kinds(), 4), []  # few, so that each comes again in every way

    def client(number: int) -> None:
        dice = random.Random(f"{seed} {number}")
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as peer, peer.makefile("rb") as file:
            asked: list[bytes] = []
            for _ in range(30):
                kind = dice.choice(kinds)
                head = kind.index(b"\r\n\r\n") + 4
                # Behind the head, as many clients write; there as far as a body is long; anywhere; or nowhere.
                cuts = dice.choice(({head}, {head}, {head + BODY_BYTES}, {dice.randrange(1, len(kind))}, set()))
                edges = [0, *sorted(cut for cut in cuts if cut < len(kind)), len(kind)]
                for start, end in itertools.pairwise(edges):
                    peer.sendall(kind[start:end])
                    if end < len(kind):
                        time.sleep(dice.choice((0.0, 0.002, 0.06)))
                asked.append(kind)
                if dice.random() < 0.8:  # others are pipelined
                    for one in asked:
                        found = _read(file, one.split()[0])
                        if found != alone[one]:
                            wrong.append((one[:60], found[0], alone[one][0]))
                    asked.clear()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
