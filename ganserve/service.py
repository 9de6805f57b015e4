"""The BentoML service: lifecycle, and the front door.

`bentoml serve` in a directory with `bentofile.yaml` imports this module in the parent and again in every worker. In the
parent it checks that there is something to serve; in a worker it opens the engine, proves it, and opens the door. What
only a worker needs is imported where it does: nobody is answered before the parent has read its part.
"""

import asyncio
import contextlib
import gc
import json
import logging
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import BentoMLException

from ganserve import cpu, cuda
from ganserve.artifact import find_artifact
from ganserve.engine import Engine, cuda_obstacle
from ganserve.errors import GanserveError
from ganserve.settings import Settings

if TYPE_CHECKING:
    from ganserve.api.app import FrontDoor
    from ganserve.batcher import Batcher

logger = logging.getLogger(__name__)

_FILES = 128  # that a worker has open beside its connections: libraries, logs, metrics
_ROOT = Path.cwd()  # the project or the Bento: BentoML stands in it while it imports this, but not when it calls check


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turns our errors into BentoML's, which its command line prints as a message and not as a traceback."""
    try:
        yield
    except GanserveError as err:
        hint = f"\nhint: {err.hint}" if err.hint else ""
        raise BentoMLException(f"{err}{hint}") from err


with _explained():
    settings = Settings.from_env()


def _close_supervisors_ports() -> None:
    """Lets nobody but this process command the supervisor of the workers.

    BentoML has circus listen on two TCP ports of 127.0.0.1, where every process of the machine, whoever's it is, may
    tell it to stop or to run any command as the user who serves, without a token. Here they are `inproc`: no socket.
    """
    from bentoml._internal.utils.circus import Arbiter  # here: the workers do without it

    original = Arbiter.__init__

    def private(self: Any, *args: Any, endpoint: str, pubsub_endpoint: str, **options: Any) -> None:
        folder: str | None = None
        name = f"inproc://ganserve-{secrets.token_hex(8)}"
        if options.get("plugins"):  # --reload has a process that watches files and tells the supervisor of changes
            folder = tempfile.mkdtemp(prefix="ganserve-")  # 0700: for this user alone
            name = f"ipc://{folder}/supervisor"
        original(self, *args, endpoint=f"{name}-control", pubsub_endpoint=f"{name}-events", **options)
        if folder is not None:
            self.exit_stack.callback(shutil.rmtree, folder, ignore_errors=True)

    Arbiter.__init__ = private  # type: ignore[method-assign]  # BentoML makes it by its own name


def _make_room_for(connections: int) -> None:
    """Raises this process's soft limit of open files to what so many connections need, as far as the hard one allows.

    Shells start processes with 1,024, which a thousand idle clients would use up.
    """
    if sys.platform == "win32":
        return
    import resource

    wanted = connections + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < wanted:
            logger.warning(
                "%d connections need %d open files, %d are allowed (ulimit -n)", connections, wanted, allowed
            )


def _device_id(worker: int) -> int:
    """The CUDA device of a worker, numbered from 1; it is none's where there is no CUDA."""
    return 0 if settings.device == "cpu" or cuda_obstacle() is not None else cuda.device_of(worker)


class FrontedService(bentoml.Service):  # type: ignore[misc]  # bentoml's exports are lazy, so mypy sees Any
    """A BentoML service whose workers answer through the front door; BentoML's own application stands behind it."""

    door: "FrontDoor"

    def to_asgi(self, is_main: bool = True) -> "FrontDoor":
        """Each worker asks for its application here, before it starts uvicorn."""
        # What has been imported stays: the collector's walk through it, in `start`, would take 50 ms.
        gc.freeze()
        from ganserve.api import protocol
        from ganserve.api.app import FrontDoor

        self.door = FrontDoor(super().to_asgi(is_main), settings)
        protocol.install(self.door)
        return self.door


