"""Requests that came before but for their tensors: the same answers as ever, with no handler in between."""

import io
import json
import socket
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ganserve import latents
from ganserve.api import answering, exchange
from ganserve.api import connection as connection_module
from ganserve.api.tensors import binary
from tests.ganserve.api.inference import PATH, document, pixels_of

DIM = 16
NPY = "application/x-npy"

Ask = Callable[..., tuple[str, dict[str, str], bytes]]


def _rows(seed: int, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Latents, and labels that depend on the seed."""
    rows, _ = latents.draw(seed, count, DIM, None)
    return rows, (np.arange(count) + seed) % 10


def _v2_binary(rows: np.ndarray, labels: np.ndarray) -> tuple[str, dict[str, str], bytes]:
    header = json.dumps(document(rows, labels, binary=True, parameters={"binary_data_output": True})).encode()
    return PATH, {"inference_header_content_length": str(len(header))}, header + rows.tobytes() + labels.tobytes()


def _v2_labels_in_json(rows: np.ndarray, labels: np.ndarray) -> tuple[str, dict[str, str], bytes]:
    asked = document(rows, labels)
    del asked["inputs"][0]["data"]
    asked["inputs"][0]["parameters"] = {"binary_data_size": rows.nbytes}
    header = json.dumps(asked).encode()
    return PATH, {"inference_header_content_length": str(len(header))}, header + rows.tobytes()


def _v2_json(rows: np.ndarray, labels: np.ndarray) -> tuple[str, dict[str, str], bytes]:
    asked = document(rows, labels)
    for item in asked["inputs"]:
        if item["name"] == "latents":  # each of as many characters: one Content-Length, one head
            numbers = [f"{value:+.8f}".replace("+", " ") for value in rows.ravel().tolist()]
    body = json.dumps(asked).replace(json.dumps(asked["inputs"][0]["data"])[1:-1], ",".join(numbers), 1)
    return PATH, {"content_type": "application/json"}, body.encode()


def _npy(rows: np.ndarray, labels: np.ndarray, accept: str) -> tuple[str, dict[str, str], bytes]:
    body = io.BytesIO()
    np.save(body, rows)
    query = ",".join(map(str, labels.tolist()))
    return f"/v1/generate?labels={query}", {"content_type": NPY, "accept": accept}, body.getvalue()


def _npy_to_npy(rows: np.ndarray, labels: np.ndarray) -> tuple[str, dict[str, str], bytes]:
    return _npy(rows, labels, NPY)


def _npy_to_png(rows: np.ndarray, labels: np.ndarray) -> tuple[str, dict[str, str], bytes]:
    return _npy(rows, labels, "image/png")


def _pixels(headers: dict[str, str], body: bytes) -> np.ndarray:
    kind = headers["content-type"]
    if kind == NPY:
        return np.load(io.BytesIO(body))
    if kind == "image/png":
        return np.asarray(Image.open(io.BytesIO(body)))[None, :, :, None]
    return pixels_of(headers, body)


KINDS: list[Ask] = [_v2_binary, _v2_labels_in_json, _v2_json, _npy_to_npy, _npy_to_png]
BATCHED = [kind for kind in KINDS if kind is not _npy_to_png]


@pytest.fixture
def handled(monkeypatch) -> list[str]:
    """Paths of the requests that a handler has seen."""
    seen: list[str] = []

    def noting(match, method, path, *rest):
        seen.append(path)
        return exchange.make_request(match, method, path, *rest)

    monkeypatch.setattr(answering, "make_request", noting)
    return seen


@pytest.mark.parametrize("ask", KINDS)
def test_other_tensors_in_the_same_request_get_their_own_images(connection, engine, transport, handled, ask):
    """The first requests are handled, the others only read; all get what the engine gives for their rows."""
    for seed in range(30, 90, 10):  # the same label throughout: some kinds say it in the head
        rows, labels = _rows(seed)
        path, headers, body = ask(rows, labels)
        status, told, content = connection.ask("POST", path, body, **headers)
        assert status == 200, content
        np.testing.assert_array_equal(_pixels(told, content), engine.run(rows, labels))
        assert told["server-timing"].count("dur=") == 3
        assert int(told["content-length"]) == len(content)
    if transport == "protocol":
        assert len(handled) <= 2  # one to know the head, one to know the body


@pytest.mark.parametrize("ask", BATCHED)
@pytest.mark.parametrize("count", [2, 64])
def test_repeated_requests_of_several_rows(connection, engine, ask, count):
    """Labels differ from row to row, and latents from request to request."""
    for seed in (100, 110, 120, 130):
        rows, labels = _rows(seed, count)
        path, headers, body = ask(rows, labels)
        status, told, content = connection.ask("POST", path, body, **headers)
        assert status == 200, content
        np.testing.assert_array_equal(_pixels(told, content), engine.run(rows, labels))


def test_large_answers_wait_for_a_slow_reader(served, engine, transport, handled):
    """Pixels that are not copied on their way to the socket are whole when a client reads them late, piece by piece."""
    asked = [_rows(seed, 600) for seed in range(140, 240, 10)]
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as slow, slow.makefile("rb") as file:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        for rows, labels in asked:  # in sum, more than the sockets hold
            path, headers, body = _v2_binary(rows, labels)
            told = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{told}content-length: {len(body)}\r\n\r\n"
            slow.sendall(head.encode() + body)
            time.sleep(0.05)  # each is answered before the next one is there
        for rows, labels in asked:
            assert file.readline().split()[1] == b"200"
            lines = dict(line.decode().strip().split(": ", 1) for line in iter(file.readline, b"\r\n"))
            content = file.read(int(lines["content-length"]))
            np.testing.assert_array_equal(pixels_of(lines, content), engine.run(rows, labels))
    if transport == "protocol":
        assert len(handled) < len(asked)  # a body that comes in pieces is handled


def test_pixels_are_copied_where_a_view_would_keep_others_too():
    """A view of many rows keeps their batch in memory: half of it or more is given as a view, less as a copy."""
    batch = np.arange(64 * 28 * 28, dtype=np.uint64).astype(np.uint8).reshape(64, 28, 28, 1)
    for rows, viewed in ((slice(0, 64), True), (slice(32, 64), True), (slice(0, 16), False), (slice(0, 2), False)):
        content = binary(batch[rows])
        assert bytes(content) == batch[rows].tobytes()
        assert len(content) == batch[rows].nbytes
        assert isinstance(content, memoryview) == viewed
    assert bytes(binary(batch[::2])) == batch[::2].tobytes()  # not contiguous


@pytest.mark.parametrize("label", [10, -1, 2**63 - 1, -(2**63)])
def test_a_wrong_label_is_told_as_ever(connection, engine, label):
    """In the words of the handler, and only this request fails."""
    rows, labels = _rows(5)
    path, headers, body = _v2_binary(rows, np.array([label]))
    expected = connection.ask("POST", path, body, **headers, x_other="1")
    assert expected[0] == 400
    for _ in range(3):
        path, headers, good = _v2_binary(rows, labels)
        status, told, content = connection.ask("POST", path, good, **headers)
        assert status == 200
        np.testing.assert_array_equal(_pixels(told, content), engine.run(rows, labels))
        status, _, content = connection.ask("POST", path, body, **headers)
        assert (status, content) == (400, expected[2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ask", [_v2_binary, _v2_labels_in_json, _npy_to_npy, _npy_to_png])
def test_a_latent_that_is_not_finite_is_told_as_ever(connection, ask, value):
    """The same 400 before and after the request is known."""
    answers = set()
    for seed in (20, 30, 40):
        rows, labels = _rows(seed)
        bad = rows.copy()
        bad[0, seed % DIM] = value
        path, headers, body = ask(bad, labels)
        status, _, content = connection.ask("POST", path, body, **headers)
        answers.add((status, content))
        path, headers, body = ask(rows, labels)
        assert connection.ask("POST", path, body, **headers)[0] == 200
    ((status, content),) = answers
    assert status == 400
    assert b"row 0 is not" in content


@pytest.mark.parametrize(
    "number",
    ["true", "null", '"3"', "[1]", "1e400", "1e39", "NaN", "01", "1 2", "", "{}", "1,1", "-", "+1", "0x1", "1.", ".5"],
)
def test_what_is_no_number_is_told_as_ever(connection, engine, number):
    """Whatever stands in a number's place, as many characters long, gets the handler's 400."""
    rows, labels = _rows(50)
    path, headers, good = _v2_json(rows, labels)
    first = good.index(b'"data": [') + len(b'"data": [')
    length = good.index(b",", first) - first
    bad = good[:first] + number.encode().ljust(length) + good[first + length :]
    expected = connection.ask("POST", path, bad, **headers, x_other="1")
    assert expected[0] == 400
    for _ in range(3):
        status, told, content = connection.ask("POST", path, good, **headers)
        assert status == 200
        np.testing.assert_array_equal(_pixels(told, content), engine.run(rows, labels))
        status, _, content = connection.ask("POST", path, bad, **headers)
        assert (status, content) == (400, expected[2])


def test_json_numbers_are_the_floats_that_numpy_makes_of_them(connection, engine):
    """Integers, exponents, seventeen digits, the smallest and largest float32: the same rows as ever."""
    numbers = "1,-2,3e1,1E-3,0.1234567890123456789,3.4028234e38,1e-45,-0,-0.0,123456789012345678901234567890"
    numbers += ",5e-324,2.5,1.00000005,16777217,0.30000001192092896,-1e-7"
    rows = np.array([json.loads(f"[{numbers}]")], dtype=np.float64).astype(np.float32)
    assert rows.shape == (1, DIM)
    labels = np.array([4])
    _, headers, body = _v2_json(rows, labels)
    start = body.index(b'"data": [') + len(b'"data": [')
    body = body[:start] + numbers.encode() + body[body.index(b"]", start) :]
    for _ in range(4):
        status, told, content = connection.ask("POST", PATH, body, **headers)
        assert status == 200
        np.testing.assert_array_equal(_pixels(told, content), engine.run(rows, labels))


def test_what_is_around_the_tensors_counts(connection, engine):
    """Another id, another output, the other order of inputs behind the same head: each is answered as it asks."""
    rows, labels = _rows(7)
    for identity in ("aa", "bb", "aa", "cc", "bb"):
        header = json.dumps(document(rows, labels, binary=True, id=identity)).encode()
        body = header + rows.tobytes() + labels.tobytes()
        status, told, content = connection.ask("POST", PATH, body, inference_header_content_length=str(len(header)))
        assert status == 200
        assert json.loads(content)["id"] == identity
        np.testing.assert_array_equal(_pixels(told, content), engine.run(rows, labels))


def test_rows_as_arrays_of_json(connection, engine):
    """An array of arrays is not one of numbers: the handler reads it, each time."""
    for seed in (1, 2, 3, 4):
        rows, labels = _rows(seed)
        asked = document(rows, labels)
        asked["inputs"][0]["data"] = rows.tolist()
        status, told, content = connection.ask("POST", PATH, asked)
        assert status == 200
        np.testing.assert_array_equal(_pixels(told, content), engine.run(rows, labels))


def test_labels_before_latents(connection, engine):
    """The order of binary tensors is the client's."""
    for seed in (1, 2, 3, 4):
        rows, labels = _rows(seed)
        asked = document(rows, labels, binary=True)
        asked["inputs"].reverse()
        header = json.dumps(asked).encode()
        body = header + labels.tobytes() + rows.tobytes()
        status, told, content = connection.ask("POST", PATH, body, inference_header_content_length=str(len(header)))
        assert status == 200
        np.testing.assert_array_equal(_pixels(told, content), engine.run(rows, labels))


def test_what_is_remembered_is_bounded(served, connection, transport):
    """A thousand requests that differ around their tensors do not fill the memory, and are answered."""
    rows, labels = _rows(8)
    for index in range(1000):
        header = json.dumps(document(rows, labels, binary=True, id=f"{index:04d}")).encode()
        body = header + rows.tobytes() + labels.tobytes()
        answer = connection.ask("POST", PATH, body, inference_header_content_length=str(len(header)))
        assert json.loads(answer[2])["id"] == f"{index:04d}"
    if transport == "protocol":
        heads = served._server.config.http_protocol_class.heads.values()
        assert 0 < max(len(head.repeats) for head in heads) <= 16
        assert max(head.learned for head in heads) <= 256


def test_a_poisoned_neighbour_fails_alone(serve, engine, transport):
    """Of forty repeated requests, one has a latent that is no number and one breaks the session.

    The others get the images that they would get alone.
    """
    server = serve(poisoned=True, dear=True)
    connections = [server.connect() for _ in range(40)]
    for connection in connections:
        connection.connect()
        for seed in (10, 20):
            rows, labels = _rows(seed)
            path, headers, body = _v2_binary(rows, labels)
            assert connection.ask("POST", path, body, **headers)[0] == 200
    server.gate.open.clear()
    server.gate.entered.clear()
    asked = []
    for index, connection in enumerate(connections):
        rows, labels = _rows(40 + index)
        labels = np.where(labels == 6, 5, labels)
        if index == 11:
            rows[0, 3] = np.nan
        if index == 22:
            labels = np.array([6])
        asked.append((rows, labels))
        path, headers, body = _v2_binary(rows, labels)
        connection.send_request("POST", path, body, **headers)
        if index == 0:
            assert server.gate.entered.wait(5)
    server.gate.open.set()
    for index, (connection, (rows, labels)) in enumerate(zip(connections, asked, strict=True)):
        response = connection.getresponse()
        content = response.read()
        assert response.status == {11: 400, 22: 500}.get(index, 200), content
        if index not in (11, 22):
            told = {name.lower(): value for name, value in response.getheaders()}
            np.testing.assert_array_equal(_pixels(told, content), engine.run(rows, labels))
        rows, labels = _rows(10)
        path, headers, body = _v2_binary(rows, labels)
        assert connection.ask("POST", path, body, **headers)[0] == 200  # on the same connection
        connection.close()


def test_pipelined_repeats_are_answered_in_order(connection, engine):
    """Twenty in one write, and again when they are known."""
    wire, expected = b"", []
    for seed in range(20):
        rows, labels = _rows(seed * 10)
        path, headers, body = _v2_binary(rows, labels)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n" + "".join(
            f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()
        )
        wire += head.encode() + b"\r\n" + body
        expected.append(engine.run(rows, labels))
    with connection.sock.makefile("rb") as answers:
        for _ in range(3):
            connection.sock.sendall(wire)
            for pixels in expected:
                assert answers.readline().startswith(b"HTTP/1.1 200")
                told = {}
                while (line := answers.readline().strip()) != b"":
                    name, _, value = line.decode().partition(": ")
                    told[name] = value
                content = answers.read(int(told["content-length"]))
                np.testing.assert_array_equal(_pixels(told, content), pixels)


