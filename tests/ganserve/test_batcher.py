import asyncio
import gc
import logging
import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import uvloop

from ganserve.batcher import INLINE_MS, Batcher, Ticket
from ganserve.errors import DeadlineError, InferenceError, InvalidRequestError, OverloadedError, RequestError

Scenario = Callable[[], Coroutine[Any, Any, None]]

CHEAP, DEAR = INLINE_MS / 10, INLINE_MS * 10  # a batch that runs on the loop, and one that runs in the thread


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Runs a coroutine on a fresh loop of either kind, at most 20 seconds."""
    factory = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[request.param]

    def run(scenario: Scenario) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(scenario(), 20))

    return run


class _FakeEngine:
    """Each row's pixels are the bytes of its number, so that a swapped or lost row is seen."""

    def __init__(self, *, cost_ms: float = CHEAP, cheapest_rows: int = 64, poison: Iterable[int] = ()) -> None:
        self.cheapest_rows = cheapest_rows
        self.cost = cost_ms
        self.poison = set(poison)
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.may_run = threading.Event()
        self.may_run.set()
        self.running = threading.Event()

    def cost_ms(self, rows: int) -> float:
        return self.cost

    def run(self, latents: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        numbers = latents[:, 0].astype(int).tolist()
        self.running.set()
        assert self.may_run.wait(20)
        self.batches.append(numbers)
        self.threads.add(threading.get_ident())
        if self.poison & set(numbers):
            raise InferenceError("poisoned")
        assert labels is None or (labels == latents[:, 0]).all()
        return _pixels_of(numbers)


def _rows_of(numbers: Iterable[int]) -> np.ndarray:
    """Latents [N, 1] that carry these numbers."""
    return np.array(list(numbers), dtype=np.float32)[:, None]


def _pixels_of(numbers: Iterable[int]) -> np.ndarray:
    """What the fake engine makes of them: uint8 [N, 2, 2, 1]."""
    return np.array(list(numbers), dtype="<u4").view(np.uint8).reshape(-1, 2, 2, 1)


def _batcher_of(engine: Any, **options: Any) -> Batcher:
    """A batcher with room for everything, unless told otherwise."""
    defaults = {"max_batch_rows": 64, "max_queue_rows": 100_000, "deadline_ms": 15_000.0}
    return Batcher(engine, **(defaults | options))


async def _submit_and_wait(batcher: Batcher, requests: Iterable[Iterable[int]]) -> list[Ticket]:
    """Submits all in one turn of the loop and waits until all are done."""
    done: list[Ticket] = []
    tickets = [batcher.submit(_rows_of(numbers), None, done.append) for numbers in requests]
    while len(done) < len(tickets):
        await asyncio.sleep(0.001)
    return tickets


async def _until(condition: Callable[[], bool]) -> None:
    """Lets the loop turn until something is true."""
    while not condition():  # what is awaited happens in another thread
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("cost_ms", [CHEAP, DEAR])
def test_one_request_is_a_batch_of_its_own(run, cost_ms):
    """An idle batcher runs a request at once, alone, and gives its pixels and labels through."""

    async def scenario():
        engine = _FakeEngine(cost_ms=cost_ms)
        batcher = _batcher_of(engine)
        ticket = await batcher.generate(_rows_of([1, 2, 3]), np.array([1, 2, 3]))
        assert (ticket.pixels == _pixels_of([1, 2, 3])).all()
        assert engine.batches == [[1, 2, 3]]
        assert ticket.done
        assert ticket.batch_rows == 3
        assert ticket.enqueued_at <= ticket.started_at <= ticket.finished_at
        assert batcher.queue_rows == 0
        await batcher.close()

    run(scenario)


def test_cheap_batches_run_on_the_loop_and_dear_ones_do_not(run):
    """A batch under INLINE_MS runs in the loop's own thread, a dearer one in the session's."""

    async def scenario():
        for cost_ms, inline in ((CHEAP, True), (DEAR, False)):
            engine = _FakeEngine(cost_ms=cost_ms)
            batcher = _batcher_of(engine)
            await _submit_and_wait(batcher, [[1]])
            await _submit_and_wait(batcher, [[2]])
            assert (engine.threads == {threading.get_ident()}) is inline
            assert len(engine.threads) == 1
            await batcher.close()

    run(scenario)


@pytest.mark.parametrize("cost_ms", [CHEAP, DEAR])
def test_requests_of_one_turn_share_a_batch(run, cost_ms):
    """Requests that arrive in the same turn of the loop run together, each with its own pixels."""

    async def scenario():
        engine = _FakeEngine(cost_ms=cost_ms)
        batcher = _batcher_of(engine)
        tickets = await _submit_and_wait(batcher, [[1], [2, 3], [4]])
        assert engine.batches == [[1, 2, 3, 4]]
        assert [ticket.pixels.tolist() for ticket in tickets] == [
            _pixels_of(numbers).tolist() for numbers in ([1], [2, 3], [4])
        ]
        assert {ticket.batch_rows for ticket in tickets} == {4}
        await batcher.close()

    run(scenario)


def test_a_batch_is_what_queued_while_the_previous_ran(run):
    """While a batch runs, others queue; they are the next batch, oldest first."""

    async def scenario():
        engine = _FakeEngine(cost_ms=DEAR)
        batcher = _batcher_of(engine)
        engine.may_run.clear()
        waiting = [asyncio.create_task(batcher.generate(_rows_of([0]), None))]
        await _until(engine.running.is_set)
        for number in range(1, 6):
            waiting.append(asyncio.create_task(batcher.generate(_rows_of([number]), None)))
            await asyncio.sleep(0.001)  # each in a turn of its own
        assert batcher.queue_rows == 5
        engine.may_run.set()
        await asyncio.gather(*waiting)
        assert engine.batches == [[0], [1, 2, 3, 4, 5]]
        await batcher.close()

    run(scenario)


@pytest.mark.parametrize("cost_ms", [CHEAP, DEAR])
def test_large_request_is_split_and_joined(run, cost_ms):
    """Rows fill batches to the brim in order; a request cut at their edges is joined again."""

    async def scenario():
        engine = _FakeEngine(cost_ms=cost_ms, cheapest_rows=4)
        batcher = _batcher_of(engine)
        requests = [range(10), range(10, 13), range(13, 14), range(14, 22)]
        tickets = await _submit_and_wait(batcher, requests)
        assert [len(batch) for batch in engine.batches] == [4, 4, 4, 4, 4, 2]
        assert [number for batch in engine.batches for number in batch] == list(range(22))
        for ticket, numbers in zip(tickets, requests, strict=True):
            assert (ticket.pixels == _pixels_of(numbers)).all()
        await batcher.close()

    run(scenario)


@pytest.mark.parametrize(("cheapest", "limit"), [(4, 64), (64, 4)])
def test_batch_is_bounded_by_setting_and_measurement(run, cheapest, limit):
    """No batch is above `max_batch_rows`, nor above what the engine measured as cheapest per row."""

    async def scenario():
        engine = _FakeEngine(cheapest_rows=cheapest)
        batcher = _batcher_of(engine, max_batch_rows=limit)
        await _submit_and_wait(batcher, [range(9)])
        assert [len(batch) for batch in engine.batches] == [4, 4, 1]
        await batcher.close()

    run(scenario)


def test_full_queue_turns_away_at_once(run):
    """A request that does not fit is refused with the time to come back; what fits exactly is not."""

    async def scenario():
        engine = _FakeEngine(cost_ms=2_500.0)
        batcher = _batcher_of(engine, max_queue_rows=10)
        engine.may_run.clear()
        running = asyncio.create_task(batcher.generate(_rows_of([0]), None))
        await _until(engine.running.is_set)
        waiting = asyncio.create_task(batcher.generate(_rows_of(range(1, 8)), None))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="7 rows wait, 4 more do not fit into 10") as caught:
            batcher.submit(_rows_of(range(4)), None, print)
        assert caught.value.headers == {"retry-after": "3"}  # 2.5 s of queue, in whole seconds
        assert batcher.queue_rows == 7
        assert batcher.counters.rejected_full == 1
        fits = asyncio.create_task(batcher.generate(_rows_of(range(8, 11)), None))
        await asyncio.sleep(0)
        assert batcher.queue_rows == 10
        engine.may_run.set()
        await asyncio.gather(running, waiting, fits)
        assert batcher.queue_rows == 0
        await batcher.close()

    run(scenario)


