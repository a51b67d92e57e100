"""Columns of records: categories, numbers and times, and files that lie."""

import json
import math
import shutil

import numpy as np
import pytest

from model.bundle import bundle, vocabulary
from model.bundle.bundle import BundleError
from model.bundle.records import (
    CategoryColumn,
    NumberColumn,
    RecordError,
    RecordSchema,
    TimeColumn,
    to_microseconds,
)
from tests.support.bundles import seal

LOGIN = {"event": "login", "amount": 3, "at": "2026-01-31T12:00:00Z"}


ENTRIES = [f"e{n}" for n in range(150_000)]


def make() -> RecordSchema:
    return RecordSchema(
        fields=(
            CategoryColumn(
                name="event", width=2, entries=("login", "pay", "7", "true")
            ),
            NumberColumn(name="amount"),
            TimeColumn(name="at"),
        )
    ).with_examples()


def test_encode():
    """A category is its place, 0 if it is not listed; a time the logarithm of the seconds
    since the one before. Other members are ignored."""
    values = [" login", "refund", None, 7.0, np.bool_(True)]
    records = [LOGIN | {"event": value, "more": []} for value in values]
    records[1]["at"] = 1769860800 + 9.5
    for record in records[2:]:
        record["at"] = "2026-01-31 12:00:09.5+00:00"
    frames, time = make().encode(records)
    assert frames.dtype == np.float32
    assert frames[:, 0].tolist() == [1, 0, 0, 3, 4]
    assert frames[:, 1].tolist() == [3] * 5
    assert frames[:, 2].tolist() == pytest.approx([0, math.log1p(9.5), 0, 0, 0])
    assert time == 1769860809_500000


def test_cut():
    """Records in several calls give the frames of one call."""
    schema = make()
    records = [LOGIN | {"at": 1e9 + second**2} for second in range(6)]
    whole, last = schema.encode(records)
    parts, time = [], None
    for record in records:
        part, time = schema.encode([record], time)
        parts.append(part)
    assert np.array_equal(np.concatenate(parts), whole)
    assert time == last


@pytest.mark.parametrize(
    ("change", "column", "reason"),
    [
        ({"event": 1.5}, "event", "text, a whole number"),
        ({"event": ["a"]}, "event", "text, a whole number"),
        ({"amount": "3"}, "amount", "must be a number"),
        ({"amount": None}, "amount", "is null"),
        ({"amount": 1e39}, "amount", "finite"),
        ({"amount": 10**400}, "amount", "finite"),
        ({"at": "noon"}, "at", "ISO 8601"),
        ({"at": "nan"}, "at", "seconds since 1970"),
        ({"at": 1769860800_000}, "at", "smaller unit"),
        ({"at": True}, "at", "ISO 8601"),
        ({"at": "2026-01-31T11:59:59Z"}, "at", "earlier than the previous"),
    ],
)
def test_refused(change, column, reason):
    """An error names the record and the column."""
    with pytest.raises(RecordError, match=reason) as error:
        make().encode([LOGIN, LOGIN | change])
    assert (error.value.row, error.value.column) == (1, column)


def test_missing():
    record = {name: value for name, value in LOGIN.items() if name != "amount"}
    with pytest.raises(RecordError, match="is missing") as error:
        make().encode([LOGIN, record])
    assert (error.value.row, error.value.column) == (1, "amount")


def test_times():
    """Times have an ISO 8601 text, with or without a zone, or seconds since 1970. A text
    of digits is seconds, as the number is."""
    assert to_microseconds("10030907") == to_microseconds(10030907) == 10030907_000000
    for text in ("1_700_000_000", "٢٠٢٦", "1e400"):
        with pytest.raises(ValueError, match="since 1970"):
            to_microseconds(text)
    expected = to_microseconds("2026-01-31T12:00:00Z")
    for value in (
        "2026-01-31 12:00",
        "2026-01-31T13:00+01:00",
        1769860800,
        "1769860800",
    ):
        assert to_microseconds(value) == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fields": []}, "fields"),
        ({"fields": [{"kind": "number", "name": "a"}] * 2}, "repeated"),
        (
            {
                "fields": [
                    {"kind": "time", "name": "a"},
                    {"kind": "time", "name": "b"},
                ]
            },
            "more than one",
        ),
        (
            {
                "fields": [
                    {"kind": "category", "name": "a", "width": 1, "entries": ["x", "x"]}
                ]
            },
            "entry is repeated",
        ),
        (
            {
                "fields": [
                    {
                        "kind": "category",
                        "name": name,
                        "width": 1,
                        "entries": [*ENTRIES],
                    }
                    for name in "ab"
                ]
            },
            "more than 250,000 entries",
        ),
        ({"kind": "tokens"}, "kind"),
        ({"more": 1}, "more"),
        ({"examples": [[["login", 1, 0], [2, 1, 0]]]}, "examples"),
        ({"examples": [[["login", 1], [1, 1]]]}, "zip"),
    ],
)
def test_lies(change, reason):
    """A file that contradicts itself is refused, and the reason names what."""
    text = json.dumps(json.loads(make().to_json()) | change)
    with pytest.raises(ValueError, match=reason):
        RecordSchema.read(text.encode())


def test_file():
    """A file is read as it was written, with its examples."""
    schema = make()
    assert len(schema.examples) == 100
    assert RecordSchema.read(schema.to_json()) == schema


def test_another_schema(text_bundles, tmp_path):
    """A bundle with another network's columns is refused, though its digests match."""
    folder = shutil.copytree(text_bundles / "visits" / "1", tmp_path / "1")
    schema = bundle.read(folder).schema()
    assert [*schema.kinds.values()] == ["category", "category", "number", "time"]
    other = text_bundles / "calls" / "1" / vocabulary.FILE
    shutil.copyfile(other, folder / vocabulary.FILE)
    with pytest.raises(BundleError, match="another network"):
        seal(folder).schema()
    number = json.loads(schema.to_json())
    number["fields"][3]["kind"] = "number"
    number["examples"] = []
    (folder / vocabulary.FILE).write_text(json.dumps(number))
    with pytest.raises(BundleError, match="another network"):
        seal(folder).schema()
