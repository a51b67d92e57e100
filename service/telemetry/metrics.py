"""What Prometheus reads at /metrics; no label holds what a caller sent."""

from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    generate_latest,
)

from service.telemetry.instruments import Distribution, Samples, Tallies, Tally

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
OF_MODEL = ("model", "version")
POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)


class Metrics:
    """All instruments of one service."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Distribution(
            "http_server_request_duration_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ("method", "route", "status"),
            SECONDS,
            registry,
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
        self.sequence_steps = Distribution(
            "unrolled_sequence_steps",
            "Steps of each sequence.",
            OF_MODEL,
            POWERS,
            registry=registry,
        )
        self.batch_rows = Distribution(
            "unrolled_batch_rows",
            "Sequences in each engine call.",
            OF_MODEL,
            POWERS,
            registry=registry,
        )
        self.chunk_steps = Distribution(
            "unrolled_chunk_steps",
            "Steps that each engine call takes of its sequences.",
            OF_MODEL,
            POWERS,
            registry=registry,
        )
        self.queue_seconds = Distribution(
            "unrolled_queue_seconds",
            "Time that a request waits for its first step.",
            OF_MODEL,
            SECONDS,
            registry=registry,
        )
        self.execute_seconds = Distribution(
            "unrolled_execute_seconds",
            "Time of each engine call.",
            OF_MODEL,
            SECONDS,
            registry=registry,
        )
        self.steps = Tallies(
            "unrolled_steps",
            "Steps computed: useful ones, and padding.",
            (*OF_MODEL, "kind"),
            registry,
        )
        self.waiting_steps = Tallies(
            "unrolled_waiting_steps",
            "Steps admitted and not yet computed.",
            OF_MODEL,
            registry,
            gauge=True,
        )
        self.dropped = Counter(
            "unrolled_dropped_sequences",
            "Sequences not computed because their caller had gone.",
            OF_MODEL,
            registry=registry,
        )
        self.open_streams = Gauge(
            "unrolled_open_streams",
            "Streams that are open.",
            ("model",),
            registry=registry,
        )
        self.kept_sequences = Gauge(
            "unrolled_kept_sequences",
            "Sequences that are kept under an id (`sequence_id` of /v2).",
            registry=registry,
        )
        self.buffered_bytes = Gauge(
            "unrolled_buffered_bytes",
            "Bytes held for clients: bodies, frames, answers that are not read yet.",
            registry=registry,
        )
        self.evictions = Counter(
            "unrolled_evicted_connections",
            "Connections closed since too many bytes were held.",
            registry=registry,
        )
        self.stream_seconds = Distribution(
            "unrolled_stream_message_seconds",
            "Time from a stream's message to its answer.",
            OF_MODEL,
            SECONDS,
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

    def for_model(self, *model: str) -> "ModelMetrics":
        """The instruments of a name and its version: looked up once."""
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
        """The version is served no more: nor are its figures told."""
        for instrument in (
            self.sequence_steps,
            self.batch_rows,
            self.chunk_steps,
            self.queue_seconds,
            self.execute_seconds,
            self.stream_seconds,
            self.waiting_steps,
            self.dropped,
        ):
            instrument.remove(*model)
        for kind in ("useful", "padding"):
            self.steps.remove(*model, kind)

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self.registry)


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """What is counted of one model."""

    sequence_steps: Samples
    batch_rows: Samples
    chunk_steps: Samples
    queue_seconds: Samples
    execute_seconds: Samples
    stream_seconds: Samples
    useful: Tally
    padding: Tally
    waiting_steps: Tally
    dropped: Counter
