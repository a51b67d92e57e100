"""Show the progress of training."""

from typing import TYPE_CHECKING, Self

from rich import progress
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from model.cli.console import console
from model.report.palette import MAIN
from model.training.loop import Callback

if TYPE_CHECKING:
    from model.training.runs import Epoch


class ProgressBars(Callback):
    """A progress bar for each epoch on a terminal, and a line for each finished one."""

    def __init__(self, epochs: int):
        self.epochs = epochs
        self.bar: progress.Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def on_epoch_begin(self, epoch: int, batches: int) -> None:
        if not console.is_terminal:
            return
        self.bar = progress.Progress(
            TextColumn(f"epoch {epoch:3}/{self.epochs}"),
            BarColumn(complete_style=MAIN, finished_style=MAIN),
            MofNCompleteColumn(),
            TextColumn(
                "cost {task.fields[cost]:.4f}  error {task.fields[error]:.2f} %"
            ),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.bar.start()
        self.task = self.bar.add_task("", total=batches, cost=0.0, error=0.0)

    def on_batch_end(self, cost: float, error: float) -> None:
        if self.bar:
            self.bar.update(self.task, advance=1, cost=cost, error=error)

    def on_epoch_end(self, epoch: "Epoch") -> None:
        self._remove()
        console.print(
            f"epoch {epoch.epoch:3}/{self.epochs}"
            f"  cost {epoch.cost:.4f}  error {epoch.error:5.2f} %"
            f"  validation cost {epoch.validation_cost:.4f}"
            f"  error {epoch.validation_error:5.2f} %{'  best so far' if epoch.best else ''}"
        )

    def _remove(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
