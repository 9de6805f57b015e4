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
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ganserve.engine import INLINE_MS
from ganserve.errors import DeadlineError, GanserveError, InferenceError, OverloadedError, RequestError

logger = logging.getLogger(__name__)

Latents = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]

FAILED_BATCHES = 3  # as many in a row that gave nobody an image, and the session has to prove itself
_PROBE_EVERY_S = 1.0  # until it has
_LET_IN_S = 0.002  # that a batch may be late for the sake of those who connect


class Runner(Protocol):
    """What the batcher needs of an engine."""

    cheapest_rows: int

    def run(self, latents: Latents, labels: Labels | None) -> Pixels:
        """Pixels for a batch, one row for each row."""
        ...

    def cost_ms(self, rows: int) -> float:
        """What a batch of `rows` is expected to take."""
        ...


class Reader(Protocol):
    """Reads rows out of what clients sent, those of a whole batch at once: one array is made as quickly as sixty."""

    def read(self, sources: Sequence[bytes]) -> tuple[Latents, Labels | None]:
        """The rows of all sources, one source after the other: finite float32 [N, latent_dim], int64 [N] or None.

        Raises:
            RequestError: one of the sources is not what the model takes.
        """
        ...


class Ticket:
    """One request's rows on their way through the batcher.

    A subclass may override `notify`, which is called once, on the loop, unless the ticket is cancelled first.

    Attributes:
        rows: how many.
        latents: float32 [N, latent_dim]; None until `reader` has read them.
        labels: int64 [N]; None as `latents`, and if the model takes none.
        source: what `reader` reads them from.
        reader: None if they came as arrays.
        pixels: uint8 [N, H, W, C] once all rows are there and none failed.
        error: why there are no pixels.
        done: whether one of the two is final; rows of a done ticket are not computed.
        batch_rows: rows of the largest batch that it was part of.
        enqueued_at, started_at, finished_at, deadline: by `time.perf_counter`. Not by the loop's clock, which uvloop
            stops for as long as one of its turns takes.
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
        "reader",
        "rows",
        "source",
        "started_at",
    )

    _on_done: Callable[["Ticket"], object]
    enqueued_at: float
    deadline: float

    def __init__(
        self,
        rows: int,
        *,
        latents: Latents | None = None,
        labels: Labels | None = None,
        source: bytes = b"",
        reader: Reader | None = None,
    ) -> None:
        """`rows` of latents (and labels), or of what `reader` finds in `source`; neither is copied."""
        self.rows = self._missing = rows
        self.latents = latents
        self.labels = labels
        self.source = source
        self.reader = reader
        self.pixels: Pixels | None = None
        self.error: GanserveError | None = None
        self.done = False
        self.batch_rows = self._next_row = 0
        self.started_at: float | None = None
        self.finished_at: float | None = None

    def notify(self) -> None:
        """There are `pixels` or an `error`."""
        self._on_done(self)

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
        return self.rows - self._next_row


# As many of a ticket's rows as go into one batch: the ticket, its first row in it, and how many.
_Part = tuple[Ticket, int, int]


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
        spin_us: float = 0.0,
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
            spin_us: how long the loop stays awake after a batch. Who asks again at once is not waited for asleep.
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
        self._spin_s = spin_us / 1e6
        self._awake_until = 0.0
        self._spinning = False
        self._turns_for_newcomers = 0
        self._let_in_until = 0.0
        self._on_batch = on_batch
        self._probe = probe
        self._probe_timer: asyncio.TimerHandle | None = None
        self._probe_due = False
        self._failed_batches = 0  # in a row
        self._fault: str | None = None  # what the last probe found
        self._loop = loop or asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ganserve-session")
        self._queue: deque[Ticket] = deque()  # tickets with waiting rows: first in, first out
        self._queue_rows = 0
        # Every ticket that is not done, oldest first. All have the same time allowance, so the first one's deadline is
        # the next to pass, and one timer serves them all.
        self._live: dict[Ticket, None] = {}
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

    def newcomer(self) -> None:
        """Somebody has connected, in this turn of the loop.

        uvloop lets one in each turn. If a batch ran in every one of them, of a thousand who connect at once the last
        would wait for a thousand batches; so the next batch waits for `_LET_IN_S` while there are more at the door.
        """
        self._turns_for_newcomers = 2  # the next one is at the door before the next batch, but in after it

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

    def submit(self, latents: Latents, labels: Labels | None, on_done: Callable[[Ticket], object]) -> Ticket:
        """Queues rows; `on_done` is called once, on the loop, unless the ticket is cancelled first.

        Args:
            latents: finite float32 [N, latent_dim], N >= 1. Not copied: leave it alone until the ticket is done.
            labels: int64 [N], or None for an unconditional model.
            on_done: gets the ticket, with `pixels` or `error`.

        Raises:
            OverloadedError: the queue has no room for these rows, or the server is shutting down.
        """
        ticket = Ticket(len(latents), latents=latents, labels=labels)
        ticket._on_done = on_done
        self.enqueue(ticket)
        return ticket

    def enqueue(self, ticket: Ticket) -> None:
        """As `submit`. Rows that the ticket's reader has to read are read when their batch is formed.

        Raises:
            OverloadedError: as `submit`.
        """
        rows = ticket.rows
        if self._closing or self._queue_rows + rows > self._max_queue_rows:
            self.check_room(rows)
        now = time.perf_counter()
        ticket.enqueued_at, ticket.deadline = now, now + self._deadline_s
        self._queue.append(ticket)
        self._queue_rows += rows
        self._live[ticket] = None
        if self._deadline_timer is None:
            self._deadline_timer = self._loop.call_later(self._deadline_s, self._expire)
        if self._wake_up is None or self._delayed:
            self._schedule()

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
            waited_s = time.perf_counter() - self._queue[0].enqueued_at
            self._wake_up = self._loop.call_later(max(0.0, self._max_delay_s - waited_s), self._next)
            self._delayed = True

    def _next(self) -> None:
        """Forms a batch and runs it: here if it is cheap, else in the thread."""
        self._wake_up = None
        if self._running:  # a probe: the next batch is formed when it is over
            return
        if self._turns_for_newcomers and self._waits_for_newcomers():
            return
        self._let_in_until = 0.0
        parts = self._take()
        if not parts:
            return
        rows = sum(part[2] for part in parts)
        counters = self.counters
        counters.batches += 1
        counters.rows += rows
        counters.last_batch_at = time.time()
        now = time.perf_counter()
        for ticket, _, _ in parts:
            if ticket.started_at is None:
                ticket.started_at = now
                counters.queue_s += now - ticket.enqueued_at
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

    def _waits_for_newcomers(self) -> bool:
        """Whether the loop turns once more before the next batch, to let somebody else in."""
        self._turns_for_newcomers -= 1
        now = time.perf_counter()
        if self._let_in_until == 0.0:
            self._let_in_until = now + _LET_IN_S
        if now > self._let_in_until:
            self._let_in_until = 0.0
            return False
        self._wake_up, self._delayed = self._loop.call_soon(self._next), False
        return True

    def _take(self) -> list[_Part]:
        """Rows for one batch, oldest first. What is in the queue is wanted: tickets leave it when they are done."""
        parts: list[_Part] = []
        queue, room = self._queue, self._batch_rows
        while queue and room:
            ticket = queue[0]
            start, rows = ticket._next_row, ticket.waiting_rows
            if rows <= room:
                queue.popleft()
            else:
                rows = room
            parts.append((ticket, start, rows))
            ticket._next_row = start + rows
            room -= rows
        self._queue_rows -= self._batch_rows - room
        return parts

    def _execute_and_return(self, parts: list[_Part]) -> None:
        """In the thread: runs the batch and hands the outcome back to the loop."""
        outcome = self._execute(parts)
        try:
            self._loop.call_soon_threadsafe(self._deliver, parts, outcome)
        except RuntimeError:  # the loop was closed while the batch ran: nobody waits
            logger.warning("a batch finished after the event loop was closed rows=%d", len(outcome))

    def _execute(self, parts: list[_Part]) -> list[Pixels | GanserveError]:
        """Pixels of each part, or why there are none: what one client sent, or what its rows do, is nobody else's.

        Rows that their reader refuses are left out. If the batch fails, each part is run alone, so that only the
        poisoned one fails.
        """
        if not parts:
            return []
        ends = [*itertools.accumulate([part[2] for part in parts])]
        error: GanserveError
        try:
            latents, labels = _gather(parts)
            pixels = self._engine.run(latents, labels)
            if len(pixels) != ends[-1]:
                raise InferenceError(f"the session returned {len(pixels)} rows for {ends[-1]}")
        except (RequestError, InferenceError) as err:
            error = err
        except Exception as err:  # a fault of ours must fail these requests, not stop the batcher
            logger.exception("unexpected error in the engine")
            error = InferenceError(f"inference failed: {err}")
        else:
            # A row's share is a view, no copy.
            return [pixels[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

        if len(parts) == 1:
            if isinstance(error, InferenceError):
                logger.error("inference failed rows=%d error=%s", ends[-1], error)
            return [error]
        if isinstance(error, RequestError):
            refused = _refused(parts)
            outcome = iter(self._execute([part for part in parts if part[0] not in refused]))
            return [refused[part[0]] if part[0] in refused else next(outcome) for part in parts]
        logger.warning("a batch failed and is retried request by request requests=%d", len(parts))
        return list(itertools.chain.from_iterable(self._execute([part]) for part in parts))

    def _deliver(self, parts: list[_Part], outcome: list[Pixels | GanserveError]) -> None:
        self._running = False
        counters, live = self.counters, self._live
        now = time.perf_counter()
        seconds = now - self._batch_started_at
        counters.inference_s += seconds
        if self._on_batch is not None:
            try:
                self._on_batch(sum(part[2] for part in parts), seconds)
            except Exception:  # whoever counts must not keep the images from those who wait
                logger.exception("the batch's callback failed")
        self._judge(outcome)
        for (ticket, start, rows), result in zip(parts, outcome, strict=True):
            if ticket.done:
                continue
            if isinstance(result, GanserveError):
                counters.failed += isinstance(result, InferenceError)
                self._finish(ticket, error=result)
                continue
            if rows == ticket.rows:
                ticket.pixels = result
            else:
                try:
                    if ticket.pixels is None:
                        ticket.pixels = np.empty((ticket.rows, *result.shape[1:]), dtype=np.uint8)
                    ticket.pixels[start : start + rows] = result
                except ValueError as err:  # images of another shape than the first ones: only this request fails
                    counters.failed += 1
                    self._finish(ticket, error=InferenceError(f"the session's images cannot be joined: {err}"))
                    continue
                ticket._missing -= rows
                if ticket._missing:
                    continue
            counters.done += 1
            # `_finish`, without what a ticket does not need that has no more rows in the queue.
            ticket.done, ticket.finished_at = True, now
            del live[ticket]
            try:
                ticket.notify()
            except Exception:  # one request's callback must not keep its neighbours from theirs
                logger.exception("a request's callback failed")
        if self._queue:
            self._schedule()
        elif self._spin_s:
            self._awake_until = time.perf_counter() + self._spin_s
            if not self._spinning:
                self._spinning = True
                self._loop.call_soon(self._spin)

    def _spin(self) -> None:
        """Has the loop look for requests without going to sleep: with something to call, it does not."""
        if self._running or time.perf_counter() >= self._awake_until:
            self._spinning = False
        else:
            self._loop.call_soon(self._spin)

    def _judge(self, outcome: list[Pixels | GanserveError]) -> None:
        """Counts batches that gave nobody an image; one that did says that the session works."""
        outcome = [result for result in outcome if not isinstance(result, RequestError)]  # that never reached it
        if not outcome:
            return
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
        now = time.perf_counter()
        while self._live:
            ticket = next(iter(self._live))
            if ticket.deadline > now:
                self._deadline_timer = self._loop.call_later(ticket.deadline - now, self._expire)
                return
            self.counters.rejected_deadline += 1
            self._finish(ticket, error=DeadlineError(f"not done within {self._deadline_s * 1e3:g} ms"))

    def _finish(self, ticket: Ticket, *, error: GanserveError | None = None) -> None:
        if error is not None:
            ticket.pixels, ticket.error = None, error
        self._settle(ticket)
        try:
            ticket.notify()
        except Exception:  # one request's callback must not keep its neighbours from theirs
            logger.exception("a request's callback failed")

    def _settle(self, ticket: Ticket) -> None:
        ticket.done = True
        ticket.finished_at = time.perf_counter()
        del self._live[ticket]
        if ticket.waiting_rows:
            self._queue.remove(ticket)
            self._queue_rows -= ticket.waiting_rows

    def _retry_after_s(self) -> int:
        """Whole seconds until a queue as full as this one has drained, by the warm-up's figures; at least 1."""
        return max(1, math.ceil(self._engine.cost_ms(self._queue_rows) / 1e3))


