"""The commands `versions`, `promote` and `rollback`: the versions in folders of bundles."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from model.bundle import bounded_files, bundle, folders, labels
from model.bundle.bundle import BundleError
from model.bundle.folders import VersionFolder
from model.bundle.metadata import Metadata, shown_part
from model.bundle.operators import allowlist
from service import values
from service.bulk import object_store
from service.settings import Settings, load

COLUMNS = ("name", "version", "created", "error %", "ECE %", "labels", "MB", "folder")
RIGHT = ("version", "error %", "ECE %", "MB")


def show(bundles: str | None, name: str | None) -> None:
    """Print a table of all versions, or of one name's."""
    with _errors():
        roots = _roots(bundles)[0]
        entries = [_find(name, roots)] if name else folders.scan(*roots)
        if not entries:
            raise BundleError(f"{_listed(roots)}: no bundle found")
        console = Console(highlight=False, markup=False, emoji=False)
        if not console.is_terminal:
            console.width = 160  # the same in every pipe and file
        table, errors = _table(entries, drawn=console.is_terminal)
        console.print(table)
        for error in errors:
            raise error


def promote(bundles: str | None, reference: str, label: str) -> None:
    """Let a label mean a version, after checking that the version can be served."""
    with _errors():
        roots, settings = _roots(bundles)
        name, _, version = reference.partition("@")
        entry = _find(name, roots)
        number = _number(entry, version)
        _check(entry, settings, number)
        before = labels.promote(entry.folders, number, label)
        _report(name, label, number, before)


def rollback(bundles: str | None, name: str) -> None:
    """Make the version the default that was it before, if it can be served."""
    with _errors():
        roots, settings = _roots(bundles)
        entry = _find(name, roots)
        check = partial(_check, entry, settings)
        before, number = labels.rollback(entry.folders, check)
        _report(name, labels.DEFAULT, number, before)


def _check(entry: VersionFolder, settings: Settings, number: int) -> None:
    """Check that a version can be served."""
    verified = bundle.read(entry.versions[number], settings.keys)
    allowlist.check(verified)
    metadata = verified.metadata
    if (metadata.name, metadata.version) != (entry.name, str(number)):
        holds = f"{metadata.name}, version {metadata.version}"
        raise BundleError(f"{verified.folder}: holds {holds}")


def _report(name: str, label: str, number: int, before: int | None) -> None:
    former = "" if before is None else f" (before: {before})"
    if before == number:
        former = " (as before)"
    typer.echo(f"{label} of {name} is version {number}{former}")


def _roots(bundles: str | None) -> tuple[tuple[Path, ...], Settings]:
    """The folders that the option or the setting names, and the settings."""
    settings = load() if bundles is None else load(bundles=bundles)
    for place in values.split_list(settings.bundles):
        if object_store.is_remote(place):
            uri = object_store.without_credentials(place)
            raise BundleError(f"{uri}: only the labels of local folders can be changed")
    return settings.folders, settings


def _find(name: str, roots: Sequence[Path]) -> VersionFolder:
    entries = {entry.name: entry for entry in folders.scan(*roots)}
    entry = entries.get(name)
    if entry is None:
        similar = difflib.get_close_matches(name, entries, n=1)
        hint = f" (did you mean {similar[0]}?)" if similar else ""
        known = ", ".join(entries) or "none"
        raise BundleError(
            f"{_listed(roots)}: no bundle {name}{hint}; there are: {known}"
        )
    if not entry.folders:
        raise BundleError(f"{entry.versions[0]}: is a single bundle, without versions")
    return entry


def _number(entry: VersionFolder, version: str) -> int:
    """The number of a version or of a label."""
    known = labels.read(*entry.folders)
    number = int(version) if bundle.VERSION.fullmatch(version) else known.get(version)
    if number is None or number not in entry.versions:
        listed = ", ".join(map(str, [*entry.versions, *known]))
        raise BundleError(
            f"{entry.name} has no version {version!r}: write {entry.name}@VERSION;"
            f" available: {listed}"
        )
    return number


def _table(
    entries: Sequence[VersionFolder], *, drawn: bool
) -> tuple[Table, list[BundleError]]:
    """The table, and why labels can't be read."""
    errors = []
    table = Table(box=box.ROUNDED if drawn else None)
    for column in COLUMNS:
        right = column in RIGHT
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for entry in entries:
        newest = [*entry.versions][-1]
        names = dict.fromkeys(entry.versions, "broken")  # the labels of each
        try:
            known = {labels.DEFAULT: newest} | labels.read(*entry.folders)
            for number in names:
                names[number] = ", ".join(k for k, n in known.items() if n == number)
        except BundleError as error:
            errors.append(error)
        for number, path in reversed(entry.versions.items()):
            size = f"{_bytes(path) / 1e6:.1f}"
            measures = _measures(path)
            table.add_row(
                entry.name, str(number), *measures, names[number], size, str(path)
            )
    return table, errors


def _measures(path: Path) -> tuple[str, str, str]:
    """The date, the test error and the ECE of a bundle, which is not verified."""
    try:
        text = bounded_files.read(path / bundle.MARKER, bundle.MAX_MARKER)
        record = Metadata.model_validate_json(text).training
    except (OSError, ValueError):
        return "broken", "", ""
    if not set(record.parts) - {"train"}:
        return record.created, "", ""
    part = record.parts[shown_part(record.parts)]
    return record.created, f"{part.error:.2f}", f"{part.calibration_error:.2f}"


def _bytes(path: Path) -> int:
    try:
        entries = bounded_files.walk(path, bundle.MAX_ENTRIES)
        return sum(entry.stat().st_size for _, entry in entries if entry.is_file())
    except (OSError, BundleError):
        return 0


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


@contextmanager
def _errors() -> Iterator[None]:
    """Report an error in one line, with exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
