"""Records as rows of numbers: the columns of events that a network reads.

A column is a category, a number, or the time of the record. A category becomes its place
in a list of those that training has seen; a time becomes the logarithm of the seconds
since the record before. Training and the service turn records into numbers by this
module, so that both get the same.
"""

import datetime
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import force_setattr

from model.bundle.vocabulary import MAX_ENTRIES, Column, Entry, Section, Width

MICROSECOND = datetime.timedelta(microseconds=1)
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
MAX_SECONDS = 253_402_300_800  # since 1970: the year 10,000; milliseconds are larger
NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*", re.ASCII)
MAX_BITS = 1024  # of a whole number that is a category
SECOND = 1_000_000  # microseconds
NULL = "is null: fill in missing values, or leave their records out"
NO_TIME = "must be an ISO 8601 time (2026-01-31T12:00:00Z), or seconds since 1970"
EXAMPLES = 100  # made-up records whose numbers a schema states
Record = Mapping[str, Any]


class CategoryColumn(
    Section, frozen=True, kw_only=True, tag_field="kind", tag="category"
):
    """A column of names. Their ids are places in `entries`, from 1; 0 is any other."""

    kind: ClassVar[Literal["category"]] = "category"
    name: Entry
    width: Width  # numbers that stand for an id
    entries: Annotated[tuple[Entry, ...], Meta(max_length=MAX_ENTRIES)]


class NumberColumn(Section, frozen=True, kw_only=True, tag_field="kind", tag="number"):
    """A column of numbers."""

    kind: ClassVar[Literal["number"]] = "number"
    name: Entry


class TimeColumn(Section, frozen=True, kw_only=True, tag_field="kind", tag="time"):
    """The column of times: ISO 8601, or seconds since 1970."""

    kind: ClassVar[Literal["time"]] = "time"
    name: Entry


class RecordError(ValueError):
    """A record that the columns don't fit.

    Attributes:
        row: index of the record.
        column: its name; "" if the record itself is wrong.
        reason: what is wrong with it.
    """

    def __init__(self, row: int, column: str, reason: str):
        super().__init__(f"record {row}, column {column!r:.80} {reason}")
        self.row, self.column, self.reason = row, column, reason


AnyColumn = CategoryColumn | NumberColumn | TimeColumn


class RecordSchema(Section, frozen=True, kw_only=True):
    """The columns of records, in the order of a frame's numbers; `vocabulary.json`."""

    format: Literal[1] = 1
    kind: Literal["records"] = "records"
    fields: Annotated[tuple[AnyColumn, ...], Meta(min_length=1, max_length=1024)]
    # A sequence of records as values in the order of the columns, and its frames.
    examples: Annotated[
        tuple[tuple[tuple[str | float | None, ...], tuple[float, ...]], ...],
        Meta(max_length=1000),
    ] = ()

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            raise ValueError("a column is repeated")
        if sum(isinstance(column, TimeColumn) for column in self.fields) > 1:
            raise ValueError("more than one column of times")
        places = [
            {entry: place for place, entry in enumerate(column.entries, 1)}
            if isinstance(column, CategoryColumn)
            else {}
            for column in self.fields
        ]
        listed = sum(
            len(c.entries) for c in self.fields if isinstance(c, CategoryColumn)
        )
        if listed > MAX_ENTRIES:
            raise ValueError(f"more than {MAX_ENTRIES:,} entries")
        if sum(map(len, places)) < listed:
            raise ValueError("an entry is repeated")
        force_setattr(self, "_places", places)
        if self.examples:
            values, rows = zip(*self.examples, strict=True)
            records = [dict(zip(self.names, row, strict=True)) for row in values]
            frames, _ = self.encode(records)
            if not np.array_equal(frames, np.array(rows, np.float32)):
                raise ValueError("other numbers than those of its examples")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.name for column in self.fields)

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each column (category, number or time), by its name."""
        return {column.name: column.kind for column in self.fields}

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns as a network reads them; a size of 0 is a number."""
        return tuple(
            Column(name=c.name, size=1 + len(c.entries), width=c.width)
            if isinstance(c, CategoryColumn)
            else Column(name=c.name, size=0, width=1)
            for c in self.fields
        )

    def encode(
        self, records: Sequence[Record], before: int | None = None
    ) -> tuple[np.ndarray, int | None]:
        """Return the frames [T, F] float32 of a sequence's records, and the last time.

        Members of a record that are no columns are ignored.

        Args:
            before: time of the record before the first, in microseconds since 1970.

        Raises:
            RecordError: a column is missing, or holds a value of another kind; names the
                record and the column.
        """
        frames = np.empty((len(records), len(self.fields)), np.float32)
        places: list[dict[str, int]] = self._places  # type: ignore[attr-defined]
        for index, column in enumerate(self.fields):
            name = column.name
            try:
                values = [record[name] for record in records]
            except KeyError:
                row = next(i for i, record in enumerate(records) if name not in record)
                raise RecordError(row, name, "is missing") from None
            if isinstance(column, CategoryColumn):
                known = places[index]
                names = convert(values, name, to_category)
                frames[:, index] = [known.get(text, 0) for text in names]
            elif isinstance(column, NumberColumn):
                with np.errstate(over="ignore"):  # becomes infinite, which is refused
                    frames[:, index] = convert(values, name, to_number)
                for row in np.flatnonzero(~np.isfinite(frames[:, index]))[:1].tolist():
                    raise RecordError(row, name, "must be finite in float32")
            else:
                times = convert(values, name, to_microseconds)
                frames[:, index] = _since_before(times, name, before)
                before = times[-1] if times else before
        return frames, before

    def with_examples(self) -> Self:
        """Return the same columns with made-up records and their frames, which `read`
        checks."""
        records = []
        for number in range(EXAMPLES):
            record: dict[str, str | float | None] = {}
            for column in self.fields:
                if isinstance(column, CategoryColumn):
                    names = (*column.entries, "?", None)
                    record[column.name] = names[number % len(names)]
                elif isinstance(column, NumberColumn):
                    record[column.name] = number / 3
                else:
                    record[column.name] = (
                        f"2026-01-31T12:{number // 60:02d}:{number % 60:02d}.5Z"
                    )
            records.append(record)
        frames, _ = self.encode(records)
        examples = tuple(
            (tuple(record.values()), tuple(row))
            for record, row in zip(records, frames.tolist(), strict=True)
        )
        return msgspec.structs.replace(self, examples=examples)


