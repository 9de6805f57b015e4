import dataclasses
from collections.abc import Callable

import pytest
import torch

from training.config import (
    ACTIVATIONS,
    DISCRIMINATOR_KINDS,
    GENERATOR_KINDS,
    DiscriminatorConfig,
    GeneratorConfig,
    TrainingConfig,
    load_recipe,
)
from training.data import DatasetFacts
from training.losses import OBJECTIVES
from training.models import DISCRIMINATORS, GENERATORS
from training.models.base import ConditionalBatchNorm, MinibatchDeviation, activation, halvings
from training.state import build_discriminator, build_generator, new_state, prefer_channels_last
from training.step import discriminator_step, generator_step

SIZES = [(28, 28), (32, 32), (29, 31), (1, 5)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("classes", [None, 3, 47])
@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_makes_images_of_any_size(kind: str, classes: int | None, size: tuple[int, int]) -> None:
    """Every registered generator gives float32 [N, C, H, W] in its range, for any size and number of classes."""
    for output, norm in (("tanh", "batch"), ("sigmoid", "none")):
        config = GeneratorConfig(kind=kind, latent_dim=5, width=4, depth=3, norm=norm, output=output)
        network = GENERATORS[kind](config, image_shape=(1, *size), num_classes=classes)
        assert (network.latent_dim, network.num_classes) == (5, classes)
        labels = None if classes is None else torch.arange(6) % classes
        images = network(10 * torch.randn(6, 5), labels)
        assert images.shape == (6, 1, *size)
        assert images.dtype == torch.float32
        low, high = network.value_range
        assert (low, high) == ((-1, 1) if output == "tanh" else (0, 1))
        assert low <= images.min() <= images.max() <= high


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_a_discriminator_judges_images_of_any_size(kind: str, classes: int | None, size: tuple[int, int]) -> None:
    """Every registered discriminator gives one float32 logit an image, by features that hold for every label."""
    config = DiscriminatorConfig(kind=kind, width=4, depth=2)
    network = DISCRIMINATORS[kind](config, image_shape=(1, *size), num_classes=classes)
    images = torch.randn(6, 1, *size)
    labels = None if classes is None else torch.arange(6) % classes
    logits = network(images, labels)
    assert logits.shape == (6,)
    torch.testing.assert_close(network.logits(network.features(images), labels), logits)
    torch.testing.assert_close(network(images[2:3], None if labels is None else labels[2:3]), logits[2:3])


@pytest.mark.parametrize("kind", GENERATORS)
def test_the_label_changes_the_image(kind: str) -> None:
    """A conditional generator gives one latent different images for different labels, normalised or not."""
    for norm in ("batch", "none"):
        config = GeneratorConfig(kind=kind, latent_dim=5, width=16, norm=norm, negative_slope=0.2)
        network = GENERATORS[kind](config, image_shape=(1, 8, 8), num_classes=3).eval()
        one = torch.randn(1, 5)
        images = network(one.expand(3, 5), torch.arange(3))
        assert not torch.allclose(images[0], images[1])


@pytest.mark.parametrize("kind", GENERATORS)
def test_an_image_does_not_depend_on_its_neighbours(kind: str) -> None:
    """In evaluation mode a row of a batch is the image that its latent gives alone."""
    network = GENERATORS[kind](GeneratorConfig(kind=kind), image_shape=(1, 28, 28), num_classes=10).eval()
    latents, labels = torch.randn(9, 64), torch.arange(9)
    torch.testing.assert_close(network(latents, labels)[4:5], network(latents[4:5], labels[4:5]))


@pytest.mark.parametrize("generator_kind", GENERATOR_KINDS)
@pytest.mark.parametrize("discriminator_kind", DISCRIMINATOR_KINDS)
@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop"])
def test_every_pair_of_players_trains(
    generator_kind: str, discriminator_kind: str, conditional: bool, optimizer: str
) -> None:
    """Two steps change every parameter of both players, with R1, whatever is combined."""
    config = tiny(generator_kind, discriminator_kind, conditional, optimizer)
    facts = DatasetFacts(name="x", images=8, class_names=tuple("012"), height=9, width=8, channels=1, digest="")
    state = new_state(config, facts, torch.device("cpu"))
    before = [one.clone() for player in (state.generator, state.discriminator) for one in player.parameters()]
    labels = torch.arange(6) % 3 if conditional else None
    for _ in range(2):
        fakes = state.generator(torch.randn(6, 4), labels)
        discriminator_step(
            state.discriminator,
            state.discriminator_optimizer,
            OBJECTIVES["ns"],
            real_images=torch.rand(6, 1, 9, 8),
            real_labels=labels,
            fake_images=fakes,
            fake_labels=labels,
            r1_weight=1.0,
        )
        generator_step(
            state.generator,
            state.discriminator,
            state.generator_optimizer,
            OBJECTIVES["ns"],
            fake_images=fakes,
            fake_labels=labels,
        )
    after = [one for player in (state.generator, state.discriminator) for one in player.parameters()]
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_article_networks_have_the_article_sizes() -> None:
    """100 -> 128 -> 128 -> 784 and 784 -> 128 -> 128 -> 1, biases included."""
    config = load_recipe("seed")
    facts = DatasetFacts(
        name="mnist", images=1, class_names=tuple("0123456789"), height=28, width=28, channels=1, digest=""
    )
    generator, discriminator = build_generator(config, facts), build_discriminator(config, facts)
    assert parameters(generator) == 101 * 128 + 129 * 128 + 129 * 784
    assert parameters(discriminator) == 785 * 128 + 129 * 128 + 129


def test_sizes_halve_rounding_up() -> None:
    """28 x 28 is 7 x 7 after two halvings; odd sizes round up, and one stays one."""
    assert halvings((28, 28), 2) == [(28, 28), (14, 14), (7, 7)]
    assert halvings((29, 31), 2) == [(29, 31), (15, 16), (8, 8)]
    assert halvings((1, 3), 2) == [(1, 3), (1, 2), (1, 1)]


def test_conditional_batch_norm_is_batch_norm_with_a_table() -> None:
    """Each row is normalised, then scaled and shifted by its own label's entries."""
    layer = ConditionalBatchNorm(torch.nn.BatchNorm2d(2, affine=False), num_classes=3)
    torch.nn.init.normal_(layer.scale.weight)
    torch.nn.init.normal_(layer.shift.weight)
    hidden, labels = torch.randn(5, 2, 4, 4), torch.tensor([0, 2, 1, 2, 0])
    plain = torch.nn.functional.batch_norm(hidden, None, None, training=True)
    scale, shift = layer.scale(labels)[:, :, None, None], layer.shift(labels)[:, :, None, None]
    torch.testing.assert_close(layer(hidden, labels), plain * scale + shift)


def test_the_memory_layout_changes_no_result(make_config: Callable[..., TrainingConfig]) -> None:
    """Channels-last weights compute what contiguous ones do, in training and in evaluation mode."""
    config = make_config()
    facts = DatasetFacts(name="x", images=8, class_names=tuple("012"), height=8, width=8, channels=1, digest="")
    torch.manual_seed(0)
    plain = build_generator(config, facts)
    fast = build_generator(config, facts)
    fast.load_state_dict(plain.state_dict())
    prefer_channels_last(fast)
    latents, labels = torch.randn(6, 4), torch.arange(6) % 3
    torch.testing.assert_close(fast(latents, labels), plain(latents, labels))
    torch.testing.assert_close(fast.eval()(latents, labels), plain.eval()(latents, labels))


def tiny(generator: str, discriminator: str, conditional: bool, optimizer: str) -> TrainingConfig:
    """A configuration of small networks of these kinds."""
    config = TrainingConfig(recipe="tiny", conditional=conditional)
    return dataclasses.replace(
        config,
        generator=GeneratorConfig(kind=generator, latent_dim=4, width=4),
        discriminator=DiscriminatorConfig(kind=discriminator, width=4),
        optimizer=dataclasses.replace(config.optimizer, kind=optimizer),
    )


def parameters(network: torch.nn.Module) -> int:
    """How many numbers the network learns."""
    return sum(one.numel() for one in network.parameters())


@pytest.mark.parametrize("kind", DISCRIMINATORS)
@pytest.mark.parametrize("depth", [1, 2])
def test_the_deviation_of_one_batch_is_no_matter_of_the_next(kind: str, depth: int) -> None:
    """Reals and fakes in one pass have the features that each has alone, and those depend on all of its batch."""
    config = DiscriminatorConfig(kind=kind, width=4, depth=depth, minibatch_deviation=True)
    network = DISCRIMINATORS[kind](config, image_shape=(1, 9, 8), num_classes=3)
    real, fake = torch.randn(5, 1, 9, 8), 3 * torch.randn(5, 1, 9, 8)
    together = network.features(torch.cat([real, fake]), batches=2)
    torch.testing.assert_close(together, torch.cat([network.features(real), network.features(fake)]))
    mixed = network.features(torch.cat([real, fake]))
    assert not torch.allclose(mixed, together)
    assert not torch.allclose(network.features(real[:2]), network.features(real)[:2])


def test_the_deviation_is_the_standard_deviation() -> None:
    """What is appended to each image is the root of the batch's variance, averaged over channels and places."""
    hidden = torch.randn(6, 3, 4, 5)
    seen = MinibatchDeviation()(hidden, 2)
    assert torch.equal(seen[:, :3], hidden)
    for half in (slice(0, 3), slice(3, 6)):
        expected = hidden[half].std(dim=0, correction=0).mean()
        torch.testing.assert_close(seen[half, 3], expected.expand(3, 4, 5))
    assert MinibatchDeviation()(torch.ones(4, 2), 1)[:, 2].tolist() == pytest.approx([1e-4] * 4)


def test_identical_images_have_a_finite_gradient() -> None:
    """A collapsed batch, of deviation zero, sends the generator numbers and not NaN."""
    hidden = torch.ones(4, 2, requires_grad=True)
    MinibatchDeviation()(hidden, 1).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_spectral_norm_makes_every_layer_of_length_one(kind: str) -> None:
    """After passes in training mode the largest singular value of every weight, the labels' included, is 1."""
    config = DiscriminatorConfig(kind=kind, width=4, depth=2, norm="spectral", negative_slope=1.0)
    network = DISCRIMINATORS[kind](config, image_shape=(1, 8, 8), num_classes=3)
    prefer_channels_last(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(7)
    for _ in range(300):
        network(torch.randn(2, 1, 8, 8), torch.tensor([0, 2]))
    network.eval()
    layers = [one for one in network.modules() if hasattr(one, "parametrizations")]
    assert len(layers) == {"residual": 8}.get(kind, 4)
    for layer in layers:
        weight = layer.weight
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("leaky_relu", [-0.5, 2.0]), ("prelu", [-0.5, 2.0]), ("relu", [0.0, 2.0]), ("silu", [-0.2689414, 1.7615942])],
)
def test_an_activation_is_what_it_is_called(kind: str, expected: list[float]) -> None:
    """Values at -1 and 2, of a slope of one half; only PReLU learns, one slope a channel."""
    layer = activation(kind, 2, 0.5)
    assert layer(torch.tensor([[-1.0, 2.0]])).flatten().tolist() == pytest.approx(expected)
    assert [one.shape for one in layer.parameters()] == ([(2,)] if kind == "prelu" else [])


def test_every_activation_has_a_name() -> None:
    """What the configuration accepts is what there is; each layer of a PReLU network has its own slopes."""
    assert {type(activation(kind, 1, 0.1)).__name__ for kind in ACTIVATIONS} == {"LeakyReLU", "PReLU", "ReLU", "SiLU"}
    network = GENERATORS["conv"](GeneratorConfig(activation="prelu"), image_shape=(1, 8, 8), num_classes=None)
    assert [one.num_parameters for one in network.modules() if isinstance(one, torch.nn.PReLU)] == [64, 32]