def test_deadline_passes_and_rows_are_not_computed(run):
    """A request that waits past its deadline fails, its waiting rows are never computed, and the queue has its room."""

    async def scenario():
        engine = _FakeEngine(cost_ms=DEAR, cheapest_rows=4)
        batcher = _batcher_of(engine, deadline_ms=200.0)
        engine.may_run.clear()
        running = asyncio.create_task(batcher.generate(_rows_of(range(6)), None))  # two of its rows wait
        await _until(engine.running.is_set)
        late = asyncio.create_task(batcher.generate(_rows_of(range(100, 110)), None))
        with pytest.raises(DeadlineError, match="not done within 200 ms"):
            await running
        with pytest.raises(DeadlineError, match="not done within 200 ms"):
            await late
        assert batcher.queue_rows == 0
        assert batcher.counters.rejected_deadline == 2
        engine.may_run.set()
        await batcher.generate(_rows_of([7]), None)
        assert engine.batches == [[0, 1, 2, 3], [7]]
        await batcher.close()

    run(scenario)


def test_each_request_has_its_own_deadline(run):
    """A request that came later fails later: the first one's failure takes nobody with it."""

    async def scenario():
        engine = _FakeEngine(cost_ms=DEAR)
        batcher = _batcher_of(engine, deadline_ms=600.0)
        engine.may_run.clear()
        first = asyncio.create_task(batcher.generate(_rows_of([1]), None))
        await _until(engine.running.is_set)
        await asyncio.sleep(0.3)
        second = asyncio.create_task(batcher.generate(_rows_of([2]), None))
        with pytest.raises(DeadlineError):
            await first
        assert not second.done()
        engine.may_run.set()
        assert ((await second).pixels == _pixels_of([2])).all()
        await batcher.close()

    run(scenario)


