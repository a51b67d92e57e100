"""Which sequences the engine steps together, and when.

One thread per model owns its engine. It starts as soon as anything waits: no
window in which a lone request would idle. Work is counted in steps, since a
sequence of 1,000 steps costs what 100 sequences of 10 do.

This scheduler takes whole sequences: the oldest that waits, and with it those of
the nearest lengths, under a budget of padded steps.
"""

import bisect
import logging
import math
import threading
import time
from collections import deque
from concurrent.futures import Future

import numpy as np

from model.bundle import Metadata

from . import errors
from .engine import Engine
from .metrics import Metrics
from .settings import Settings
from .work import Answer, Request, Work

log = logging.getLogger(__name__)

EXTREME = 1e6  # deviations from the mean of the training part
WINDOW = 512  # waiting sequences looked at for like lengths


class Scheduler:
    """Sequences in, futures of their answers out."""

    def __init__(
        self, engine: Engine, metadata: Metadata, settings: Settings, metrics: Metrics
    ):
        self.engine, self.metadata, self.settings = engine, metadata, settings
        self._metrics = metrics
        self._waiting: deque[Work] = deque()
        self._steps = 0  # admitted and not yet answered
        self._rate = 0.0  # steps a second, of late
        self._stopping = False
        self._change = threading.Condition()
        self._thread = threading.Thread(
            target=self._loop, name=f"scheduler-{metadata.name}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Admit nothing more, answer what was admitted, and end."""
        with self._change:
            self._stopping = True
            self._change.notify()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, sequences: list[np.ndarray]) -> Future[list[Answer]]:
        """Admit a request's sequences [T, F], all or none.

        Cancelling the future drops those that have not been computed.

        Raises:
            Overloaded: too many steps wait; with the seconds to wait.
            Stopping: nothing is admitted any more.
        """
        steps = sum(map(len, sequences))
        request = Request(len(sequences))
        with self._change:
            if self._stopping:
                raise errors.Stopping("this process answers no new requests")
            if self._steps and self._steps + steps > self.settings.queue_steps:
                raise self._overloaded()
            self._steps += steps
            for place, frames in enumerate(sequences):
                self._waiting.append(Work(request, place, frames))
            self._change.notify()
        name = self.metadata.name
        self._metrics.waiting_steps.labels(name).inc(steps)
        lengths = self._metrics.sequence_steps.labels(name)
        for frames in sequences:
            lengths.observe(len(frames))
        return request.future

    def _overloaded(self) -> errors.Overloaded:
        seconds = max(1, math.ceil(self._steps / self._rate)) if self._rate else 1
        return errors.Overloaded(
            f"{self._steps} steps wait for {self.metadata.name};"
            f" try again in {seconds} s",
            headers={"Retry-After": str(seconds)},
        )

    def _loop(self) -> None:
        while True:
            with self._change:
                while not self._waiting and not self._stopping:
                    self._change.wait()
                if not self._waiting:
                    return
                batch, dropped = self._take()
            self._account(dropped)
            self._metrics.dropped.labels(self.metadata.name).inc(len(dropped))
            try:
                self._run(batch)
            except Exception as error:  # our mistake: the loop must outlive it
                log.exception("batch failed", extra={"model": self.metadata.name})
                self._account(batch)
                for work in batch:
                    work.fail(error)

    def _take(self) -> tuple[list[Work], list[Work]]:
        """The next batch, and the work whose callers have gone."""
        there: list[Work] = []
        dropped: list[Work] = []
        while self._waiting and len(there) < WINDOW:
            work = self._waiting.popleft()
            (dropped if work.unwanted else there).append(work)
        if not there:
            return [], dropped
        oldest = there[0]
        there.sort(key=lambda work: len(work.frames))
        lengths = [len(work.frames) for work in there]
        first = bisect.bisect_left(lengths, len(oldest.frames))
        first = there.index(oldest, first)
        start, stop = self._around(lengths, first)
        rest = there[:start] + there[stop:]
        rest.sort(key=lambda work: work.since)
        self._waiting.extendleft(reversed(rest))
        return there[start:stop], dropped

    def _around(self, lengths: list[int], place: int) -> tuple[int, int]:
        """The slice of the sorted `lengths` about `place` that is batched: grown
        to the nearer neighbour while rows and padded steps allow."""
        start, stop = place, place + 1
        while stop - start < self.settings.batch_rows:
            below = lengths[place] - lengths[start - 1] if start else math.inf
            above = lengths[stop] - lengths[place] if stop < len(lengths) else math.inf
            if below == above == math.inf:
                break
            up = above <= below
            longest = lengths[stop] if up else lengths[stop - 1]
            if longest * (stop - start + 1) > self.settings.batch_steps:
                break
            start, stop = (start, stop + 1) if up else (start - 1, stop)
        return start, stop

    def _run(self, batch: list[Work]) -> None:
        if not batch:
            return
        try:
            answers = self._step(batch)
        except Exception as error:
            if len(batch) > 1:  # find the one that the engine fails on
                for work in batch:
                    self._run([work])
                return
            log.exception("engine failed", extra={"model": self.metadata.name})
            self._account(batch)
            batch[0].fail(error)
            return
        self._account(batch)
        for work, answer in zip(batch, answers, strict=True):
            if np.isfinite(answer.probabilities).all():
                work.finish(answer)
            else:
                self._not_finite(work)

    def _not_finite(self, work: Work) -> None:
        """The caller's doing, where its numbers are far beyond those trained on."""
        scaled = work.frames.astype(np.float64) - self.metadata.normalisation.mean
        if np.abs(scaled * self.metadata.normalisation.scale).max() < EXTREME:
            work.fail(ValueError("the network's answer is not finite"))
            return
        fault = errors.FieldError(f"sequences[{work.place}]", "holds extreme numbers")
        message = "the network has no finite answer to these numbers"
        work.refuse(errors.InvalidRequest(message, [fault]))

    def _step(self, batch: list[Work]) -> list[Answer]:
        begun = time.perf_counter()
        lengths = np.array([len(work.frames) for work in batch], np.int32)
        longest, features = int(lengths.max()), self.metadata.input.features
        frames = np.zeros((len(batch), longest, features), np.float32)
        for row, work in zip(frames, batch, strict=True):
            row[: len(work.frames)] = work.frames
        state = np.zeros((len(batch), self.metadata.state_size), np.float32)
        probabilities, state = self.engine.step(frames, lengths, state)
        seconds = time.perf_counter() - begun
        self._measure(batch, begun, seconds, int(lengths.sum()), longest)
        if self.metadata.task == "label":
            rows = [p[:n] for p, n in zip(probabilities, lengths, strict=True)]
        else:
            rows = list(probabilities)
        return [Answer(p, s) for p, s in zip(rows, state, strict=True)]

    def _measure(
        self, batch: list[Work], begun: float, seconds: float, useful: int, longest: int
    ) -> None:
        rate = useful / max(seconds, 1e-9)
        self._rate = 0.8 * self._rate + 0.2 * rate if self._rate else rate
        name, metrics = self.metadata.name, self._metrics
        metrics.batch_rows.labels(name).observe(len(batch))
        metrics.execute_seconds.labels(name).observe(seconds)
        metrics.steps.labels(name, "useful").inc(useful)
        metrics.steps.labels(name, "padding").inc(len(batch) * longest - useful)
        waited = metrics.queue_seconds.labels(name)
        for work in batch:
            waited.observe(begun - work.since)

    def _account(self, batch: list[Work]) -> None:
        steps = sum(len(work.frames) for work in batch if not work.counted)
        for work in batch:
            work.counted = True
        with self._change:
            self._steps -= steps
        self._metrics.waiting_steps.labels(self.metadata.name).dec(steps)
