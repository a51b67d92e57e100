"""Requests of records: objects with a value for each column of a model.

Own API: lists of records. Open Inference Protocol v2: a tensor [B, T] for each column
(BYTES for categories and times, numbers for the others), with `lengths`. TensorFlow
Serving: lists of objects, objects with `records`, or a list of rows for each column.
"""

import asyncio
import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from model.bundle.records import Record, RecordError, RecordSchema
from service.codecs import text_tensors, validation
from service.codecs.open_inference_tensors import InputTensor
from service.codecs.validation import invalid_field
from service.errors import FieldError, InvalidRequest
from service.settings import Limits

RECORDS = "records"
AT_ONCE = 2_000  # values that are encoded before other requests have their turn
MORE_MEMBERS = 32  # of a record, that the model doesn't read
# NumPy's types of binary tensors, by their datatype.
NUMBERS = {
    **{"FP32": "<f4", "FP64": "<f8", "BOOL": "?", "UINT8": "u1", "INT8": "i1"},
    **{"INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT16": "<u2"},
    **{"UINT32": "<u4", "UINT64": "<u8"},
}
DATATYPES = {
    "category": ("BYTES", "INT32", "INT64", "BOOL"),
    "number": tuple(NUMBERS),
    "time": ("BYTES", "FP64", "INT32", "INT64"),
}
Columns = Mapping[str, str]  # the kind of each column, by its name


class PredictBody(msgspec.Struct):
    """The JSON of `:predict` to a model that reads records."""

    signature_name: str = ""
    instances: list[Any] | None = None
    inputs: list[Any] | dict[str, list[list[Any]]] | None = None


class _Unparsed(msgspec.Struct):
    """The records of a body as they stand; other fields are skipped."""

    records: list[list[msgspec.Raw]] = []


_predict = msgspec.json.Decoder(PredictBody)
_unparsed = msgspec.json.Decoder(_Unparsed)
_values = msgspec.json.Decoder(list[Any])


def check_size(body: bytes, columns: int, limits: Limits) -> None:
    """Refuse a body with more values than a request of records may have; see
    `validation.check_values`.

    Args:
        columns: that the model takes.
    """
    records = limits.max_cells // max(1, columns) + limits.max_sequences + 2
    members = (columns + MORE_MEMBERS) * body.count(b"{") + limits.max_steps
    validation.check_values(
        body,
        strings=members + limits.max_cells,
        lists=records,
        objects=records,
        members=members,
    )


def check_lengths(body: bytes, limits: Limits) -> None:
    """Refuse a body with longer sequences than allowed, before its records become objects.

    Raises:
        TooLarge: a limit on sequences or steps is exceeded.
    """
    # The strict parser reports them.
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        steps = [len(sequence) for sequence in _unparsed.decode(body).records]
        validation.check_limits(
            limits, sequences=len(steps), steps=max(steps, default=0)
        )


def check(
    sequences: Sequence[Sequence[object]],
    columns: int,
    limits: Limits,
    names: Sequence[str] = (),
) -> None:
    """Check how many records a request has.

    Args:
        columns: that the model takes.
        names: of the sequences in error messages. Default: `records[0]`, ...

    Raises:
        InvalidRequest: a sequence has no record; names it.
        TooLarge: a limit on sequences, steps or numbers is exceeded.
    """
    validation.check_limits(limits, sequences=len(sequences))
    if not sequences:
        raise invalid_field(RECORDS, "must not be empty")
    steps = list(map(len, sequences))
    validation.check_limits(limits, steps=max(steps), numbers=columns * sum(steps))
    empty = [
        FieldError(
            names[index] if names else f"{RECORDS}[{index}]",
            "must have at least one record",
        )
        for index, count in enumerate(steps)
        if not count
    ]
    if empty:
        raise InvalidRequest(validation.MISMATCH, empty)


