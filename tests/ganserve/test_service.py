import asyncio

import numpy as np
import pytest

from ganserve import cuda, service
from ganserve.api.http import Context
from ganserve.batcher import Batcher
from ganserve.engine import Engine
from ganserve.latents import draw
from ganserve.service import GanServe
from ganserve.settings import Settings
from tests.artifacts import make_artifact


def test_generate_is_called_in_process(tmp_path):
    """Code in the service's own process calls `generate` and gets the engine's pixels, as over HTTP."""
    artifact = make_artifact(tmp_path / "digits")
    engine = Engine(artifact, device="cpu")

    async def call():
        service = GanServe.inner.__new__(GanServe.inner)
        batcher = Batcher(engine, max_batch_rows=64, max_queue_rows=64, deadline_ms=5000)
        service.context = Context(settings=Settings(), artifact=artifact, engine=engine, batcher=batcher)
        answer = await service.generate(n=2, seed=5, labels=[3], encoding="pixels")
        await batcher.close()
        return answer

    answer = asyncio.run(call())
    assert answer["labels"] == [3, 3]
    expected = engine.run(draw(5, 2, 16)[0], np.array([3, 3]))
    np.testing.assert_array_equal(np.array(answer["pixels"]), expected)


def test_it_is_ready_when_the_engine_is_proven_and_until_it_drains(tmp_path):
    """BentoML's /readyz: not before there is a batcher, which a proven engine comes before, and not while it drains."""
    engine = Engine(make_artifact(tmp_path / "digits"), device="cpu", max_batch_rows=1)

    async def scenario():
        made = GanServe.inner.__new__(GanServe.inner)
        made.batcher = None
        assert not made.__is_ready__()
        made.batcher = Batcher(engine, max_batch_rows=1, max_queue_rows=1, deadline_ms=5000)
        assert made.__is_ready__()
        made.batcher.draining = True
        assert not made.__is_ready__()
        await made.batcher.close()

    asyncio.run(scenario())


def test_workers_have_devices_where_there_is_cuda(monkeypatch):
    """By their number, whether CUDA was asked for or found; nobody asks a driver that is not there."""
    monkeypatch.setattr(cuda, "device_of", lambda worker: worker + 100)
    monkeypatch.setattr(service, "cuda_obstacle", lambda: "no driver")
    assert service._device_id(2) == 0
    monkeypatch.setattr(service, "cuda_obstacle", lambda: None)
    for device, given in (("auto", 102), ("cuda", 102), ("cpu", 0)):
        monkeypatch.setattr(service, "settings", Settings(device=device))
        assert service._device_id(2) == given


def test_open_files_are_allowed_for_the_connections(caplog):
    """The soft limit is raised to what the connections need and never lowered; what the hard one denies is told."""
    resource = pytest.importorskip("resource", reason="POSIX only")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        service._make_room_for(300)
        service._make_room_for(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300 + service._FILES, before[1])
        assert not caplog.records
        if before[1] != resource.RLIM_INFINITY:
            service._make_room_for(before[1])
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
            assert "ulimit -n" in caplog.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
