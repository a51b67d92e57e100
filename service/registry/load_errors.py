"""The reasons why bundles can't be loaded, as `/models` and `/readyz` show them."""

import logging
from collections.abc import Collection
from pathlib import Path

from model.bundle.labels import LABELS

log = logging.getLogger(__name__)

MAX_CHARACTERS = 1_000  # of a reason: it may quote a bundle's own text


class LoadErrors:
    """The reasons of all bundles, by the name of their folder."""

    def __init__(self) -> None:
        self._by_folder: dict[str, dict[Path, str]] = {}
        self._others: dict[str, str] = {}

    def set(self, folder: str, path: Path, reason: str | None) -> None:
        """Record that a version or the labels can't be used; None: that they can."""
        reasons = self._by_folder.setdefault(folder, {})
        if reason is None:
            reasons.pop(path, None)
            return
        line = _one_line(reason)
        if reasons.get(path) != line:
            log.error("broken bundle: %s", line)
        reasons[path] = line

    def add(self, key: str, reason: str) -> None:
        """Record an error that is not of one folder."""
        self._others[key] = _one_line(reason)
        log.error("broken bundle: %s", self._others[key])

    def clear(self, folder: str) -> None:
        """Forget the errors of a folder."""
        self._by_folder.pop(folder, None)

    def of_folder(self, folder: str) -> list[str]:
        """The reasons of a folder."""
        return list(self._by_folder.get(folder, {}).values())

    def by_key(self, served: Collection[str]) -> dict[str, str]:
        """Every reason, under `NAME` if no version of it is served, else under
        `NAME@VERSION`, or `NAME/labels.json`.

        Args:
            served: the folders with a version that is served.
        """
        result = dict(self._others)
        for folder, reasons in self._by_folder.items():
            for path, reason in reasons.items():
                key = folder
                if folder in served:
                    key += f"/{LABELS}" if path.name == LABELS else f"@{path.name}"
                result[key] = reason
        return result


def _one_line(reason: str) -> str:
    line = " ".join(reason.encode("utf-8", "backslashreplace").decode().split())
    if len(line) <= MAX_CHARACTERS:
        return line
    return line[: MAX_CHARACTERS - 1] + "…"
