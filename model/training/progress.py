"""Progress events of a training run."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.training.runs import Epoch


class Progress:
    """Progress events; override the methods that are of interest."""

    def epoch_begins(self, epoch: int, batches: int) -> None:
        """Epoch number `epoch` of so many batches begins."""

    def batch_ends(self, cost: float, error: float) -> None:
        """A batch is done; cost and error (percent) of the epoch so far."""

    def epoch_ends(self, epoch: "Epoch") -> None:
        """An epoch is done and saved."""
