import math
import threading

import numpy as np
import pytest

from ganserve import latents

# Philox4x64-10 of Salmon et al. 2011, table 2: the constants of the paper, not those of any library.
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_MASK = 2**64 - 1


def philox_block(counter: int, key: tuple[int, int]) -> list[int]:
    """Four words of one counter value, in Python's own integers."""
    words = [(counter >> (64 * place)) & _MASK for place in range(4)]
    for _ in range(10):
        high0, low0 = divmod(_MULTIPLIERS[0] * words[0], 2**64)
        high1, low1 = divmod(_MULTIPLIERS[1] * words[2], 2**64)
        words = [high1 ^ words[1] ^ key[0], low1, high0 ^ words[3] ^ key[1], low0]
        key = ((key[0] + _WEYL[0]) & _MASK, (key[1] + _WEYL[1]) & _MASK)
    return words


def reference_row(seed: int, row: int, latent_dim: int, num_classes: int) -> tuple[list[float], int]:
    """One row by the definition in ganserve.latents, word by word."""
    pairs = (latent_dim + 1) // 2
    blocks = math.ceil((1 + pairs) / 4)
    key = (seed, int.from_bytes(b"ganserve", "little"))
    # NumPy's generator counts up before each block, so row 0 begins with counter 1.
    words = [word for block in range(blocks) for word in philox_block(row * blocks + block + 1, key)]
    normals: list[float] = []
    for word in words[1 : 1 + pairs]:
        radius = math.sqrt(-2.0 * math.log(((word >> 32) + 0.5) / 2**32))
        angle = 2.0 * math.pi * (word & 0xFFFFFFFF) / 2**32
        normals += [radius * math.cos(angle), radius * math.sin(angle)]
    return normals[:latent_dim], ((words[0] >> 32) * num_classes) >> 32


def test_known_answer_of_the_reference():
    """The test's own Philox gives the known-answer vectors of Random123 (kat_vectors, philox4x64 10)."""
    assert philox_block(0, (0, 0)) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
@pytest.mark.parametrize("row", [0, 1, 12345, 2**62, 2**64 - 1])
@pytest.mark.parametrize("latent_dim", [1, 5, 64, 100])
def test_row_is_the_definition(seed, row, latent_dim):
    """Any row of any seed is what the definition gives, computed without NumPy; 2**62 rows in, carries included."""
    drawn, labels = latents.draw(seed, 1, latent_dim, 10, start=row)
    expected, label = reference_row(seed, row, latent_dim, 10)
    assert labels.tolist() == [label]
    # Box-Muller in float64, rounded once: at most the last bit of a float32 may hang on the library's cosine.
    np.testing.assert_allclose(drawn[0], np.array(expected, dtype=np.float32), rtol=2e-7, atol=1e-12)


def test_stream_is_pinned():
    """Seed 7 gives these numbers for ever: served images, data sets and golden files stand on them."""
    drawn, labels = latents.draw(7, 3, 5, 10)
    assert latents.SAMPLER == "philox4x64-10/box-muller/1"
    assert labels.tolist() == [4, 8, 7]
    np.testing.assert_allclose(
        drawn,
        np.array(
            [
                [1.5227228, -1.4803276, -1.5903755, -0.10589065, 1.8449492],
                [1.6044048, -1.0078143, 0.68234986, -1.13669, -0.5551129],
                [0.64123166, 0.18039607, -1.1909509, 0.1963665, 0.21718407],
            ],
            dtype=np.float32,
        ),
        rtol=2e-7,
    )


@pytest.mark.parametrize("latent_dim", [1, 2, 5, 100])
@pytest.mark.parametrize("start", [0, 3, 2**40, 2**62])
def test_row_does_not_know_its_neighbours(latent_dim, start):
    """Row i of n is, bit for bit, row i drawn alone, wherever the draw begins."""
    together, labels = latents.draw(42, 9, latent_dim, 10, start=start)
    for row in range(9):
        alone, label = latents.draw(42, 1, latent_dim, 10, start=start + row)
        assert alone.tobytes() == together[row].tobytes()
        assert label[0] == labels[row]


def test_large_draw_is_the_small_ones():
    """A draw of 100,000 rows has the rows of two smaller ones: vectorised chunks are not seams."""
    whole, _ = latents.draw(3, 100_000, 3)
    pieces = [latents.draw(3, 60_000, 3)[0], latents.draw(3, 40_000, 3, start=60_000)[0]]
    assert whole.tobytes() == np.concatenate(pieces).tobytes()


