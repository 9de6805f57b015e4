import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import bentoml
import httpx
import numpy as np
import pytest
from PIL import Image

from exporters.parity import pytorch_pixels
from ganserve import imaging, latents
from ganserve.artifact import open_artifact
from ganserve.engine import Engine
from tests.integration.serving import serve
from training.checkpoint import load_generator

ROOT = Path(__file__).parents[2]


def ganserve(cwd: Path, *arguments: str) -> str:
    """What the command prints on stdout; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "ganserve", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_from_digits_to_endpoint(tmp_path: Path) -> None:
    """MNIST -> train -> export -> real `bentoml serve` -> HTTP: the pixels are the engine's, and PyTorch's."""
    shutil.copy(ROOT / "bentofile.yaml", tmp_path)
    told = ganserve(tmp_path, "train", "--steps", "20", "--set", "generator.width=8", "--set", "discriminator.width=8")
    assert "next: ganserve export quick-1 --onnx" in told
    told = ganserve(tmp_path, "export", "--onnx", "--torchscript")
    assert "next: bentoml serve" in told

    artifact = open_artifact(tmp_path / "artifacts" / "quick-1")
    assert artifact.manifest.name == "mnist"
    network = load_generator(tmp_path / "runs" / "quick-1" / "checkpoints" / "step-00000020").network
    rows, _ = latents.draw(7, 6, network.latent_dim)
    labels = np.array([2, 0, 2, 6, 1, 9])
    expected = Engine(artifact, device="cpu").run(rows, labels)
    max_abs_diff, share = imaging.difference(expected, pytorch_pixels(network, rows, labels))
    assert max_abs_diff <= 1
    assert share <= 1e-3

    with serve(tmp_path) as server, httpx.Client(base_url=server.url) as client:
        body = {"n": 6, "seed": 7, "labels": labels.tolist(), "encoding": "pixels"}
        seeded = client.post("/v1/generate", json=body).raise_for_status().json()
        np.testing.assert_array_equal(np.array(seeded["pixels"]), expected)

        brought = client.post("/v1/generate", json={"latents": rows.tolist(), "labels": labels.tolist()}).json()
        digest = client.get("/v1/model").json()["digest"]
        assert seeded["model"] == brought["model"] == {"name": "mnist", "digest": artifact.digest}
        assert digest == artifact.digest

        picture = client.get("/v1/digits/202619.png", params={"seed": 7}).content
        strip = np.asarray(Image.open(io.BytesIO(picture)))
        np.testing.assert_array_equal(strip, imaging.strip(expected)[:, :, 0])

        with bentoml.SyncHTTPClient(server.url) as native:
            assert native.generate(n=6, seed=7, labels=labels.tolist(), encoding="pixels") == seeded

    ganserve(tmp_path, "sample", "--n", "6", "--seed", "7", "--labels", "2,0,2,6,1,9", "--out", "x.npz")
    with np.load(tmp_path / "x.npz") as data:
        np.testing.assert_array_equal(data["pixels"], expected)
    inspected = json.loads(ganserve(tmp_path, "inspect", "--json"))
    assert inspected["digest"] == artifact.digest
