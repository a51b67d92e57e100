"""A model's requests: let in while not too much waits, and answered."""

import asyncio
import math
import random
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from model.bundle.bundle import Metadata
from service import errors
from service.callers.caller import Caller, InferenceSummary
from service.pool.pending_jobs import PendingJob
from service.pool.pool import Pool
from service.pool.wait_estimate import WaitEstimate
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.statistics import Statistics
from service.worker.protocol import BatchReport, Job, JobFailure, JobResult

NOBODY = ("", 0)  # one caller, where it isn't told who
SHARE = 0.5  # of the time that requests have, for what waits before a new one


class AdmittedRequest:
    """A future of the probabilities of all sequences, or of the first failure."""

    def __init__(self, sequences: int, classes: int, steps: int = 0):
        self.future: asyncio.Future[list[np.ndarray]] = (
            asyncio.get_running_loop().create_future()
        )
        self.submitted = time.perf_counter()
        self.begun = self.ended = 0.0  # its first step, its last answer
        self.steps, self.rows = steps, 0  # of all sequences; in an engine call with one
        self._classes = classes
        self.states = [b""] * sequences  # after the last steps, where they are wanted
        self._answers: list[np.ndarray | None] = [None] * sequences
        self._missing = sequences

    def give(self, place: int, answer: JobResult, *, label: bool) -> bool:
        """The answer of one sequence; whether it was the last."""
        numbers = np.frombuffer(answer.probabilities, np.float32)
        self._answers[place] = numbers.reshape(-1, self._classes) if label else numbers
        self.states[place] = answer.state
        self.begun = min(self.begun or answer.begun, answer.begun)
        self.ended, self.rows = answer.ended, answer.rows
        self._missing -= 1
        if not self._missing and not self.future.done():
            self.future.set_result(self._answers)  # type: ignore[arg-type]
        return not self._missing

    def fail(self, failure: errors.ServiceError) -> None:
        if not self.future.done():
            self.future.set_exception(failure)