def test_deadline_does_not_hang_on_the_wall_clock(run, monkeypatch):
    """When the wall clock jumps a day ahead, nobody's deadline has passed."""

    async def scenario():
        engine = _FakeEngine(cost_ms=DEAR)
        batcher = _batcher_of(engine)
        engine.may_run.clear()
        waiting = asyncio.create_task(batcher.generate(_rows_of([1]), None))
        await _until(engine.running.is_set)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 86_400.0)
        await asyncio.sleep(0.02)
        engine.may_run.set()
        assert (await waiting).error is None
        await batcher.close()

    run(scenario)


def test_cancelled_rows_leave_before_the_batch_is_formed(run):
    """A request that nobody waits for leaves the queue; its rows are not computed and its callback is not called."""

    async def scenario():
        engine = _FakeEngine(cost_ms=DEAR)
        batcher = _batcher_of(engine)
        engine.may_run.clear()
        called: list[Ticket] = []
        running = batcher.submit(_rows_of([0]), None, called.append)
        await _until(engine.running.is_set)
        kept = batcher.submit(_rows_of([1]), None, called.append)
        gone = batcher.submit(_rows_of([2, 3]), None, called.append)
        batcher.cancel(gone)
        batcher.cancel(gone)  # twice is once
        assert batcher.queue_rows == 1
        engine.may_run.set()
        await _until(lambda: kept.done)
        assert engine.batches == [[0], [1]]
        assert called == [running, kept]
        assert gone.pixels is None
        assert batcher.counters.cancelled == 1
        batcher.cancel(kept)  # what is done cannot be cancelled
        assert batcher.counters.cancelled == 1
        await batcher.close()

    run(scenario)


def test_request_cancelled_while_it_runs_is_forgotten(run):
    """A client that leaves while its batch runs does not disturb the batch, nor get an answer."""

    async def scenario():
        engine = _FakeEngine(cost_ms=DEAR, cheapest_rows=4)
        batcher = _batcher_of(engine)
        engine.may_run.clear()
        called: list[Ticket] = []
        gone = batcher.submit(_rows_of(range(6)), None, called.append)
        kept = batcher.submit(_rows_of([9]), None, called.append)
        await _until(engine.running.is_set)
        batcher.cancel(gone)
        engine.may_run.set()
        await _until(lambda: kept.done)
        assert engine.batches == [[0, 1, 2, 3], [9]]
        assert called == [kept]
        assert batcher.queue_rows == 0
        await batcher.close()

    run(scenario)


