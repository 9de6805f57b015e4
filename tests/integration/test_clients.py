"""Clients that others wrote, unmodified, against a real `bentoml serve`."""

import base64
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from PIL import Image

from ganserve import imaging, latents
from ganserve.artifact import open_artifact
from ganserve.engine import Engine
from tests.artifacts import make_artifact
from tests.connection import Connection
from tests.ganserve.test_imaging import frames
from tests.integration.serving import ROOT, Server, serve

pytestmark = pytest.mark.skipif(os.name != "posix", reason="BentoML serves on POSIX")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder that `bentoml serve` serves."""
    folder = tmp_path_factory.mktemp("clients")
    shutil.copy(ROOT / "bentofile.yaml", folder)
    make_artifact(folder / "artifacts" / "made")
    return folder


@pytest.fixture(scope="module")
def engine(project) -> Engine:
    """Its artifact in this process."""
    return Engine(open_artifact(project / "artifacts" / "made"), device="cpu")


@pytest.fixture(scope="module")
def server(project) -> Iterator[Server]:
    """It, served."""
    with serve(project, GANSERVE_DEVICE="cpu") as server:
        yield server


@pytest.fixture
def connection(server) -> Iterator[Connection]:
    """One connection to it."""
    with Connection(server.port) as connection:
        yield connection


# openai


@pytest.fixture
def client(server) -> Iterator[openai.OpenAI]:
    """The `openai` client, pointed here and otherwise as it comes."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
        yield client


def _pixels(image: openai.types.Image) -> np.ndarray:
    assert image.b64_json is not None
    with Image.open(io.BytesIO(base64.b64decode(image.b64_json))) as picture:
        return np.asarray(picture)[:, :, None]


def test_openai_generates_images_of_a_class(client, engine):
    """`images.generate` gives n PNGs of the class that the prompt names, as large as asked for."""
    answer = client.images.generate(
        prompt="seven",
        model="mnist",
        n=3,
        size="56x56",
        response_format="b64_json",
        quality="auto",
        user="someone",
        extra_body={"seed": 7},
    )
    expected = engine.run(latents.draw(7, 3, 16)[0], np.array([7] * 3))
    assert answer.created > 1_700_000_000
    assert answer.size == "56x56"
    for image, pixels in zip(answer.data, expected, strict=True):
        assert (_pixels(image) == pixels.repeat(2, axis=0).repeat(2, axis=1)).all()


def test_openai_generates_digits_in_a_row(client, engine, connection):
    """A prompt of several digits is one image, the very one that `/v1/digits` answers."""
    (image,) = client.images.generate(prompt="2026", extra_body={"seed": 3}).data
    expected = imaging.strip(engine.run(latents.draw(3, 4, 16)[0], np.array([2, 0, 2, 6])))
    assert (_pixels(image) == expected).all()
    assert connection.ask("GET", "/v1/digits/2026.png?seed=3")[2] == base64.b64decode(image.b64_json)


def test_openai_lists_models(client):
    """`models.list` and `models.retrieve` know the one model."""
    (listed,) = client.models.list()
    assert listed == client.models.retrieve("mnist")
    assert (listed.id, listed.object, listed.owned_by) == ("mnist", "model", "ganserve")


def test_openai_raises_what_was_wrong(client):
    """Refusals are the client's own exceptions with our reason in them; the client goes on working."""
    with pytest.raises(openai.BadRequestError, match="prompt must be one digit") as refused:
        client.images.generate(prompt="a cat")
    assert (refused.value.param, refused.value.type) == ("prompt", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match='size must be "auto" or a multiple'):
        client.images.generate(prompt="7", size="1024x1024")
    with pytest.raises(openai.BadRequestError, match="response_format can only be b64_json here"):
        client.images.generate(prompt="7", response_format="url")
    with pytest.raises(openai.NotFoundError, match="this server has 'mnist'") as missing:
        client.images.generate(prompt="7", model="gpt-image-2")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="no such route"):
        client.images.edit(image=b"x", prompt="7")
    assert len(client.images.generate(prompt="7").data) == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/v1/images/generations", {"prompt": "a cat"}, {}, 400),
        (
            "POST",
            "/v1/images/generations",
            b'{"prompt": "7", "prompt": "8"}',
            {"content_type": "application/json"},
            400,
        ),
        ("POST", "/v1/images/generations", {"prompt": "7", "model": "../mnist"}, {}, 404),
        ("GET", "/v1/models/..%2fmnist", None, {}, 404),
        ("GET", "/v1/images/generations", None, {}, 405),
        ("POST", "/v1/images/generations", {"prompt": "7"}, {"accept": "image/png"}, 406),
        ("POST", "/v1/images/generations", b"x" * (9 << 20), {"content_type": "application/json"}, 413),
        ("POST", "/v1/images/generations", b"7", {"content_type": "text/plain"}, 415),
    ],
)
def test_openai_errors_leave_the_connection_usable(connection, method, path, body, headers, status):
    """Whatever is refused is told in OpenAI's shape, and the next request on the connection is served."""
    found, answered, content = connection.ask(method, path, body, **headers)
    assert found == status, content
    assert answered["content-type"] == "application/json"
    assert b'"error":{"message":' in content
    assert connection.ask("POST", "/v1/images/generations", {"prompt": "7"})[0] == 200


# /v1/interpolate


def test_interpolation_is_an_animation(connection, engine):
    """The way from one seed to another comes as a GIF that Pillow plays, frame by frame the engine's pixels."""
    fields = {"seeds": [1, 2], "label": 3, "steps": 24}
    status, headers, body = connection.ask("POST", "/v1/interpolate", fields)
    assert (status, headers["content-type"]) == (200, "image/gif")
    ends = [latents.draw(seed, 1, 16)[0][0] for seed in (1, 2)]
    assert (frames(body)[0] == engine.run(latents.slerp(*ends, 24), np.full(24, 3))).all()


@pytest.mark.parametrize(
    ("fields", "headers", "status"),
    [
        ({"seeds": [1, 2]}, {}, 400),
        ({"latents": [[0.0] * 16, [1e39] * 16], "label": 3}, {}, 400),
        ({"seeds": [1, 2], "label": 3}, {"accept": "text/html"}, 406),
        ({"seeds": [1, 2], "label": 3}, {"content_type": "text/plain"}, 415),
    ],
)
def test_interpolation_errors_leave_the_connection_usable(connection, fields, headers, status):
    """A refused interpolation is a problem document, and the next one on the connection is served."""
    found, answered, content = connection.ask("POST", "/v1/interpolate", fields, **headers)
    assert found == status, content
    assert answered["content-type"] == "application/problem+json"
    assert connection.ask("POST", "/v1/interpolate", {"seeds": [1, 2], "label": 3})[0] == 200


# schemathesis


@pytest.mark.slow
def test_openapi_is_true(project, tmp_path):
    """Schemathesis reads `/openapi.json` and finds, with all of its checks, nothing that is not as described."""
    token = "a-token-so-that-this-is-checked-too"
    with serve(project, GANSERVE_DEVICE="cpu", GANSERVE_TOKEN=token) as server:
        command = [str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.url}/openapi.json"]
        options = ["--checks", "all", "--max-examples", "20", "--seed", "2026", "--no-color"]
        options += ["--header", f"Authorization: Bearer {token}"]
        found = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=180)
        assert found.returncode == 0, found.stdout + found.stderr
        assert "Traceback" not in server.log.read_text()
