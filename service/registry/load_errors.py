"""What is wrong with bundles, and under which name it is told."""

import logging
from collections.abc import Collection
from pathlib import Path

from service.registry.folder import LABELS

log = logging.getLogger(__name__)

LONGEST = 1_000  # characters of a reason: it may quote what a stranger wrote


class LoadErrors:
    """Of all bundles, by name: `NAME` where nothing of it is served, else
    `NAME@VERSION`; `NAME/labels.json`; or another key."""

    def __init__(self) -> None:
        self._of_shelves: dict[str, dict[Path, str]] = {}
        self._others: dict[str, str] = {}

    def tell(self, shelf: str, path: Path, reason: str | None) -> None:
        """A version, or the labels, of a name can't be used; None: they can."""
        of_shelf = self._of_shelves.setdefault(shelf, {})
        if reason is None:
            of_shelf.pop(path, None)
        else:
            told = _line(reason)
            if of_shelf.get(path) != told:
                log.error("broken bundle: %s", told)
            of_shelf[path] = told

    def add(self, key: str, reason: str) -> None:
        """Something else is wrong."""
        self._others[key] = _line(reason)
        log.error("broken bundle: %s", self._others[key])

    def forget(self, shelf: str) -> None:
        """Nothing is to be told of a name."""
        self._of_shelves.pop(shelf, None)

    def of(self, shelf: str) -> list[str]:
        """The reasons of a name."""
        return list(self._of_shelves.get(shelf, {}).values())

    def told(self, served: Collection[str]) -> dict[str, str]:
        """Every reason by its key.

        Args:
            served: the shelves of which something is.
        """
        made = dict(self._others)
        for shelf, reasons in self._of_shelves.items():
            for path, reason in reasons.items():
                key = shelf
                if path.name == LABELS:
                    key += f"/{LABELS}"
                elif shelf in served:
                    key += f"@{path.name}"
                made[key] = reason
        return made


def _line(reason: str) -> str:
    line = " ".join(reason.encode("utf-8", "backslashreplace").decode().split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
