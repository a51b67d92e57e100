"""What Prometheus reads at /metrics; no label holds what a caller sent."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)


class Metrics:
    """All instruments of one service."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
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
            ("model", "version", "engine", "digest"),
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
        self.queue_seconds = Histogram(
            "unrolled_queue_seconds",
            "Time that a sequence waits for the engine.",
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
            "Steps admitted and not yet answered.",
            ("model",),
            registry=registry,
        )
        self.dropped = Counter(
            "unrolled_dropped_sequences",
            "Sequences not computed because their caller had gone.",
            ("model",),
            registry=registry,
        )
        self.refused = Counter(
            "unrolled_refused_requests",
            "Requests refused, by the kind of problem.",
            ("kind",),
            registry=registry,
        )

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self.registry)
