"""One training in several processes: torchrun starts them, torch.distributed connects them.

    torchrun --nproc-per-node=2 -m ganserve train

Each process has both players whole and an equal share of every batch; what is drawn at random is drawn by each of them
for the whole batch, so that all draw the same. Gradients are averaged by DistributedDataParallel, and whatever looks at
a batch (batch statistics, minibatch deviation, metrics) looks at all of it: the numbers are those of one process.
Rank 0 alone writes the run. In a process of its own, every function here gives back what it gets.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]  # public, though not listed
from torch.nn.parallel import DistributedDataParallel

from ganserve.errors import ConfigError, TrainingError

T = TypeVar("T")

_LAUNCHER: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun, and others, tell a process
# What gloo and NCCL say, as a bare RuntimeError at times, when another process is gone.
_LOST: Final = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket|timed out", re.IGNORECASE)


def launched() -> bool:
    """Whether this process was started as one of several, by torchrun or by something that sets the same variables."""
    return all(name in os.environ for name in _LAUNCHER) and int(os.environ["WORLD_SIZE"]) > 1


def rank() -> int:
    """Which of the processes this is, from 0; rank 0 writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Connects the processes that were started together, if they were, while the block lasts.

    What is raised in one of them ends them all: the first to fail raises it, so that there is one message; the others
    leave with exit code 1 and without a word, as soon as they next wait for it.

    Raises:
        TrainingError: another process is gone, and has not said why.
    """
    if not launched():
        yield
        return
    store, this, count = next(rendezvous("env://"))
    # CPU tensors go by gloo on a GPU too: it notices a process that is gone, and nothing there waits for the device.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=this, world_size=count)
    try:
        with warnings.catch_warnings():
            # Of a convolution of one channel, whose gradient has two equal layouts.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
            yield
        largest(0)  # waits for all, and for no GPU: rank 0 may be writing, and may fail at it
    except (Exception, KeyboardInterrupt) as err:
        if not _first_to_fail(store, this):
            raise SystemExit(1) from err
        if isinstance(err, RuntimeError) and _LOST.search(str(err)):
            raise TrainingError(
                f"another of the {count} processes of this training is gone, and has not said why",
                hint="the launcher's own report says which; --resume goes on from the latest checkpoint",
            ) from err
        raise
    dist.destroy_process_group()


def _first_to_fail(store: Store, this: int) -> bool:
    """Whether nobody has failed before; a process that fails says so here before its connections close."""
    try:
        return bool(store.compare_set("failed", "", str(this)) == str(this).encode())
    except RuntimeError:  # torchrun keeps the store, or rank 0 where there is no torchrun: one of them is gone
        return this == 0


def choose_gpu() -> None:
    """Makes one GPU of this machine the current one of this process alone.

    Raises:
        ConfigError: there are fewer GPUs than processes.
    """
    local, there = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
    if local >= there:
        raise ConfigError(
            f"process {local} of this machine has no GPU of its own: there are {there}",
            hint=f"torchrun --nproc-per-node={there}, or --device cpu",
        )
    torch.cuda.set_device(local)


def check_batch(batch_size: int) -> None:
    """Refuses a batch that cannot be shared equally.

    Raises:
        ConfigError: `batch_size` is no multiple of the number of processes.
    """
    if batch_size % size():
        raise ConfigError(
            f"batch_size is {batch_size}, which {size()} processes cannot share equally",
            hint=f"set batch_size={batch_size + -batch_size % size()}, or start another number of processes",
        )


def first_says(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, which alone calls it."""
    if size() == 1:
        return make()
    said: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
    return said[0]  # type: ignore[no-any-return]


def largest(number: int) -> int:
    """The largest of all processes' numbers; no device is waited for."""
    if size() == 1:
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def mine(rows: Tensor) -> Tensor:
    """This process's share of a whole batch [N, ...]: [N / size, ...]."""
    if size() == 1:
        return rows
    share = len(rows) // size()
    return rows[rank() * share : (rank() + 1) * share]


def mean(tensor: Tensor) -> Tensor:
    """The mean over all processes, element by element; differentiable, twice too.

    Backwards it is the mean of what comes back, so that the mean of all processes' losses has its gradient.
    """
    return tensor if size() == 1 else _Sum.apply(tensor) / size()  # type: ignore[no-untyped-call]


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each one's input moves every one's output, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.apply(gradients[0])  # type: ignore[no-any-return,no-untyped-call]


class GradientMean:
    """Averages a network's gradients over all processes, in whatever backward pass comes after a call of this.

    DistributedDataParallel hangs its hooks on the parameters, and its forward pass gets them ready for one backward
    pass into them. Here that is all it is used for: a turn is no single forward pass, but features, logits of them
    under several labels, and gradients of those, differentiated again. None of that reaches the parameters before the
    one backward pass at the end does.
    """

    def __init__(self, network: nn.Module) -> None:
        """Takes over rank 0's weights and buffers; after that all processes compute the same ones."""
        self._shared = DistributedDataParallel(_Hull(network), forward_sync_buffers=False) if size() > 1 else None

    def __call__(self) -> None:
        """Gets ready for the next backward pass."""
        if self._shared is not None:
            self._shared()


class _Hull(nn.Module):
    """Has a network's parameters, and computes nothing."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self) -> None:
        """Nothing."""
