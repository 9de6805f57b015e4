"""Several processes train one run, and the numbers are those of one process."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ganserve.errors import ConfigError
from tests.forked import processes
from tests.training.together import command_member, jobs_member, run_jobs
from training import distributed, run_dir
from training.checkpoint import verify_checkpoint
from training.config import TrainingConfig, override, to_dict
from training.loop import train

MakeConfig = Callable[..., TrainingConfig]
ROOT = Path(__file__).parents[2]
TINY = ["batch_size=8", "generator.latent_dim=4", "generator.width=4", "discriminator.width=4", "log.evaluate_images=0"]
LOSSES = ("loss_discriminator", "loss_generator", "d_real", "d_fake", "logit_margin", "grad_norm_discriminator")
# Each setting that looks at a batch, draws at random, differentiates twice or passes through a player more than once.
KINDS = {
    "quick": ["reuse_fakes=false"],
    "deviation": [
        "discriminator.minibatch_deviation=true",
        "discriminator.norm=spectral",
        "penalty.r2=1",
        *[f"augment.{change}=0.3" for change in ("brightness", "contrast", "translation", "cutout")],
    ],
    "critic": [
        "objective=wasserstein",
        "wrong_label_weight=0",
        "penalty.gradient=10",
        "discriminator_steps=2",
        "generator.kind=residual",
        "discriminator.kind=residual",
        "optimizer.kind=rmsprop",
        "optimizer.lr=1e-4",
    ],
    "pairs": ["objective=rpgan", "generator.kind=subpixel", "generator.norm=none", "first_player=generator"],
    "article": ["conditional=false", "wrong_label_weight=0", "generator.kind=mlp", "discriminator.kind=mlp"],
}


def both(target: Callable[..., None], log: Path, given: Callable[[int], tuple[Any, ...]]) -> tuple[list[Any], str]:
    """Exit codes of two processes that do `target`, of what `given` says for each, and all that both of them said."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    logs = [log / f"log-{rank}" for rank in range(2)]
    started = [
        processes().Process(target=target, args=(rank, store.port, logs[rank], *given(rank))) for rank in range(2)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(100)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes, "".join(log.read_text() for log in logs)


def jobs(root: Path, configs: dict[str, TrainingConfig], *, resume: bool = False) -> list[dict[str, Any]]:
    """What `run_jobs` is to do."""
    return [{"config": to_dict(config), "run": str(root / name), "resume": resume} for name, config in configs.items()]


def losses(run: Path) -> np.ndarray:
    """[steps, quantity] of a run that logs every step."""
    return np.array([[point[name] for name in LOSSES] for point in run_dir.read_metrics(run)])


@pytest.mark.slow
def test_two_processes_are_one(make_config: MakeConfig, tmp_path: Path) -> None:
    """Fifty steps of two processes have the losses of one process, and a run goes from one to two and back again."""
    base = make_config("steps=12", "log.evaluate_images=0", "log.sheet_every_steps=50")
    configs = {name: override(base, ["log.checkpoint_every_steps=50", *overrides]) for name, overrides in KINDS.items()}
    configs["quick"] = override(configs["quick"], ["steps=50"])
    whole = override(
        configs["deviation"], ["optimizer.final_lr_share=1", "steps=15"]
    )  # a rate that has no end to fall to
    parts = {steps: {"moved": override(whole, [f"steps={steps}"])} for steps in (5, 10, 15)}
    run_jobs(jobs(tmp_path / "one", configs | {"whole": whole}))
    run_jobs(jobs(tmp_path / "one", parts[5]))
    todo = jobs(tmp_path / "two", configs) + jobs(tmp_path / "one", parts[10], resume=True)
    codes, said = both(jobs_member, tmp_path, lambda _: (todo,))
    assert codes == [0, 0], said
    assert "resuming elsewhere, so not to the last bit: processes 1 -> 2\n" in said
    for name in configs:
        one, two = losses(tmp_path / "one" / name), losses(tmp_path / "two" / name)
        assert one.shape == two.shape == (configs[name].steps, len(LOSSES)), name
        np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-6, err_msg=name)

    between = run_dir.latest_checkpoint(tmp_path / "one" / "moved")[0]
    assert verify_checkpoint(between).environment["processes"] == "2"
    run_jobs(jobs(tmp_path / "one", parts[15], resume=True))
    moved, straight = tmp_path / "one" / "moved", tmp_path / "one" / "whole"
    np.testing.assert_allclose(losses(moved), losses(straight), rtol=1e-6, atol=1e-6)
    for file in ("generator", "discriminator", "generator_ema", "optimizers"):
        ends = [load_file(run_dir.latest_checkpoint(run)[0] / f"{file}.safetensors") for run in (moved, straight)]
        for name, tensor in ends[0].items():
            torch.testing.assert_close(tensor, ends[1][name], rtol=1e-5, atol=1e-6, msg=f"{file} {name}")


