"""Read Parquet in long form (see long_rows) with pyarrow, an optional package."""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from model.datasets import spool
from model.datasets.readers import files, long_rows, parquet_pages, table_layout
from model.datasets.readers.long_rows import Runs
from model.datasets.readers.sequences import Sequences, to_text
from model.datasets.readers.table_layout import Expected, Layout

BLOCK = 65536  # Rows decoded at a time.
BUFFER = 2**20  # Bytes of a column that are read from the file at a time.
ROW_BYTES = 40  # Of a row beside its features: five integers.
EXPANSION = 100  # A file of real data is at most so many times as large when decoded.
NUMBER_COPIES = 0.5  # Doubles become float32, a few pages at a time.
ADVICE = "a larger set can be NumPy arrays (numpy.savez)"
TEXT_COPIES = 4  # The page, decoded text, a dictionary, and Python strings.


def read(path: Path, expected: Expected) -> Sequences:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        reason = "reading Parquet needs the package pyarrow; install it, or use CSV"
        raise files.ReadError(path, None, reason) from None
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            try:
                layout = table_layout.assign(list(schema.names), expected)
                _check_types(schema, layout)
            except ValueError as error:
                raise files.ReadError(path, None, str(error)) from None
            names = [*layout.texts, *filter(None, [layout.step]), *layout.features]
            try:
                _check_size(path, file.metadata, names, len(layout.features))
            except files.ReadError:
                raise
            except ValueError as error:
                raise files.ReadError(path, None, f"not Parquet: {error}") from None
            texts, rows = _text_columns(file.metadata, layout.texts)
        # Buffers that are filled ahead stay in memory until the end of the file.
        options = {"buffer_size": BUFFER, "pre_buffer": False}
        with parquet.ParquetFile(path, read_dictionary=texts, **options) as file:
            table = long_rows.LongRows(path, "row", layout)
            start = 1
            with closing(_ahead(file.iter_batches(rows, columns=names))) as batches:
                for batch in batches:
                    if batch.num_rows:
                        _add(table, batch, start)
                    start += batch.num_rows
    except spool.SpoolError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise files.ReadError(path, None, f"not Parquet: {reason}") from None
    except UnicodeDecodeError:  # Arrow decodes text lazily.
        raise files.ReadError(path, None, "holds text that is not UTF-8") from None
    return table.finish()


def _ahead(batches: Iterator[Any]) -> Generator[Any]:
    """Yield batches; a thread decodes the next one while one is in use."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = thread.submit(next, batches, None)
            yield batch


def _check_types(schema: Any, layout: Layout) -> None:
    """Raise ValueError for a column of another type than expected.

    Lists and bytes may be of any size, so they must not be decoded.
    """
    from pyarrow import types

    for name in (*layout.features, *layout.texts, *filter(None, [layout.step])):
        kind = schema.field(name).type
        number = types.is_integer(kind) or types.is_floating(kind)
        if name in layout.features and not (number or types.is_boolean(kind)):
            time = types.is_temporal(kind)
            hint = "order the rows by it (--step-column), or" if time else "if not,"
            reason = f"column {name!r} holds {kind}; expected numbers"
            raise ValueError(f"{reason}: {hint} leave it out (--ignore)")
        kind = kind.value_type if types.is_dictionary(kind) else kind
        allowed = [types.is_string, types.is_large_string, types.is_string_view]
        if name == layout.step:
            expected = "numbers or times"
            allowed += [types.is_timestamp, types.is_date]
        else:
            expected = "text"
            allowed += [types.is_boolean, types.is_null]
        if not (number or any(of(kind) for of in allowed)):
            raise ValueError(f"column {name!r} holds {kind}; expected {expected}")


def _check_size(path: Path, metadata: Any, names: list[str], features: int) -> None:
    """Refuse what needs too much memory, by the footer and by the pages' headers."""
    import pyarrow

    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    rows = sum(group.num_rows for group in groups)
    content = f"its {rows:,} rows of {features} features"
    size = rows * (ROW_BYTES + 4 * features)
    if size > EXPANSION * path.stat().st_size:  # else a temporary file takes it
        files.check_memory(path, None, content, size, ADVICE)
    with pyarrow.OSFile(str(path)) as file:
        for number, group in enumerate(groups):
            size = 0
            for column in map(group.column, range(group.num_columns)):
                if column.path_in_schema not in names:
                    continue
                _, paged = parquet_pages.measure_chunk(file, column)
                text = column.physical_type == "BYTE_ARRAY"
                copies = TEXT_COPIES if text else NUMBER_COPIES
                size += int(copies * max(paged, column.total_uncompressed_size))
            content = "its encoded columns"
            files.check_memory(path, f"row group {number}", content, size, ADVICE)


