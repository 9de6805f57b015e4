import numpy as np
import prdc
import pytest

from ganserve.errors import EvaluationError
from training.evaluation.metrics import (
    Gaussian,
    frechet_distance,
    gaussian_of,
    kernel_distance,
    manifolds,
    nearest_distances,
    total_variation,
)


def features(count: int, *, shift: float = 0.0, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    """Normal rows of eight features."""
    return np.random.default_rng(seed).normal(shift, scale, (count, 8))


def test_two_known_gaussians() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2 for independent features; nothing for a singular one and itself."""
    one = Gaussian(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    other = Gaussian(np.array([1.0, 2.0, 0.0]), np.diag([4.0, 4.0, 0.0]))
    assert frechet_distance(one, other) == pytest.approx(5 + 1 + 0 + 9)
    assert frechet_distance(other, other) == pytest.approx(0, abs=1e-12)
    with pytest.raises(EvaluationError, match="finite"):
        frechet_distance(one, Gaussian(np.full(3, np.nan), np.eye(3)))


def test_manifolds_are_those_of_prdc() -> None:
    """Precision, recall, density and coverage equal those of their authors' package, across pieces of rows."""
    real, fake = features(1300), features(1100, shift=0.5, scale=0.7, seed=1)
    expected = prdc.compute_prdc(real, fake, nearest_k=5)
    found = manifolds(real, fake)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-12)


def test_the_kernel_distance_is_nothing_between_two_of_a_kind() -> None:
    """Within its error 0 for equal distributions, and far beyond it for others."""
    same, error = kernel_distance(features(1000), features(1000, seed=1), subset_size=500)
    assert abs(same) < 3 * error
    assert kernel_distance(features(1000), features(1000, shift=1.0, seed=1), subset_size=500)[0] > 10 * error


def test_the_nearest_image_is_found_in_any_piece() -> None:
    """A copy is at 0 and an image one grey level off at 1, whichever piece of the others holds the original."""
    among = np.random.default_rng(0).integers(0, 255, (6000, 4, 4), dtype=np.uint8)
    found = nearest_distances(among[[3, 5999, 2500]] + np.array([0, 1, 0], np.uint8)[:, None, None], among)
    assert found == pytest.approx([0, 1, 0], abs=0.2)


def test_total_variation_is_the_share_out_of_place() -> None:
    """A quarter of the labels moved to another class is a quarter."""
    assert total_variation(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), 3) == 0.25
    assert gaussian_of(features(10)).covariance.shape == (8, 8)
