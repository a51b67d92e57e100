"""The checklist: rows that are tried, and what became of each."""

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

MOST_FAULTS = 5  # that are told of a row


@dataclass(slots=True)
class Tally:
    """x of N that held, the first that didn't, and what was measured."""

    passed: int = 0
    total: int = 0
    faults: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def check(self, holds: bool, told: str) -> bool:
        """Count one; `told` says what was wrong, where it was."""
        self.total += 1
        if holds:
            self.passed += 1
        elif len(self.faults) < MOST_FAULTS:
            self.faults.append(told[:300])
        return holds

    def figure(self, name: str, value: object) -> None:
        """Something measured that stands in the report."""
        self.figures[name] = f"{value:.3g}" if isinstance(value, float) else str(value)

    @property
    def good(self) -> bool:
        return self.total > 0 and self.passed == self.total


Try = Callable[[Tally, int], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One of the checklist."""

    id: str
    title: str
    full: int  # how many are tried
    fast: int  # the same in the default tests; 0: not there
    act: Try

    def run(self, amount: int) -> Tally:
        """Try it; an exception is a fault like others."""
        tally, begun = Tally(), time.monotonic()
        try:
            self.act(tally, amount)
        except Exception:
            tally.check(False, traceback.format_exc()[-300:])
        tally.seconds = time.monotonic() - begun
        return tally


ROWS: dict[str, Row] = {}


def row(id: str, title: str, *, full: int, fast: int = 0) -> Callable[[Try], Try]:
    """Put a function into the checklist."""

    def add(act: Try) -> Try:
        assert id not in ROWS, f"{id} is there already"
        ROWS[id] = Row(id, title, full, fast, act)
        return act

    return add


def markdown(done: Iterable[tuple[Row, Tally]]) -> str:
    """The report's table."""
    lines = ["| row | what | held | measured |", "| --- | --- | --- | --- |"]
    for row, tally in done:
        figures = ", ".join(f"{k} {v}" for k, v in tally.figures.items())
        mark = "" if tally.good else " **no**"
        held = f"{tally.passed:,}/{tally.total:,}{mark}"
        lines.append(f"| {row.id} | {row.title} | {held} | {figures} |")
    return "\n".join(lines) + "\n"
