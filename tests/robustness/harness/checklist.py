"""The checklist: its rows, and the result of each."""

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

MAX_FAILURES = 5  # listed for each row


@dataclass(slots=True)
class Tally:
    """The checks of a row: how many passed, the first failures, and measurements."""

    passed: int = 0
    total: int = 0
    failures: list[str] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def check(self, passed: bool, message: str) -> bool:
        """Count one check; `message` describes the failure and where it happened."""
        self.total += 1
        if passed:
            self.passed += 1
        elif len(self.failures) < MAX_FAILURES:
            self.failures.append(message[:300])
        return passed

    def figure(self, name: str, value: object) -> None:
        """Report a measurement."""
        self.figures[name] = f"{value:.3g}" if isinstance(value, float) else str(value)

    @property
    def ok(self) -> bool:
        return self.total > 0 and self.passed == self.total

    @property
    def measured(self) -> str:
        """All measurements in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.figures.items())


Check = Callable[[Tally, int], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the checklist: a function that makes `amount` tries."""

    id: str
    title: str
    full: int  # the amount of `make robustness`
    fast: int  # the amount of the tests; 0: not among them
    function: Check

    def run(self, amount: int) -> Tally:
        """Run it; an exception counts as a failed check."""
        tally, start = Tally(), time.monotonic()
        try:
            self.function(tally, amount)
        except Exception:
            tally.check(False, traceback.format_exc()[-300:])
        tally.seconds = time.monotonic() - start
        return tally


ROWS: dict[str, Row] = {}


def row(id: str, title: str, *, full: int, fast: int = 0) -> Callable[[Check], Check]:
    """Register a function as a row."""

    def register(function: Check) -> Check:
        assert id not in ROWS, f"{id} exists already"
        ROWS[id] = Row(id, title, full, fast, function)
        return function

    return register


def markdown(results: Iterable[tuple[Row, Tally]]) -> str:
    """The results as a table."""
    lines = ["| row | what | passed | measured |", "| --- | --- | --- | --- |"]
    for row, tally in results:
        passed = f"{tally.passed:,}/{tally.total:,}{'' if tally.ok else ' **no**'}"
        lines.append(f"| {row.id} | {row.title} | {passed} | {tally.measured} |")
    return "\n".join(lines) + "\n"
