"""Prometheus series with bounded labels, counted in plain Python on the way and handed over once a second.

An increment of a Prometheus counter that several processes share writes to a mapped file under a lock: a tenth of what
a request costs. So the hot path adds to numbers of this process, and `flush` gives Prometheus what has been added
since.
"""

import dataclasses
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ganserve.batcher import Counters

_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
# Why a request got no images: the field of the batcher's counters -> label.
_REJECTED = {
    "rejected_full": "queue_full",
    "rejected_deadline": "deadline",
    "cancelled": "client_gone",
    "failed": "inference_failed",
}


class _Tally:
    """What a histogram has to be told."""

    def __init__(self, histogram: Any, bounds: Sequence[float]) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """As the histogram's `observe`."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def flush(self) -> None:
        """Hands it over. The histogram itself only takes one value at a time; its counters take many."""
        for index, count in enumerate(self._counts):
            if count:
                self._histogram._buckets[index].inc(count)
                self._counts[index] = 0
        self._histogram._sum.inc(self._sum)
        self._sum = 0.0


class Metrics:
    """The server's series in one process.

    Every label comes from a fixed set: route templates, status codes, reasons. Whatever clients send, there are no more
    series than that.
    """

    def __init__(self, prometheus: Any, *, name: str, digest: str, provider: str, registry: Any = None) -> None:
        """Registers the series.

        Args:
            prometheus: the module `prometheus_client`. It is passed in, because BentoML has to be the first to import
                it where several workers share their numbers.
            name: the model's.
            digest: the artifact's.
            provider: the execution provider.
            registry: where to register; by default the global one.
        """
        where = {} if registry is None else {"registry": registry}
        self._requests = prometheus.Counter("ganserve_requests", "requests answered", ["route", "status"], **where)
        self._images = prometheus.Counter("ganserve_images", "images made", **where)
        self._queue_seconds = prometheus.Counter(
            "ganserve_queue_seconds", "time that requests waited for their batch, summed", **where
        )
        self._encode_seconds = prometheus.Counter(
            "ganserve_encode_seconds", "time spent on making answers of pixels, summed", **where
        )
        self._rejected = prometheus.Counter(
            "ganserve_rejected", "requests that were accepted or turned away, and got no images", ["reason"], **where
        )
        self._queue_rows = prometheus.Gauge(
            "ganserve_queue_rows", "rows that wait for a batch", multiprocess_mode="livesum", **where
        )
        self._batch_rows = _Tally(
            prometheus.Histogram("ganserve_batch_rows", "rows in a batch", buckets=_ROWS, **where), _ROWS
        )
        self._inference_seconds = _Tally(
            prometheus.Histogram(
                "ganserve_inference_seconds", "time that a batch took in the session", buckets=_SECONDS, **where
            ),
            _SECONDS,
        )
        info = prometheus.Gauge(
            "ganserve_model_info",
            "1, for the model that is served",
            ["name", "digest", "provider"],
            multiprocess_mode="max",
            **where,
        )
        info.labels(name=name, digest=digest, provider=provider).set(1)
        for reason in _REJECTED.values():
            self._rejected.labels(reason=reason)  # there from the start, at 0: a rate needs something to rise from
        self._answered: Counter[tuple[str, int]] = Counter()
        self._encoded_s = 0.0
        self._seen = Counters()

    def answered(self, route: str, status: int) -> None:
        """One request was answered; `route` is its template, never its path."""
        self._answered[route, status] += 1

    def encoded(self, seconds: float) -> None:
        """An answer was made of pixels."""
        self._encoded_s += seconds

    def batch(self, rows: int, seconds: float) -> None:
        """The session ran a batch."""
        self._batch_rows.add(rows)
        self._inference_seconds.add(seconds)

    def flush(self, counters: Counters, queue_rows: int) -> None:
        """Gives Prometheus what has happened since the last call.

        Args:
            counters: the batcher's.
            queue_rows: rows that wait now.
        """
        answered, self._answered = self._answered, Counter()
        for (route, status), count in answered.items():
            self._requests.labels(route=route, status=str(status)).inc(count)
        self._encode_seconds.inc(self._encoded_s)
        self._encoded_s = 0.0
        now = dataclasses.replace(counters)
        self._images.inc(now.rows - self._seen.rows)
        self._queue_seconds.inc(now.queue_s - self._seen.queue_s)
        for field, reason in _REJECTED.items():
            self._rejected.labels(reason=reason).inc(getattr(now, field) - getattr(self._seen, field))
        self._queue_rows.set(queue_rows)
        self._batch_rows.flush()
        self._inference_seconds.flush()
        self._seen = now
