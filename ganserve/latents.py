"""Seed to latents: one definition for sheets, golden images, data sets and requests.

Row `i` of seed `s` is a pure function of (s, i): a fixed number of 64-bit words of the Philox4x64-10 stream keyed by
`s` (Salmon et al. 2011, as NumPy implements it), starting at block `i * blocks_per_row`. Any row can be made alone, and
a million rows in one vectorised call; nobody's neighbours matter. Normals come from the words by Box-Muller in float64,
rounded once to float32: unlike the ziggurat it always takes the same number of words, and unlike `Generator.normal` its
result is ours to keep the same.
"""

import threading

import numpy as np
import numpy.typing as npt

SEED_MAX = 2**64 - 1
SAMPLER = "philox4x64-10/box-muller/1"  # written into manifests; a new number whenever one latent would change

_STREAM = int.from_bytes(b"ganserve", "little")  # second key word: our streams are nobody else's
_WORDS_PER_BLOCK = 4  # Philox4x64 makes four words for each counter value
_local = threading.local()


def draw(
    seed: int,
    count: int,
    latent_dim: int,
    num_classes: int | None = None,
    *,
    start: int = 0,
    truncation: float = 1.0,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64] | None]:
    """Rows `start` to `start + count` of a seed: their latents and, for a conditional model, their labels.

    Args:
        seed: 0 to 2**64 - 1.
        count: rows, >= 0.
        latent_dim: length of one latent, >= 1. It decides how many words a row takes.
        num_classes: labels are drawn uniformly from range(num_classes); None for an unconditional model.
        start: index of the first row, >= 0.
        truncation: latents are multiplied by it: 1 leaves them standard normal, less trades variety for typicality,
            0 is the mean image (the linear form of the truncation trick, Karras et al. 2019). Labels do not change.

    Returns:
        latents, standard normal times `truncation`, float32 [count, latent_dim]; and labels int64 [count], or None.

    Raises:
        ValueError: a bug in the caller: an argument out of its range. Requests are checked before they come here.
    """
    if not 0 <= seed <= SEED_MAX or count < 0 or latent_dim < 1 or start < 0:
        raise ValueError(f"out of range: seed={seed} count={count} latent_dim={latent_dim} start={start}")
    pairs = (latent_dim + 1) // 2
    # The first word of a row is its label's, so that the label does not depend on latent_dim's parity.
    blocks_per_row = -(-(1 + pairs) // _WORDS_PER_BLOCK)
    words = _words(seed, start * blocks_per_row, count * blocks_per_row)
    words = words.reshape(count, blocks_per_row * _WORDS_PER_BLOCK)

    normal_words = words[:, 1 : 1 + pairs]
    radius_uniform = ((normal_words >> np.uint64(32)) + 0.5) * 2.0**-32  # in (0, 1): the logarithm is finite
    angle_uniform = (normal_words & np.uint64(0xFFFFFFFF)) * 2.0**-32  # in [0, 1)
    radius = np.sqrt(-2.0 * np.log(radius_uniform))
    angle = (2.0 * np.pi) * angle_uniform
    normals = np.empty((count, pairs, 2))
    np.multiply(radius, np.cos(angle), out=normals[:, :, 0])
    np.multiply(radius, np.sin(angle), out=normals[:, :, 1])
    latents = normals.reshape(count, 2 * pairs)[:, :latent_dim].astype(np.float32)
    if truncation != 1.0:
        latents *= np.float32(truncation)

    if num_classes is None:
        return latents, None
    labels = ((words[:, 0] >> np.uint64(32)) * np.uint64(num_classes)) >> np.uint64(32)
    return latents, labels.astype(np.int64)


def slerp(start: npt.NDArray[np.float32], end: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    """The way from one latent to another around the origin (Shoemake 1985; White 2016 on why not straight through).

    Almost all of a normal distribution in many dimensions lies near one sphere, and a straight line leaves it: its
    middle is nearer to the origin than anything that the generator was trained on. So the direction moves along the
    great circle at an even angular speed, and the norm, apart from it, linearly from one end's to the other's.

    Every pair has a way. Ends of one direction differ in norm only. A zero vector takes the direction of the other end:
    a straight line. Opposite ends have many half circles between them; it is the one through the axis that they have
    the least of (the first of several), so the same for ever.

    Args:
        start: float32 [latent_dim], finite.
        end: the same.
        count: latents, >= 2, both ends among them.

    Returns:
        float32 [count, latent_dim], finite: first `start` and last `end`, bit for bit; between them made in float64.

    Raises:
        ValueError: a bug in the caller: fewer than two, or ends that are not two vectors of one length.
    """
    if count < 2 or start.ndim != 1 or start.shape != end.shape or not start.size:
        raise ValueError(f"out of range: count={count} start={start.shape} end={end.shape}")
    first, last = start.astype(np.float64), end.astype(np.float64)
    first_norm, last_norm = float(np.linalg.norm(first)), float(np.linalg.norm(last))
    share = np.linspace(0.0, 1.0, count)[:, None]
    norms = (1.0 - share) * first_norm + share * last_norm
    if first_norm == 0.0 or last_norm == 0.0:
        path = norms * ((first + last) / (first_norm + last_norm or 1.0))
    else:
        unit, target = first / first_norm, last / last_norm
        # Kahan 2006: exact near 0 and pi too, where the arc cosine of the dot product loses half of its digits.
        angle = 2.0 * np.arctan2(np.linalg.norm(unit - target), np.linalg.norm(unit + target))
        across = _perpendicular(target, unit)
        if across is None:
            axis = np.zeros_like(unit)
            axis[np.abs(unit).argmin()] = 1.0
            across = _perpendicular(axis, unit)
        if across is None:  # one dimension: there is no way around the origin, only through it
            across = np.zeros_like(unit)
        path = norms * (np.cos(angle * share) * unit + np.sin(angle * share) * across)
    limit = np.finfo(np.float32).max  # ends near it can have something between them that is beyond it
    rounded = path.clip(-limit, limit).astype(np.float32)
    rounded[0], rounded[-1] = start, end
    return rounded


def _perpendicular(vector: npt.NDArray[np.float64], unit: npt.NDArray[np.float64]) -> npt.NDArray[np.float64] | None:
    """The part of a unit vector that is perpendicular to another, as a unit vector; None when there is none."""
    part = vector - (vector @ unit) * unit
    if np.linalg.norm(part) < 1e-8:  # what is left is rounding
        return None
    part /= np.linalg.norm(part)
    part -= (part @ unit) * unit  # once more: a small part is imprecise, and has just been made large
    normed: npt.NDArray[np.float64] = part / np.linalg.norm(part)
    return normed


def _words(seed: int, first_block: int, blocks: int) -> npt.NDArray[np.uint64]:
    """`blocks` consecutive Philox blocks as uint64 [blocks * 4]; NumPy's generator counts up before each block."""
    philox = getattr(_local, "philox", None)
    if philox is None:
        # One per thread, repositioned for each call: making a new one costs more than the words of a small request.
        philox = _local.philox = np.random.Philox(key=0)
    mask = 2**64 - 1
    philox.state = {
        "bit_generator": "Philox",
        "state": {
            "counter": np.array([first_block & mask, first_block >> 64, 0, 0], dtype=np.uint64),
            "key": np.array([seed, _STREAM], dtype=np.uint64),
        },
        "buffer": np.zeros(4, dtype=np.uint64),
        "buffer_pos": 4,  # empty: the next word comes from a new block
        "has_uint32": 0,
        "uinteger": 0,
    }
    words: npt.NDArray[np.uint64] = philox.random_raw(blocks * _WORDS_PER_BLOCK)
    return words
