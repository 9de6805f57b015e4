"""Dynamic batching of rows: bounded, monotonic, isolating, cancellable.

A batch is what queued up while the previous one ran, so an idle server adds no waiting. Rows are batched, not requests:
a request larger than a batch is split and joined again. Everything here runs on one event loop, but for the session's
own calls: those that the warm-up measured as dear run in one thread, and the loop never blocks for longer than
`INLINE_MS`.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ganserve.errors import DeadlineError, GanserveError, InferenceError, OverloadedError

logger = logging.getLogger(__name__)

Latents = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

FAILED_BATCHES = 3  # as many in a row that gave nobody an image, and the session has to prove itself
_PROBE_EVERY_S = 1.0  # until it has
INLINE_MS = 0.5  # a cheaper batch runs on the loop: handing it to a thread and back costs about a tenth of that


class Runner(Protocol):
    """What the batcher needs of an engine."""

    cheapest_rows: int

    def run(self, latents: Latents, labels: Labels | None) -> Pixels:
        """Pixels for a batch, one row for each row."""
        ...

    def cost_ms(self, rows: int) -> float:
        """What a batch of `rows` is expected to take."""
        ...


class Ticket:
    """One request's rows on their way through the batcher.

    Attributes:
        pixels: uint8 [N, H, W, C] once all rows are there and none failed.
        error: why there are no pixels.
        done: whether one of the two is final; rows of a done ticket are not computed.
        batch_rows: rows of the largest batch that it was part of.
        enqueued_at, started_at, finished_at: by `time.perf_counter`, for figures. Not by the loop's clock, which uvloop
            stops for as long as one of its turns takes.
        deadline: by the loop's clock.
    """

    __slots__ = (
        "_missing",
        "_next_row",
        "_on_done",
        "batch_rows",
        "deadline",
        "done",
        "enqueued_at",
        "error",
        "finished_at",
        "labels",
        "latents",
        "pixels",
        "started_at",
    )

    def __init__(
        self,
        latents: Latents,
        labels: Labels | None,
        on_done: Callable[["Ticket"], None],
        enqueued_at: float,
        deadline: float,
    ) -> None:
        self.latents = latents
        self.labels = labels
        self.pixels: Pixels | None = None
        self.error: GanserveError | None = None
        self.done = False
        self.batch_rows = 0
        self.enqueued_at = enqueued_at
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.deadline = deadline
        self._on_done = on_done
        self._next_row = 0
        self._missing = len(latents)

    @property
    def queue_s(self) -> float:
        """How long it waited for its first batch."""
        return 0.0 if self.started_at is None else self.started_at - self.enqueued_at

    @property
    def inference_s(self) -> float:
        """From its first batch to its last image."""
        return 0.0 if self.started_at is None or self.finished_at is None else self.finished_at - self.started_at

    @property
    def waiting_rows(self) -> int:
        """Rows that no batch has taken yet."""
        return len(self.latents) - self._next_row


class _Part(NamedTuple):
    """A ticket's rows from `start` on, as many as go into one batch."""

    ticket: Ticket
    start: int
    latents: Latents
    labels: Labels | None


@dataclass(kw_only=True)
class Counters:
    """What has happened so far; plain numbers, read by whoever reports them.

    `done` counts requests that got their pixels; `queue_s` and `inference_s` are their waiting time, summed, and the
    session's busy time; `last_batch_at` is Unix time, 0 before the first batch.
    """

    batches: int = 0
    rows: int = 0
    done: int = 0
    queue_s: float = 0.0
    inference_s: float = 0.0
    last_batch_at: float = 0.0
    rejected_full: int = 0
    rejected_deadline: int = 0
    cancelled: int = 0
    failed: int = 0


