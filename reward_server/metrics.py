"""What a reward server measures of itself, for Prometheus.

It must not know gRPC, nor how anything is scored. Invariant: a call counts once, when it ends; a sample counts once, by
the outcome that its caller got.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from reward_server.batcher import Batcher
from reward_server.scorer import Scorer
from services.contracts.errors import UserError

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class RewardMetrics:
    """The metrics of one server, in a registry of their own.

    Args:
        scorer: described, and asked for what it counts itself.
        batcher: its queue and its batches are measured.
    """

    def __init__(self, scorer: Scorer, batcher: Batcher) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.in_flight = Gauge("trireme_reward_calls_in_flight", "Calls under way.", registry=registry)
        self._calls = Counter("trireme_reward_calls", "Calls that ended, by status.", ["code"], registry=registry)
        self._seconds = Histogram(
            "trireme_reward_call_duration_seconds", "Duration of a call.", buckets=SECONDS, registry=registry
        )
        self._call_samples = Histogram(
            "trireme_reward_call_samples", "Samples in a call.", buckets=SAMPLES, registry=registry
        )
        batches = Histogram(
            "trireme_reward_batch_samples", "Samples scored at once.", buckets=SAMPLES, registry=registry
        )
        batcher.note_batch = batches.observe
        self._samples = Counter(
            "trireme_reward_samples",
            "Samples answered, by outcome (`reward`, or why not) and by the version that scored them.",
            ["outcome", "version"],
            registry=registry,
        )
        pending = Gauge("trireme_reward_pending_samples", "Samples accepted and not yet answered.", registry=registry)
        pending.set_function(lambda: batcher.num_pending)
        waiting = Gauge("trireme_reward_waiting_samples", "Of these, samples not yet being scored.", registry=registry)
        waiting.set_function(lambda: batcher.num_waiting)
        registry.register(Served(scorer))

    def call_ended(self, code: str, *, seconds: float, num_samples: int) -> None:
        self._calls.labels(code).inc()
        self._seconds.observe(seconds)
        self._call_samples.observe(num_samples)

    def samples_answered(self, outcomes: Iterable[tuple[str, str]]) -> None:
        """Count samples by outcome and version."""
        for (outcome, version), count in Tally(outcomes).items():
            self._samples.labels(outcome, version).inc(count)


class Served(Collector):
    """What is served at the moment of a look at the metrics; a reward may be loaded anew while it serves."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def collect(self) -> Iterator[Metric]:
        served = self._scorer.description
        yield InfoMetricFamily("trireme_reward", "What is served.", {"name": served.name, "version": served.version})
        own = CounterMetricFamily("trireme_reward_own", "Totals that the rewards count themselves.", labels=["name"])
        for name, count in self._scorer.counters().items():
            own.add_metric([name], count)
        yield own


def publish(metrics: RewardMetrics, host: str, port: int) -> tuple[int, Callable[[], None]]:
    """Serve the metrics over HTTP; returns the port, and what stops it.

    Raises:
        UserError: the port cannot be had.
    """
    try:
        server, _ = start_http_server(port, addr=host, registry=metrics.registry)
    except OSError as error:
        raise UserError(f"metrics cannot be served on {host}:{port} (--metrics-port): {error.strerror}") from error

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return server.server_port, stop
