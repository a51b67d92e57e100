"""Chooses which sequences of a model the engine computes together, and when.

Work is counted in steps, since a sequence of 1,000 steps costs as much as 100 sequences
of 10 steps. A network with a carried state is batched in `Lanes`, one that reads whole
sequences in `LengthBuckets`.
"""

import logging
import math
import time
from collections import deque

import numpy as np

from model.bundle.metadata import Metadata
from service.callers.fair_queue import ANONYMOUS, CallerId
from service.settings import Settings
from service.worker.batch import Batch, SequenceJob, advance
from service.worker.cost import Cost
from service.worker.engine import Engine
from service.worker.lanes import Lanes
from service.worker.length_buckets import LengthBuckets
from service.worker.protocol import BatchReport, FromWorker, JobFailure, JobResult

log = logging.getLogger(__name__)

ISOLATED_STEPS = 256  # in each engine call of an isolated job
EXTREME_DEVIATIONS = 1e6  # standard deviations from the training data's mean


class Scheduler:
    """Takes jobs of one model; each `run_batch` returns messages about some of them."""

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
            model: number of the model, for its messages.
            cost: of the engine's calls.
        """
        self.engine, self.metadata, self._model = engine, metadata, model
        self._queue: Lanes | LengthBuckets
        if metadata.state_size:
            self._queue = Lanes(settings.batch_rows, cost or Cost())
        else:
            self._queue = LengthBuckets(
                settings.batch_rows, settings.batch_steps, cost or Cost()
            )
        self._jobs: dict[int, SequenceJob] = {}
        self._isolated: deque[SequenceJob] = deque()
        self._initial_state = np.zeros(metadata.state_size, np.float32)
        self._last_end: float | None = None  # of a call after which jobs were waiting

    @property
    def busy(self) -> bool:
        return bool(self._isolated) or len(self._queue) > 0

    @property
    def next_isolated(self) -> int | None:
        """The job that the next call computes in isolation, if it is such a call."""
        return self._isolated[0].number if self._isolated else None

    def add(
        self,
        number: int,
        frames: np.ndarray,
        state: np.ndarray | None = None,
        *,
        deadline: float = math.inf,
        return_state: bool = False,
        isolated: bool = False,
        caller: CallerId = ANONYMOUS,
    ) -> None:
        """Add a sequence [T, F], which continues from a state [S] if one is passed.

        Args:
            deadline: when the job is dropped (`time.perf_counter`).
            return_state: include the new state in the result.
            isolated: compute it in engine calls of its own.
            caller: callers get equal shares; see `FairQueue`.
        """
        state = self._initial_state if state is None else state
        job = SequenceJob(number, frames, state, deadline, return_state, caller)
        self._jobs[number] = job
        (self._isolated.append if isolated else self._queue.add)(job)

    def cancel(self, number: int) -> None:
        """Drop a job before the next engine call, if it is not done."""
        if number in self._jobs:
            self._jobs[number].cancelled = True

    def run_batch(self) -> list[FromWorker]:
        """Make one engine call for some of the jobs, and return a `BatchReport` and
        the results and failures of jobs."""
        isolated = bool(self._isolated)
        batch = self._take_isolated() if isolated else self._queue.take()
        started = time.perf_counter()
        messages: list[FromWorker] = [
            self._fail(job, "cancelled", dropped=True) for job in batch.dropped
        ]
        settled = sum(job.remaining for job in batch.dropped)
        useful, failures = self._advance(batch) if batch.jobs else (0, [])
        settled += useful + sum(job.remaining for job, _ in failures)
        for job, reason in failures:
            job.position = job.steps  # it is not computed any further
            messages.append(self._fail(job, reason))
        ended = time.perf_counter()
        failed = {job.number for job, _ in failures}
        for job in batch.jobs:
            job.started = job.started or started
            if not job.remaining and job.number not in failed:
                messages.append(self._finish(job, ended, len(batch.jobs)))
        if not isolated:
            self._queue.put_back(batch)
        elif batch.jobs and batch.jobs[0].remaining:
            self._isolated.appendleft(batch.jobs[0])
        size = (len(batch.jobs), batch.steps, useful)
        spent = ended - (self._last_end or started)
        self._last_end = ended if self.busy else None
        # The report is first, so that answered jobs are not counted as waiting.
        report = BatchReport(self._model, *size, ended - started, settled, spent)
        return [report, *messages]

    def _take_isolated(self) -> Batch:
        job = self._isolated.popleft()
        if job.is_abandoned(time.perf_counter()):
            return Batch([], 0, [job])
        whole = not self.metadata.state_size
        return Batch(
            [job], job.remaining if whole else min(job.remaining, ISOLATED_STEPS)
        )

    def _advance(self, batch: Batch) -> tuple[int, list[tuple[SequenceJob, str]]]:
        """Return the computed steps, and the jobs that the engine fails on with the
        reasons."""
        try:
            return advance(self.engine, self.metadata, batch), []
        except Exception as error:
            if len(batch.jobs) > 1:  # find the job that the engine fails on
                single = [
                    self._advance(Batch([job], min(batch.steps, job.remaining)))
                    for job in batch.jobs
                ]
                failures = [failure for _, failed in single for failure in failed]
                return sum(steps for steps, _ in single), failures
            log.exception("engine failed", extra={"model": self.metadata.name})
            return 0, [(batch.jobs[0], f"{type(error).__name__}: {error}")]

    def _fail(self, job: SequenceJob, reason: str, **flags: bool) -> JobFailure:
        del self._jobs[job.number]
        return JobFailure(job.number, reason, **flags)

    def _finish(self, job: SequenceJob, ended: float, rows: int) -> FromWorker:
        probabilities = job.probabilities
        assert probabilities is not None
        if job.finite:
            del self._jobs[job.number]
            data = probabilities.tobytes()
            state = job.state.tobytes() if job.return_state else b""
            return JobResult(job.number, job.started, ended, data, state, rows)
        # The caller's mistake, if its numbers are far beyond the training data.
        normalisation = self.metadata.normalisation
        centred = job.frames.astype(np.float64) - normalisation.mean
        extreme = np.abs(centred * normalisation.scale).max() >= EXTREME_DEVIATIONS
        reason = "the network's answer is not finite"
        return self._fail(job, reason, extreme=bool(extreme))