@pytest.mark.parametrize("pause_s", [0.0, 0.02, 1.3])
def test_a_known_head_may_come_long_before_its_body(connection, engine, pause_s):
    """Whatever the client does between the two, and in however many pieces the body comes."""
    for seed in (10, 20, 30):
        rows, labels = _rows(seed)
        path, headers, body = _v2_binary(rows, labels)
        connection.putrequest("POST", path)
        for name, value in {**headers, "content_length": str(len(body))}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        for piece in (body[:50], body[50:]) if seed == 20 else (body,):
            time.sleep(pause_s)
            connection.send(piece)
        response = connection.getresponse()
        content = response.read()
        assert response.status == 200, content
        told = {name.lower(): value for name, value in response.getheaders()}
        np.testing.assert_array_equal(_pixels(told, content), engine.run(rows, labels))


def test_a_known_head_without_its_body_is_told_so(serve):
    """408, as after any other head."""
    server = serve(body_timeout_ms=200)
    rows, labels = _rows(1)
    path, headers, body = _v2_binary(rows, labels)
    with server.connect() as connection:
        for _ in range(2):
            assert connection.ask("POST", path, body, **headers)[0] == 200
        connection.putrequest("POST", path)
        for name, value in {**headers, "content_length": str(len(body))}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        assert connection.getresponse().status == 408


