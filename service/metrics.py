"""What Prometheus reads at /metrics; no label holds what a caller sent."""

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
MOST_LATER = 4096
POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)


class Metrics:
    """All instruments of one service."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._later: list[tuple[Callable[[float], None], float]] = []
        ProcessCollector(registry=registry)
        self.requests = Histogram(
            "http_server_request_duration_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ("method", "route", "status"),
            buckets=SECONDS,
            registry=registry,
        )
        self.ready = Gauge(
            "unrolled_ready", "1 when every model is loaded.", registry=registry
        )
        self.model_info = Gauge(
            "unrolled_model_info",
            "1 for each model in service.",
            ("model", "version", "engine", "precision", "digest"),
            registry=registry,
        )
        self.sequence_steps = Histogram(
            "unrolled_sequence_steps",
            "Steps of each sequence.",
            ("model",),
            buckets=POWERS,
            registry=registry,
        )
        self.batch_rows = Histogram(
            "unrolled_batch_rows",
            "Sequences in each engine call.",
            ("model",),
            buckets=POWERS,
            registry=registry,
        )
        self.chunk_steps = Histogram(
            "unrolled_chunk_steps",
            "Steps that each engine call takes of its sequences.",
            ("model",),
            buckets=POWERS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "unrolled_queue_seconds",
            "Time that a request waits for its first step.",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self.execute_seconds = Histogram(
            "unrolled_execute_seconds",
            "Time of each engine call.",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self.steps = Counter(
            "unrolled_steps",
            "Steps computed: useful ones, and padding.",
            ("model", "kind"),
            registry=registry,
        )
        self.waiting_steps = Gauge(
            "unrolled_waiting_steps",
            "Steps admitted and not yet computed.",
            ("model",),
            registry=registry,
        )
        self.dropped = Counter(
            "unrolled_dropped_sequences",
            "Sequences not computed because their caller had gone.",
            ("model",),
            registry=registry,
        )
        self.open_streams = Gauge(
            "unrolled_open_streams",
            "Streams that are open.",
            ("model",),
            registry=registry,
        )
        self.stream_seconds = Histogram(
            "unrolled_stream_message_seconds",
            "Time from a stream's message to its answer.",
            ("model",),
            buckets=SECONDS,
            registry=registry,
        )
        self.worker_deaths = Counter(
            "unrolled_worker_deaths",
            "Workers that died and were replaced.",
            registry=registry,
        )
        self.refused = Counter(
            "unrolled_refused_requests",
            "Requests refused, by the kind of problem.",
            ("kind",),
            registry=registry,
        )

    def later(self, record: Callable[[float], None], value: float) -> None:
        """Record a value before the next reading. A request has many of them, and
        to record them in a row is several times faster than one now and then."""
        self._later.append((record, value))
        if len(self._later) >= MOST_LATER:
            self._settle()

    def _settle(self) -> None:
        later, self._later = self._later, []
        for record, value in later:
            record(value)

    def of_model(self, name: str) -> "ModelMetrics":
        """The instruments of one model's scheduler: looked up once."""
        return ModelMetrics(
            sequence_steps=self.sequence_steps.labels(name),
            batch_rows=self.batch_rows.labels(name),
            chunk_steps=self.chunk_steps.labels(name),
            queue_seconds=self.queue_seconds.labels(name),
            execute_seconds=self.execute_seconds.labels(name),
            useful=self.steps.labels(name, "useful"),
            padding=self.steps.labels(name, "padding"),
            waiting_steps=self.waiting_steps.labels(name),
            dropped=self.dropped.labels(name),
        )

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        self._settle()
        return generate_latest(self.registry)


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """What a scheduler counts."""

    sequence_steps: Histogram
    batch_rows: Histogram
    chunk_steps: Histogram
    queue_seconds: Histogram
    execute_seconds: Histogram
    useful: Counter
    padding: Counter
    waiting_steps: Gauge
    dropped: Counter
