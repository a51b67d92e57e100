"""A scheduler with a fake engine, whose answers show which steps it computed, and in
what order."""

import threading
from dataclasses import dataclass

import numpy as np

from model.bundle import bundle
from model.bundle.golden import Golden
from service.settings import Settings
from service.worker.protocol import BatchReport, JobFailure, JobResult
from service.worker.scheduler import Scheduler
from tests.support.bundles import make_metadata
from tests.support.servers import SECONDS

TASKS = ("classify", "label")
KINDS = ("lanes", "whole")
MODULUS = 65_521  # sums below this are exact in float32
SIZE = 3  # of a state: steps so far, the first value, the sum
CLASSES = ("steps", "first", "sum")


def frames(length, first):
    """A sequence whose values identify it and each of its steps."""
    values = 1 + (7 * first + 31 * np.arange(length)) % 251
    values[0] = first
    return values.astype(np.float32)[:, None]


def expected(length, first):
    """The engine's answer after each step [T, 3], computed step by step."""
    total, rows = 0, []
    for place, number in enumerate(frames(length, first)[:, 0].tolist(), 1):
        total = (total + place * int(number)) % MODULUS
        rows.append((place, first, total))
    return np.array(rows)


def assert_belongs(answer, length, first, task="classify", start=0):
    """Assert that an answer is that of the sequence: of its steps from `start` on, in
    order, and of no others."""
    rows = expected(length, first)
    np.testing.assert_array_equal(answer, rows[start:] if task == "label" else rows[-1])


def state_of(length, first):
    """The engine's state after a sequence; of no steps: the initial state."""
    rows = expected(length, first)[-1:] if length else np.zeros((1, SIZE))
    return rows[0].astype(np.float32)


def metadata_of(task, kind):
    """The metadata of a network with a carried state (lanes), or of one that reads
    whole sequences."""
    return make_metadata(
        task,
        classes=CLASSES,
        hidden=SIZE,
        bidirectional=kind == "whole",
        state_size=0 if kind == "whole" else SIZE,
    )


@dataclass(frozen=True)
class Call:
    """The arguments of an engine call."""

    frames: np.ndarray
    lengths: list[int]
    starts: list[int]  # steps of each row that were computed before
    firsts: list[float]  # the first value of each row's sequence

    @property
    def steps(self):
        return self.frames.shape[1]


class FakeEngine:
    """Answers each row with its steps so far, its sequence's first value, and the sum
    of all values weighted by their places.

    Rows that are mixed up, steps that are lost, repeated or out of order, and states
    that are used twice all show in the last answer. Calls that break the contract of
    `Engine.step` are noted in `faults`. After `closed()`, calls block until
    `gate.set()`. `hook(call, answer)` runs in each call; it may raise, or return other
    probabilities. `spoil(call, new_state)` may change the new states.
    """

    name = "fake"

    def __init__(self, task="classify"):
        self.task = task
        self.calls: list[Call] = []
        self.faults: list[str] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.hook = lambda call, answer: None
        self.spoil = lambda call, new_state: None

    def closed(self) -> "FakeEngine":
        self.gate.clear()
        return self

    def step(self, frames, lengths, state):
        starts = state[:, 0].astype(int) if state.size else np.zeros_like(lengths)
        firsts = frames[:, 0, 0].copy()
        if state.size:
            firsts[starts > 0] = state[starts > 0, 1]
        call = Call(frames, lengths.tolist(), starts.tolist(), firsts.tolist())
        self._check(frames, lengths, state, starts)
        self.calls.append(call)
        self.entered.release()
        assert self.gate.wait(SECONDS), "nobody opened the gate"
        places = starts[:, None] + 1 + np.arange(frames.shape[1])
        totals = (places * frames[:, :, 0].astype(float)).cumsum(1)
        totals += state[:, 2:3] if state.size else 0
        firsts = np.broadcast_to(firsts[:, None], places.shape)
        rows = np.stack([places, firsts, totals % MODULUS], 2).astype(np.float32)
        last = rows[np.arange(len(lengths)), lengths - 1]
        answer = rows if self.task == "label" else last
        replacement = self.hook(call, answer.copy())
        new_state = last.copy() if state.size else state
        self.spoil(call, new_state)
        return (answer if replacement is None else replacement), new_state

    def _check(self, frames, lengths, state, starts):
        dtypes = (frames.dtype, lengths.dtype, state.dtype)
        if dtypes != (np.float32, np.int32, np.float32):
            self.faults.append(f"dtypes: {dtypes}")
        if not len(frames) == len(lengths) == len(state) > 0:
            self.faults.append("numbers of rows differ")
        if lengths.min() < 1 or lengths.max() != frames.shape[1]:
            self.faults.append(f"{frames.shape[1]} steps for {lengths}")
        padding = np.arange(frames.shape[1]) >= lengths[:, None]
        if frames[padding].any():
            self.faults.append("padding is not zero")
        if state[starts == 0].any():
            self.faults.append("a new sequence begins in another's state")


