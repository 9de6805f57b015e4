import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

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


def test_a_run_of_another_kind_of_device_goes_on(checkpoint: Path, make_config: MakeConfig) -> None:
    """A GPU's random state cannot be a CPU's: what is drawn from there on follows from it, and the rest is restored."""
    facts = verify_checkpoint(checkpoint).dataset
    drawn = []
    for state_of_gpu in (1, 1, 2):
        tensors = load_file(checkpoint / "rng.safetensors")
        draws = torch.full((16,), state_of_gpu, dtype=torch.uint8)  # as long as a GPU's
        _put(checkpoint, "rng.safetensors", save({**tensors, "draws": draws}))
        _rewrite(checkpoint, lambda state: state["environment"].update(device="cuda"))
        state = new_state(make_config(), facts, torch.device("cpu"))
        assert restore_checkpoint(checkpoint, state).step == state.step == 4
        drawn.append(torch.rand(4, generator=state.rng))
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


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


def _rewrite(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes what state.json says, with the digest that fits: what an attacker would do."""
    from training import checkpoint as module

    document = json.loads((checkpoint / "state.json").read_text())
    change(document["state"])
    document["sha256"] = module._sha256(module._canonical(document["state"]))
    (checkpoint / "state.json").write_text(json.dumps(document))


def _put(checkpoint: Path, name: str, content: bytes) -> None:
    """Puts a file into a checkpoint with the digest that fits."""
    (checkpoint / name).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    _rewrite(checkpoint, lambda state: state["files"].update({name: entry}))


class _Evil:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        """Ends the process that loads it."""
        return os._exit, (3,)


def _torch_file() -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": _Evil()}, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(_Evil()),
        _torch_file(),
        (1 << 40).to_bytes(8, "little") + b"{}",
        b'\x40\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}',
    ],
    ids=["pickle", "torch.save", "a header of a terabyte", "a tensor of four terabytes"],
)
def test_weights_that_are_no_safetensors_are_refused_and_not_run(checkpoint: Path, content: bytes) -> None:
    """A pickle under a weight file's name, with the digest that fits, is an error, and its code does not run."""
    _put(checkpoint, "generator_ema.safetensors", content)
    with pytest.raises(CheckpointError, match=r"generator_ema\.safetensors is not a safetensors file"):
        load_generator(checkpoint)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x.safetensors", "a/b.safetensors", "weights.pt", ""])
def test_files_elsewhere_are_not_read(checkpoint: Path, name: str) -> None:
    """A checkpoint's files have plain names of weights: nothing absolute, nothing above, no other kind."""
    _rewrite(checkpoint, lambda state: state["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    with pytest.raises(CheckpointError, match="plain names of safetensors are expected"):
        verify_checkpoint(checkpoint)


def test_files_that_are_none_are_not_read(checkpoint: Path, tmp_path: Path) -> None:
    """A link, a pipe and a file of ten gigabytes are refused before a byte is read."""
    file = checkpoint / "rng.safetensors"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"rng\.safetensors: it is a symbolic link"):
        verify_checkpoint(checkpoint)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(CheckpointError, match=r"rng\.safetensors is not a regular file"):
        verify_checkpoint(checkpoint)
    file.unlink()
    (tmp_path / "elsewhere").rename(file)
    os.truncate(file, 10 << 30)
    with pytest.raises(CheckpointError, match="has 10737418240 bytes, at most"):
        verify_checkpoint(checkpoint)


def test_a_state_of_another_schema_is_refused(checkpoint: Path) -> None:
    """A checkpoint written by a later version is not half understood."""
    _rewrite(checkpoint, lambda state: state.update(schema_version=2))
    with pytest.raises(CheckpointError, match="has schema version 2, not 1"):
        verify_checkpoint(checkpoint)


def test_classes_without_names_are_called_by_their_numbers(checkpoint: Path) -> None:
    """A checkpoint from before classes had names says how many there are; names survive the round trip as they are."""
    assert verify_checkpoint(checkpoint).dataset.class_names == ("0", "1", "2")
    _rewrite(checkpoint, lambda state: state["dataset"].pop("class_names"))
    _rewrite(checkpoint, lambda state: state["dataset"].update(num_classes=3))
    assert verify_checkpoint(checkpoint).dataset.class_names == ("0", "1", "2")


def test_other_networks_do_not_fit(checkpoint: Path, make_config: MakeConfig) -> None:
    """Weights of one size are not forced into a network of another."""
    facts = DatasetFacts(name="x", images=8, class_names=tuple("01234"), height=8, width=8, channels=1, digest="")
    with pytest.raises(CheckpointError, match=r"generator.safetensors is of another network"):
        restore_checkpoint(checkpoint, new_state(make_config(), facts, torch.device("cpu")))
