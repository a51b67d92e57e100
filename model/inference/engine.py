"""Run a bundle's ONNX network on sequences of any lengths, in batches."""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from model.bundle import onnx_step
from model.bundle.bundle import NETWORK, TOLERANCE, Bundle, BundleError
from model.datasets.readers import Sequences

MAX_ROWS = 64  # sequences in a batch
MAX_STEPS = 2**13  # of a batch, in one call of the network


class Engine:
    """A loaded network. Safe to share between threads.

    A recurrent network's steps are too small to be divided: each call uses one core, and
    several batches are computed at once.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None):
        """
        Args:
            threads: batches computed at once; None: one for each core.

        Raises:
            BundleError: ONNX Runtime can't load the network, or misses the golden answers.
        """
        self._metadata = bundle.metadata
        self._threads = threads or _cores()
        try:
            self._step = onnx_step.load(bundle.content(NETWORK.as_posix()))
            difference = bundle.golden().difference(self._step, bundle.metadata.sums)
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common base
            reason = f"{type(error).__name__}: {error}"
            raise BundleError(f"{bundle.folder}: {reason}") from None
        if difference > TOLERANCE:
            reason = f"misses the golden answers by {difference:.1e}"
            raise BundleError(f"{bundle.folder}: {reason}")

    def run(self, data: Sequences) -> np.ndarray:
        """Return the probabilities: [N, C] (classify) or [sum of lengths, C] (label)."""
        labels = self._metadata.task == "label"
        rows = int(data.offsets[-1]) if labels else len(data)
        scores = np.empty((rows, len(self._metadata.classes)), np.float32)

        def compute(batch: np.ndarray) -> None:
            self._run_batch(data, batch, scores)

        batches = list(self._batches(data.lengths))
        if min(self._threads, len(batches)) < 2:
            for batch in batches:
                compute(batch)
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(compute, batches))
        return scores

    def _batches(self, lengths: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the indices of sequences of like length, the longest first."""
        order = np.argsort(-lengths, kind="stable")
        most = min(MAX_ROWS, math.ceil(len(order) / self._threads))
        start = 0
        while start < len(order):
            rows = most
            if not self._metadata.state_size:  # whole sequences are padded
                rows = max(1, min(rows, MAX_STEPS // int(lengths[order[start]])))
            yield order[start : start + rows]
            start += rows

    def _run_batch(
        self, data: Sequences, batch: np.ndarray, scores: np.ndarray
    ) -> None:
        """Compute a batch, the longest sequence first, and fill in its `scores`.

        A forward network takes a limited number of steps in each call and carries its
        state, so that the memory it needs does not grow with the length.
        """
        metadata, lengths, starts = (
            self._metadata,
            data.lengths[batch],
            data.offsets[batch],
        )
        state = np.zeros((len(batch), metadata.state_size), np.float32)
        longest = int(lengths[0])
        size = MAX_STEPS // len(batch) if metadata.state_size else longest
        for begin in range(0, longest, size):
            rows = int((lengths > begin).sum())  # with steps left
            steps = np.minimum(lengths[:rows] - begin, size).astype(np.int32)
            places = [
                slice(start, start + count)
                for start, count in zip(starts[:rows] + begin, steps, strict=True)
            ]
            frames = np.zeros((rows, steps[0], metadata.input.features), np.float32)
            for row, place, count in zip(frames, places, steps, strict=True):
                row[:count] = data.frames[place]
            results, state = self._step(frames, steps, state[:rows])
            if metadata.task == "classify":
                scores[batch[:rows]] = results  # the last ones are final
                continue
            for row, place, count in zip(results, places, steps, strict=True):
                scores[place] = row[:count]


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
