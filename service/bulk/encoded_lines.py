"""A file of texts or records, a sequence on each line.

.txt      a text
.jsonl    {"text": "..."}, {"tokens": ["...", ...]} or {"records": [{...}, ...]}, and "id"
"""

from typing import Any

import msgspec
import numpy as np
from pyarrow.fs import FileSystem

from model.bundle.metadata import Metadata
from model.bundle.records import RecordError, RecordSchema
from model.bundle.vocabulary import Vocabulary, tokenize
from service.bulk.json_lines import JsonLinesFile, reason_of
from service.bulk.rows import Row
from service.codecs import text, validation
from service.errors import ServiceError

SUFFIXES = (".txt", ".jsonl", ".ndjson")


class Line(msgspec.Struct):
    """The members of a line that are read."""

    text: str | None = None
    tokens: list[str] | None = None
    records: list[dict[str, Any]] | None = None
    id: str | int | None = None


_decoder = msgspec.json.Decoder(Line)


class EncodedLinesFile(JsonLinesFile):
    """Lines that a network's vocabulary or columns turn into frames."""

    def __init__(
        self,
        system: FileSystem,
        path: str,
        size: int,
        metadata: Metadata,
        encoding: Vocabulary | RecordSchema,
        *,
        plain: bool,
    ):
        """
        Args:
            encoding: of the network that reads them.
            plain: a line is a text, not JSON.
        """
        super().__init__(system, path, size, metadata.input.names)
        self._encoding = encoding
        self._labels, self._plain = metadata.task == "label", plain

    def parse(self, item: bytes) -> Row:
        name = None
        try:
            if self._plain:
                line = Line(text=item.decode().rstrip("\r"))
            else:
                line = validation.decode_json(_decoder, item, "line")
            if isinstance(line.id, int) and not -(2**63) <= line.id < 2**64:
                return Row(None, None, "id must have at most 64 bits")
            name = line.id
            frames, extra = self._encode(line)
            return Row(name, frames, extra=extra)
        except RecordError as error:
            reason = f"records[{error.row}].{error.column} {error.reason}"
            return Row(name, None, reason)
        except ServiceError as error:
            return Row(name, None, reason_of(error))
        except ValueError as error:
            return Row(name, None, str(error))

    def _encode(self, line: Line) -> tuple[np.ndarray, dict[str, Any]]:
        """The frames of a line, and the members that its answer has besides.

        Raises:
            ValueError: the line has another input than the model takes, or an empty one.
        """
        vocabulary = self._encoding
        if isinstance(vocabulary, RecordSchema):
            if not line.records:
                raise ValueError("records is missing, or empty")
            return vocabulary.encode(line.records)[0], {}
        if line.text is not None:
            return self._of_text(vocabulary, line.text)
        if vocabulary.kind == "characters" or line.tokens is None:
            takes = "text" if vocabulary.kind == "characters" else "text or tokens"
            raise ValueError(f"{takes} is missing")
        if not line.tokens or not all(line.tokens):
            raise ValueError("tokens must be words, at least one")
        return vocabulary.encode(line.tokens), {}

    def _of_text(
        self, vocabulary: Vocabulary, content: str
    ) -> tuple[np.ndarray, dict[str, Any]]:
        tokens = tokenize(content, vocabulary.kind)
        if not tokens:
            raise ValueError("text must have at least one token")
        frames = vocabulary.encode(tokens)
        if not self._labels or vocabulary.kind == "characters":
            return frames, {}
        return frames, {"tokens": text.token_fields(vocabulary, tokens, content)}
