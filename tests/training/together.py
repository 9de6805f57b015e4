"""What each of two processes does that a fork server starts: in milliseconds, where torchrun takes seconds."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ganserve import cli
from training import distributed, pictures
from training.config import from_dict
from training.loop import train
from training.turns import Turns


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Everything in float64: what is left of a difference is then no rounding that a GAN has made large."""
    single, sheet = torch.Tensor.float, pictures.sheet_png
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign,assignment]
    pictures.sheet_png = lambda *_: b"sheet"  # its latents are float32, as a server's are
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.Tensor.float = single  # type: ignore[method-assign]
        pictures.sheet_png = sheet


def run_jobs(jobs: list[dict[str, Any]]) -> None:
    """Trains one job after the other: {"config", "run", "resume"}."""
    pictures.curves_png = lambda *_, **__: b"curves"  # a tenth of a second each, to draw
    with double_precision():
        for job in jobs:
            train(from_dict(job["config"]), Path(job["run"]), device="cpu", resume=job["resume"])


def become(rank: int, port: int, log: Path) -> None:
    """This process is `rank` of two, as torchrun would tell it; what it says goes to `log`."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store is the launcher's, as torchrun has it
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)


def jobs_member(rank: int, port: int, log: Path, jobs: list[dict[str, Any]]) -> None:
    """Trains the jobs with the other process."""
    become(rank, port, log)
    with distributed.joined():
        run_jobs(jobs)


def command_member(rank: int, port: int, log: Path, arguments: list[str], fault: str | None) -> None:
    """`ganserve train` with the other process; `fault` happens to this one in its third step."""
    become(rank, port, log)
    take = Turns.take

    def failing(turns: Turns, step: int) -> dict[str, torch.Tensor]:
        if step == 3 and fault:
            if fault.isdecimal():
                os.kill(os.getpid(), int(fault))
            else:
                raise OSError(errno.ENOSPC, fault)
        return take(turns, step)

    Turns.take = failing  # type: ignore[method-assign]
    sys.argv = ["ganserve", "train", *arguments]
    cli.main()
