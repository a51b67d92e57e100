"""Compute the predictions of a shard, on one core."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from model.bundle import allowlist, bundle
from model.bundle.bundle import BundleError, Metadata
from service.bulk.shards import Row
from service.codecs import native
from service.settings import Settings
from service.worker import cost, engine
from service.worker.protocol import JobFailure, JobResult
from service.worker.scheduler import Scheduler

OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


class ShardResult(NamedTuple):
    """The output of a shard, and its counts."""

    text: bytes  # a JSON line for each row, in order
    sequences: int
    steps: int
    refused: int  # rows whose line is an error


class Scorer:
    """A loaded bundle that computes shards."""

    metadata: Metadata

    def __init__(
        self, folder: Path, settings: Settings, top_k: int | None, digest: str = ""
    ):
        """
        Args:
            digest: the bundle's digest when the job began; "" skips the check.

        Raises:
            BundleError: the bundle is broken, or has been replaced.
        """
        verified = bundle.read(folder, settings.keys)
        if digest not in ("", verified.digest):
            raise BundleError(f"{folder}: has been replaced since the job began")
        allowlist.check(verified)
        self.metadata, self._top_k = verified.metadata, top_k
        loaded = engine.load(verified, settings).engine
        measured = cost.measure(loaded, self.metadata)
        self._scheduler = Scheduler(loaded, self.metadata, settings, cost=measured)

    def score(self, rows: list[Row]) -> ShardResult:
        """A line for each row: its id if it has one, and a prediction or an error."""
        lines: list[dict[str, Any]] = [{"error": row.reason} for row in rows]
        steps = 0
        # Sequences of similar lengths share a batch, so that there is little padding.
        valid = [
            (n, row.frames) for n, row in enumerate(rows) if row.frames is not None
        ]
        for number, frames in sorted(valid, key=lambda item: len(item[1])):
            self._scheduler.add(number, frames)
            steps += len(frames)
        while self._scheduler.busy:
            for event in self._scheduler.run_batch():
                if isinstance(event, JobResult):
                    lines[event.number] = self._prediction(event)
                elif isinstance(event, JobFailure):
                    lines[event.number] = {"error": event.reason}
        text = b"".join(
            orjson.dumps(
                line if row.id is None else {"id": row.id} | line, option=OPTIONS
            )
            for row, line in zip(rows, lines, strict=True)
        )
        refused = sum("error" in line for line in lines)
        return ShardResult(text, len(rows), steps, refused)

    def _prediction(self, result: JobResult) -> dict[str, Any]:
        width = len(self.metadata.classes)
        answer = np.frombuffer(result.probabilities, np.float32).reshape(-1, width)
        probabilities = answer if self.metadata.task == "label" else answer[0]
        return native.prediction(self.metadata, probabilities, self._top_k)