def choose(
    sequences: Sequence[Sequence[Record]], columns: Columns, names: Sequence[str] = ()
) -> list[list[dict[str, Any]]]:
    """Return the records with the members that are columns, and no others: what a client
    sends besides stays in the process that parses it.

    Args:
        names: of the sequences in error messages. Default: `records[0]`, ...

    Raises:
        InvalidRequest: a column holds a list or an object; names the first.
    """
    results = []
    for index, sequence in enumerate(sequences):
        chosen = [
            {name: record[name] for name in columns if name in record}
            for record in sequence
        ]
        for row, record in enumerate(chosen):
            for name, value in record.items():
                if isinstance(value, (list, dict)):
                    path = names[index] if names else f"{RECORDS}[{index}]"
                    kind = "a list" if isinstance(value, list) else "an object"
                    message = f"is {kind}; must be a {columns[name]}"
                    raise invalid_field(f"{path}[{row}].{name}", message)
        results.append(chosen)
    return results


async def encode(
    schema: RecordSchema,
    sequences: Sequence[Sequence[Record]],
    before: Sequence[int | None] = (),
    names: Sequence[str] = (),
) -> tuple[list[np.ndarray], list[int | None]]:
    """Return the frames [T, F] float32 of each sequence, and its last time.

    Args:
        before: the last time of each sequence so far, in microseconds since 1970.
        names: of the sequences in error messages. Default: `records[0]`, ...

    Raises:
        InvalidRequest: a column is missing, or holds a value of another kind; names the
            first in each sequence.
    """
    frames: list[np.ndarray] = []
    times: list[int | None] = []
    errors: list[FieldError] = []
    at_once = max(1, AT_ONCE // len(schema.fields))  # records
    since = 0  # records since the last turn of others
    for index, records in enumerate(sequences):
        time = before[index] if before else None
        parts: list[np.ndarray] = []
        for start in range(0, len(records), at_once):
            piece = records[start : start + at_once]
            if since + len(piece) > at_once:
                await asyncio.sleep(0)
                since = 0
            since += len(piece)
            try:
                part, time = schema.encode(piece, time)
            except RecordError as error:
                name = names[index] if names else f"{RECORDS}[{index}]"
                path = f"{name}[{start + error.row}].{error.column}"
                errors.append(FieldError(path, error.reason))
                break
            parts.append(part)
        if not errors:
            frames.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
            times.append(time)
    if errors:
        raise InvalidRequest(validation.MISMATCH, errors)
    return frames, times


def decode_tensors(
    inputs: Sequence[InputTensor], binary: memoryview, columns: Columns, limits: Limits
) -> list[list[dict[str, Any]]]:
    """Decode the tensors of an inference request to records.

    Args:
        binary: the binary tensors.

    Raises:
        InvalidRequest, TooLarge: names the field.
    """
    values: dict[str, list[Any]] = {}
    shape: list[int] = []
    lengths: list[int] | None = None
    for index, tensor in enumerate(inputs):
        path, name = f"inputs[{index}]", tensor.name
        kind = columns.get(name)
        if name in values or (kind is None and name != text_tensors.LENGTHS):
            known = ", ".join([*columns, text_tensors.LENGTHS])
            raise invalid_field(f"{path}.name", f"must be one of {known}, each once")
        datatypes = DATATYPES[kind] if kind is not None else ("INT32",)
        if tensor.datatype not in datatypes:
            raise invalid_field(
                f"{path}.datatype", f"must be one of {', '.join(datatypes)}"
            )
        if not tensor.shape or not all(size > 0 for size in tensor.shape):
            raise invalid_field(f"{path}.shape", "must contain positive numbers")
        count = math.prod(tensor.shape)
        validation.check_limits(
            limits, sequences=tensor.shape[0], numbers=count * len(columns)
        )
        data, binary = _data(tensor, binary, count, path)
        if kind is None:
            lengths = data
            continue
        if len(tensor.shape) != 2 or (shape and tensor.shape != shape):
            raise invalid_field(
                f"{path}.shape", "must be [batch, records], the same for all columns"
            )
        shape, values[name] = tensor.shape, data
    if binary:
        raise invalid_field("body", "is longer than the binary_data_size of its inputs")
    missing = [name for name in columns if name not in values]
    if missing:
        raise invalid_field("inputs", f"{missing[0]} is missing")
    batch, steps = shape
    counts = text_tensors.row_lengths(batch, steps, lengths)
    sequences = [
        [
            {name: column[row * steps + step] for name, column in values.items()}
            for step in range(count)
        ]
        for row, count in enumerate(counts)
    ]
    check(sequences, len(columns), limits)
    return sequences


def decode_predict(
    body: bytes, columns: Columns, limits: Limits
) -> tuple[list[list[dict[str, Any]]], bool]:
    """Decode TensorFlow Serving's `:predict` to records, and whether it is row by row.

    Raises:
        InvalidJson, InvalidRequest, TooLarge: names the field.
    """
    request = validation.decode_json(_predict, body)
    if request.signature_name not in ("", "serving_default"):
        raise invalid_field("signature_name", "must be serving_default")
    if (request.instances is None) == (request.inputs is None):
        raise invalid_field("body", "must have either instances or inputs")
    by_row = request.instances is not None
    path = "instances" if by_row else "inputs"
    rows = request.instances if by_row else request.inputs
    if isinstance(rows, dict):
        rows = _joined(rows, columns)
    sequences = []
    for index, row in enumerate(rows or []):
        records = row.get(RECORDS) if isinstance(row, dict) else row
        if not isinstance(records, list) or not all(
            isinstance(record, dict) for record in records
        ):
            message = "must be a list of records (objects), or have it as records"
            raise invalid_field(f"{path}[{index}]", message)
        sequences.append(records)
    names = [f"{path}[{index}]" for index in range(len(sequences))]
    check(sequences, len(columns), limits, names)
    return choose(sequences, columns, names), by_row


def _joined(rows: dict[str, list[list[Any]]], columns: Columns) -> list[Any]:
    """The records of a list of rows for each column."""
    missing = [name for name in columns if name not in rows]
    if missing:
        raise invalid_field("inputs", f"{missing[0]} is missing")
    names = list(columns)
    shapes = [list(map(len, rows[name])) for name in names]
    if any(shape != shapes[0] for shape in shapes):
        raise invalid_field("inputs", "all columns must have rows of the same lengths")
    return [
        [dict(zip(names, values, strict=True)) for values in zip(*row, strict=True)]
        for row in zip(*(rows[name] for name in names), strict=True)
    ]


def _data(
    tensor: InputTensor, binary: memoryview, count: int, path: str
) -> tuple[list[Any], memoryview]:
    """The values of a tensor, flat; and the rest of the binary tensors."""
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is None:
        data = bytes(tensor.data)
        if data.count(b'"') - data.count(rb"\"") > 2 * count:
            raise invalid_field(f"{path}.data", f"has more than {count} values")
        try:
            values: list[Any] = _values.decode(tensor.data)
        except msgspec.DecodeError:
            raise invalid_field(f"{path}.data", "must be a list") from None
        if values and isinstance(values[0], list):
            if not all(isinstance(row, list) for row in values):
                raise invalid_field(f"{path}.data", "must be all lists, or all values")
            values = [value for row in values for value in row]
    else:
        if type(size) is not int or not 0 <= size <= len(binary):
            name = f"{path}.parameters.binary_data_size"
            raise invalid_field(name, "exceeds the rest of the body")
        part, binary = bytes(binary[:size]), binary[size:]
        if tensor.datatype == "BYTES":
            values = text_tensors.unpack_texts(part, count, path)
        else:
            kind = np.dtype(NUMBERS[tensor.datatype])
            if len(part) != count * kind.itemsize:
                name = f"{path}.parameters.binary_data_size"
                message = f"must be {count * kind.itemsize} for this shape"
                raise invalid_field(name, message)
            values = np.frombuffer(part, kind).tolist()
    if len(values) != count:
        message = f"has {len(values)} values, but its shape {count}"
        raise invalid_field(f"{path}.data", message)
    return values, binary
