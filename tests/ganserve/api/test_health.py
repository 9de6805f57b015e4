"""A session that stops working while it serves, over both transports: unready with the reason, then well again."""

import json
import time

import pytest

from ganserve.api.http import Response
from ganserve.batcher import FAILED_BATCHES


def _until_ready_is(connection, status: int) -> bytes:
    """The body of `/v2/health/ready` once it has this status; both readiness routes agree."""
    give_up_at = time.monotonic() + 15
    while True:
        found, _, body = connection.ask("GET", "/v2/health/ready")
        if found == status:
            found, _, other = connection.ask("GET", "/readyz")
            assert found == status
            if status != 200:
                assert json.loads(body)["reason"] == json.loads(other)["detail"]
            return body
        assert time.monotonic() < give_up_at, body
        time.sleep(0.02)


@pytest.mark.parametrize("dear", [True, False])
@pytest.mark.parametrize("fault", ["broken", "short"])
def test_a_session_that_fails_is_unready_and_recovers(serve, caplog, fault, dear):
    """Batch after batch raises, or returns a row too few: 500, then unready; ready when the golden latents work."""
    server = serve(dear=dear)
    with server.connect() as connection:
        expected = connection.pixels({"seed": 1})
        setattr(server.gate, fault, True)
        for _ in range(FAILED_BATCHES):
            assert connection.ask("POST", "/v1/generate", {"seed": 1})[0] == 500
        reason = json.loads(_until_ready_is(connection, 503))["reason"]
        assert "does not give the golden images" in reason
        assert connection.ask("GET", "/v2/models/mnist/ready")[0] == 503
        assert connection.ask("GET", "/livez")[0] == 200
        setattr(server.gate, fault, False)
        assert json.loads(_until_ready_is(connection, 200)) == {"ready": True}  # nobody had to ask for images
        assert (connection.pixels({"seed": 1}) == expected).all()
    assert caplog.text.count("the session does not work any more") == 1
    assert caplog.text.count("the session works again") == 1


def test_requests_that_succeed_end_it_too(serve):
    """While unready, rows are still taken, and images that come out say that the session works."""
    server = serve()
    with server.connect() as connection:
        server.gate.broken = True
        for _ in range(FAILED_BATCHES):
            connection.ask("POST", "/v1/generate", {"seed": 1})
        _until_ready_is(connection, 503)
        server.gate.broken = False
        connection.pixels({"seed": 1})
        assert connection.ask("GET", "/v2/health/ready")[0] == 200


def test_poisoned_requests_do_not_make_it_unready(serve):
    """One client's requests fail again and again; the golden latents do not, so the server stays ready."""
    server = serve(poisoned=True)
    with server.connect() as connection:
        for _ in range(3 * FAILED_BATCHES):
            assert connection.ask("POST", "/v1/generate", {"seed": 1, "labels": 6})[0] == 500
            assert connection.ask("GET", "/v2/health/ready")[0] == 200
        connection.pixels({"seed": 1, "labels": 3})


def test_an_answer_that_cannot_be_written_is_a_500(serve, monkeypatch, caplog):
    """A header that is none, made by a bug of ours: 500 for that request, and the connection goes on."""
    server = serve()
    original = Response.__init__

    def spoil(self, **fields):
        original(self, **fields)
        if self.content_type == "application/x-npy":
            self.headers = {"x-broken": "\u2603"}

    with server.connect() as connection:
        monkeypatch.setattr(Response, "__init__", spoil)
        for _ in range(2):
            status, _, body = connection.ask("POST", "/v1/generate", {"seed": 1}, accept="application/x-npy")
            assert status == 500
            assert "2603" not in body.decode()
        monkeypatch.undo()
        connection.pixels({"seed": 1})
        assert server.batcher.queue_rows == 0
    assert "unexpected error" in caplog.text
