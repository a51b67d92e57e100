"""All sequences of a shard to their predictions, on one core and with no hurry."""

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


class Scored(NamedTuple):
    """What became of a shard."""

    text: bytes  # a JSON object a line, in the order of the shard
    sequences: int
    steps: int
    refused: int


class Scorer:
    """A loaded bundle."""

    metadata: Metadata

    def __init__(
        self, folder: Path, settings: Settings, top_k: int | None, digest: str = ""
    ):
        """
        Args:
            digest: that the bundle must have.

        Raises:
            BundleError: another bundle, or none.
        """
        found = bundle.read(folder, settings.keys)
        if digest not in ("", found.digest):
            raise BundleError(f"{folder}: is another bundle than where this was begun")
        allowlist.check(found)
        self.metadata, self._top_k = found.metadata, top_k
        loaded = engine.load(found, settings)
        price = cost.measure(loaded.engine, found.metadata)
        made = loaded.engine
        self._scheduler = Scheduler(made, found.metadata, settings, cost=price)

    def score(self, rows: list[Row]) -> Scored:
        """A line for each row: a prediction, or `{"error": why not}`; with the row's
        id, if it has one."""
        lines: list[dict[str, Any]] = [{"error": row.reason} for row in rows]
        refused, steps = 0, 0
        # Like lengths together: lanes end together, and little is padded.
        order = sorted(range(len(rows)), key=lambda at: len(_frames(rows[at])))
        for at in order:
            frames = rows[at].frames
            if frames is not None:
                self._scheduler.add(at, frames)
                steps += len(frames)
        while self._scheduler.busy:
            for told in self._scheduler.run_batch():
                if isinstance(told, JobResult):
                    lines[told.number] = self._prediction(told)
                elif isinstance(told, JobFailure):
                    lines[told.number] = {"error": told.reason}
        texts = []
        for row, line in zip(rows, lines, strict=True):
            refused += "error" in line
            whole = line if row.id is None else {"id": row.id} | line
            texts.append(orjson.dumps(whole, option=OPTIONS))
        return Scored(b"".join(texts), len(rows), steps, refused)

    def _prediction(self, told: JobResult) -> dict[str, Any]:
        width = len(self.metadata.classes)
        answer = np.frombuffer(told.probabilities, np.float32).reshape(-1, width)
        label = self.metadata.task == "label"
        return native.prediction(
            self.metadata, answer if label else answer[0], self._top_k
        )


OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
_NONE = np.empty((0, 0), np.float32)


def _frames(row: Row) -> np.ndarray:
    return _NONE if row.frames is None else row.frames
