"""The access log, over both transports: what a line has, and what it must not have."""

import io
import json
import socket
import time

from ganserve.api.access import AccessLog
from tests.connection import Connection


def _logged(server, count: int) -> list[dict]:
    """The lines of a server's log, once there are as many."""
    stream = server.door.access_log._stream
    give_up_at = time.monotonic() + 10
    while (text := stream.getvalue()).count("\n") < count and time.monotonic() < give_up_at:
        time.sleep(0.01)
    return [json.loads(line) for line in text.splitlines()]


def _serve(serve):
    """A server with an access log in memory."""
    server = serve(access_log=True)
    server.door.access_log._stream = io.StringIO()
    return server


def test_every_request_is_one_line(serve):
    """Ours, unknown ones, HEAD, refused ones and BentoML's: one line each, with what the client got."""
    server = _serve(serve)
    asked = [
        ("POST", "/v1/generate", {"n": 3, "seed": 1}, "/v1/generate", 3),
        ("POST", "/v1/generate", {"n": 3, "seed": 1}, "/v1/generate", 3),  # by the remembered head, where there is one
        ("GET", "/v1/digits/42.png", None, "/v1/digits/{text}.png", 2),
        ("HEAD", "/v1/model", None, "/v1/model", 0),
        ("POST", "/v1/generate", {"n": 0}, "/v1/generate", 0),
        ("GET", "/nope/secret", None, "unknown", 0),
        ("GET", "/livez", None, "/livez", 0),
    ]
    answers = []
    with server.connect() as connection:
        for method, path, body, _, _ in asked:
            answers.append(connection.ask(method, path, body))
    lines = _logged(server, len(asked))
    assert len(lines) == len(asked)
    for (method, _, _, route, rows), (status, headers, body), line in zip(asked, answers, lines, strict=True):
        assert set(line) == {"time", "request_id", "method", "route", "status", "bytes", "ms", "rows", "client"}
        assert (line["method"], line["route"], line["status"], line["rows"]) == (method, route, status, rows)
        assert line["bytes"] == len(body)
        assert line["client"] == "127.0.0.1"
        assert 0.0 <= line["ms"] < 30_000
        if route != "/livez":
            assert line["request_id"] == headers["x-request-id"]


def test_a_line_keeps_no_secret_and_stays_one_line(serve):
    """Neither queries nor headers nor paths are told, and what a client calls its request cannot break the line."""
    server = _serve(serve)
    with server.connect() as connection:
        request_id = '"},{"x":"\\n'
        assert connection.ask("GET", "/v1/digits/7.png?seed=123456789", None, x_request_id=request_id)[0] == 200
        connection.ask("GET", "/v1/model?token=hidden-in-query", None, authorization="Bearer hidden-in-header")
    (first, _) = _logged(server, 2)
    assert first["request_id"] == request_id
    text = server.door.access_log._stream.getvalue()
    assert "hidden" not in text
    assert "123456789" not in text


def test_a_client_that_leaves_is_a_line_without_a_status(serve):
    """A request whose client left before its answer is logged all the same, with null for its status."""
    server = _serve(serve)
    server.gate.open.clear()
    connection = server.connect()
    connection.connect()
    connection.send_request("POST", "/v1/generate", {"n": 2})
    assert server.gate.entered.wait(10)
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    (line,) = _logged(server, 1)
    server.gate.open.set()
    assert (line["route"], line["status"], line["bytes"]) == ("/v1/generate", None, 0)


def test_it_is_off_by_default(served, connection, capfd):
    """Without the setting there is no log, and nothing is written."""
    assert served.door.access_log is None
    assert connection.ask("GET", "/v1/model")[0] == 200
    assert capfd.readouterr().out == ""


def test_a_log_that_cannot_be_written_costs_no_answer(serve, caplog):
    """When its reader is gone, the log ends with one error, and requests are answered as before."""
    server = serve(access_log=True)
    closed = io.StringIO()
    closed.close()
    server.door.access_log = AccessLog(closed)
    with Connection(server.port) as connection:
        for _ in range(3):
            assert connection.pixels({"seed": 1}).shape == (1, 28, 28, 1)
    assert caplog.text.count("the access log cannot be written") == 1
