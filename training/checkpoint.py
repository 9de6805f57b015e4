"""Resumable state on disk: safetensors and JSON in a directory that is there whole or not at all.

    step-00002000/
      generator.safetensors        weights and batch statistics
      generator_ema.safetensors    the same, averaged; only if the run averages
      discriminator.safetensors
      optimizers.safetensors       `<player>/<parameter>/<quantity>`
      rng.safetensors              torch's generators, as bytes
      state.json                   step, metrics, configuration, data set, versions; sha256 and bytes of the files
                                   above, and its own digest

Files are read once, hashed, and those same bytes are parsed. Nothing in here can execute code.
"""

import dataclasses
import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.optim import Optimizer

from ganserve import atomic, plain
from ganserve.errors import CheckpointError, ConfigError
from training import distributed
from training.config import TrainingConfig, from_dict, to_dict
from training.data import DatasetFacts
from training.models import Generator
from training.state import TrainingState, build_generator

SCHEMA_VERSION: Final = 1
STATE_FILE: Final = "state.json"
MAX_STATE_BYTES: Final = 4 << 20  # the names of thousands of classes

_FILE_NAME: Final = re.compile(r"[a-z_]{1,64}\.safetensors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """What state.json says, checked."""

    step: int
    images_seen: int
    seconds: float
    metrics: dict[str, float]
    recent: list[list[float]]
    loss_scales: dict[str, dict[str, float]]
    config: TrainingConfig
    dataset: DatasetFacts
    environment: dict[str, str]
    digests: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedGenerator:
    """A generator ready to be run: the average of the weights, if the run kept one.

    `digest` is the SHA-256 of the weights' file.
    """

    network: Generator
    config: TrainingConfig
    dataset: DatasetFacts
    step: int
    images_seen: int
    metrics: dict[str, float]
    path: Path
    digest: str


def checkpoint_name(step: int) -> str:
    """Names sort as their steps do, up to the hundred millionth; `checkpoint_step` is for sorting them all."""
    return f"step-{step:08d}"


def checkpoint_step(name: str) -> int:
    """The step that `checkpoint_name` made the name of."""
    return int(name.removeprefix("step-"))


def save_checkpoint(
    path: Path, state: TrainingState, *, config: TrainingConfig, dataset: DatasetFacts, metrics: Mapping[str, float]
) -> None:
    """Writes `state` as the directory `path`, in place of what is there.

    Raises:
        OSError: the disk said no; nothing is left at `path` that was not there before.
    """
    files = {f"{name}.safetensors": _pack(network.state_dict()) for name, network in state.networks.items()} | {
        "optimizers.safetensors": _pack(
            _optimizer_tensors("generator", state.generator, state.generator_optimizer)
            | _optimizer_tensors("discriminator", state.discriminator, state.discriminator_optimizer)
        ),
        "rng.safetensors": _pack(_rng_tensors(state.rng)),
    }
    content = {
        "schema_version": SCHEMA_VERSION,
        "step": state.step,
        "images_seen": state.step * config.images_per_step,
        "seconds": state.seconds,
        "metrics": dict(metrics),
        "recent": state.recent,
        "loss_scales": {player: scaler.state_dict() for player, scaler in state.scalers.items()},
        "config": to_dict(config),
        "dataset": dataclasses.asdict(dataset),
        "environment": environment(state.rng.device),
        "files": {name: {"sha256": _sha256(body), "bytes": len(body)} for name, body in sorted(files.items())},
    }
    document = json.dumps({"sha256": _sha256(_canonical(content)), "state": content}, indent=2)
    with atomic.directory(path, replace=True) as folder:
        for name, body in files.items():
            (folder / name).write_bytes(body)
        (folder / STATE_FILE).write_text(document + "\n", encoding="utf-8")


def verify_checkpoint(path: Path) -> CheckpointState:
    """What state.json says, after every file was compared with its digest.

    Raises:
        CheckpointError: something is missing or damaged; the message names the file.
    """
    return _read(path)[0]


def load_generator(checkpoint: Path) -> TrainedGenerator:
    """The trained generator in a checkpoint directory, on the CPU and in evaluation mode.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    state, files = _read(checkpoint)
    name = "generator_ema.safetensors" if "generator_ema.safetensors" in files else "generator.safetensors"
    network = build_generator(state.config, state.dataset)
    _load_weights(network, checkpoint / name, files[name])
    return TrainedGenerator(
        network=network.eval().requires_grad_(False),
        config=state.config,
        dataset=state.dataset,
        step=state.step,
        images_seen=state.images_seen,
        metrics=state.metrics,
        path=checkpoint,
        digest=state.digests[name],
    )


def restore_checkpoint(path: Path, state: TrainingState) -> CheckpointState:
    """Brings `state`, fresh from `new_state` with the checkpoint's configuration, to where the checkpoint was written.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or of other networks.
    """
    saved, files = _read(path)
    for name, network in state.networks.items():
        file = f"{name}.safetensors"
        if file not in files:
            raise CheckpointError(f"{path} has no {file}")
        _load_weights(network, path / file, files[file])
    tensors = _unpack(path / "optimizers.safetensors", files["optimizers.safetensors"])
    try:
        _load_optimizer("generator", state.generator, state.generator_optimizer, tensors)
        _load_optimizer("discriminator", state.discriminator, state.discriminator_optimizer, tensors)
        drawn_here = saved.environment.get("device", state.rng.device.type) == state.rng.device.type
        _load_rng(state.rng, _unpack(path / "rng.safetensors", files["rng.safetensors"]), same_device=drawn_here)
        for player, scaler in state.scalers.items():
            scaler.load_state_dict(saved.loss_scales[player])
    except (KeyError, RuntimeError, TypeError) as err:
        raise CheckpointError(f"{path} is of another run: {err}") from err
    state.step, state.seconds, state.recent = saved.step, saved.seconds, saved.recent
    return saved


def environment(device: torch.device) -> dict[str, str]:
    """What the last bits of a result depend on, beside the configuration."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "device": device.type,
        "threads": str(torch.get_num_threads()),
        "processes": str(distributed.size()),
    }


def _read(path: Path) -> tuple[CheckpointState, dict[str, bytes]]:
    document = _read_bytes(path, STATE_FILE, MAX_STATE_BYTES)
    try:
        parsed = json.loads(document)
        content = parsed["state"]
        if _sha256(_canonical(content)) != parsed["sha256"]:
            raise CheckpointError(f"checkpoint {path} is damaged: {STATE_FILE} does not match its own digest")
        if content["schema_version"] != SCHEMA_VERSION:
            raise CheckpointError(
                f"checkpoint {path} has schema version {content['schema_version']}, not {SCHEMA_VERSION}"
            )
        strangers = sorted(name for name in content["files"] if not _FILE_NAME.fullmatch(name))
        if strangers:
            raise CheckpointError(f"checkpoint {path} lists {strangers[0]!r}; plain names of safetensors are expected")
        files = {name: _read_bytes(path, name, entry["bytes"]) for name, entry in content["files"].items()}
        for name, body in files.items():
            expected = content["files"][name]
            if _sha256(body) != expected["sha256"]:
                raise CheckpointError(
                    f"checkpoint {path} is damaged: {name} must have {expected['bytes']:,} bytes of SHA-256 "
                    f"{expected['sha256'][:12]}…, got {len(body):,} of {_sha256(body)[:12]}…"
                )
        state = CheckpointState(
            step=content["step"],
            images_seen=content["images_seen"],
            seconds=content["seconds"],
            metrics=content["metrics"],
            recent=content.get("recent", []),  # runs from before there was a diagnosis have none
            loss_scales=content.get("loss_scales", {}),  # nor was there float16
            config=from_dict(content["config"]),
            dataset=_facts(content["dataset"]),
            environment={"processes": "1"} | content["environment"],  # there was no other way once
            digests={name: entry["sha256"] for name, entry in content["files"].items()},
        )
    except ConfigError as err:
        raise CheckpointError(f"checkpoint {path} is of another version of ganserve: {err}") from err
    except (AttributeError, ValueError, KeyError, TypeError, RecursionError) as err:
        raise CheckpointError(f"checkpoint {path} is damaged: {STATE_FILE} is not what it should be: {err}") from err
    return state, files


def _facts(stated: Mapping[str, Any]) -> DatasetFacts:
    known = dict(stated)
    if "num_classes" in known:  # until labels were mapped, a class was called by its number
        known["class_names"] = map(str, range(known.pop("num_classes")))
    return DatasetFacts(**known | {"class_names": tuple(known["class_names"])})


def _read_bytes(path: Path, name: str, limit: int) -> bytes:
    if not os.path.lexists(path / name):
        missing = f"checkpoint {path} has no {name}" if path.is_dir() else f"there is no checkpoint {path}"
        raise CheckpointError(missing)
    return plain.read_plain(path / name, limit=limit, error=CheckpointError, linked=True)  # `cp -l` keeps copies


def _load_weights(network: nn.Module, file: Path, body: bytes) -> None:
    try:
        network.load_state_dict(_unpack(file, body))
    except RuntimeError as err:
        raise CheckpointError(f"{file} is of another network: {err}") from err


def _optimizer_tensors(player: str, network: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{player}/{name}/{quantity}": tensor
        for name, parameter in network.named_parameters()
        for quantity, tensor in optimizer.state[parameter].items()
    }


def _load_optimizer(player: str, network: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in network.named_parameters():
        prefix = f"{player}/{name}/"
        optimizer.state[parameter] = {
            # In the parameter's own layout: a fused kernel walks both side by side.
            key.removeprefix(prefix): torch.empty_like(parameter, requires_grad=False).copy_(tensor)
            if tensor.shape == parameter.shape
            else tensor.to(parameter.device)
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }


def _rng_tensors(rng: torch.Generator) -> dict[str, Tensor]:
    tensors = {"draws": rng.get_state(), "torch": torch.get_rng_state()}
    if rng.device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(rng.device)
    return tensors


def _load_rng(rng: torch.Generator, tensors: Mapping[str, Tensor], *, same_device: bool) -> None:
    torch.set_rng_state(tensors["torch"])
    if not same_device:  # a GPU and a CPU draw by other algorithms: go on from a seed that this state makes
        rng.manual_seed(int.from_bytes(hashlib.sha256(tensors["draws"].numpy().tobytes()).digest()[:8], "little"))
        return
    rng.set_state(tensors["draws"])
    if rng.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], rng.device)


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    return to_safetensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _unpack(file: Path, body: bytes) -> dict[str, Tensor]:
    try:
        return parse_safetensors(body)
    except safetensors.SafetensorError as err:
        raise CheckpointError(f"{file} is not a safetensors file: {err}") from err


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
