import pytest
import torch

from training.augment import augment
from training.config import AugmentConfig

RANGE = (-1.0, 1.0)


def rng() -> torch.Generator:
    """The same numbers every time."""
    return torch.Generator().manual_seed(3)


def test_nothing_is_changed_and_nothing_drawn_when_all_is_off() -> None:
    """The images come back as they are, and the run's random numbers are those of a run without augmentation."""
    images, generator = torch.rand(4, 1, 6, 6), rng()
    assert augment(images, AugmentConfig(), value_range=RANGE, rng=generator) is images
    assert torch.equal(generator.get_state(), rng().get_state())


def test_translation_moves_whole_images() -> None:
    """Every image is the padded original seen from a whole number of pixels aside, up to the share asked for."""
    images = torch.rand(64, 1, 8, 12)
    moved = augment(images, AugmentConfig(translation=0.25), value_range=RANGE, rng=rng())
    padded = torch.nn.functional.pad(images, (3, 3, 2, 2), value=0.0)
    places = set()
    for before, after in zip(padded, moved, strict=True):
        found = [
            (2 - row, 3 - column)
            for row in range(5)
            for column in range(7)
            if torch.equal(before[:, row : row + 8, column : column + 12], after)
        ]
        assert len(found) == 1
        places.add(found[0])
    assert {row for row, _ in places} == {-2, -1, 0, 1, 2}
    assert {column for _, column in places} == {-3, -2, -1, 0, 1, 2, 3}


@pytest.mark.parametrize(("low", "high"), [RANGE, (0.0, 1.0)])
def test_cutout_greys_one_rectangle(low: float, high: float) -> None:
    """At most the share asked for turns into the middle of the range, in one rectangle; the rest is untouched."""
    images = torch.full((64, 1, 8, 12), high)
    cut = augment(images, AugmentConfig(cutout=0.5), value_range=(low, high), rng=rng())
    grey = cut == (low + high) / 2
    assert (grey | (cut == high)).all()
    for one in grey[:, 0]:
        rows, columns = one.any(dim=1), one.any(dim=0)
        assert torch.equal(one, rows[:, None] & columns)
        assert 1 <= rows.sum() <= 4
        assert 1 <= columns.sum() <= 6
    assert grey.flatten(1).sum(dim=1).max() == 4 * 6


def test_brightness_and_contrast_are_affine() -> None:
    """Brightness adds one number to each image; contrast scales its distance from its own mean."""
    images = torch.rand(64, 1, 5, 5)
    brighter = augment(images, AugmentConfig(brightness=0.25), value_range=RANGE, rng=rng())
    added = (brighter - images).flatten(1)
    assert added.std(dim=1).max() < 1e-6
    assert -0.5 <= added.min() < -0.3
    assert 0.3 < added.max() <= 0.5

    harder = augment(images, AugmentConfig(contrast=0.5), value_range=RANGE, rng=rng())
    torch.testing.assert_close(harder.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)))
    scale = harder.flatten(1).std(dim=1) / images.flatten(1).std(dim=1)
    assert 0.5 <= scale.min() < 0.7
    assert 1.3 < scale.max() <= 1.5


def test_gradients_flow_through_everything() -> None:
    """A pixel that is seen has the gradient of what is seen; one that was moved out or cut away has none."""
    images = torch.rand(8, 1, 6, 6, requires_grad=True)
    config = AugmentConfig(translation=0.34, cutout=0.5)
    seen = augment(images, config, value_range=RANGE, rng=rng())
    seen.sum().backward()
    assert images.grad is not None
    kept = (seen != 0).flatten(1).sum(dim=1).float()
    torch.testing.assert_close(images.grad.flatten(1).sum(dim=1), kept)
    assert set(images.grad.unique().tolist()) == {0.0, 1.0}
    every = AugmentConfig(brightness=0.2, contrast=0.5, translation=0.1, cutout=0.3)
    function = torch.autograd.gradcheck
    assert function(
        lambda given: augment(given, every, value_range=RANGE, rng=rng()),
        (torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True),),
    )