def convert(
    values: Sequence[Any], name: str, function: Callable[[Any], Any]
) -> list[Any]:
    """Return each value of a column as `function` gives it.

    Raises:
        RecordError: the function refuses a value; names its record.
    """
    row = 0
    results = []
    try:
        for row, value in enumerate(values):  # noqa: B007
            results.append(function(value))
    except ValueError as error:
        raise RecordError(row, name, str(error)) from None
    return results


def parse_time(text: str) -> int:
    """Return an ISO 8601 time in microseconds since 1970; without a zone it is UTC."""
    time = datetime.datetime.fromisoformat(text.strip())
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    return (time - EPOCH) // MICROSECOND


def to_microseconds(value: object) -> int:
    """Return an ISO 8601 time, or seconds since 1970, in microseconds since 1970.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        if not NUMBER.fullmatch(value):  # 20260131 is a number, too, not a date
            try:
                return parse_time(value)
            except (ValueError, OverflowError):
                raise ValueError(NO_TIME) from None
        value = float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= MAX_SECONDS:
            raise ValueError("must be in seconds since 1970, not in a smaller unit")
        return round(value * SECOND)
    if value is None:
        raise ValueError(NULL)
    raise ValueError(NO_TIME)


def to_category(value: object) -> str:
    """Return a category as text: true as "true" (like JSON), 7 and 7.0 as "7", null as "".
    Spaces around a text don't count.

    Raises:
        ValueError: it is a fraction, a list or an object.
    """
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return ""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and value.bit_length() <= MAX_BITS:
        return str(value)
    raise ValueError("must be text, a whole number, true, false or null")


def to_number(value: object) -> float:
    """Return a number; true and false are 1 and 0.

    Raises:
        ValueError: it is text, null, a list or an object.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if value is None:
        raise ValueError(NULL)
    raise ValueError("must be a number")


def _since_before(times: list[int], name: str, before: int | None) -> list[float]:
    """Return the logarithms of one plus the seconds since the record before, [T]."""
    results = []
    if before is None:
        before = times[0] if times else 0
    for row, (last, time) in enumerate(itertools.pairwise([before, *times])):
        if time < last:
            reason = "is earlier than the previous record's time"
            raise RecordError(row, name, reason)
        results.append(math.log1p((time - last) / SECOND))
    return results
