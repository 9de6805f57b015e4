import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ganserve.errors import CheckpointError
from training.checkpoint import load_generator, restore_checkpoint, save_checkpoint, verify_checkpoint
from training.config import TrainingConfig
from training.data import DatasetFacts
from training.loop import train
from training.state import new_state

MakeConfig = Callable[..., TrainingConfig]


@pytest.fixture
def checkpoint(make_config: MakeConfig, tmp_path: Path) -> Path:
    """The last checkpoint of a tiny run."""
    return train(make_config(), tmp_path / "run").checkpoint


def test_what_is_saved_is_restored_to_the_bit(checkpoint: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    """Restoring into a fresh state and saving again gives the same files: nothing is lost, rounded or reordered."""
    saved = verify_checkpoint(checkpoint)
    state = new_state(make_config("seed=99"), saved.dataset, torch.device("cpu"))
    restore_checkpoint(checkpoint, state)
    save_checkpoint(tmp_path / "again", state, config=saved.config, dataset=saved.dataset, metrics=saved.metrics)
    assert verify_checkpoint(tmp_path / "again") == saved


def test_optimizer_moments_lie_as_their_parameters_do(checkpoint: Path, make_config: MakeConfig) -> None:
    """A fused kernel walks a weight and its moments side by side in memory, so their layouts must be one."""
    state = new_state(make_config(), verify_checkpoint(checkpoint).dataset, torch.device("cpu"))
    restore_checkpoint(checkpoint, state)
    convolution = state.discriminator.halvings[1].weight
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    assert state.discriminator_optimizer.state[convolution]["exp_avg"].stride() == convolution.stride()


def test_the_trained_generator_is_the_average_in_evaluation_mode(checkpoint: Path) -> None:
    """What is exported is the averaged network, with where it comes from."""
    trained = load_generator(checkpoint)
    assert not trained.network.training
    assert (trained.step, trained.images_seen, trained.path) == (4, 32, checkpoint)
    assert trained.dataset.num_classes == trained.network.num_classes == 3
    assert trained.config.recipe == "quick"
    assert trained.metrics["step"] == 4
    assert trained.digest == verify_checkpoint(checkpoint).digests["generator_ema.safetensors"]
    images = trained.network(torch.randn(2, 4), torch.tensor([0, 2]))
    assert images.shape == (2, 1, 8, 8)


def test_without_an_average_the_generator_itself_is_taken(make_config: MakeConfig, tmp_path: Path) -> None:
    """A run with `ema.half_life_images=0` has no averaged file, and exports its weights as they are."""
    checkpoint = train(make_config("ema.half_life_images=0"), tmp_path / "plain").checkpoint
    assert not (checkpoint / "generator_ema.safetensors").exists()
    assert load_generator(checkpoint).digest == verify_checkpoint(checkpoint).digests["generator.safetensors"]


@pytest.mark.parametrize(
    "name",
    [
        "generator.safetensors",
        "generator_ema.safetensors",
        "discriminator.safetensors",
        "optimizers.safetensors",
        "rng.safetensors",
        "state.json",
    ],
)
def test_damage_is_named(checkpoint: Path, name: str) -> None:
    """One flipped bit, a truncated file or a missing one in any file of a checkpoint is found before it is used."""
    file = checkpoint / name
    good = file.read_bytes()
    for bad in (
        good[:100] + bytes([good[100] ^ 1]) + good[101:],
        good[:-1] if name != "state.json" else good[:-9],
        b"",
    ):
        file.write_bytes(bad)
        for use in (verify_checkpoint, load_generator):
            with pytest.raises(CheckpointError, match=name):
                use(checkpoint)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        load_generator(checkpoint)


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    """A path that is not there says so."""
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_generator(tmp_path / "nowhere")


def test_a_state_of_another_schema_is_refused(checkpoint: Path) -> None:
    """A checkpoint written by a later version is not half understood."""
    from training import checkpoint as module

    document = json.loads((checkpoint / "state.json").read_text())
    document["state"]["schema_version"] = 2
    document["sha256"] = module._sha256(module._canonical(document["state"]))
    (checkpoint / "state.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="has schema version 2, not 1"):
        verify_checkpoint(checkpoint)


def test_classes_without_names_are_called_by_their_numbers(checkpoint: Path) -> None:
    """A checkpoint from before classes had names says how many there are; names survive the round trip as they are."""
    from training import checkpoint as module

    assert verify_checkpoint(checkpoint).dataset.class_names == ("0", "1", "2")
    document = json.loads((checkpoint / "state.json").read_text())
    del document["state"]["dataset"]["class_names"]
    document["state"]["dataset"]["num_classes"] = 3
    document["sha256"] = module._sha256(module._canonical(document["state"]))
    (checkpoint / "state.json").write_text(json.dumps(document))
    assert verify_checkpoint(checkpoint).dataset.class_names == ("0", "1", "2")


def test_other_networks_do_not_fit(checkpoint: Path, make_config: MakeConfig) -> None:
    """Weights of one size are not forced into a network of another."""
    facts = DatasetFacts(name="x", images=8, class_names=tuple("01234"), height=8, width=8, channels=1, digest="")
    with pytest.raises(CheckpointError, match=r"generator.safetensors is of another network"):
        restore_checkpoint(checkpoint, new_state(make_config(), facts, torch.device("cpu")))
