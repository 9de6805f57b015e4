"""Processes that start in milliseconds, with one thread each: forked from one that has imported what they need."""

import functools
import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

import pytest


@functools.cache
def processes() -> ForkServerContext:
    """Their context. There is one such server for all tests: it imports, and reads its environment, when it starts."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "torch._dynamo",  # which the first optimizer imports, in a second or two
            "training.loop",
            "ganserve.engine",
            "tests.training.test_lose_nothing",
            "tests.training.together",
            "tests.ganserve.test_interrupted_export",
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context
