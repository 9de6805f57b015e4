import concurrent.futures
import json
import re
import shutil
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest

from ganserve import imaging, latents
from ganserve.artifact import PRETRAINED, open_artifact
from ganserve.engine import Engine
from tests.integration.serving import ROOT, Server, serve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers, which share the GPU where there is one, and serve what ships with ganserve."""
    folder = tmp_path_factory.mktemp("gpu")
    shutil.copy(ROOT / "bentofile.yaml", folder)
    with serve(folder, GANSERVE_DEVICE="cuda", GANSERVE_WORKERS="2") as running:
        yield running


def _post(server: Server, body: dict[str, object]) -> np.ndarray:
    headers = {"content-type": "application/json", "accept": "application/x-npy"}
    request = urllib.request.Request(f"{server.url}/v1/generate", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200
        content = answer.read()
    import io

    return np.load(io.BytesIO(content))


def test_it_says_that_it_runs_there(server: Server) -> None:
    """The log, the model's description and the metrics name the provider."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        assert 'provider="CUDAExecutionProvider"' in answer.read().decode()
    with urllib.request.urlopen(f"{server.url}/v2/models/mnist/config", timeout=30) as answer:
        assert "KIND_GPU" in answer.read().decode()
    assert len(re.findall("provider=CUDAExecutionProvider", server.log.read_text())) == 2


def test_clients_at_once_get_the_cpus_pixels(server: Server) -> None:
    """400 requests of 1 to 40 images from 32 clients: every one has the images that its seed has on the CPU."""
    engine = Engine(open_artifact(PRETRAINED), device="cpu")
    manifest = engine.manifest

    def ask(seed: int) -> tuple[int, float]:
        count = 1 + seed % 40
        found = _post(server, {"n": count, "seed": seed})
        expected = engine.run(*latents.draw(seed, count, manifest.latent.dim, manifest.num_classes))
        return imaging.difference(found, expected)

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        differences = list(pool.map(ask, range(400)))
    assert max(worst for worst, _ in differences) <= 1
    assert float(np.mean([share for _, share in differences])) <= 1e-3