class Admission:
    """Sequences in, futures of their probabilities out."""

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
        self.wait_estimate = WaitEstimate()
        pool.on_batch[model] = self._ticked

    def submit(
        self,
        sequences: list[np.ndarray],
        states: list[bytes] | None = None,
        *,
        caller: tuple[str, int] = NOBODY,
        deadline: float = math.inf,
        return_state: bool = False,
    ) -> AdmittedRequest:
        """Admit a request's sequences [T, F] float32, all or none.

        Cancelling the request's future drops what is not computed.

        Args:
            states: [S] float32 of each to go on from; empty where it begins.
            caller: between whom turns are fair; see `FairQueue`.
            deadline: by when it must be computed, of `time.perf_counter`.
            return_state: put their new states into the request's `states`.

        Raises:
            Overloaded: too much waits; with the seconds to wait.
            NotReady: no worker is left.
        """
        steps = sum(map(len, sequences))
        self._admit(steps, deadline, caller)
        request = AdmittedRequest(len(sequences), len(self._metadata.classes), steps)

        def done(place: int, told: JobResult | JobFailure) -> None:
            if isinstance(told, JobResult):
                self.wait_estimate.observe_lag(time.perf_counter() - told.ended)
                if request.give(place, told, label=self._labels):
                    self.metrics.queue_seconds.observe(
                        request.begun - request.submitted
                    )
            else:
                self.metrics.dropped.inc(told.dropped)
                request.fail(_failure(f"sequences[{place}]", told))

        given, whole = [], not self._metadata.state_size
        for place, frames in enumerate(sequences):
            state = states[place] if states else b""
            data = frames.tobytes()
            job = Job(0, self._model, len(frames), data, state, return_state, deadline)
            job.caller = caller
            ticket = self._pool.submit(job, partial(done, place), uninterruptible=whole)
            given.append(ticket)
            self.metrics.sequence_steps.observe(len(frames))

        def ended(future: "asyncio.Future[list[np.ndarray]]") -> None:
            self.wait_estimate.charge(_waiter(caller), -steps)
            if future.cancelled() or future.exception() is not None:
                for one in given:
                    self.cancel(one)

        request.future.add_done_callback(ended)
        return request

    def advance(
        self,
        frames: np.ndarray,
        state: bytes,
        done: Callable[[JobResult | JobFailure], None],
        caller: tuple[str, int] = NOBODY,
    ) -> PendingJob:
        """Take a sequence on by frames [t, F] float32, from a state [S] float32.

        Args:
            done: called with what `result_array` takes.
            caller: as `submit` takes it.

        Returns:
            What `cancel` takes.

        Raises:
            Overloaded, NotReady: as `submit`.
        """
        deadline = time.perf_counter() + self._seconds
        steps = len(frames)
        self._admit(steps, deadline, caller)

        def ended(told: JobResult | JobFailure) -> None:
            self.wait_estimate.charge(_waiter(caller), -steps)
            done(told)

        job = Job(0, self._model, steps, frames.tobytes(), state, True, deadline)
        job.caller = caller
        return self._pool.submit(job, ended)

    def result_array(self, told: JobResult | JobFailure, steps: int) -> np.ndarray:
        """The probabilities [C] or [t, C] of so many steps.

        Raises:
            ServiceError: there are none; names `frames`.
        """
        if isinstance(told, JobFailure):
            self.statistics.record_failure(0.0)
            raise _failure("frames", told)
        self.statistics.record_success(1, 0.0, 0.0, told.ended - told.begun, 0.0)
        numbers = np.frombuffer(told.probabilities, np.float32)
        return numbers.reshape(steps, -1) if self._labels else numbers

    def record(
        self, request: AdmittedRequest, read: float, write: float, caller: Caller
    ) -> tuple[float, float, float, float]:
        """A request has its answer: the seconds in which it was read, waited, was
        computed and written.

        Args:
            read, write: two of them.
            caller: keeps it, for traces.
        """
        caller.inference = InferenceSummary(
            self._metadata,
            len(request.states),
            request.steps,
            request.rows,
            read,
            request.submitted,
            request.begun,
            request.ended,
            write,
        )
        queue, infer = request.begun - request.submitted, request.ended - request.begun
        self.statistics.record_success(len(request.states), read, queue, infer, write)
        return read, queue, infer, write

    def cancel(self, given: PendingJob) -> None:
        """Drop what was given, if it is not computed yet."""
        self._pool.cancel(given)

    def check_room(
        self, deadline: float = math.inf, caller: tuple[str, int] = NOBODY
    ) -> None:
        """That another request can be admitted now, whatever it is.

        Raises:
            Overloaded, NotReady: as `submit`.
        """
        try:
            self._check(1, deadline, caller)
        except errors.ServiceError:
            self.statistics.record_failure(0.0)
            raise

    def overload(
        self, steps: int, deadline: float, caller: tuple[str, int] = NOBODY
    ) -> errors.Overloaded | None:
        """Why so many more steps are not admitted now, if they aren't."""
        queue, workers, waiter = self.wait_estimate, self._pool.size, _waiter(caller)
        waiting = queue.waiting
        if not waiting:
            return None
        left = min(deadline - time.perf_counter(), self._seconds)
        # Where this process is slow, what came was read as late as answers are written.
        left -= 2 * queue.lag
        # A caller may have as many steps as are left free: there is room for another.
        free = self._limit - waiting - steps - queue.of(waiter)
        if free >= 0 and not queue.exceeds(waiter, steps, SHARE * left, workers):
            return None
        seconds = queue.seconds(waiting, workers)
        # Not all at the same moment: they would be refused again.
        again = max(1, math.ceil(seconds * random.uniform(1, 1.5)))
        return errors.Overloaded(
            f"{waiting:.0f} steps wait for {self._metadata.name}; try again in {again} s",
            headers={"Retry-After": str(again)},
        )

    def _check(self, steps: int, deadline: float, caller: tuple[str, int]) -> None:
        self._pool.check(self._model)
        refusal = self.overload(steps, deadline, caller)
        if refusal is not None:
            self.wait_estimate.refused = time.perf_counter()
            try:
                raise refusal
            finally:
                del refusal  # else it would hold this frame, which holds it

    def _admit(self, steps: int, deadline: float, caller: tuple[str, int]) -> None:
        self._check(steps, deadline, caller)
        self.wait_estimate.add(steps)
        self.wait_estimate.charge(_waiter(caller), steps)
        self.metrics.waiting_steps.value += steps

    def _ticked(self, tick: BatchReport) -> None:
        metrics = self.metrics
        self.wait_estimate.add(-tick.settled)
        metrics.waiting_steps.value -= tick.settled
        if not tick.rows:
            return
        self.wait_estimate.computed(tick.useful, tick.rows, tick.seconds, tick.spent)
        self.statistics.record_execution(tick.rows, tick.seconds)
        metrics.batch_rows.observe(tick.rows)
        metrics.chunk_steps.observe(tick.steps)
        metrics.execute_seconds.observe(tick.seconds)
        metrics.useful.value += tick.useful
        metrics.padding.value += tick.rows * tick.steps - tick.useful


def _waiter(caller: tuple[str, int]) -> str | int:
    """Whose steps count together: those of an API key's owner, else of a connection."""
    return caller[0] or caller[1]


def _failure(path: str, told: JobFailure) -> errors.ServiceError:
    if told.dropped:
        return errors.DeadlineExceeded("no answer in that time")
    if told.extreme:
        fault = errors.FieldError(path, "holds extreme numbers")
        message = "the network has no finite answer to these numbers"
        return errors.InvalidRequest(message, [fault])
    failure = errors.InternalError("the network could not compute an answer")
    failure.__cause__ = RuntimeError(told.reason)
    return failure