def _text_columns(metadata: Any, columns: Sequence[str]) -> tuple[list[str], int]:
    """Return the text columns to read as dictionaries, and the rows to decode at a time.

    A dictionary holds a long text that many rows share only once. A column in a DELTA
    encoding can't be read as one, and a few bytes of it may repeat the text before: each
    text is at most as long as the whole column.
    """
    names, rows = set(columns), BLOCK
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            delta = any(name.startswith("DELTA") for name in column.encodings)
            if column.path_in_schema in names and delta:
                names.discard(column.path_in_schema)
                size = max(column.total_uncompressed_size, 1)
                rows = min(rows, files.MAX_BYTES // size)
    return sorted(names), max(rows, 1)


def named_rows(path: Path, names: Sequence[str]) -> files.Rows:
    """Return the cells of these columns in each row, by the rows' numbers."""
    from pyarrow import parquet

    header = parquet.read_schema(path).names
    columns = [name for name in names if name in header]
    rows = parquet.read_table(path, columns=columns).to_pylist()
    return files.Rows(header, None, enumerate(rows, 1))


def _add(table: long_rows.LongRows, batch: Any, start: int) -> None:
    """Add a batch of rows, the first of which is row number `start`."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    layout = table.layout
    split = None
    if layout.split is not None:
        parts = _runs(columns[layout.split])
        codes = [
            _checked(table, start + row, long_rows.part, name)
            for row, name in zip(parts.starts, parts.values, strict=True)
        ]
        split = parts.spread(codes)
    table.add(
        _numbers([columns[name] for name in layout.features]),
        range(start, start + batch.num_rows),
        sequences=_texts(table, layout.sequence, columns, start),
        names=_texts(table, layout.label, columns, start),
        steps=_steps(table, columns, start),
        split=split,
        groups=_texts(table, layout.group, columns, start),
    )


def _numbers(columns: list[Any]) -> np.ndarray:
    """Return the features, [R, F] float32 or float64; NaN where one is missing."""
    import pyarrow

    single = all(column.type == pyarrow.float32() for column in columns)
    dtype = np.float32 if single else np.float64
    frames = np.empty((len(columns[0]), len(columns)), dtype)
    for place, column in enumerate(columns):
        if pyarrow.types.is_boolean(column.type):
            column = column.cast(pyarrow.uint8())
        frames[:, place] = column.to_numpy(zero_copy_only=False)
    return frames


def _steps(
    table: long_rows.LongRows, columns: dict[str, Any], start: int
) -> np.ndarray | None:
    """Return the step column, [R]; its first row is number `start`."""
    from pyarrow import types

    name = table.layout.step
    if name is None:
        return None
    column = columns[name]
    _refuse_nulls(table, name, column, start)
    if types.is_integer(column.type) or types.is_floating(column.type):
        return column.to_numpy(zero_copy_only=False)
    if types.is_timestamp(column.type) or types.is_date(column.type):
        table.zoned = getattr(column.type, "tz", None) is not None
        times = column.to_numpy(zero_copy_only=False)
        return times.astype("datetime64[us]")
    try:
        return table.parse_steps(list(map(str, column.to_pylist())))
    except ValueError as error:
        index, reason = error.args
        table.fail(start + index, f"column {name!r} {reason}")


def _texts(
    table: long_rows.LongRows, name: str | None, columns: dict[str, Any], start: int
) -> Runs | None:
    if name is None:
        return None
    column = columns[name]
    _refuse_nulls(table, name, column, start)
    runs = _runs(column)
    values = [
        _checked(table, start + row, to_text, value, f"column {name!r}: ")
        for row, value in zip(runs.starts, runs.values, strict=True)
    ]
    table.characters += sum(map(len, set(values)))
    content = "the text of its columns"
    files.check_memory(table.path, None, content, table.characters, ADVICE)
    if "" in values:
        row = runs.starts[values.index("")]
        table.fail(start + row, f"column {name!r} is empty")
    return Runs(values, runs.lengths)


def _runs(column: Any) -> Runs:
    """Return the runs of a column; equal texts of a dictionary are one object."""
    import pyarrow

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        codes = column.indices.fill_null(-1).to_numpy()
    elif pyarrow.types.is_integer(kind) and not column.null_count:
        codes = column.to_numpy()
    else:
        return Runs.of(column.to_pylist())
    starts = np.concatenate([[0], spool.changes(codes)])
    lengths = np.diff(starts, append=len(codes))
    values = codes[starts]
    if not pyarrow.types.is_dictionary(kind):
        return Runs(values.tolist(), lengths)
    used, inverse = np.unique(values, return_inverse=True)
    chosen = pyarrow.array(used, mask=used < 0)
    texts = column.dictionary.take(chosen).to_pylist()
    return Runs([texts[place] for place in inverse], lengths)


def _refuse_nulls(
    table: long_rows.LongRows, name: str, column: Any, start: int
) -> None:
    if column.null_count:
        empty = column.is_null().to_numpy(zero_copy_only=False)
        table.fail(start + int(np.argmax(empty)), f"column {name!r} is empty")


def _checked(
    table: long_rows.LongRows, row: int, parse: Any, value: Any, prefix: str = ""
) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        table.fail(row, f"{prefix}{error}")