@pytest.mark.slow
def test_a_signal_to_torchrun_ends_with_one_checkpoint(make_data: Callable[..., Path], tmp_path: Path) -> None:
    """All processes end at one step, which rank 0 alone saves, and one process goes on from there."""
    run = tmp_path / "run"
    settings = [part for one in [*TINY, "steps=100000", "log.every_steps=1"] for part in ("--set", one)]
    arguments = ["--data", str(make_data()), "--run", str(run), *settings, "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "ganserve", "train", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as torchrun:
        deadline = time.monotonic() + 100
        while not (run / run_dir.METRICS_FILE).exists() and time.monotonic() < deadline and torchrun.poll() is None:
            time.sleep(0.05)
        torchrun.send_signal(signal.SIGTERM)
        out, err = torchrun.communicate(timeout=100)
    assert out.count("images in") == 1, err
    assert err.count("interrupted; go on with: torchrun --nproc-per-node=2 -m -- ganserve train --run") == 1
    assert err.count("training ") == 1
    checkpoint, _ = run_dir.latest_checkpoint(run)
    steps = verify_checkpoint(checkpoint).step
    points = run_dir.read_metrics(run)
    assert [point["step"] for point in points] == list(range(1, steps + 1))
    config = override(run_dir.load_config(run), [f"steps={steps + 2}"])
    assert train(config, run, device="cpu", resume=True).steps == steps + 2


@pytest.mark.parametrize("reason", ["data", "disk", "killed", "diverged", "batch", "recipe"])
def test_a_failure_anywhere_ends_all_with_one_message(
    make_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Whichever process fails, and however: both end at once, one of them says why, and nobody waits for ever."""
    monkeypatch.chdir(tmp_path)
    digits = make_data()
    expected = {
        "data": "missing cannot be read: No such file or directory",
        "disk": "r cannot be written: the disk is full",
        "killed": "error: another of the 2 processes of this training is gone",
        "diverged": "error: training diverged at step",
        "batch": "error: batch_size is 9, which 2 processes cannot share equally",
        "recipe": "error: there is no recipe 'quik'",
    }
    extra = {
        "diverged": ["--set", "optimizer.lr=900"],
        "batch": ["--set", "batch_size=9"],
        "recipe": ["--recipe", "quik"],
    }
    settings = [part for one in [*TINY, "steps=2000", "log.every_steps=1000"] for part in ("--set", one)]

    def arguments(rank: int) -> list[str]:
        data = "missing" if reason == "data" and rank == 1 else str(digits)
        return ["--data", data, "--device", "cpu", "--run", "r", *settings, *extra.get(reason, [])]

    fault = {"disk": "the disk is full", "killed": str(int(signal.SIGKILL))}.get(reason)
    at = 0 if reason == "disk" else 1
    codes, said = both(command_member, tmp_path, lambda rank: (arguments(rank), fault if rank == at else None))
    assert codes == ([1, -signal.SIGKILL] if reason == "killed" else [1, 1]), said
    assert said.count(expected[reason]) == 1, said
    assert len(re.findall(r"^(?:\[rank\d\]: )?\w*[eE]rror: ", said, re.MULTILINE)) == 1, said


def test_what_one_process_gets_is_what_it_gives() -> None:
    """Nothing is shared, averaged or waited for."""
    rows = torch.arange(6.0)
    assert (distributed.rank(), distributed.size()) == (0, 1)
    assert distributed.mine(rows) is rows
    assert distributed.mean(rows) is rows
    assert distributed.largest(15) == 15
    assert distributed.first_says(lambda: "this") == "this"
    distributed.check_batch(7)
    distributed.GradientMean(torch.nn.Linear(2, 1))()


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of its place on the machine; with fewer GPUs than processes nothing starts."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    distributed.choose_gpu()
    assert chosen == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU of its own: there are 2"):
        distributed.choose_gpu()
