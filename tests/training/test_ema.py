import pytest
import torch

from training.config import EmaConfig, GeneratorConfig
from training.ema import Ema, ema_decay
from training.models import GENERATORS, Generator


def make_generator() -> Generator:
    """A tiny perceptron with batch statistics."""
    config = GeneratorConfig(kind="mlp", latent_dim=3, width=4, depth=1)
    return GENERATORS["mlp"](config, image_shape=(1, 2, 2), num_classes=None)


@pytest.mark.parametrize("batch_images", [10, 50, 1000])
def test_half_of_a_jump_is_absorbed_after_the_half_life(batch_images: int) -> None:
    """After `half_life_images` a constant jump of a weight is half in the average, whatever the batch size."""
    generator = make_generator()
    ema = Ema(generator, EmaConfig(half_life_images=1000))
    with torch.no_grad():
        generator.pixels.bias.zero_()
        ema.network.pixels.bias.zero_()
        generator.pixels.bias.fill_(8.0)
    for _ in range(1000 // batch_images):
        ema.update(generator, images_seen=10**9, batch_images=batch_images)
    assert ema.network.pixels.bias.tolist() == pytest.approx([4.0] * 4, rel=1e-4)


def test_batch_statistics_are_averaged_and_counters_copied() -> None:
    """The average shows images in evaluation mode, so it needs the statistics that belong to its weights."""
    generator = make_generator().train()
    ema = Ema(generator, EmaConfig(half_life_images=100))
    generator(torch.randn(16, 3) + 5)
    now = generator.state_dict()
    ema.update(generator, images_seen=10**9, batch_images=100)
    averaged = ema.network.state_dict()
    moved = [name for name in now if name.endswith("running_mean")]
    assert moved
    for name in moved:
        torch.testing.assert_close(averaged[name], now[name] / 2)  # half-way from zero
    for name in now:
        if name.endswith("num_batches_tracked"):
            assert averaged[name] == now[name] == 1


def test_early_averages_follow() -> None:
    """While little was seen, the half-life is `ramp` times that: the first average is all but the first weights."""
    config = EmaConfig(half_life_images=1e6, ramp=0.1)
    assert ema_decay(config, images_seen=100, batch_images=100) == pytest.approx(0.5**10)
    assert ema_decay(config, images_seen=10_000, batch_images=100) == pytest.approx(0.5**0.1)
    assert ema_decay(config, images_seen=10**9, batch_images=100) == pytest.approx(0.5**1e-4)


def test_the_average_is_a_twin_that_does_not_train() -> None:
    """It is in evaluation mode, wants no gradient, and shares no memory with the trained generator."""
    generator = make_generator().train()
    ema = Ema(generator, EmaConfig(half_life_images=10))
    assert generator.training
    assert not ema.network.training
    assert not any(one.requires_grad for one in ema.network.parameters())
    mine = {one.data_ptr() for one in generator.state_dict().values()}
    assert mine.isdisjoint(one.data_ptr() for one in ema.network.state_dict().values())