def test_latents_are_standard_normal():
    """A million values have the moments and the distribution function of a standard normal."""
    values = np.sort(latents.draw(11, 20_000, 50)[0].astype(np.float64).ravel())
    count = len(values)
    # Five standard errors: 1 / sqrt(n) for the mean, sqrt(2 / n) for the variance, sqrt(24 / n) for the kurtosis.
    assert abs(values.mean()) < 5 / math.sqrt(count)
    assert abs(values.var() - 1.0) < 5 * math.sqrt(2 / count)
    assert abs((values**4).mean() - 3.0) < 5 * math.sqrt(96 / count)
    # Kolmogorov-Smirnov: sqrt(n) D exceeds 2.0 with probability 7e-4.
    grid = np.linspace(-4.0, 4.0, 161)
    expected = np.array([0.5 * math.erfc(-point / math.sqrt(2)) for point in grid])
    assert np.abs(np.searchsorted(values, grid) / count - expected).max() < 2.0 / math.sqrt(count)


def test_neighbours_are_uncorrelated():
    """Rows, and the two normals of one Box-Muller pair, are independent: five standard errors of a correlation."""
    drawn, _ = latents.draw(5, 50_000, 2)
    bound = 5 / math.sqrt(50_000)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < bound
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < bound


def test_labels_are_uniform():
    """Each of 7 classes gets its share within five standard deviations, and none is out of range."""
    _, labels = latents.draw(0, 70_000, 1, 7)
    counts = np.bincount(labels, minlength=7)
    assert len(counts) == 7
    assert np.abs(counts - 10_000).max() < 5 * math.sqrt(70_000 * (1 / 7) * (6 / 7))


def test_label_does_not_depend_on_the_parity_of_latent_dim():
    """Dimensions 5 and 6 take the same words, so they share labels and the first five normals."""
    odd, odd_labels = latents.draw(9, 20, 5, 10)
    even, even_labels = latents.draw(9, 20, 6, 10)
    assert odd_labels.tolist() == even_labels.tolist()
    assert odd.tobytes() == np.ascontiguousarray(even[:, :5]).tobytes()


def test_truncation_scales_and_leaves_labels():
    """Truncation multiplies the latents, 0 gives the mean latent, and labels stay as they are."""
    plain, labels = latents.draw(1, 50, 8, 10)
    half, half_labels = latents.draw(1, 50, 8, 10, truncation=0.5)
    none, none_labels = latents.draw(1, 50, 8, 10, truncation=0.0)
    assert half.tobytes() == (plain * np.float32(0.5)).tobytes()
    assert not none.any()
    assert labels.tolist() == half_labels.tolist() == none_labels.tolist()


def test_unconditional_model_has_no_labels_and_the_same_latents():
    """Without classes there are no labels, and the latents are those of the conditional model."""
    plain, none = latents.draw(1, 5, 8)
    conditional, labels = latents.draw(1, 5, 8, 10)
    assert none is None
    assert labels.dtype == np.int64
    assert plain.tobytes() == conditional.tobytes()


def test_seeds_differ():
    """Neighbouring seeds, the first and the last included, give different streams."""
    firsts = {latents.draw(seed, 1, 4)[0].tobytes() for seed in (0, 1, 2, 2**63, 2**64 - 2, 2**64 - 1)}
    assert len(firsts) == 6


def test_no_rows():
    """Zero rows are an empty array of the right width."""
    drawn, labels = latents.draw(1, 0, 8, 10)
    assert drawn.shape == (0, 8)
    assert drawn.dtype == np.float32
    assert labels.shape == (0,)


def test_threads_do_not_disturb_each_other():
    """Eight threads that draw at once get what one thread gets."""
    expected = [latents.draw(seed, 64, 10)[0].tobytes() for seed in range(8)]
    wrong: list[int] = []
    barrier = threading.Barrier(8)

    def work(seed: int) -> None:
        barrier.wait()
        wrong.extend(seed for _ in range(200) if latents.draw(seed, 64, 10)[0].tobytes() != expected[seed])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": -1},
        {"seed": 2**64},
        {"count": -1},
        {"latent_dim": 0},
        {"start": -1},
    ],
)
def test_out_of_range_is_a_bug_in_the_caller(arguments):
    """An argument out of its range is refused before anything is drawn."""
    with pytest.raises(ValueError, match="out of range"):
        latents.draw(**({"seed": 0, "count": 1, "latent_dim": 4} | arguments))


# Around the origin from one latent to another.


