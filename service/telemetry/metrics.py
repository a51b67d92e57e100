"""Prometheus metrics, for `/metrics`. No label holds what a client sent."""

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    generate_latest,
)

from service.telemetry import instruments
from service.telemetry.instruments import Distribution, Metric, Number

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)
MODEL = ("model", "version")


class Metrics:
    """All metrics of one service."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def histogram(
            name: str,
            help_text: str,
            bounds: Sequence[float],
            labels: Sequence[str] = MODEL,
        ) -> Metric[Distribution]:
            return instruments.histogram(name, help_text, labels, bounds, registry)

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"unrolled_{name}", help_text, labels, registry=registry)

        def gauge(name: str, help_text: str, *labels: str) -> Gauge:
            return Gauge(f"unrolled_{name}", help_text, labels, registry=registry)

        self.requests = histogram(
            "http_server_request_duration_seconds",
            "Duration of HTTP requests, from the first byte received to the last sent.",
            SECONDS,
            ("method", "route", "status"),
        )
        self.ready = gauge("ready", "1 if every model is loaded, else 0.")
        self.model_info = gauge(
            "model_info",
            "1 for each loaded model version.",
            *MODEL,
            "engine",
            "precision",
            "digest",
        )
        self.sequence_steps = histogram(
            "unrolled_sequence_steps", "Length of each sequence, in steps.", SIZES
        )
        self.batch_rows = histogram(
            "unrolled_batch_rows",
            "Batch size of each engine call, in sequences.",
            SIZES,
        )
        self.chunk_steps = histogram(
            "unrolled_chunk_steps",
            "Steps by which each engine call advances its sequences.",
            SIZES,
        )
        self.queue_seconds = histogram(
            "unrolled_queue_seconds",
            "Time that a request waits until its first step is computed.",
            SECONDS,
        )
        self.execute_seconds = histogram(
            "unrolled_execute_seconds", "Duration of each engine call.", SECONDS
        )
        self.steps = instruments.counter(
            "unrolled_steps",
            "Computed steps, by kind: useful or padding.",
            (*MODEL, "kind"),
            registry,
        )
        self.waiting_steps = instruments.gauge(
            "unrolled_waiting_steps",
            "Steps that are admitted and not computed yet.",
            MODEL,
            registry,
        )
        self.dropped = counter(
            "dropped_sequences",
            "Sequences that were not computed because the client had disconnected.",
            *MODEL,
        )
        self.open_streams = gauge("open_streams", "Open streams.", "model")
        self.kept_sequences = gauge(
            "kept_sequences",
            "Sequences whose state is kept under a `sequence_id` (/v2).",
        )
        self.buffered_bytes = gauge(
            "buffered_bytes",
            "Bytes held for clients: bodies, frames, and responses not sent yet.",
        )
        self.evictions = counter(
            "evicted_connections",
            "Connections closed to stay within the limit of buffered bytes.",
        )
        self.stream_seconds = histogram(
            "unrolled_stream_message_seconds",
            "Time from a stream message to its answer.",
            SECONDS,
        )
        self.worker_deaths = counter(
            "worker_deaths", "Worker processes that died and were replaced."
        )
        self.refused = counter(
            "refused_requests", "Refused requests, by the kind of error.", "kind"
        )

    def for_model(self, *model: str) -> "ModelMetrics":
        """The metrics of a model's name and version."""
        return ModelMetrics(
            sequence_steps=self.sequence_steps.labels(*model),
            batch_rows=self.batch_rows.labels(*model),
            chunk_steps=self.chunk_steps.labels(*model),
            queue_seconds=self.queue_seconds.labels(*model),
            execute_seconds=self.execute_seconds.labels(*model),
            stream_seconds=self.stream_seconds.labels(*model),
            useful=self.steps.labels(*model, "useful"),
            padding=self.steps.labels(*model, "padding"),
            waiting_steps=self.waiting_steps.labels(*model),
            dropped=self.dropped.labels(*model),
        )

    def remove_model(self, *model: str) -> None:
        """Remove the metrics of a version that is no longer loaded."""
        for metric in (
            self.sequence_steps,
            self.batch_rows,
            self.chunk_steps,
            self.queue_seconds,
            self.execute_seconds,
            self.stream_seconds,
            self.waiting_steps,
            self.dropped,
        ):
            metric.remove(*model)
        for kind in ("useful", "padding"):
            self.steps.remove(*model, kind)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """The metrics of one model version, looked up once."""

    sequence_steps: Distribution
    batch_rows: Distribution
    chunk_steps: Distribution
    queue_seconds: Distribution
    execute_seconds: Distribution
    stream_seconds: Distribution
    useful: Number
    padding: Number
    waiting_steps: Number
    dropped: Counter
