"""DataFrames of pandas and polars: their columns are matched by a model's feature names.

The readers of `model.datasets` read them, as they read the files of the command line.
They are imported when a DataFrame comes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from numpy.typing import ArrayLike

from service.client.models import ModelDetails

if TYPE_CHECKING:
    from model.datasets.readers import Sequences


class DataFrame(Protocol):
    """A DataFrame of pandas or polars: a row for each step, or for each text."""

    @property
    def columns(self) -> object: ...

    @property
    def shape(self) -> tuple[int, int]: ...


Data: TypeAlias = ArrayLike | Sequence[ArrayLike] | DataFrame


@dataclass(frozen=True, slots=True)
class Names:
    """The names of a DataFrame's columns that are no features."""

    by: str | None
    step: str | None
    label: str | None
    ignore: tuple[str, ...]


def is_dataframe(value: object) -> bool:
    """Return true for a DataFrame."""
    if not hasattr(value, "columns"):
        return False
    from model.datasets import readers

    return readers.is_dataframe(value)


def collect(data: Data) -> Data:
    """The data, which can be read several times: a DataFrame, or a list.

    Raises:
        ValueError: it is neither a DataFrame nor several sequences.
    """
    if is_dataframe(data):
        return data
    if not isinstance(data, Iterable):
        raise ValueError(f"expected a list of sequences, not {type(data).__name__}")
    return list(data)


def read(frame: object, names: Names, model: ModelDetails) -> "Sequences":
    """The sequences of a DataFrame, with the features, texts or records that a model takes.

    Raises:
        ValueError: a column is missing, or holds other values; names it.
    """
    from model.bundle.vocabulary import KINDS
    from model.datasets import readers, text
    from model.datasets.readers import records
    from model.datasets.readers.table_layout import RecordOptions

    columns = readers.Columns(names.by, names.label, names.step, names.ignore)
    recorded = readers.from_names(model.columns)
    try:
        if model.kinds is not None:
            options = RecordOptions.of(model.kinds)
            table = records.read(frame, options, columns, recorded=recorded)
            return table.with_records()
        if model.input in KINDS:
            record = model.training.get("settings")
            settings = record if isinstance(record, Mapping) else {}
            as_text = text.TextOptions.recorded(settings, model.input)
            return text.sequences(frame, as_text, columns, recorded)
        return readers.from_dataframe(frame, columns, model.features, recorded=recorded)
    except readers.ReadError as error:
        reason = f"{error.reason} (model {model.name})"
        raise readers.ReadError(error.path, error.line, reason) from None