def test_cancelled_wait_cancels_the_rows(run):
    """Cancelling a task that awaits `generate` takes its rows out of the queue."""

    async def scenario():
        engine = _FakeEngine(cost_ms=DEAR)
        batcher = _batcher_of(engine)
        engine.may_run.clear()
        running = asyncio.create_task(batcher.generate(_rows_of([0]), None))
        await _until(engine.running.is_set)
        gone = asyncio.create_task(batcher.generate(_rows_of([1]), None))
        await asyncio.sleep(0)
        assert batcher.queue_rows == 1
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batcher.queue_rows == 0
        engine.may_run.set()
        await running
        assert engine.batches == [[0]]
        await batcher.close()

    run(scenario)


@pytest.mark.parametrize("cost_ms", [CHEAP, DEAR])
def test_poisoned_row_fails_alone(run, cost_ms):
    """One poisoned request among 40 fails; its 39 neighbours get their pixels, and so does whoever comes next."""

    async def scenario():
        engine = _FakeEngine(cost_ms=cost_ms, poison=[17])
        batcher = _batcher_of(engine)
        tickets = await _submit_and_wait(batcher, [[number] for number in range(40)])
        for number, ticket in enumerate(tickets):
            if number == 17:
                assert ticket.pixels is None
                with pytest.raises(InferenceError, match="poisoned"):
                    raise ticket.error
            else:
                assert ticket.error is None
                assert (ticket.pixels == _pixels_of([number])).all()
        assert batcher.counters.failed == 1
        (after,) = await _submit_and_wait(batcher, [[99]])
        assert after.error is None
        await batcher.close()

    run(scenario)


def test_split_request_fails_as_a_whole(run):
    """One poisoned row in a split request fails the request, and its rows that still wait are not computed."""

    async def scenario():
        engine = _FakeEngine(cheapest_rows=2, poison=[3])
        batcher = _batcher_of(engine)
        split, neighbour = await _submit_and_wait(batcher, [range(7), [50]])
        assert isinstance(split.error, InferenceError)
        assert split.pixels is None
        assert (neighbour.pixels == _pixels_of([50])).all()
        assert engine.batches == [[0, 1], [2, 3], [50]]
        assert batcher.queue_rows == 0
        await batcher.close()

    run(scenario)


class _Broken(_FakeEngine):
    """Fails in another way, the first time or always."""

    def __init__(self, failure: Callable[[np.ndarray], Any], **options: Any) -> None:
        super().__init__(**options)
        self.failure = failure
        self.broken = True

    def run(self, latents, labels):
        pixels = super().run(latents, labels)
        return self.failure(pixels) if self.broken else pixels


def _raise(_: np.ndarray) -> None:
    raise ValueError("a fault of ours")


@pytest.mark.parametrize("cost_ms", [CHEAP, DEAR])
@pytest.mark.parametrize(
    "failure",
    [_raise, lambda pixels: pixels[1:], lambda pixels: np.concatenate([pixels, pixels]), lambda _: None],
    ids=["foreign exception", "too few rows", "too many rows", "nothing"],
)
def test_fault_of_the_engine_fails_its_requests_and_no_more(run, caplog, cost_ms, failure):
    """An engine that raises something else or returns other rows fails those requests; the batcher lives on."""
    caplog.set_level(logging.CRITICAL)

    async def scenario():
        engine = _Broken(failure, cost_ms=cost_ms)
        batcher = _batcher_of(engine)
        tickets = await _submit_and_wait(batcher, [[1], [2]])
        assert all(isinstance(ticket.error, InferenceError) for ticket in tickets)
        engine.broken = False
        (after,) = await _submit_and_wait(batcher, [[3]])
        assert (after.pixels == _pixels_of([3])).all()
        await batcher.close()

    run(scenario)