class SchedulerHarness:
    """A scheduler with its engine, and the results of all jobs.

    Sequences are given as (length, first value).
    """

    def __init__(self, engine=None, *, kind="lanes", cost=None, **limits):
        self.engine = engine or FakeEngine()
        limits = {"max_steps": 1000, "queue_steps": 100_000} | limits
        self.metadata = metadata_of(self.engine.task, kind)
        self.scheduler = Scheduler(
            self.engine, self.metadata, Settings(**limits), model=7, cost=cost
        )
        self.jobs: list[tuple[int, float]] = []  # by number: length, first value
        self.starts: dict[int, int] = {}  # steps that a job's state begins after
        self.reports: list[BatchReport] = []
        self.results: dict[int, JobResult | JobFailure] = {}

    def add(self, *sequences, **options):
        """Add sequences, and return their numbers."""
        for length, first in sequences:
            self.scheduler.add(len(self.jobs), frames(length, first), **options)
            self.jobs.append((length, first))
        return range(len(self.jobs) - len(sequences), len(self.jobs))

    def resume(self, steps, first, start=0, *, return_state=True):
        """Add the steps of a sequence behind the first `start`; return the number."""
        number = len(self.jobs)
        state = state_of(start, first) if start else None
        part = frames(start + steps, first)[start:]
        self.scheduler.add(number, part, state, return_state=return_state)
        self.jobs.append((steps, first))
        self.starts[number] = start
        return number

    def run_batch(self):
        """Run one batch, and return its results."""
        report, *results = self.scheduler.run_batch()
        assert isinstance(report, BatchReport)  # first: answered jobs do not wait
        assert report.model == 7
        assert report.rows or results, "no progress"
        self.reports.append(report)
        for result in results:
            assert result.number not in self.results, "two results of a job"
            self.results[result.number] = result
        return results

    def run(self, batches=100_000):
        """Run batches until all jobs are done."""
        while self.scheduler.busy and batches:
            self.run_batch()
            batches -= 1
        return self

    def assert_right(self, *numbers):
        """Assert that these jobs (default: all) have the right answers."""
        label = self.metadata.task == "label"
        for number in numbers or range(len(self.jobs)):
            result = self.results[number]
            assert isinstance(result, JobResult)
            assert 0 < result.started <= result.ended
            answer = np.frombuffer(result.probabilities, np.float32)
            answer = answer.reshape(-1, len(CLASSES)) if label else answer
            (steps, first), start = self.jobs[number], self.starts.get(number, 0)
            assert_belongs(answer, start + steps, first, self.metadata.task, start)

    def assert_state(self, number):
        """Assert that a job's new state is right."""
        (steps, first), start = self.jobs[number], self.starts[number]
        assert self.results[number].state == state_of(start + steps, first).tobytes()

    def assert_failed(self, number, *, extreme=False, dropped=False):
        """Assert that a job failed, for this reason."""
        result = self.results[number]
        assert isinstance(result, JobFailure)
        assert result.reason
        assert (result.extreme, result.dropped) == (extreme, dropped)

    def assert_settled(self):
        """Assert that all jobs have results and all their steps are settled."""
        assert not self.scheduler.busy
        assert self.results.keys() == set(range(len(self.jobs)))
        settled = sum(report.settled for report in self.reports)
        assert settled == sum(length for length, _ in self.jobs)
        assert self.engine.faults == []

    def steps_of(self, first):
        """The number of computed steps of a sequence."""
        return sum(
            length
            for call in self.engine.calls
            for length, value in zip(call.lengths, call.firsts, strict=True)
            if value == first
        )


def poisoned(values):
    """A hook that raises at the sequences with these first values."""

    def hook(call, answer):
        if set(call.firsts) & set(values):
            raise RuntimeError("poison")

    return hook


def write_bundle(folder, task="classify", kind="lanes"):
    """A bundle whose golden answers only `FakeEngine` gives."""
    lengths = np.array([1, 2, 5], np.int32)
    inputs = np.zeros((3, 5, 1), np.float32)
    for row, (place, length) in zip(inputs, enumerate(lengths), strict=True):
        row[:length] = frames(int(length), float(place))
    metadata = metadata_of(task, kind)
    state = np.zeros((3, metadata.state_size), np.float32)
    answers = FakeEngine(task).step(inputs, lengths, state)
    (folder / bundle.EXTRA).mkdir(parents=True)
    Golden(inputs, lengths, *answers).save(folder / bundle.GOLDEN)
    bundle.seal(folder, metadata)
    return folder