def _vector(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def _sines(start: np.ndarray, end: np.ndarray, share: float) -> np.ndarray:
    """Shoemake's formula for unit vectors, as it is printed."""
    angle = math.acos(float(start @ end))
    return (math.sin((1 - share) * angle) * start + math.sin(share * angle) * end) / math.sin(angle)


def test_slerp_ends_are_exact():
    """The first and the last latent are the ends, bit for bit, for every number of steps."""
    rows, _ = latents.draw(3, 2, 100)
    for count in (2, 3, 17):
        way = latents.slerp(rows[0], rows[1], count)
        assert way.shape == (count, 100)
        assert way.dtype == np.float32
        assert (way[0] == rows[0]).all()
        assert (way[-1] == rows[1]).all()


def test_slerp_of_orthogonal_unit_vectors():
    """A quarter circle in three steps of 30 degrees; its middle is (1, 1) / sqrt(2)."""
    third, half = math.radians(30), math.sqrt(0.5)
    expected = [(1, 0), (math.cos(third), math.sin(third)), (math.sin(third), math.cos(third)), (0, 1)]
    assert latents.slerp(_vector(1, 0), _vector(0, 1), 4) == pytest.approx(np.array(expected), abs=1e-7)
    assert latents.slerp(_vector(1, 0), _vector(0, 1), 3)[1] == pytest.approx([half, half])


def test_slerp_of_unit_vectors_is_shoemakes():
    """Between unit vectors it is the formula of the paper."""
    rows = latents.draw(5, 2, 64)[0].astype(np.float64)
    start, end = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    way = latents.slerp(start.astype(np.float32), end.astype(np.float32), 9)
    for index, row in enumerate(way):
        assert row == pytest.approx(_sines(start, end, index / 8), abs=1e-6)


def test_slerp_norm_is_linear():
    """The norm goes evenly from one end's to the other's, whatever the direction does."""
    way = latents.slerp(_vector(1, 0, 0), _vector(0, 0, 3), 5)
    assert np.linalg.norm(way, axis=1) == pytest.approx([1, 1.5, 2, 2.5, 3])
    angles = np.degrees(np.arctan2(way[:, 2], way[:, 0]))
    assert angles == pytest.approx([0, 22.5, 45, 67.5, 90])


def test_slerp_stays_where_normals_are():
    """The middle of two latents of 100 dimensions is as far from the origin as they are; a straight line's is not."""
    rows, _ = latents.draw(7, 2, 100)
    norms = np.linalg.norm(rows, axis=1)
    assert np.linalg.norm(latents.slerp(rows[0], rows[1], 3)[1]) == pytest.approx(norms.mean())
    assert np.linalg.norm(rows.mean(axis=0)) < 0.8 * norms.mean()


def test_slerp_of_one_direction_is_a_line():
    """Ends of one direction, equal ones among them, differ in norm only."""
    way = latents.slerp(_vector(3, 4), _vector(9, 12), 3)
    assert way == pytest.approx(np.array([(3, 4), (6, 8), (9, 12)]))
    assert (latents.slerp(_vector(3, 4), _vector(3, 4), 4) == _vector(3, 4)).all()


def test_slerp_of_opposite_ends():
    """Opposite ends go half a circle, through the axis that they have the least of, and keep their norm."""
    way = latents.slerp(_vector(3, 4), _vector(-3, -4), 3)
    assert way == pytest.approx(np.array([(3, 4), (4, -3), (-3, -4)]), abs=1e-6)


def test_slerp_of_opposite_ends_in_one_dimension():
    """In one dimension the only way is through the origin."""
    assert latents.slerp(_vector(2), _vector(-2), 3).ravel() == pytest.approx([2, 0, -2], abs=1e-6)


def test_slerp_from_the_origin():
    """A zero vector takes the other's direction; two of them stay where they are."""
    zero = _vector(0, 0)
    assert latents.slerp(zero, _vector(2, 4), 3) == pytest.approx(np.array([(0, 0), (1, 2), (2, 4)]))
    assert latents.slerp(_vector(2, 4), zero, 3) == pytest.approx(np.array([(2, 4), (1, 2), (0, 0)]))
    assert (latents.slerp(zero, zero, 5) == 0).all()


@pytest.mark.parametrize("tilt", [0.0, 1e-30, 1e-12, 1e-8, 1e-7, 1e-4])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_slerp_near_the_limits(tilt, side):
    """However near to parallel or opposite the ends are, every step is as long as the others and none is lost."""
    start, end = _vector(1, 0, 0), _vector(side, tilt, 0)
    way = latents.slerp(start, end, 9).astype(np.float64)
    assert np.linalg.norm(way, axis=1) == pytest.approx(np.ones(9))
    steps = np.linalg.norm(np.diff(way, axis=0), axis=1)
    assert steps == pytest.approx(np.full(8, steps.mean()), rel=1e-3, abs=2e-7)


def test_slerp_is_finite():
    """Between any two finite ends everything is finite, also where the way would lead beyond float32."""
    largest = np.finfo(np.float32).max
    for start, end in (
        (np.full(64, largest), np.full(64, -largest)),
        (np.full(64, largest), np.zeros(64)),
        (np.full(64, 1e-45), np.full(64, -largest)),
    ):
        assert np.isfinite(latents.slerp(start.astype(np.float32), end.astype(np.float32), 7)).all()


@pytest.mark.parametrize(
    ("start", "end", "count"),
    [
        (_vector(1), _vector(2), 1),
        (_vector(1), _vector(2, 3), 2),
        (_vector(), _vector(), 2),
        (_vector(1)[None], _vector(2)[None], 2),
    ],
)
def test_slerp_out_of_range_is_a_bug_in_the_caller(start, end, count):
    """Fewer than two steps, or ends that are not two vectors of one length, are a ValueError."""
    with pytest.raises(ValueError, match="out of range"):
        latents.slerp(start, end, count)
