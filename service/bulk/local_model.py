"""A bundle that is computed in this process, by the scheduler and engine of a worker."""

from collections.abc import Callable, Sequence

import numpy as np

from model.bundle.bundle import Bundle
from model.bundle.operators import allowlist
from service.settings import Settings
from service.worker import cost, engine
from service.worker.protocol import JobFailure, JobResult
from service.worker.scheduler import Scheduler


class LocalModel:
    """A loaded bundle. Sequences of any lengths are computed together, in batches."""

    def __init__(self, bundle: Bundle, settings: Settings):
        """
        Raises:
            BundleError: the bundle holds more than a network, or no engine reproduces its
                golden answers.
        """
        allowlist.check(bundle)
        self.metadata = bundle.metadata
        settings = engine.fixed_precision(settings, bundle.metadata)
        loaded = engine.load(bundle, settings).engine
        measured = cost.measure(loaded, self.metadata)
        self._scheduler = Scheduler(loaded, self.metadata, settings, cost=measured)

    def predict(
        self,
        sequences: Sequence[np.ndarray],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[np.ndarray | str]:
        """Compute sequences, each [T, F].

        Args:
            progress: called with the number of sequences computed so far, and of all.

        Returns:
            for each sequence the probabilities, [C] (classify) or [T, C] (label); or the
            reason why there are none.
        """
        results: list[np.ndarray | str] = [""] * len(sequences)
        # Sequences of similar lengths share a batch, so that there is little padding.
        for number in sorted(range(len(sequences)), key=lambda n: len(sequences[n])):
            self._scheduler.add(number, sequences[number])
        done = 0
        while self._scheduler.busy:
            for event in self._scheduler.run_batch():
                if isinstance(event, JobResult):
                    results[event.number] = self._probabilities(event)
                elif isinstance(event, JobFailure):
                    results[event.number] = event.reason
                else:
                    continue
                done += 1
            progress(done, len(sequences))
        return results

    def _probabilities(self, result: JobResult) -> np.ndarray:
        width = len(self.metadata.classes)
        rows = np.frombuffer(result.probabilities, np.float32).reshape(-1, width)
        return rows if self.metadata.task == "label" else rows[0]