@pytest.mark.parametrize("cost_ms", [CHEAP, DEAR])
def test_rows_that_do_not_fit_together_do_not_stop_the_batcher(run, caplog, cost_ms):
    """Latents of two widths cannot be one batch: each is run alone, and the batcher goes on."""
    caplog.set_level(logging.CRITICAL)

    async def scenario():
        batcher = _batcher_of(_FakeEngine(cost_ms=cost_ms))
        done: list[Ticket] = []
        narrow = batcher.submit(_rows_of([1]), None, done.append)
        wide = batcher.submit(np.full((1, 3), 2, dtype=np.float32), None, done.append)
        await _until(lambda: len(done) == 2)
        assert (narrow.pixels == _pixels_of([1])).all()
        assert (wide.pixels == _pixels_of([2])).all()
        await _submit_and_wait(batcher, [[3]])
        await batcher.close()

    run(scenario)


@pytest.mark.parametrize("cost_ms", [CHEAP, DEAR])
def test_callback_that_raises_keeps_nobody_from_their_pixels(run, caplog, cost_ms):
    """A broken callback is logged; its neighbours in the batch and the next batch are answered."""

    async def scenario():
        batcher = _batcher_of(_FakeEngine(cost_ms=cost_ms))
        done: list[Ticket] = []
        batcher.submit(_rows_of([1]), None, _raise)
        batcher.submit(_rows_of([2]), None, done.append)
        await _until(lambda: len(done) == 1)
        await _submit_and_wait(batcher, [[3]])
        await batcher.close()

    run(scenario)
    assert "a request's callback failed" in caplog.text


@pytest.mark.parametrize("cost_ms", [CHEAP, DEAR])
def test_callback_may_submit(run, cost_ms):
    """A callback that queues the next request at once gets it done, a thousand times in a row."""

    async def scenario():
        batcher = _batcher_of(_FakeEngine(cost_ms=cost_ms))
        done: list[int] = []

        def again(ticket: Ticket) -> None:
            done.append(int(ticket.latents[0, 0]))
            if len(done) < 1000:
                batcher.submit(_rows_of([len(done)]), None, again)

        batcher.submit(_rows_of([0]), None, again)
        await _until(lambda: len(done) == 1000)
        assert done == list(range(1000))
        await batcher.close()

    run(scenario)


def test_batch_waits_for_company_when_told_to(run):
    """With `max_delay_ms`, requests of different turns share a batch."""

    async def scenario():
        engine = _FakeEngine()
        batcher = _batcher_of(engine, max_delay_ms=300.0)
        waiting = []
        for number in range(3):
            waiting.append(asyncio.create_task(batcher.generate(_rows_of([number]), None)))
            await asyncio.sleep(0.005)
        tickets = await asyncio.gather(*waiting)
        assert engine.batches == [[0, 1, 2]]
        assert tickets[0].started_at - tickets[0].enqueued_at >= 0.29
        await batcher.close()

    run(scenario)


@pytest.mark.parametrize("cost_ms", [CHEAP, DEAR])
def test_full_batch_does_not_wait(run, cost_ms):
    """A batch that is full runs at once, however long `max_delay_ms` is; rows that do not fill one wait on."""

    async def scenario():
        engine = _FakeEngine(cost_ms=cost_ms, cheapest_rows=4)
        batcher = _batcher_of(engine, max_delay_ms=600.0, deadline_ms=500.0)
        lonely = asyncio.create_task(batcher.generate(_rows_of([0]), None))
        await asyncio.sleep(0.01)
        assert engine.batches == []
        await batcher.generate(_rows_of(range(1, 4)), None)
        await lonely
        assert engine.batches == [[0, 1, 2, 3]]
        rest = asyncio.create_task(batcher.generate(_rows_of(range(10, 16)), None))
        await _until(lambda: len(engine.batches) == 2)
        assert batcher.queue_rows == 2
        with pytest.raises(DeadlineError):
            await rest
        assert batcher.queue_rows == 0
        await batcher.close()

    run(scenario)