def test_a_head_is_not_remembered_as_another_requests(served, transport, monkeypatch):
    """A head that came alone, behind a request of BentoML's, is not taken for what that request began with."""
    monkeypatch.setattr(connection_module, "_WATCH_S", 0.05)
    body = b'{"seed": 7}'
    ours, theirs = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\naccept: {NPY}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nx-planted: yes\r\n\r\n".encode()
        for path in ("/v1/generate", "/livez")
    )

    def ask(peer: socket.socket, *pieces: bytes) -> bytes:
        for piece in pieces:
            peer.sendall(piece)
            time.sleep(0.25)  # longer than a head may lie unparsed
        return peer.recv(65536)

    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as planter:
        assert NPY.encode() in ask(planter, ours + body)
        assert b"bentoml /livez" in ask(planter, theirs + body)
        assert NPY.encode() in ask(planter, ours, body)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as other:
        assert b"bentoml /livez" in ask(other, theirs + body)


@pytest.mark.parametrize(
    "pieces", [(b"5\r\n{    \r\n", b"5\r\n    }\r\n0\r\n\r\n"), (b"", b"0\r\n\r\n")], ids=["some", "none"]
)
def test_a_chunked_body_that_comes_in_pieces_is_read_to_its_end(served, pieces):
    """However the first piece ends, the next request like it is no shorter: what follows is not another request."""
    first, rest = pieces
    head = (
        f"POST /v1/generate HTTP/1.1\r\nhost: x\r\naccept: {NPY}\r\ncontent-type: application/json\r\n"
        f"transfer-encoding: chunked\r\nx-piece: {len(first)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as peer, peer.makefile("rb") as file:
        for _ in range(3):
            peer.sendall(head + first)
            time.sleep(0.1)
            peer.sendall(rest)
            assert file.readline() == b"HTTP/1.1 200 OK\r\n"
            lines = dict(line.decode().strip().split(": ", 1) for line in iter(file.readline, b"\r\n"))
            assert np.load(io.BytesIO(file.read(int(lines["content-length"])))).shape == (1, 28, 28, 1)
