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
from service.callers.caller import Caller, Served
from service.pool.link import Request
from service.pool.pending_jobs import PendingJob
from service.pool.pool import Pool
from service.pool.wait_estimate import WaitEstimate
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.statistics import Statistics
from service.worker.protocol import Answered, BatchReport, Failed, Job

NOBODY = ("", 0)  # one caller, where it isn't told who
SHARE = 0.5  # of the time that requests have, for what waits before a new one


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
        self.metrics = metrics.of_model(metadata.name, metadata.version)
        self.statistics = Statistics()
        self.queue = WaitEstimate()
        pool.ticked[model] = self._ticked

    def submit(
        self,
        sequences: list[np.ndarray],
        states: list[bytes] | None = None,
        *,
        caller: tuple[str, int] = NOBODY,
        until: float = math.inf,
        keep: bool = False,
    ) -> Request:
        """Admit a request's sequences [T, F] float32, all or none.

        Cancelling the request's future drops what is not computed.

        Args:
            states: [S] float32 of each to go on from; empty where it begins.
            caller: between whom turns are fair; see `FairQueue`.
            until: by when it must be computed, of `time.perf_counter`.
            keep: put their new states into the request's `states`.

        Raises:
            Overloaded: too much waits; with the seconds to wait.
            NotReady: no worker is left.
        """
        steps = sum(map(len, sequences))
        self._admit(steps, until, caller)
        request = Request(len(sequences), len(self._metadata.classes), steps)

        def done(place: int, told: Answered | Failed) -> None:
            if isinstance(told, Answered):
                self.queue.observe_lag(time.perf_counter() - told.ended)
                if request.give(place, told, label=self._labels):
                    self.metrics.queue_seconds.observe(request.begun - request.since)
            else:
                self.metrics.dropped.inc(told.dropped)
                request.fail(_failure(f"sequences[{place}]", told))

        given, whole = [], not self._metadata.state_size
        for place, frames in enumerate(sequences):
            state = states[place] if states else b""
            data = frames.tobytes()
            job = Job(0, self._model, len(frames), data, state, keep, until)
            job.caller = caller
            ticket = self._pool.submit(job, partial(done, place), uninterruptible=whole)
            given.append(ticket)
            self.metrics.sequence_steps.observe(len(frames))

        def ended(future: "asyncio.Future[list[np.ndarray]]") -> None:
            self.queue.charge(_waiter(caller), -steps)
            if future.cancelled() or future.exception() is not None:
                for one in given:
                    self.cancel(one)

        request.future.add_done_callback(ended)
        return request

    def advance(
        self,
        frames: np.ndarray,
        state: bytes,
        done: Callable[[Answered | Failed], None],
        caller: tuple[str, int] = NOBODY,
    ) -> PendingJob:
        """Take a sequence on by frames [t, F] float32, from a state [S] float32.

        Args:
            done: called with what `answer` takes.
            caller: as `submit` takes it.

        Returns:
            What `cancel` takes.

        Raises:
            Overloaded, NotReady: as `submit`.
        """
        until = time.perf_counter() + self._seconds
        steps = len(frames)
        self._admit(steps, until, caller)

        def ended(told: Answered | Failed) -> None:
            self.queue.charge(_waiter(caller), -steps)
            done(told)

        job = Job(0, self._model, steps, frames.tobytes(), state, True, until)
        job.caller = caller
        return self._pool.submit(job, ended)

    def answer(self, told: Answered | Failed, steps: int) -> np.ndarray:
        """The probabilities [C] or [t, C] of so many steps.

        Raises:
            ServiceError: there are none; names `frames`.
        """
        if isinstance(told, Failed):
            self.statistics.failed(0.0)
            raise _failure("frames", told)
        self.statistics.answered(1, 0.0, 0.0, told.ended - told.begun, 0.0)
        numbers = np.frombuffer(told.probabilities, np.float32)
        return numbers.reshape(steps, -1) if self._labels else numbers

    def answered(
        self, request: Request, read: float, write: float, caller: Caller
    ) -> tuple[float, float, float, float]:
        """A request has its answer: the seconds in which it was read, waited, was
        computed and written.

        Args:
            read, write: two of them.
            caller: keeps it, for traces.
        """
        caller.served = Served(
            self._metadata,
            len(request.states),
            request.steps,
            request.rows,
            read,
            request.since,
            request.begun,
            request.ended,
            write,
        )
        queue, infer = request.begun - request.since, request.ended - request.begun
        self.statistics.answered(len(request.states), read, queue, infer, write)
        return read, queue, infer, write

    def cancel(self, given: PendingJob) -> None:
        """Drop what was given, if it is not computed yet."""
        self._pool.cancel(given)

    def check_room(
        self, until: float = math.inf, caller: tuple[str, int] = NOBODY
    ) -> None:
        """That another request can be admitted now, whatever it is.

        Raises:
            Overloaded, NotReady: as `submit`.
        """
        try:
            self._check(1, until, caller)
        except errors.ServiceError:
            self.statistics.failed(0.0)
            raise

    def overload(
        self, steps: int, until: float, caller: tuple[str, int] = NOBODY
    ) -> errors.Overloaded | None:
        """Why so many more steps are not admitted now, if they aren't."""
        queue, workers, waiter = self.queue, self._pool.size, _waiter(caller)
        waiting = queue.waiting
        if not waiting:
            return None
        left = min(until - time.perf_counter(), self._seconds)
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

    def _check(self, steps: int, until: float, caller: tuple[str, int]) -> None:
        self._pool.check(self._model)
        refusal = self.overload(steps, until, caller)
        if refusal is not None:
            self.queue.refused = time.perf_counter()
            try:
                raise refusal
            finally:
                del refusal  # else it would hold this frame, which holds it

    def _admit(self, steps: int, until: float, caller: tuple[str, int]) -> None:
        self._check(steps, until, caller)
        self.queue.add(steps)
        self.queue.charge(_waiter(caller), steps)
        self.metrics.waiting_steps.value += steps

    def _ticked(self, tick: BatchReport) -> None:
        metrics = self.metrics
        self.queue.add(-tick.settled)
        metrics.waiting_steps.value -= tick.settled
        if not tick.rows:
            return
        self.queue.computed(tick.useful, tick.rows, tick.seconds, tick.spent)
        self.statistics.executed(tick.rows, tick.seconds)
        metrics.batch_rows.observe(tick.rows)
        metrics.chunk_steps.observe(tick.steps)
        metrics.execute_seconds.observe(tick.seconds)
        metrics.useful.value += tick.useful
        metrics.padding.value += tick.rows * tick.steps - tick.useful


def _waiter(caller: tuple[str, int]) -> str | int:
    """Whose steps count together: those of an API key's owner, else of a connection."""
    return caller[0] or caller[1]


def _failure(path: str, told: Failed) -> errors.ServiceError:
    if told.dropped:
        return errors.DeadlineExceeded("no answer in that time")
    if told.extreme:
        fault = errors.FieldError(path, "holds extreme numbers")
        message = "the network has no finite answer to these numbers"
        return errors.InvalidRequest(message, [fault])
    failure = errors.InternalError("the network could not compute an answer")
    failure.__cause__ = RuntimeError(told.reason)
    return failure