def test_delay_starts_anew_after_the_waiting_one_left(run):
    """When the request that a batch waited for is cancelled, the next one is still served."""

    async def scenario():
        engine = _FakeEngine()
        batcher = _batcher_of(engine, max_delay_ms=30.0)
        batcher.cancel(batcher.submit(_rows_of([1]), None, print))
        ticket = await batcher.generate(_rows_of([2]), None)
        assert (ticket.pixels == _pixels_of([2])).all()
        await asyncio.sleep(0.05)
        ticket = await batcher.generate(_rows_of([3]), None)
        assert engine.batches == [[2], [3]]
        await batcher.close()

    run(scenario)


@pytest.mark.parametrize("cost_ms", [CHEAP, DEAR])
@pytest.mark.parametrize("max_delay_ms", [0.0, 20.0])
def test_close_drains(run, cost_ms, max_delay_ms):
    """Closing turns new rows away, finishes those that were accepted, and ends the thread."""

    async def scenario():
        engine = _FakeEngine(cost_ms=cost_ms, cheapest_rows=4)
        batcher = _batcher_of(engine, max_delay_ms=max_delay_ms)
        waiting = [asyncio.create_task(batcher.generate(_rows_of([number]), None)) for number in range(30)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="shutting down"):
            batcher.submit(_rows_of([99]), None, print)
        tickets = await asyncio.gather(*waiting)
        await closing
        assert all((ticket.pixels == _pixels_of([number])).all() for number, ticket in enumerate(tickets))
        assert not any(thread.name.startswith("ganserve-session") for thread in threading.enumerate())

    run(scenario)


def test_close_gives_up_on_an_engine_that_hangs(run):
    """When the engine never returns, closing ends in time and everybody who waits is told."""

    async def scenario():
        engine = _FakeEngine(cost_ms=DEAR)
        batcher = _batcher_of(engine)
        engine.may_run.clear()
        running = asyncio.create_task(batcher.generate(_rows_of([1]), None))
        await _until(engine.running.is_set)
        waiting = asyncio.create_task(batcher.generate(_rows_of([2]), None))
        await asyncio.sleep(0)
        await batcher.close(timeout_s=0.05)
        for task in (running, waiting):
            with pytest.raises(OverloadedError, match="shutting down"):
                await task
        engine.may_run.set()
        await _until(lambda: bool(engine.batches))

    run(scenario)


@pytest.mark.parametrize("cost_ms", [CHEAP, DEAR])
def test_thousands_of_requests_never_swap_answers(run, caplog, cost_ms):
    """5,000 requests of random sizes, some cancelled, some poisoned, under a small queue: each gets its own pixels."""
    caplog.set_level(logging.CRITICAL)

    async def scenario():
        dice = random.Random(1)
        poison = {dice.randrange(1_000_000) for _ in range(20_000)}  # two rows in a hundred
        engine = _FakeEngine(cost_ms=cost_ms, cheapest_rows=16, poison=poison)
        batcher = _batcher_of(engine, max_queue_rows=400)
        outcomes = {"pixels": 0, "poisoned": 0, "cancelled": 0, "full": 0}

        async def client(numbers: list[int], patience_s: float | None) -> None:
            try:
                async with asyncio.timeout(patience_s):
                    ticket = await batcher.generate(_rows_of(numbers), None)
            except TimeoutError:
                outcomes["cancelled"] += 1
            except OverloadedError:
                outcomes["full"] += 1
            except InferenceError:
                assert poison & set(numbers)
                outcomes["poisoned"] += 1
            else:
                assert (ticket.pixels == _pixels_of(numbers)).all()
                outcomes["pixels"] += 1

        tasks = []
        for _ in range(5_000):
            numbers = [dice.randrange(1_000_000) for _ in range(dice.choice((1, 1, 1, 2, 5, 40)))]
            patience_s = dice.choice((None, None, None, 0.0, 0.001))
            tasks.append(asyncio.create_task(client(numbers, patience_s)))
            if dice.random() < 0.2:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert sum(outcomes.values()) == 5_000
        assert min(outcomes.values()) > 0  # every way to end was walked
        assert batcher.queue_rows == 0
        await batcher.close()

    run(scenario)