class Batcher:
    """Queues rows and runs them through one engine, one batch at a time."""

    def __init__(
        self,
        engine: Runner,
        *,
        max_batch_rows: int,
        max_queue_rows: int,
        deadline_ms: float,
        max_delay_ms: float = 0.0,
        on_batch: Callable[[int, float], None] | None = None,
        probe: Callable[[], None] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """A batcher on the running event loop.

        Args:
            engine: runs the batches.
            max_batch_rows: no batch is larger; nor is it larger than what the engine measured as cheapest per row.
            max_queue_rows: rows that may wait; a request that does not fit is turned away at once.
            deadline_ms: a request that is not done by then fails, and its waiting rows are not computed.
            max_delay_ms: how long a batch that is not full waits for company. 0: not at all.
            on_batch: hears of every batch: its rows, and the seconds that it took.
            probe: raises unless the session works. Called, in the session's thread and between batches, when
                `FAILED_BATCHES` have failed in a row, and then every second until it returns; meanwhile not `ready`.
            loop: the event loop; by default the running one.
        """
        self._engine = engine
        self._batch_rows = min(max_batch_rows, engine.cheapest_rows)
        self._max_queue_rows = max_queue_rows
        self._deadline_s = deadline_ms / 1e3
        self._max_delay_s = max_delay_ms / 1e3
        self._on_batch = on_batch
        self._probe = probe
        self._probe_timer: asyncio.TimerHandle | None = None
        self._probe_due = False
        self._failed_batches = 0  # in a row
        self._fault: str | None = None  # what the last probe found
        self._loop = loop or asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ganserve-session")
        self._queue: OrderedDict[Ticket, None] = OrderedDict()  # tickets with waiting rows: first in, first out
        self._queue_rows = 0
        # Every ticket that is not done, oldest first. All have the same time allowance, so the first one's deadline is
        # the next to pass, and one timer serves them all.
        self._live: OrderedDict[Ticket, None] = OrderedDict()
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._wake_up: asyncio.Handle | None = None
        self._delayed = False  # whether _wake_up still waits for company
        self._running = False
        self._batch_started_at = 0.0
        self._closing = False
        self.draining = False  # about to stop: rows are still taken, but nobody should send new ones
        self.counters = Counters()

    @property
    def queue_rows(self) -> int:
        """Rows that wait for a batch."""
        return self._queue_rows

    @property
    def ready(self) -> bool:
        """Whether new rows are welcome."""
        return self.obstacle is None

    @property
    def obstacle(self) -> str | None:
        """Why new rows should go elsewhere, or None. They are taken all the same, until it is closing."""
        if self.draining or self._closing:
            return "the server is shutting down"
        if self._running and time.perf_counter() - self._batch_started_at > self._deadline_s:
            return "the session hangs: a batch takes longer than a request's deadline"
        return self._fault

    def check_room(self, rows: int) -> None:
        """Refuses rows that `submit` would refuse, before anybody makes them.

        Raises:
            OverloadedError: the queue has no room for so many, or the server is shutting down.
        """
        if self._closing:
            raise OverloadedError("the server is shutting down")
        if self._queue_rows + rows > self._max_queue_rows:
            self.counters.rejected_full += 1
            raise OverloadedError(
                f"the queue is full: {self._queue_rows} rows wait, {rows} more do not fit into {self._max_queue_rows}",
                retry_after_s=self._retry_after_s(),
            )

    def submit(self, latents: Latents, labels: Labels | None, on_done: Callable[[Ticket], None]) -> Ticket:
        """Queues rows; `on_done` is called once, on the loop, unless the ticket is cancelled first.

        Args:
            latents: finite float32 [N, latent_dim], N >= 1. Not copied: leave it alone until the ticket is done.
            labels: int64 [N], or None for an unconditional model.
            on_done: gets the ticket, with `pixels` or `error`.

        Raises:
            OverloadedError: the queue has no room for these rows, or the server is shutting down.
        """
        rows = len(latents)
        self.check_room(rows)
        ticket = Ticket(latents, labels, on_done, time.perf_counter(), self._loop.time() + self._deadline_s)
        self._queue[ticket] = None
        self._queue_rows += rows
        self._live[ticket] = None
        if self._deadline_timer is None:
            self._deadline_timer = self._loop.call_at(ticket.deadline, self._expire)
        self._schedule()
        return ticket

    async def generate(self, latents: Latents, labels: Labels | None) -> Ticket:
        """Queues rows and waits for their pixels; cancelling the wait cancels the rows.

        Raises:
            OverloadedError: no room.
            DeadlineError: not done in time.
            InferenceError: the session failed on these rows.
        """
        waiter: asyncio.Future[None] = self._loop.create_future()
        ticket = self.submit(latents, labels, lambda _: None if waiter.done() else waiter.set_result(None))
        try:
            await waiter
        except asyncio.CancelledError:
            self.cancel(ticket)
            raise
        if ticket.error is not None:
            raise ticket.error
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forgets a ticket that nobody waits for: its waiting rows are not computed, `on_done` is not called."""
        if not ticket.done:
            self.counters.cancelled += 1
            self._settle(ticket)

    async def close(self, timeout_s: float = 30.0) -> None:
        """Turns new rows away, waits for those that are queued, and ends the thread."""
        self._closing = True
        give_up_at = self._loop.time() + timeout_s
        while self._live and self._loop.time() < give_up_at:
            await asyncio.sleep(0.005)
        for ticket in [*self._live]:
            self._finish(ticket, error=OverloadedError("the server is shutting down"))
        for timer in (self._deadline_timer, self._wake_up, self._probe_timer):
            if timer is not None:
                timer.cancel()
        self._thread.shutdown(wait=not self._running, cancel_futures=True)

    # From here on: one batch after the other. _schedule -> _next -> (_execute) -> _deliver -> _next.

    def _schedule(self) -> None:
        """Arranges for the next batch, unless one is running: then `_deliver` does."""
        if self._running:
            return
        if self._probe_due and not self._closing:
            self._start_probe()
            return
        if self._max_delay_s == 0.0 or self._queue_rows >= self._batch_rows:
            if self._wake_up is not None and not self._delayed:
                return
            if self._wake_up is not None:
                self._wake_up.cancel()
            # Soon, not at once: requests that arrive in the same turn of the loop share the batch.
            self._wake_up, self._delayed = self._loop.call_soon(self._next), False
        elif self._wake_up is None:
            oldest = next(iter(self._queue))
            self._wake_up = self._loop.call_at(oldest.deadline - self._deadline_s + self._max_delay_s, self._next)
            self._delayed = True

    def _next(self) -> None:
        """Forms a batch and runs it: here if it is cheap, else in the thread."""
        self._wake_up = None
        if self._running:  # a probe: the next batch is formed when it is over
            return
        parts = self._take()
        if not parts:
            return
        rows = sum(len(part.latents) for part in parts)
        self.counters.batches += 1
        self.counters.rows += rows
        self.counters.last_batch_at = time.time()
        now = time.perf_counter()
        for part in parts:
            ticket = part.ticket
            if ticket.started_at is None:
                ticket.started_at = now
                self.counters.queue_s += now - ticket.enqueued_at
            if rows > ticket.batch_rows:
                ticket.batch_rows = rows
        self._running, self._batch_started_at = True, now
        try:
            if self._engine.cost_ms(rows) >= INLINE_MS:
                self._thread.submit(self._execute_and_return, parts)
                return
            outcome = self._execute(parts)
        except Exception as err:  # these rows have left the queue: without an outcome, nobody would ever answer
            logger.exception("a batch could not be run")
            outcome = [InferenceError(f"inference failed: {err}") for _ in parts]
        self._deliver(parts, outcome)

    def _take(self) -> list[_Part]:
        """Rows for one batch, oldest first. What is in the queue is wanted: tickets leave it when they are done."""
        parts: list[_Part] = []
        room = self._batch_rows
        while self._queue and room:
            ticket, _ = self._queue.popitem(last=False)
            start = ticket._next_row
            if start == 0 and len(ticket.latents) <= room:
                part = _Part(ticket, 0, ticket.latents, ticket.labels)
            else:
                some = slice(start, start + room)
                labels = None if ticket.labels is None else ticket.labels[some]
                part = _Part(ticket, start, ticket.latents[some], labels)
            parts.append(part)
            rows = len(part.latents)
            ticket._next_row += rows
            self._queue_rows -= rows
            room -= rows
            if ticket.waiting_rows:
                self._queue[ticket] = None
                self._queue.move_to_end(ticket, last=False)
        return parts

    def _execute_and_return(self, parts: list[_Part]) -> None:
        """In the thread: runs the batch and hands the outcome back to the loop."""
        outcome = self._execute(parts)
        try:
            self._loop.call_soon_threadsafe(self._deliver, parts, outcome)
        except RuntimeError:  # the loop was closed while the batch ran: nobody waits
            logger.warning("a batch finished after the event loop was closed rows=%d", len(outcome))

    def _execute(self, parts: list[_Part]) -> list[Pixels | GanserveError]:
        """Pixels of each part. If the batch fails, each part is run alone, so that only the poisoned one fails."""
        try:
            return list(self._run(parts))
        except InferenceError as err:
            if len(parts) == 1:
                logger.error("inference failed rows=%d error=%s", len(parts[0].latents), err)
                return [err]
        logger.warning("a batch failed and is retried request by request requests=%d", len(parts))
        return list(itertools.chain.from_iterable(self._execute([part]) for part in parts))

    def _run(self, parts: list[_Part]) -> list[Pixels]:
        latents, labels = parts[0].latents, parts[0].labels
        try:
            if len(parts) > 1:
                latents = np.concatenate([part.latents for part in parts])
                if labels is not None:
                    labels = np.concatenate([part.labels for part in parts if part.labels is not None])
            pixels = self._engine.run(latents, labels)
            if len(pixels) != len(latents):
                raise InferenceError(f"the session returned {len(pixels)} rows for {len(latents)}")
        except InferenceError:
            raise
        except Exception as err:  # a fault of ours must fail these requests, not stop the batcher
            logger.exception("unexpected error in the engine")
            raise InferenceError(f"inference failed: {err}") from err
        if len(parts) == 1:
            return [pixels]
        ends = [*itertools.accumulate(len(part.latents) for part in parts)]
        return [pixels[start:end] for start, end in itertools.pairwise([0, *ends])]  # a row's share is a view, no copy

    def _deliver(self, parts: list[_Part], outcome: list[Pixels | GanserveError]) -> None:
        self._running = False
        seconds = time.perf_counter() - self._batch_started_at
        self.counters.inference_s += seconds
        if self._on_batch is not None:
            try:
                self._on_batch(sum(len(part.latents) for part in parts), seconds)
            except Exception:  # whoever counts must not keep the images from those who wait
                logger.exception("the batch's callback failed")
        self._judge(outcome)
        for part, result in zip(parts, outcome, strict=True):
            ticket = part.ticket
            if ticket.done:
                continue
            if isinstance(result, GanserveError):
                self.counters.failed += 1
                self._finish(ticket, error=result)
                continue
            if len(result) == len(ticket.latents):
                ticket.pixels = result
            else:
                try:
                    if ticket.pixels is None:
                        ticket.pixels = np.empty((len(ticket.latents), *result.shape[1:]), dtype=np.uint8)
                    ticket.pixels[part.start : part.start + len(result)] = result
                except ValueError as err:  # images of another shape than the first ones: only this request fails
                    self.counters.failed += 1
                    self._finish(ticket, error=InferenceError(f"the session's images cannot be joined: {err}"))
                    continue
            ticket._missing -= len(result)
            if ticket._missing == 0:
                self.counters.done += 1
                self._finish(ticket)
        if self._queue:
            self._schedule()

    def _judge(self, outcome: list[Pixels | GanserveError]) -> None:
        """Counts batches that gave nobody an image; one that did says that the session works."""
        if all(isinstance(result, GanserveError) for result in outcome):
            self._failed_batches += 1
            if self._failed_batches == FAILED_BATCHES and self._probe is not None and self._probe_timer is None:
                self._probe_due = True
                if not self._queue:
                    self._loop.call_soon(self._schedule)
        elif self._failed_batches or self._fault is not None:
            self._failed_batches = 0
            self._recovered()

    def _recovered(self) -> None:
        self._probe_due = False
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        if self._fault is not None:
            self._fault = None
            logger.warning("the session works again: ready")

    def _start_probe(self) -> None:
        """In place of a batch: the session may not be able to run two things at once."""
        assert self._probe is not None, "else none is due"
        self._probe_due = False
        self._running, self._batch_started_at = True, time.perf_counter()
        self._thread.submit(self._run_probe, self._probe)

    def _run_probe(self, probe: Callable[[], None]) -> None:
        """In the thread."""
        fault = None
        try:
            probe()
        except Exception as err:  # whatever it is, it does not work
            fault = f"{type(err).__name__}: {err}"
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody wants to know
            self._loop.call_soon_threadsafe(self._probed, fault)

    def _probed(self, fault: str | None) -> None:
        self._running = False
        self._failed_batches = 0
        if fault is None:
            self._recovered()
        else:
            if self._fault is None:
                logger.error("the session does not work any more: not ready until it does error=%s", fault)
            self._fault = "the session fails, and does not give the golden images either"
            self._probe_timer = self._loop.call_later(_PROBE_EVERY_S, self._probe_again)
        if self._queue:
            self._schedule()

    def _probe_again(self) -> None:
        self._probe_timer = None
        self._probe_due = True
        self._schedule()

    def _expire(self) -> None:
        """Fails every ticket whose deadline has passed, and sets the timer for the next one."""
        self._deadline_timer = None
        now = self._loop.time()
        while self._live:
            ticket = next(iter(self._live))
            if ticket.deadline > now:
                self._deadline_timer = self._loop.call_at(ticket.deadline, self._expire)
                return
            self.counters.rejected_deadline += 1
            self._finish(ticket, error=DeadlineError(f"not done within {self._deadline_s * 1e3:g} ms"))

    def _finish(self, ticket: Ticket, *, error: GanserveError | None = None) -> None:
        if error is not None:
            ticket.pixels, ticket.error = None, error
        self._settle(ticket)
        try:
            ticket._on_done(ticket)
        except Exception:  # one request's callback must not keep its neighbours from theirs
            logger.exception("a request's callback failed")

    def _settle(self, ticket: Ticket) -> None:
        ticket.done = True
        ticket.finished_at = time.perf_counter()
        del self._live[ticket]
        if ticket in self._queue:
            del self._queue[ticket]
            self._queue_rows -= ticket.waiting_rows

    def _retry_after_s(self) -> int:
        """Whole seconds until a queue as full as this one has drained, by the warm-up's figures; at least 1."""
        return max(1, math.ceil(self._engine.cost_ms(self._queue_rows) / 1e3))
