"""Show the progress of a search: the best trials so far."""

import time
from typing import Any, Self

from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from model.cli.console import console
from model.search import space, study
from model.search.results import Trial, best
from model.search.space import Space

MOST = 8  # trials in the table


class SearchTable(study.Callback):
    """A table that is kept up to date on a terminal, and a line for each trial elsewhere."""

    def __init__(self) -> None:
        self.live: Live | None = None
        self.finished: list[Trial] = []
        self.limit: int | None = None
        self.end, self.share, self.number = 0.0, 0.0, 0
        self.settings: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()
            self.live = None
            console.print(best_trials(self.finished))

    def on_search_begin(
        self, space: Space, finished: list[Trial], seconds: float, trials: int | None
    ) -> None:
        self.finished, self.limit = list(finished), trials
        self.end = time.monotonic() + seconds
        names = ", ".join(name.replace("_", " ") for name in space.distributions)
        console.print(f"search: {names}", soft_wrap=not console.is_terminal)
        if finished:
            console.print(f"resumed; finished trials: {len(finished)}")
        if console.is_terminal:
            self.live = Live(
                console=console, get_renderable=self._render, transient=True
            )
            self.live.start()

    def on_trial_begin(self, number: int, settings: dict[str, Any]) -> None:
        self.number, self.share, self.settings = number, 0.0, settings

    def on_progress(self, share: float) -> None:
        self.share = share

    def on_trial_end(self, trial: Trial) -> None:
        self.finished.append(trial)
        if self.live is None:
            console.print(self._line(trial), soft_wrap=True)

    def _line(self, trial: Trial) -> str:
        text = f"trial {trial.number}: "
        if trial.state == "failed":
            text += f"failed ({trial.reason})"
        else:
            text += f"cost {trial.cost:.4f}, error {trial.error:.2f} %"
        text += f", {trial.seconds:.0f} s: {space.describe(trial.settings)}"
        if trial.state == "pruned":
            text += "; stopped early"
        return text + ("; best so far" if trial is best(self.finished) else "")

    def _render(self) -> Group:
        parts = [f"trial {self.number}"]
        if self.limit:
            parts[0] += f" of {self.limit}"
        parts.append(f"{100 * self.share:.0f} %")
        left = self.end - time.monotonic()
        if left < float("inf"):
            parts.append(f"{max(0, left) // 60:.0f}:{max(0, left) % 60:02.0f} left")
        parts.append(space.describe(self.settings))
        lines = [Text(" · ".join(parts))]
        failed = [trial for trial in self.finished if trial.state == "failed"]
        if failed:
            text = f"{len(failed)} failed, the last one: {failed[-1].reason}"
            lines.append(Text(text, style="yellow"))
        return Group(best_trials(self.finished), *lines)


def best_trials(finished: list[Trial]) -> Table:
    """Show the complete trials of the lowest cost."""
    complete = [trial for trial in finished if trial.state == "complete"]
    complete.sort(key=lambda trial: trial.cost or 0)
    title = f"best of {len(finished)} trial{'' if len(finished) == 1 else 's'}"
    style = box.ROUNDED if console.is_terminal else None
    table = Table(title=title, title_justify="left", box=style)
    for name in ("trial", "cost", "error %", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("settings")
    for trial in complete[:MOST]:
        table.add_row(
            str(trial.number),
            f"{trial.cost:.4f}",
            f"{trial.error:.2f}",
            f"{trial.seconds:.0f}",
            space.describe(trial.settings),
        )
    return table
