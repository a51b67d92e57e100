"""Compute the predictions of a shard, on one core."""

from pathlib import Path
from typing import Any, NamedTuple

import orjson

from model.bundle import bundle
from model.bundle.bundle import BundleError
from model.bundle.metadata import Metadata
from model.bundle.records import RecordSchema
from model.bundle.vocabulary import Vocabulary
from service.bulk.local_model import LocalModel
from service.bulk.rows import Row
from service.codecs import native
from service.settings import Settings

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
    encoding: Vocabulary | RecordSchema | None

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
        self._model, self._top_k = LocalModel(verified, settings), top_k
        self.metadata = verified.metadata
        self.encoding = verified.encoding()

    def score(self, rows: list[Row]) -> ShardResult:
        """A line for each row: its id if it has one, and a prediction or an error."""
        lines: list[dict[str, Any]] = [{"error": row.reason} for row in rows]
        valid = {n: row.frames for n, row in enumerate(rows) if row.frames is not None}
        answers = self._model.predict([*valid.values()])
        for number, answer in zip(valid, answers, strict=True):
            if isinstance(answer, str):
                lines[number] = {"error": answer}
            else:
                fields = native.prediction(self.metadata, answer, self._top_k)
                lines[number] = fields | dict(rows[number].extra)
        steps = sum(map(len, valid.values()))
        text = b"".join(
            orjson.dumps(
                line if row.id is None else {"id": row.id} | line, option=OPTIONS
            )
            for row, line in zip(rows, lines, strict=True)
        )
        refused = sum("error" in line for line in lines)
        return ShardResult(text, len(rows), steps, refused)
