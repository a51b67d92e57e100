"""Show the progress of training."""

from typing import TYPE_CHECKING, Self

from rich import progress
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from model.cli.console import console
from model.report.palette import MAIN
from model.training.loop import Callback

if TYPE_CHECKING:
    from model.training.runs import Epoch

MAX_LINES = 30  # about so many epochs get a line of their own


class ProgressBars(Callback):
    """A progress bar on a terminal, and lines for finished epochs."""

    def __init__(self) -> None:
        self.epochs = 0
        self.bar: progress.Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def on_cross_validation_begin(self, trainings: int, updates: int) -> None:
        self._show("cross-validation", trainings * updates, "")

    def on_cross_validation_progress(self, updates: int) -> None:
        if self.bar:
            self.bar.update(self.task, completed=updates)

    def on_cross_validation_end(self, error: float, folds: tuple[float, ...]) -> None:
        self._remove()
        console.print(
            f"cross-validation: error {error:.2f} %"
            f" ({min(folds):.2f} to {max(folds):.2f} % in {len(folds)} folds)"
        )

    def on_train_begin(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_begin(self, epoch: int, batches: int) -> None:
        self._show(f"epoch {epoch:3}/{self.epochs}", batches, "cost -")

    def on_batch_end(self, cost: float, error: float) -> None:
        if self.bar:
            text = f"cost {cost:.4f}  error {error:.2f} %"
            self.bar.update(self.task, advance=1, text=text)

    def on_epoch_end(self, epoch: "Epoch") -> None:
        last, every = epoch.epoch == self.epochs, -(-self.epochs // MAX_LINES)
        if not last and epoch.epoch % every:
            return
        self._remove()
        line = (
            f"epoch {epoch.epoch:3}/{self.epochs}"
            f"  cost {epoch.cost:.4f}  error {epoch.error:5.2f} %"
        )
        if epoch.validation_cost is not None:
            line += (
                f"  validation cost {epoch.validation_cost:.4f}"
                f"  error {epoch.validation_error:5.2f} %"
                f"{'  best so far' if epoch.best else ''}"
            )
        console.print(line)

    def _show(self, title: str, total: int, text: str) -> None:
        """Show a bar, or use the one that is shown."""
        if not console.is_terminal:
            return
        if self.bar is None:
            self.bar = progress.Progress(
                TextColumn("{task.description}"),
                BarColumn(complete_style=MAIN, finished_style=MAIN),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task(title, total=total, text=text)
        else:
            self.bar.reset(self.task, total=total, description=title, text=text)

    def _remove(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
