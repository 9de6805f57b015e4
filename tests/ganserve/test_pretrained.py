"""The artifact that is served when the user has none of their own."""

import numpy as np
import pytest

from ganserve import latents
from ganserve.artifact import PRETRAINED, Artifact, open_artifact
from ganserve.engine import Engine


@pytest.fixture(scope="module")
def pretrained() -> Artifact:
    """It, as it lies in the package."""
    return open_artifact(PRETRAINED)


def test_it_is_whole_and_small(pretrained):
    """Every digest matches, all files together have at most 6 MB, and the card names the recipe."""
    pretrained.verify()
    assert sum(file.stat().st_size for file in PRETRAINED.iterdir()) <= 6e6
    assert pretrained.manifest.name == "mnist"
    assert pretrained.manifest.labels == tuple("0123456789")
    assert pretrained.manifest.source.recipe == "best"
    assert "`best`" in (PRETRAINED / "README.md").read_text()


def test_it_draws_a_digit_of_every_class_and_each_differently(pretrained):
    """Its golden images are reproduced, and 500 images have ink, variety, and classes that differ."""
    engine = Engine(pretrained, device="cpu")  # compares the golden images
    rows, labels = latents.draw(3, 500, pretrained.manifest.latent.dim, 10)
    pixels = engine.run(rows, labels).astype(np.float64)
    ink = pixels.mean(axis=(1, 2, 3))
    assert ink.min() > 5
    assert ink.max() < 120
    assert (pixels.std(axis=0).max(axis=(0, 1))) > 80
    assert len(np.unique(pixels.reshape(500, -1), axis=0)) == 500
    means = np.stack([pixels[labels == label].mean(axis=0).ravel() for label in range(10)])
    apart = np.linalg.norm(means[:, None] - means[None], axis=2) + np.diag(np.full(10, np.inf))
    assert apart.min() > 500