def test_cancelled_requests_leave_nothing_behind(run):
    """While the engine hangs, 10,000 requests that come and go leave no ticket, no row and no memory."""

    async def scenario():
        engine = _FakeEngine(cost_ms=DEAR)
        batcher = _batcher_of(engine)
        engine.may_run.clear()
        running = asyncio.create_task(batcher.generate(_rows_of([0]), None))
        await _until(engine.running.is_set)

        async def come_and_go(times: int) -> None:
            for _ in range(times):
                batcher.cancel(batcher.submit(np.zeros((1, 256), np.float32), None, print))
            await asyncio.sleep(0)

        await come_and_go(100)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            await come_and_go(10_000)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 64 * 1024  # one ticket and its latents are more than a kilobyte
        assert sum(type(thing) is Ticket for thing in gc.get_objects()) <= 2
        assert batcher.queue_rows == 0
        engine.may_run.set()
        await running
        await batcher.close()

    run(scenario)


def test_counters_add_up(run):
    """Batches and rows are counted as they are run."""

    async def scenario():
        batcher = _batcher_of(_FakeEngine(cheapest_rows=4))
        await _submit_and_wait(batcher, [range(6), range(6, 7)])
        assert (batcher.counters.batches, batcher.counters.rows) == (2, 7)
        await batcher.close()

    run(scenario)


@pytest.mark.parametrize("cost_ms", [0.0, 5.0])
def test_a_callback_that_fails_costs_nobody_an_image(cost_ms, caplog):
    """Whoever counts batches raises: every request is answered, also the next ones, and nothing waits."""

    class Plain:
        cheapest_rows = 4

        def cost_ms(self, rows):
            return cost_ms

        def run(self, rows, labels):
            return np.zeros((len(rows), 1, 1, 1), np.uint8)

    def count(rows, seconds):
        raise ValueError("a bug in the metrics")

    async def scenario():
        batcher = _batcher_of(Plain(), on_batch=count)
        for _ in range(2):
            tickets = await _submit_and_wait(batcher, [[1, 2, 3], [4, 5, 6, 7, 8], [9]])
            assert all(ticket.pixels is not None for ticket in tickets)
        assert batcher.queue_rows == 0
        assert batcher.ready
        await batcher.close()

    asyncio.run(scenario())
    assert "a bug in the metrics" in caplog.text


def test_a_cost_that_cannot_be_told_fails_these_rows_only(caplog):
    """An engine that fails before it runs leaves nobody waiting: its rows fail, later ones are computed."""

    class Forgetful:
        cheapest_rows = 4
        asked = 0

        def cost_ms(self, rows):
            self.asked += 1
            if self.asked == 1:
                raise StopIteration
            return 0.0

        def run(self, rows, labels):
            return np.zeros((len(rows), 1, 1, 1), np.uint8)

    async def scenario():
        batcher = _batcher_of(Forgetful())
        (first,) = await _submit_and_wait(batcher, [[1]])
        (second,) = await _submit_and_wait(batcher, [[1]])
        assert isinstance(first.error, InferenceError)
        assert second.pixels is not None
        await batcher.close()

    asyncio.run(scenario())
    assert "a batch could not be run" in caplog.text


