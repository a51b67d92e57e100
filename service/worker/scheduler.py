"""Which sequences of a model the engine steps together, and when.

Work is counted in steps, since a sequence of 1,000 steps costs what 100 sequences of
10 do. A network that can be stepped is batched in lanes (`lanes`), one that reads
its sequences in both directions whole (`whole`).
"""

import logging
import math
import time
from collections import deque

import numpy as np

from model.bundle.bundle import Metadata
from service.callers.fair_queue import CallerId
from service.settings import Settings
from service.worker import batch as tick
from service.worker.cost import Cost
from service.worker.engine import Engine
from service.worker.lanes import Batch, Lanes
from service.worker.length_buckets import LengthBuckets
from service.worker.protocol import BatchReport, FromWorker, JobFailure, JobResult
from service.worker.sequence_job import NOBODY, SequenceJob

log = logging.getLogger(__name__)

LONELY_STEPS = 256  # at a time, of a sequence that is stepped alone
EXTREME = 1e6  # deviations from the mean of the training part


class Scheduler:
    """Jobs in; with each tick, messages about some of them out."""

    def __init__(
        self,
        engine: Engine,
        metadata: Metadata,
        settings: Settings,
        *,
        model: int = 0,
        cost: Cost | None = None,
    ):
        """
        Args:
            model: the number that its messages have.
            cost: what the engine's calls cost, of a network that can be stepped.
        """
        self.engine, self.metadata, self._model = engine, metadata, model
        self._queue: Lanes | LengthBuckets
        if metadata.state_size:
            self._queue = Lanes(settings.batch_rows, cost or Cost())
        else:
            self._queue = LengthBuckets(settings.batch_rows, settings.batch_steps)
        self._works: dict[int, SequenceJob] = {}
        self._alone: deque[SequenceJob] = deque()
        self._begin = np.zeros(metadata.state_size, np.float32)
        self._since: float | None = None  # the last call's end, if jobs wait since

    @property
    def busy(self) -> bool:
        return bool(self._alone) or len(self._queue) > 0

    @property
    def trying(self) -> int | None:
        """The job that the next tick computes alone."""
        return self._alone[0].number if self._alone else None

    def add(
        self,
        number: int,
        frames: np.ndarray,
        state: np.ndarray | None = None,
        *,
        until: float = math.inf,
        keep: bool = False,
        alone: bool = False,
        caller: CallerId = NOBODY,
    ) -> None:
        """Take on a sequence [T, F], from a state [S] where it goes on.

        Args:
            until: when it is to be dropped, of `time.perf_counter`.
            keep: tell its new state with the answer.
            alone: step it with no other.
            caller: for whom; callers get equal shares.
        """
        begin = self._begin if state is None else state
        work = SequenceJob(number, frames, begin, until=until, keep=keep, caller=caller)
        self._works[number] = work
        (self._alone.append if alone else self._queue.add)(work)

    def cancel(self, number: int) -> None:
        """Drop a job, if it isn't done."""
        if number in self._works:
            self._works[number].unwanted = True

    def run_batch(self) -> list[FromWorker]:
        """One engine call for some of the jobs."""
        lonely = bool(self._alone)
        batch = self._lonely() if lonely else self._queue.take()
        begun = time.perf_counter()
        told: list[FromWorker] = [
            self._failed(work, "cancelled", dropped=True) for work in batch.dropped
        ]
        settled = sum(work.left for work in batch.dropped)
        useful, failures = self._step(batch) if batch.works else (0, [])
        settled += useful + sum(work.left for work, _ in failures)
        for work, reason in failures:
            work.at = work.steps  # nothing of it is stepped again
            told.append(self._failed(work, reason))
        ended = time.perf_counter()
        failed = {work.number for work, _ in failures}
        for work in batch.works:
            work.begun = work.begun or begun
            if not work.left and work.number not in failed:
                told.append(self._finished(work, ended, len(batch.works)))
        if not lonely:
            self._queue.put_back(batch)
        elif batch.works and batch.works[0].left:
            self._alone.appendleft(batch.works[0])
        size = (len(batch.works), batch.steps, useful)
        spent = ended - (self._since or begun)
        self._since = ended if self.busy else None
        # First: who has an answer is not counted as waiting.
        return [BatchReport(self._model, *size, ended - begun, settled, spent), *told]

    def _lonely(self) -> Batch:
        work = self._alone.popleft()
        if work.in_vain(time.perf_counter()):
            return Batch([], 0, [work])
        whole = not self.metadata.state_size
        return Batch([work], work.left if whole else min(work.left, LONELY_STEPS))

    def _step(self, batch: Batch) -> tuple[int, list[tuple[SequenceJob, str]]]:
        """The useful steps, and the works that the engine fails on."""
        try:
            return tick.step(self.engine, self.metadata, batch), []
        except Exception as error:
            if len(batch.works) > 1:  # find the one that the engine fails on
                alone = [Batch([w], min(batch.steps, w.left)) for w in batch.works]
                steps, failures = zip(*map(self._step, alone), strict=True)
                return sum(steps), [one for some in failures for one in some]
            log.exception("engine failed", extra={"model": self.metadata.name})
            return 0, [(batch.works[0], f"{type(error).__name__}: {error}")]

    def _failed(self, work: SequenceJob, reason: str, **why: bool) -> JobFailure:
        del self._works[work.number]
        return JobFailure(work.number, reason, **why)

    def _finished(self, work: SequenceJob, ended: float, rows: int) -> FromWorker:
        probabilities = work.probabilities
        assert probabilities is not None
        if work.sound:
            del self._works[work.number]
            data = probabilities.tobytes()
            after = work.state.tobytes() if work.keep else b""
            return JobResult(work.number, work.begun, ended, data, after, rows)
        # The caller's doing, where its numbers are far beyond those trained on.
        scaled = work.frames.astype(np.float64) - self.metadata.normalisation.mean
        deviation = np.abs(scaled * self.metadata.normalisation.scale).max()
        reason = "the network's answer is not finite"
        return self._failed(work, reason, extreme=bool(deviation >= EXTREME))
