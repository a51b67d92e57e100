"""Choose the model for a file by its columns, and read the file for that model."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from model.bundle import metadata as metadata_module
from model.bundle.metadata import Metadata
from model.bundle.vocabulary import KINDS
from model.datasets import text as texts
from model.datasets.dataset import Task, default_features, join_names
from model.datasets.readers import (
    Columns,
    ReadError,
    Sequences,
    from_names,
    read_sequences,
    records,
)
from model.datasets.readers.table_layout import RecordOptions
from model.datasets.text import TextOptions
from service.client import Client, ModelInfo

TEXT = ("text",)  # in place of the features of a model that reads text
MAX_FEATURES = 3  # of a model in a message


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that a file may be for.

    Attributes:
        reference: NAME, `NAME@VERSION` or `NAME@LABEL`.
        features: their names, in the network's order.
        recorded: names of the columns that it was trained with.
    """

    reference: str
    version: str
    task: Task
    classes: tuple[str, ...]
    features: tuple[str, ...]
    recorded: Columns
    kinds: dict[str, str] | None = None  # of the columns of records
    text: TextOptions | None = None  # how text is read


def of_service(
    client: Client,
    reference: str | None,
    accepts: Callable[[ModelInfo], bool] = lambda _: True,
) -> list[Candidate]:
    """The model with this reference; without one all models in service, or some.

    Raises:
        ClientError: there is no such model, or no answer.
    """
    references = [reference] if reference else []
    if not references:
        references = [model.name for model in client.models() if accepts(model)]
    candidates = []
    for name in references:
        details = client.model(name)
        text = _text_options(details.input, details.training.get("settings"))
        candidates.append(
            Candidate(
                reference=name,
                version=details.version,
                task=details.task,
                classes=tuple(details.classes),
                features=TEXT if text else tuple(details.features),
                recorded=from_names(details.columns),
                kinds=details.kinds,
                text=text,
            )
        )
    return candidates


def _text_options(kind: str, settings: object) -> TextOptions | None:
    """How a model's text was read in training; None for frames and records."""
    if kind not in KINDS:
        return None
    return TextOptions.recorded(settings if isinstance(settings, Mapping) else {}, kind)


def of_bundle(metadata: Metadata) -> Candidate:
    """The model of a bundle."""
    about = metadata.input
    text = _text_options(about.kind, metadata.training.settings)
    return Candidate(
        reference=metadata.name,
        version=metadata.version,
        task=metadata.task,
        classes=metadata.classes,
        features=TEXT if text else about.names,
        recorded=from_names(metadata.training.columns),
        kinds=dict(zip(about.names, about.kinds, strict=True))
        if isinstance(about, metadata_module.Records)
        else None,
        text=text,
    )


def read(
    path: Path,
    candidates: Iterable[Candidate],
    columns: Columns = Columns(),
    *,
    skip_empty: bool = False,
) -> tuple[Candidate, Sequences]:
    """Return the only model that fits a file, and the file's sequences.

    Of several models that fit, one whose features have names goes before one whose
    features have none, and one that takes more features before others.

    Args:
        columns: the names of a table's special columns.
        skip_empty: leave out empty texts, which `Sequences.empty` lists.

    Raises:
        ReadError: no model fits, or several do; lists them.
    """
    candidates = list(candidates)
    fitting: list[tuple[Candidate, Sequences]] = []
    errors: list[ReadError] = []
    read_before: dict[tuple[object, ...], Sequences] = {}
    for candidate in candidates:
        kinds = tuple((candidate.kinds or {}).values())
        key = (candidate.features, candidate.recorded, kinds, candidate.text)
        try:
            if key not in read_before:
                read_before[key] = _read(path, candidate, columns, skip_empty)
            fitting.append((candidate, read_before[key]))
        except ReadError as error:
            errors.append(error)
    if not fitting:
        raise _misfit(path, candidates, errors)
    best = min(map(_rank, fitting))
    chosen = [fit for fit in fitting if _rank(fit) == best]
    if len(chosen) > 1:
        names = join_names(candidate.reference for candidate, _ in chosen)
        reason = f"fits several models: {names}; choose one with --model"
        raise ReadError(path, None, reason)
    return chosen[0]


def _read(
    path: Path, candidate: Candidate, columns: Columns, skip_empty: bool
) -> Sequences:
    if candidate.text is not None:
        return texts.sequences(
            *(path, candidate.text, columns, candidate.recorded), skip_empty=skip_empty
        )
    if candidate.kinds is None:
        return read_sequences(
            path, columns, candidate.features, recorded=candidate.recorded
        )
    assert candidate.kinds is not None
    options = RecordOptions.of(candidate.kinds)
    table = records.read(path, options, columns, recorded=candidate.recorded)
    return table.with_records()


def check_version(chosen: Candidate, version: str) -> None:
    """Refuse the answers of another version: its features may have another order.

    Raises:
        ValueError: it is another one.
    """
    if version != chosen.version:
        reason = f"was replaced by version {version} meanwhile; try again"
        raise ValueError(f"{chosen.reference}: version {chosen.version} {reason}")


def notes(chosen: Candidate, data: Sequences) -> list[str]:
    """Texts that are empty, columns that were left out, and a table that was read as one
    sequence."""
    lines = []
    if data.empty:
        lines.append(f"{data.empty_rows()}: they have no answer")
    if data.labelled:
        lines.append(
            f"only {data.labelled:,} of {len(data):,} texts have a label: no answer is"
            " compared with one"
        )
    if not data.unused:
        return lines
    noun = "column" if len(data.unused) == 1 else "columns"
    names = join_names(data.unused)
    lines.append(f"{chosen.reference} does not use the {noun} {names}")
    if data.rows is not None and data.columns.sequence is None:
        count = f"{len(data.frames):,} rows"
        lines.append(f"no column of ids (--sequence-column): {count} are one sequence")
    return lines


def _rank(fit: tuple[Candidate, Sequences]) -> tuple[bool, int]:
    features = fit[0].features
    return features == default_features(len(features)), -len(features)


def _misfit(
    path: Path, candidates: list[Candidate], errors: list[ReadError]
) -> ReadError:
    """The error for a file that fits no model."""
    if not errors:
        return ReadError(path, None, "there is no model for it")
    # Most models refuse the header; the one that got further has the right columns.
    furthest = max(map(_line, errors))
    likely = [error for error in errors if _line(error) == furthest]
    if len({str(error) for error in likely}) == 1:
        return likely[0]
    models = join_names(f"{c.reference} ({_shown(c.features)})" for c in candidates)
    return ReadError(path, None, f"its columns fit no model; there are: {models}")


def _shown(features: tuple[str, ...]) -> str:
    more = ", ..." if len(features) > MAX_FEATURES else ""
    return ", ".join(f"{name:.40}" for name in features[:MAX_FEATURES]) + more


def _line(error: ReadError) -> int:
    """The number of the line or the row that an error names; 0 if it names none."""
    number = re.fullmatch(r"(?:row )?(\d+)", str(error.line))
    return int(number[1]) if number else 0
