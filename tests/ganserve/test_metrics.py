import prometheus_client
import pytest

from ganserve.batcher import Counters
from ganserve.metrics import _ROWS, _SECONDS, Metrics


@pytest.fixture
def registry():
    """A registry of its own."""
    return prometheus_client.CollectorRegistry()


@pytest.fixture
def metrics(registry):
    """Metrics on it."""
    return Metrics(prometheus_client, name="mnist", digest="sha256:0", provider="CPU", registry=registry)


def test_the_model_is_told(metrics, registry):
    """The model that is served is a series of value 1 with its name, digest and provider."""
    labels = {"name": "mnist", "digest": "sha256:0", "provider": "CPU"}
    assert registry.get_sample_value("ganserve_model_info", labels) == 1


def test_what_happened_is_handed_over_once(metrics, registry):
    """Each flush adds what has happened since the one before, and nothing twice."""
    metrics.answered("/v1/generate", 200)
    metrics.answered("/v1/generate", 200)
    metrics.answered("/v1/generate", 400)
    metrics.encoded(0.5)
    counters = Counters(rows=7, queue_s=1.5, rejected_full=2, cancelled=1)
    for _ in range(2):
        metrics.flush(counters, queue_rows=3)
        ok, bad = ({"route": "/v1/generate", "status": status} for status in ("200", "400"))
        assert registry.get_sample_value("ganserve_requests_total", ok) == 2
        assert registry.get_sample_value("ganserve_requests_total", bad) == 1
        assert registry.get_sample_value("ganserve_encode_seconds_total") == 0.5
        assert registry.get_sample_value("ganserve_images_total") == 7
        assert registry.get_sample_value("ganserve_queue_seconds_total") == 1.5
        assert registry.get_sample_value("ganserve_rejected_total", {"reason": "queue_full"}) == 2
        assert registry.get_sample_value("ganserve_rejected_total", {"reason": "client_gone"}) == 1
        assert registry.get_sample_value("ganserve_queue_rows") == 3
    counters.rows += 1
    metrics.flush(counters, queue_rows=0)
    assert registry.get_sample_value("ganserve_images_total") == 8


def test_reasons_are_there_from_the_start(metrics, registry):
    """Every reason to reject is a series at 0 before it has happened."""
    for reason in ("queue_full", "deadline", "client_gone", "inference_failed"):
        assert registry.get_sample_value("ganserve_rejected_total", {"reason": reason}) == 0


def test_batches_are_observed(metrics, registry):
    """Batches are in two histograms, by rows and by seconds in the session, as if each had been observed."""
    other = prometheus_client.CollectorRegistry()
    rows_of = prometheus_client.Histogram("rows", "", buckets=_ROWS, registry=other)
    seconds_of = prometheus_client.Histogram("seconds", "", buckets=_SECONDS, registry=other)
    for turn in range(3):
        for rows in (1, 2, 3, 64, 65, 1024, 1025):
            for seconds in (0.0, 0.0001, 0.0004, 1.0, 7.5):
                metrics.batch(rows, seconds)
                rows_of.observe(rows)
                seconds_of.observe(seconds)
        metrics.flush(Counters(), queue_rows=turn)
    for name, bounds in (("rows", _ROWS), ("seconds", _SECONDS)):
        ours = {"rows": "ganserve_batch_rows", "seconds": "ganserve_inference_seconds"}[name]
        for bound in (*map(float, bounds), "+Inf"):
            bucket = {"le": str(bound)}
            expected = other.get_sample_value(f"{name}_bucket", bucket)
            assert registry.get_sample_value(f"{ours}_bucket", bucket) == expected, bucket
        for figure in ("sum", "count"):
            expected = other.get_sample_value(f"{name}_{figure}")
            assert registry.get_sample_value(f"{ours}_{figure}") == pytest.approx(expected)
    assert registry.get_sample_value("ganserve_batch_rows_count") == 105
