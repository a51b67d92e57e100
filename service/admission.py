"""A model's requests: let in while not too much waits, and answered."""

import asyncio
import math

import numpy as np

from model.bundle import Metadata

from . import errors
from .link import Request
from .messages import Answered, Failed, Job, Ticked
from .metrics import Metrics
from .pool import Pool
from .settings import Settings


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
        self._settings, self._later = settings, metrics.later
        self._metrics = metrics.of_model(metadata.name)
        self._steps = 0  # admitted and not yet computed
        self._rate = 0.0  # steps a second of one worker, of late
        pool.ticked[model] = self._ticked

    def submit(
        self,
        sequences: list[np.ndarray],
        states: list[bytes] | None = None,
        *,
        keep: bool = False,
    ) -> Request:
        """Admit a request's sequences [T, F] float32, all or none.

        Cancelling the request's future drops what is not computed.

        Args:
            states: [S] float32 of each to go on from; empty where it begins.
            keep: put their new states into the request's `states`.

        Raises:
            Overloaded: too many steps wait; with the seconds to wait.
            NotReady: no worker is left.
        """
        steps = sum(map(len, sequences))
        if self._steps and self._steps + steps > self._settings.queue_steps:
            raise self._overloaded()
        request = Request(len(sequences), len(self._metadata.classes))
        label = self._metadata.task == "label"

        def done(place: int, told: Answered | Failed) -> None:
            if isinstance(told, Answered):
                if request.give(place, told, label=label):
                    self._later(
                        self._metrics.queue_seconds.observe,
                        request.begun - request.since,
                    )
            elif told.dropped:
                self._metrics.dropped.inc()
            else:
                request.fail(_failure(place, told))

        given = self._pool.submit(
            [
                Job(0, self._model, len(frames), frames.tobytes(), state, keep)
                for frames, state in zip(
                    sequences, states or [b""] * len(sequences), strict=True
                )
            ],
            done,
        )

        def ended(future: "asyncio.Future[list[np.ndarray]]") -> None:
            if future.cancelled() or future.exception() is not None:
                self._pool.cancel(given)

        request.future.add_done_callback(ended)
        self._steps += steps
        self._later(self._metrics.waiting_steps.inc, steps)
        for frames in sequences:
            self._later(self._metrics.sequence_steps.observe, len(frames))
        return request

    def _ticked(self, tick: Ticked) -> None:
        metrics, later = self._metrics, self._later
        self._steps -= tick.settled
        later(metrics.waiting_steps.dec, tick.settled)
        if not tick.rows:
            return
        rate = tick.useful / max(tick.seconds, 1e-9)
        self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate
        later(metrics.batch_rows.observe, tick.rows)
        later(metrics.chunk_steps.observe, tick.steps)
        later(metrics.execute_seconds.observe, tick.seconds)
        later(metrics.useful.inc, tick.useful)
        later(metrics.padding.inc, tick.rows * tick.steps - tick.useful)

    def _overloaded(self) -> errors.Overloaded:
        rate = self._rate * self._pool.size
        seconds = max(1, math.ceil(self._steps / rate)) if rate else 1
        return errors.Overloaded(
            f"{self._steps} steps wait for {self._metadata.name};"
            f" try again in {seconds} s",
            headers={"Retry-After": str(seconds)},
        )


def _failure(place: int, told: Failed) -> errors.ServiceError:
    if told.extreme:
        fault = errors.FieldError(f"sequences[{place}]", "holds extreme numbers")
        message = "the network has no finite answer to these numbers"
        return errors.InvalidRequest(message, [fault])
    failure = errors.InternalError("the network could not compute an answer")
    failure.__cause__ = RuntimeError(told.reason)
    return failure