def _gather(parts: Sequence[_Part]) -> tuple[Latents, Labels | None]:
    """The rows of a batch.

    Raises:
        RequestError: a reader refuses one of the sources.
    """
    reader = parts[0][0].reader
    if reader is not None:
        sources = [
            ticket.source
            for ticket, _, rows in parts
            if ticket.reader is reader and ticket.latents is None and rows == ticket.rows
        ]
        if len(sources) == len(parts):
            return reader.read(sources)
    pieces: list[Latents] = []
    label_pieces: list[Labels] = []
    for ticket, start, rows in parts:
        latents, labels = _rows_of(ticket)
        some = slice(start, start + rows)
        pieces.append(latents[some])
        if labels is not None:
            label_pieces.append(labels[some])
    if len(pieces) == 1:
        return pieces[0], label_pieces[0] if label_pieces else None
    return np.concatenate(pieces), np.concatenate(label_pieces) if label_pieces else None


def _rows_of(ticket: Ticket) -> tuple[Latents, Labels | None]:
    """All rows of one ticket, read once."""
    if ticket.latents is None:
        assert ticket.reader is not None, "a ticket has rows, or something to read them from"
        ticket.latents, ticket.labels = ticket.reader.read([ticket.source])
    return ticket.latents, ticket.labels


def _refused(parts: Sequence[_Part]) -> dict[Ticket, RequestError]:
    """The tickets whose sources their readers refuse, and why."""
    refused: dict[Ticket, RequestError] = {}
    for ticket, _, _ in parts:
        try:
            _rows_of(ticket)
        except RequestError as err:
            refused[ticket] = err
    return refused