@bentoml.service(
    name="ganserve",
    service_class=FrontedService,
    workers=settings.workers,
    # BentoML would listen on every interface; --host or BENTOML_HOST says otherwise.
    http={"host": "127.0.0.1"},
    # The batcher has the deadline; BentoML's is only the last resort, a little later.
    traffic={"timeout": settings.deadline_ms / 1e3 + 5.0},
    logging={"access": {"enabled": False}},
)
class GanServe:
    """Images of a GAN generator, batched through one ONNX Runtime session."""

    bento_service: FrontedService  # set by BentoML after __init__

    def __init__(self) -> None:
        logging.getLogger("ganserve").setLevel(logging.getLogger("bentoml").level)  # as --quiet and --debug say
        self.artifact, reason = find_artifact(settings.artifact)
        self.engine = Engine(
            self.artifact,
            device=settings.device,
            device_id=_device_id(bentoml.server_context.worker_index or 1),
            precision=settings.precision,
            threads=settings.threads or cpu.threads_per_worker(settings.workers),
            max_batch_rows=settings.max_batch_rows,
        )
        self.batcher: Batcher | None = None
        logger.info(
            "serving artifact=%s (%s) digest=%s provider=%s (%s) precision=%s threads=%d cheapest_rows=%d",
            self.artifact.path,
            reason,
            self.artifact.digest,
            self.engine.provider,
            self.engine.provider_reason,
            self.engine.precision,
            self.engine.threads,
            self.engine.cheapest_rows,
        )

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        """Once, in the parent: nothing starts without a whole artifact that works here.

        BentoML starts a worker that fails again and again, so what can be known before is found out here.
        """
        _close_supervisors_ports()
        with _explained(), contextlib.chdir(_ROOT):
            artifact, _ = find_artifact(settings.artifact)
            artifact.verify()
            if settings.device == "cpu" or cuda_obstacle() is not None:  # else it would keep memory of the device
                Engine(
                    artifact,
                    device=settings.device,
                    precision=settings.precision,
                    threads=cpu.threads_per_worker(),
                    max_batch_rows=1,
                )

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def start(self) -> None:
        """On the worker's event loop: the engine is proven, so the door may open."""
        from ganserve.api.http import Context
        from ganserve.batcher import Batcher
        from ganserve.metrics import Metrics

        self.metrics = Metrics(
            BentoMLContainer.metrics_client.get().prometheus_client,
            name=self.engine.manifest.name,
            digest=self.engine.digest,
            provider=self.engine.provider,
        )
        self.batcher = Batcher(
            self.engine,
            max_batch_rows=settings.max_batch_rows,
            max_queue_rows=settings.max_queue_rows,
            deadline_ms=settings.deadline_ms,
            max_delay_ms=settings.max_delay_ms,
            spin_us=settings.spin_us,
            on_batch=self.metrics.batch,
            probe=self.engine.prove,
        )
        self.context = Context(
            settings=settings,
            artifact=self.artifact,
            engine=self.engine,
            batcher=self.batcher,
            metrics=self.metrics,
        )
        _make_room_for(settings.max_connections)
        self.flushing = asyncio.create_task(self._flush_metrics())
        self.bento_service.door.open(self.context)
        self._drain_on_sigterm(asyncio.get_running_loop())
        # What is there now stays: the collector need not walk through it while requests wait.
        # At 64 connections that was a p99 of 41 ms in place of 18.
        gc.collect()
        gc.freeze()
        # Requests leave next to no cycles behind: look for them once in 20,000 new objects, not in 700.
        gc.set_threshold(20_000, 20, 20)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def stop(self) -> None:
        """Uvicorn has stopped listening: what was accepted is finished first."""
        if self.batcher is not None:
            await self.batcher.close()
            self.flushing.cancel()
            self.metrics.flush(self.batcher.counters, self.batcher.queue_rows)
            self.batcher = None

    async def _flush_metrics(self) -> None:
        while self.batcher is not None:
            self.metrics.flush(self.batcher.counters, self.batcher.queue_rows)
            await asyncio.sleep(1.0)

    def _drain_on_sigterm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Puts unreadiness before uvicorn's own handling of SIGTERM, which stops listening at once."""
        stop = signal.getsignal(signal.SIGTERM)
        if not callable(stop) or threading.current_thread() is not threading.main_thread():
            return  # not in a worker: whoever embeds the service has the signals

        def drain(number: int, frame: FrameType | None) -> None:
            if self.batcher is None or self.batcher.draining or settings.drain_ms == 0.0:
                stop(number, frame)  # a second SIGTERM waits for nothing
                return
            self.batcher.draining = True
            logger.info("draining for %g ms", settings.drain_ms)
            loop.call_soon_threadsafe(loop.call_later, settings.drain_ms / 1e3, stop, number, None)

        signal.signal(signal.SIGTERM, drain)

    def __is_ready__(self) -> bool:
        """BentoML's /readyz asks."""
        return self.batcher is not None and self.batcher.ready

    @bentoml.api  # type: ignore[untyped-decorator]
    async def generate(
        self,
        n: int | None = None,
        seed: int | None = None,
        labels: int | list[int] | None = None,
        truncation: float | None = None,
        latents: list[list[float]] | None = None,
        encoding: Literal["png", "pixels"] | None = None,
    ) -> dict[str, Any]:
        """The fields and the answer of `POST /v1/generate`, for BentoML's own clients.

        `/schema.json` and `/docs.json` are made of this signature, and code in the same process calls it. Over HTTP the
        door answers the route itself: BentoML on its way here would take "3" for 3, pass over unknown fields, and log
        a traceback for each 400.
        """
        from ganserve.api import native

        fields = {
            "n": n,
            "seed": seed,
            "labels": labels,
            "truncation": truncation,
            "latents": latents,
            "encoding": encoding,
        }
        work = native.work_for(fields, self.context)
        rows, row_labels = work.inputs()
        ticket = await self.context.batcher.generate(rows, row_labels)
        assert ticket.pixels is not None
        answer: dict[str, Any] = json.loads(work.finish(row_labels, ticket.pixels).body)
        return answer
