import asyncio

import numpy as np

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
