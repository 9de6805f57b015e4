"""Numbers that compare two sets of images by their features: pure functions of NumPy arrays, in float64.

Distances between two large sets are made in pieces of rows, so that no matrix of all pairs is ever in memory.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ganserve.errors import EvaluationError

_CHUNK_ROWS: Final = 1000

Array = npt.NDArray[np.float64]
Features = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """The first two moments of features: mean float64 [D], covariance float64 [D, D]."""

    mean: Array
    covariance: Array


def gaussian_of(features: Features) -> Gaussian:
    """Mean and unbiased covariance of [N, D], N >= 2."""
    rows = features.astype(np.float64)
    return Gaussian(rows.mean(axis=0), np.atleast_2d(np.cov(rows, rowvar=False)))


def frechet_distance(left: Gaussian, right: Gaussian) -> float:
    """Squared Wasserstein-2 distance of two Gaussians: FID when they are of features (Heusel et al. 2017).

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)). The trace of the root is the sum of the square roots of the
    eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: no complex numbers, no iteration, singular C1 and C2 too.

    Raises:
        EvaluationError: a feature was not finite.
    """
    if not all(np.isfinite(array).all() for one in (left, right) for array in (one.mean, one.covariance)):
        raise EvaluationError("features must be finite to be compared")
    values, vectors = np.linalg.eigh(left.covariance)
    root = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    product = root @ right.covariance @ root
    overlap = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0.0)).sum()
    apart = left.mean - right.mean
    spread = np.trace(left.covariance) + np.trace(right.covariance) - 2 * overlap
    return max(0.0, float(apart @ apart + spread))  # rounding may leave a little less than nothing


def kernel_distance(
    left: Features, right: Features, *, subsets: int = 50, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID: the unbiased squared MMD with the kernel (x . y / D + 1)^3, over random subsets (Binkowski et al. 2018).

    Args:
        left: [N, D], N >= 2.
        right: [M, D], M >= 2.
        subsets: how many pairs of subsets are drawn.
        subset_size: rows of each; fewer where there are not as many.
        seed: of the draws.

    Returns:
        The mean over the subsets and their standard deviation. The mean of two sets of one kind is 0 but for chance,
        and so at times negative.
    """
    generator = np.random.default_rng(seed)
    size = min(subset_size, len(left), len(right))
    found = []
    for _ in range(subsets):
        one = left[generator.choice(len(left), size, replace=False)].astype(np.float64)
        other = right[generator.choice(len(right), size, replace=False)].astype(np.float64)
        within = sum(kernel.sum() - np.trace(kernel) for kernel in (_cubic(one, one), _cubic(other, other)))
        found.append(within / (size * (size - 1)) - 2 * _cubic(one, other).mean())
    return float(np.mean(found)), float(np.std(found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifolds:
    """How two sets of features lie in each other's neighbourhoods; 0 to 1, `density` beyond it at times.

    Attributes:
        precision: share of the fakes within the ball of a real one: how many look real (Kynkaanniemi et al. 2019).
        recall: share of the reals within the ball of a fake one: how much of the variety there is.
        density: in how many real balls a fake one is, over k: precision that no outlier raises (Naeem et al. 2020).
        coverage: share of the reals that have a fake within their own ball: recall that no outlier raises.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(
    real: Features, fake: Features, *, k: int = 5, on_rows: Callable[[int], None] = lambda rows: None
) -> Manifolds:
    """Precision, recall, density and coverage of the balls that reach to each row's k-th nearest neighbour.

    Args:
        real: [N, D], N > k.
        fake: [M, D], M > k.
        k: neighbours, the row itself not among them.
        on_rows: hears of rows as they are done; N + M + N in all.
    """
    reals, fakes = real.astype(np.float64), fake.astype(np.float64)
    real_radii, fake_radii = _radii(reals, k, on_rows), _radii(fakes, k, on_rows)
    balls = np.zeros(len(fakes), dtype=np.int64)
    recalled = covered = 0
    for start, distances in _squared_distances(reals, fakes):
        radii = real_radii[start : start + len(distances), None]
        inside = distances < radii
        balls += inside.sum(axis=0)
        covered += int(inside.any(axis=1).sum())
        recalled += int((distances < fake_radii).any(axis=1).sum())
        on_rows(len(distances))
    return Manifolds(
        precision=float((balls > 0).mean()),
        recall=recalled / len(reals),
        density=float(balls.mean()) / k,
        coverage=covered / len(reals),
    )


def nearest_distances(
    rows: npt.NDArray[np.uint8], among: npt.NDArray[np.uint8], *, on_rows: Callable[[int], None] = lambda rows: None
) -> npt.NDArray[np.float32]:
    """The root mean squared difference, in grey levels, of each image to the nearest of others: float32 [N].

    In float32, unlike everything else here: 10,000 images among 60,000 are half a tera of multiplications. Two equal
    images come out less than a fifth of a grey level apart.

    Args:
        rows: uint8 [N, ...].
        among: uint8 [M, ...], images of the same size.
        on_rows: hears of rows as they are done.
    """
    size = rows[0].size
    # Halfway between black and white is 0, and so sums of squares are small where float32 has few digits to spare.
    others = among.reshape(len(among), size).astype(np.float32) - 127.5
    other_norms = np.einsum("ij,ij->i", others, others)
    found = []
    for start in range(0, len(rows), _CHUNK_ROWS):
        chunk = rows[start : start + _CHUNK_ROWS].reshape(-1, size).astype(np.float32) - 127.5
        best = np.full(len(chunk), np.inf, dtype=np.float32)
        for first in range(0, len(others), 5 * _CHUNK_ROWS):
            part = slice(first, first + 5 * _CHUNK_ROWS)
            np.minimum(best, (other_norms[part] - 2 * (chunk @ others[part].T)).min(axis=1), out=best)
        squared = best + np.einsum("ij,ij->i", chunk, chunk)
        found.append(np.sqrt(squared.clip(min=0.0) / size))
        on_rows(len(chunk))
    return np.concatenate(found)


def class_spread(pixels: npt.NDArray[np.uint8], labels: Labels) -> float:
    """The root mean squared difference of two images of one class, in grey levels, over all such pairs.

    Twice the variance within a class is the mean squared difference of its pairs: no pair has to be looked at. Each
    class counts by its images; one with a single image does not. 0.0 if there is none with two.
    """
    rows = pixels.reshape(len(pixels), -1)
    total, images = 0.0, 0
    for label in np.unique(labels):
        mine = rows[labels == label]
        if len(mine) > 1:
            total += 2 * float(mine.var(axis=0, ddof=1, dtype=np.float64).mean()) * len(mine)
            images += len(mine)
    return (total / images) ** 0.5 if images else 0.0


def total_variation(left: Labels, right: Labels, num_classes: int) -> float:
    """Half the sum of the differences of two histograms of labels: the share that is in the wrong class, 0 to 1."""
    shares = [np.bincount(labels, minlength=num_classes) / len(labels) for labels in (left, right)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _cubic(left: Array, right: Array) -> Array:
    kernel: Array = (left @ right.T / left.shape[1] + 1.0) ** 3
    return kernel


def _radii(rows: Array, k: int, on_rows: Callable[[int], None]) -> Array:
    """The squared distance of each row to its k-th nearest neighbour."""
    radii = np.empty(len(rows))
    for start, distances in _squared_distances(rows, rows):
        here = np.arange(len(distances))
        distances[here, start + here] = -1.0  # itself comes first, whatever was lost to rounding
        radii[start : start + len(distances)] = np.partition(distances, k, axis=1)[:, k]
        on_rows(len(distances))
    return radii


def _squared_distances(left: Array, right: Array) -> Iterator[tuple[int, Array]]:
    """The first row's index and the squared distances of some rows of `left` to all of `right`, again and again."""
    right_norms = np.einsum("ij,ij->i", right, right)
    for start in range(0, len(left), _CHUNK_ROWS):
        rows = left[start : start + _CHUNK_ROWS]
        distances = right_norms - 2 * (rows @ right.T) + np.einsum("ij,ij->i", rows, rows)[:, None]
        yield start, distances.clip(min=0.0, out=distances)
