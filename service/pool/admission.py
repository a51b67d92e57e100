"""Admission control of one model: requests are refused while too much work waits.

A refusal is early (load shedding): a request that would wait beyond its deadline is
refused at once; see `wait_estimate`.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from model.bundle.metadata import Metadata
from service import errors
from service.callers.caller import Caller
from service.callers.fair_queue import ANONYMOUS, CallerId
from service.pool.link import PendingJob
from service.pool.pool import Pool
from service.pool.wait_estimate import WaitEstimate
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.statistics import Statistics
from service.telemetry.traces import InferenceSummary
from service.worker.protocol import BatchReport, Job, JobFailure, JobResult

LATE = "the request was not answered by its deadline"
WAIT_SHARE = 0.5  # of the request timeout, that a new request may wait in the queue


class AdmittedRequest:
    """The sequences of one request, and a future of their probabilities or of the
    first failure."""

    def __init__(self, sequences: int, classes: int, steps: int = 0):
        self.future: asyncio.Future[list[np.ndarray]] = (
            asyncio.get_running_loop().create_future()
        )
        self.submitted = time.perf_counter()
        self.started = self.ended = 0.0  # of the first and the last engine call
        self.steps, self.rows = steps, 0  # of all sequences; of the last engine call
        self._classes = classes
        self.states = [b""] * sequences  # after the last steps, if they were requested
        self._results: list[np.ndarray | None] = [None] * sequences
        self._missing = sequences

    def set_result(self, index: int, result: JobResult, *, label: bool) -> bool:
        """Add the result of one sequence. Return whether it was the last."""
        values = np.frombuffer(result.probabilities, np.float32)
        self._results[index] = values.reshape(-1, self._classes) if label else values
        self.states[index] = result.state
        self.started = min(self.started or result.started, result.started)
        self.ended, self.rows = result.ended, result.rows
        self._missing -= 1
        if not self._missing and not self.future.done():
            self.future.set_result(self._results)  # type: ignore[arg-type]
        return not self._missing

    def fail(self, error: errors.ServiceError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Admission:
    """Admits the requests and stream messages of one model, and submits them to the
    workers."""

    def __init__(
        self,
        pool: Pool,
        model: int,
        metadata: Metadata,
        settings: Settings,
        metrics: Metrics,
    ):
        self._pool, self._model, self._metadata = pool, model, metadata
        self._labels = metadata.task == "label"
        self._limit, self._seconds = settings.queue_steps, settings.request_seconds
        self.metrics = metrics.for_model(metadata.name, metadata.version)
        self.statistics = Statistics()
        self.retired = False  # only streams and kept sequences still use the model
        self.wait_estimate = WaitEstimate()
        pool.on_batch[model] = self._observe_batch

    def submit(
        self,
        sequences: list[np.ndarray],
        states: list[bytes] | None = None,
        *,
        caller: CallerId = ANONYMOUS,
        deadline: float = math.inf,
        return_state: bool = False,
    ) -> AdmittedRequest:
        """Admit a request's sequences [T, F] float32, all or none.

        Cancelling the request's future drops the jobs that are not done.

        Args:
            states: [S] float32 of each sequence, to continue from; empty to begin.
            caller: callers get equal shares; see `FairQueue`.
            deadline: when the request is dropped (`time.perf_counter`).
            return_state: put the new states into the request's `states`.

        Raises:
            Overloaded: too much work waits; with the seconds until a retry.
            NotReady: there is no worker.
            VersionGone: there never will be, as the model was retired.
        """
        steps = sum(map(len, sequences))
        self._admit(steps, deadline, caller)
        request = AdmittedRequest(len(sequences), len(self._metadata.classes), steps)

        def done(index: int, result: JobResult | JobFailure) -> None:
            if isinstance(result, JobResult):
                self.wait_estimate.observe_lag(time.perf_counter() - result.ended)
                if request.set_result(index, result, label=self._labels):
                    wait = request.started - request.submitted
                    self.metrics.queue_seconds.observe(wait)
            else:
                self.metrics.dropped.inc(result.dropped)
                request.fail(_error(f"sequences[{index}]", result))

        jobs, whole = [], not self._metadata.state_size
        for index, frames in enumerate(sequences):
            state = states[index] if states else b""
            data = frames.tobytes()
            job = Job(0, self._model, len(frames), data, state, return_state, deadline)
            job.caller = caller
            jobs.append(
                self._pool.submit(job, partial(done, index), uninterruptible=whole)
            )
            self.metrics.sequence_steps.observe(len(frames))

        def ended(future: "asyncio.Future[list[np.ndarray]]") -> None:
            self.wait_estimate.charge(_quota_key(caller), -steps)
            if future.cancelled() or future.exception() is not None:
                for job in jobs:
                    self.cancel(job)

        request.future.add_done_callback(ended)
        return request

    async def compute(
        self,
        sequences: list[np.ndarray],
        states: list[bytes] | None,
        caller: Caller,
        *,
        deadline: float,
        return_state: bool = False,
    ) -> AdmittedRequest:
        """Admit a request's sequences, and wait until all of them are computed.

        Args:
            caller: has to have room for the frames and the probabilities.

        Raises:
            Overloaded, NotReady: as `submit`.
            BufferFull: there is no room.
            DeadlineExceeded: the results came too late.
            CancelledError: the task was cancelled; what waits is dropped.
        """
        started = time.perf_counter()
        request: AdmittedRequest | None = None
        try:
            # The frames twice, here and on the way to a worker.
            frames = sum([sequence.nbytes for sequence in sequences])
            rows = sum(map(len, sequences)) if self._labels else len(sequences)
            probabilities = 4 * rows * len(self._metadata.classes)
            caller.reservation.resize(2 * frames + probabilities)
            request = self.submit(
                sequences,
                states,
                caller=caller.id,
                deadline=deadline,
                return_state=return_state,
            )
            await request.future
            if time.perf_counter() > deadline:
                raise errors.DeadlineExceeded(LATE)
        except BaseException:
            request = None  # its error holds this frame: a reference cycle
            self.statistics.record_failure(time.perf_counter() - started)
            raise
        return request

    def advance(
        self,
        frames: np.ndarray,
        state: bytes,
        done: Callable[[JobResult | JobFailure], None],
        caller: CallerId = ANONYMOUS,
    ) -> PendingJob:
        """Advance a stream's sequence by frames [T, F] float32, from a state [S]
        float32.

        Args:
            done: called with the argument for `result_array`.
            caller: as for `submit`.

        Returns:
            the argument for `cancel`.

        Raises:
            Overloaded, NotReady: as `submit`.
        """
        deadline = time.perf_counter() + self._seconds
        steps = len(frames)
        self._admit(steps, deadline, caller)

        def ended(result: JobResult | JobFailure) -> None:
            self.wait_estimate.charge(_quota_key(caller), -steps)
            done(result)

        job = Job(0, self._model, steps, frames.tobytes(), state, True, deadline)
        job.caller = caller
        return self._pool.submit(job, ended)

    def result_array(self, result: JobResult | JobFailure, steps: int) -> np.ndarray:
        """Return the probabilities [C] or [T, C] of `advance` by so many steps.

        Raises:
            ServiceError: the job failed; names `frames`.
        """
        if isinstance(result, JobFailure):
            self.statistics.record_failure(0.0)
            raise _error("frames", result)
        self.statistics.record_success(1, 0.0, 0.0, result.ended - result.started, 0.0)
        values = np.frombuffer(result.probabilities, np.float32)
        return values.reshape(steps, -1) if self._labels else values

    def record(
        self, request: AdmittedRequest, read: float, write: float, caller: Caller
    ) -> tuple[float, float, float, float]:
        """Record the durations of an answered request, for statistics and traces.

        Args:
            read: seconds for which the request was read.
            write: seconds for which the response was written.

        Returns:
            the seconds of reading, waiting, computing and writing.
        """
        caller.inference = InferenceSummary(
            self._metadata,
            len(request.states),
            request.steps,
            request.rows,
            read,
            request.submitted,
            request.started,
            request.ended,
            write,
        )
        queue = request.started - request.submitted
        infer = request.ended - request.started
        self.statistics.record_success(len(request.states), read, queue, infer, write)
        return read, queue, infer, write

    def cancel(self, job: PendingJob) -> None:
        """Drop a job, if it is not done."""
        self._pool.cancel(job)

    def check_room(
        self, deadline: float = math.inf, caller: CallerId = ANONYMOUS
    ) -> None:
        """Check that the smallest request can be admitted now.

        Raises:
            Overloaded, NotReady: as `submit`.
        """
        try:
            self._check(1, deadline, caller)
        except errors.ServiceError:
            self.statistics.record_failure(0.0)
            raise

    def overload(
        self, steps: int, deadline: float, caller: CallerId = ANONYMOUS
    ) -> errors.Overloaded | None:
        """Return the error if so many more steps cannot be admitted now."""
        estimate, workers, key = self.wait_estimate, self._pool.size, _quota_key(caller)
        waiting = estimate.waiting
        if not waiting:
            return None
        left = min(deadline - time.perf_counter(), self._seconds)
        # While this process is slow, it reads requests as late as it writes responses.
        left -= 2 * estimate.lag
        # A caller may have as many steps as are left free, so another finds room.
        free = self._limit - waiting - steps - estimate.of(key)
        if free >= 0 and not estimate.exceeds(key, steps, WAIT_SHARE * left, workers):
            return None
        seconds = estimate.seconds(waiting, workers)
        # Random, so that refused clients do not all return at the same moment.
        retry_after = max(1, math.ceil(seconds * random.uniform(1, 1.5)))
        return errors.Overloaded(
            f"{waiting:.0f} steps wait for {self._metadata.name}; "
            f"try again in {retry_after} s",
            headers={"Retry-After": str(retry_after)},
        )

    def _check(self, steps: int, deadline: float, caller: CallerId) -> None:
        try:
            self._pool.check(self._model)
        except errors.NotReady:
            if not self.retired:
                raise
            name, version = self._metadata.name, self._metadata.version
            detail = (
                f"no worker has {name}@{version} any more: begin with another version"
            )
            raise errors.VersionGone(detail) from None
        refusal = self.overload(steps, deadline, caller)
        if refusal is not None:
            now = time.perf_counter()
            self.wait_estimate.refused = self._pool.last_refusal = now
            try:
                raise refusal
            finally:
                del refusal  # its traceback holds this frame: a reference cycle

    def _admit(self, steps: int, deadline: float, caller: CallerId) -> None:
        self._check(steps, deadline, caller)
        self.wait_estimate.add(steps)
        self.wait_estimate.charge(_quota_key(caller), steps)
        self.metrics.waiting_steps.value += steps

    def _observe_batch(self, report: BatchReport) -> None:
        metrics = self.metrics
        self.wait_estimate.add(-report.settled)
        metrics.waiting_steps.value -= report.settled
        if not report.rows:
            return
        self.wait_estimate.observe_batch(
            report.useful, report.rows, report.seconds, report.spent
        )
        self.statistics.record_execution(report.rows, report.seconds)
        metrics.batch_rows.observe(report.rows)
        metrics.chunk_steps.observe(report.steps)
        metrics.execute_seconds.observe(report.seconds)
        metrics.useful.value += report.useful
        metrics.padding.value += report.rows * report.steps - report.useful


def _quota_key(caller: CallerId) -> str | int:
    """Return whose waiting steps count together: those of an API key's owner, or of a
    connection where there are no several keys."""
    return caller[0] or caller[1]


def _error(path: str, failure: JobFailure) -> errors.ServiceError:
    if failure.dropped:
        return errors.DeadlineExceeded(LATE)
    if failure.extreme:
        field = errors.FieldError(path, "holds extreme numbers")
        detail = "the network has no finite answer to these numbers"
        return errors.InvalidRequest(detail, [field])
    error = errors.InternalError("the network could not compute an answer")
    error.__cause__ = RuntimeError(failure.reason)
    return error