class _Reader:
    """Reads numbers, one a byte; refuses 255."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def read(self, sources: Sequence[bytes]) -> tuple[np.ndarray, None]:
        self.calls.append(len(sources))
        if any(255 in source for source in sources):
            raise InvalidRequestError("255 is no number")
        return _rows_of(b"".join(sources)), None


class _Unread(Ticket):
    """A ticket that puts itself into a list when it is done."""

    __slots__ = ("others",)

    def __init__(self, source: bytes, reader: _Reader, others: list[Ticket]) -> None:
        super().__init__(len(source), source=source, reader=reader)
        self.others = others

    def notify(self) -> None:
        self.others.append(self)


@pytest.mark.parametrize("cost_ms", [CHEAP, DEAR])
def test_rows_are_read_when_their_batch_is_formed(run, cost_ms):
    """Those of all tickets in one call, also beside rows that came as arrays, and those of a ticket in two batches."""

    async def scenario():
        engine, reader = _FakeEngine(cost_ms=cost_ms, cheapest_rows=8), _Reader()
        batcher = _batcher_of(engine)
        done: list[Ticket] = []
        tickets = [_Unread(bytes([number, number + 1]), reader, done) for number in (1, 3, 5)]
        for ticket in tickets:
            batcher.enqueue(ticket)
        await _until(lambda: len(done) == 3)
        assert (engine.batches, reader.calls) == ([[1, 2, 3, 4, 5, 6]], [3])

        tickets += [_Unread(bytes(range(100, 112)), reader, done), _Unread(b"\x09", reader, done)]
        batcher.enqueue(tickets[3])
        arrays = batcher.submit(_rows_of([50]), None, done.append)
        batcher.enqueue(tickets[4])
        await _until(lambda: len(done) == 6)
        assert engine.batches[1:] == [[*range(100, 108)], [*range(108, 112), 50, 9]]
        for ticket in tickets:
            np.testing.assert_array_equal(ticket.pixels, _pixels_of(ticket.source))
        np.testing.assert_array_equal(arrays.pixels, _pixels_of([50]))
        await batcher.close()

    run(scenario)


@pytest.mark.parametrize("cost_ms", [CHEAP, DEAR])
def test_a_source_that_is_refused_fails_alone(run, cost_ms):
    """Its neighbours are run in one batch without it, and it says nothing of the session."""

    async def scenario():
        engine, reader, probed = _FakeEngine(cost_ms=cost_ms), _Reader(), []
        batcher = _batcher_of(engine, probe=lambda: probed.append(1))
        done: list[Ticket] = []
        tickets = [_Unread(bytes([number]), reader, done) for number in (1, 255, 3, 255, 5)]
        for ticket in tickets:
            batcher.enqueue(ticket)
        await _until(lambda: len(done) == 5)
        assert engine.batches == [[1, 3, 5]]
        for ticket in tickets:
            if ticket.source == b"\xff":
                assert isinstance(ticket.error, RequestError)
                assert ticket.pixels is None
            else:
                np.testing.assert_array_equal(ticket.pixels, _pixels_of(ticket.source))
        for number in range(5):
            batcher.enqueue(_Unread(b"\xff", reader, done))
            await _until(lambda number=number: len(done) == 6 + number)
        assert batcher.ready
        assert (probed, batcher.counters.failed, len(engine.batches)) == ([], 0, 1)
        await batcher.close()

    run(scenario)


class _CountingLoop:
    """The running loop, with what is to be called soon counted."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.soon = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_soon(self, *arguments: Any) -> asyncio.Handle:
        self.soon += 1
        return self._loop.call_soon(*arguments)


@pytest.mark.parametrize(("spin_us", "awake"), [(0.0, False), (20_000.0, True)])
def test_the_loop_stays_awake_after_a_batch(run, spin_us, awake):
    """It turns without end for as long as it is told to, then sleeps."""

    async def scenario():
        loop = _CountingLoop()
        batcher = _batcher_of(_FakeEngine(), spin_us=spin_us, loop=loop)
        await _submit_and_wait(batcher, [[1]])
        await asyncio.sleep(0.1)
        assert (loop.soon > 20) == awake
        turns = loop.soon
        await asyncio.sleep(0.05)
        assert loop.soon == turns
        await batcher.close()

    run(scenario)


def test_a_batch_waits_for_those_who_connect_but_not_for_long(run):
    """Each turn of the loop in which somebody connects is followed by two, for two milliseconds."""

    async def scenario():
        engine = _FakeEngine()
        batcher = _batcher_of(engine)
        done: list[Ticket] = []
        batcher.submit(_rows_of([1]), None, done.append)
        for turn in range(5):  # others connect, and one of them asks at once
            batcher.newcomer()
            await asyncio.sleep(0)
            if turn == 3:
                batcher.submit(_rows_of([2]), None, done.append)
        await _until(lambda: len(done) == 2)
        assert engine.batches == [[1, 2]]

        batcher.submit(_rows_of([3]), None, done.append)
        while len(done) < 3:  # somebody connects without end
            batcher.newcomer()
            await asyncio.sleep(0)
        await batcher.close()

    run(scenario)
