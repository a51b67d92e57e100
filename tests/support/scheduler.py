"""A scheduler over an engine whose answers tell which steps it was given, and in what
order."""

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
    """A sequence whose values tell which one it is, and all steps apart."""
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
    """The answer is that of the sequence: of all its steps from `start` on, in order,
    and no other."""
    rows = expected(length, first)
    np.testing.assert_array_equal(answer, rows[start:] if task == "label" else rows[-1])


def state_of(length, first):
    """The engine's state after a sequence; of no steps: that in which it begins."""
    rows = expected(length, first)[-1:] if length else np.zeros((1, SIZE))
    return rows[0].astype(np.float32)


def metadata_of(task, kind):
    """A network that is stepped in lanes, or whole, as the engine answers."""
    return make_metadata(
        task,
        classes=CLASSES,
        hidden=SIZE,
        bidirectional=kind == "whole",
        state_size=0 if kind == "whole" else SIZE,
    )


@dataclass(frozen=True)
class Call:
    """What the engine was given."""

    frames: np.ndarray
    lengths: list[int]
    starts: list[int]  # steps that each row was on beforehand
    firsts: list[float]  # the first value of each row's sequence

    @property
    def steps(self):
        return self.frames.shape[1]


class FakeEngine:
    """Answers each row with its steps so far, its sequence's first value, and a sum
    in which every value counts by its place.

    Rows that are mixed up, a chunk that is lost, taken twice or out of order, and a
    state that is used again all show in the last answer; what breaks the promises of
    `Engine.step` is noted in `faults`. `closed()` holds every call until `gate.set()`;
    `hook(call, answer)` runs in each call and may raise, or return probabilities in
    place of the right ones; `spoil(call, after)` may change the new states.
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
        self.spoil = lambda call, after: None

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
        special = self.hook(call, answer.copy())
        after = last.copy() if state.size else state
        self.spoil(call, after)
        return (answer if special is None else special), after

    def _check(self, frames, lengths, state, starts):
        kinds = (frames.dtype, lengths.dtype, state.dtype)
        if kinds != (np.float32, np.int32, np.float32):
            self.faults.append(f"of other kinds: {kinds}")
        if not len(frames) == len(lengths) == len(state) > 0:
            self.faults.append("other numbers of rows")
        if lengths.min() < 1 or lengths.max() != frames.shape[1]:
            self.faults.append(f"{frames.shape[1]} steps for {lengths}")
        padding = np.arange(frames.shape[1]) >= lengths[:, None]
        if frames[padding].any():
            self.faults.append("padding that is not zero")
        if state[starts == 0].any():
            self.faults.append("a sequence that begins in another's state")


class Scene:
    """A scheduler and its engine, and what became of each job."""

    def __init__(self, engine=None, *, kind="lanes", cost=None, **limits):
        self.engine = engine or FakeEngine()
        limits = {"max_steps": 1000, "queue_steps": 100_000} | limits
        self.metadata = metadata_of(self.engine.task, kind)
        self.scheduler = Scheduler(
            self.engine, self.metadata, Settings(**limits), model=7, cost=cost
        )
        self.jobs: list[tuple[int, float]] = []  # by number: length, first value
        self.starts: dict[int, int] = {}  # steps that were taken before, if any were
        self.ticks: list[BatchReport] = []
        self.told: dict[int, JobResult | JobFailure] = {}

    def add(self, *sequences, **how):
        """Sequences given as (length, first value); their numbers."""
        for one in sequences:
            self.scheduler.add(len(self.jobs), frames(*one), **how)
            self.jobs.append(one)
        return range(len(self.jobs) - len(sequences), len(self.jobs))

    def go_on(self, steps, first, start=0, *, return_state=True):
        """So many steps of a sequence of which `start` have been taken; the number."""
        number = len(self.jobs)
        state = state_of(start, first) if start else None
        part = frames(start + steps, first)[start:]
        self.scheduler.add(number, part, state, return_state=return_state)
        self.jobs.append((steps, first))
        self.starts[number] = start
        return number

    def tick(self):
        """One tick; what it tells of jobs."""
        ticked, *told = self.scheduler.run_batch()
        assert isinstance(ticked, BatchReport)  # first: who has an answer does not wait
        assert ticked.model == 7
        assert ticked.rows or told, "it gets nowhere"
        self.ticks.append(ticked)
        for message in told:
            assert message.number not in self.told, "it was told twice"
            self.told[message.number] = message
        return told

    def run(self, ticks=100_000):
        """Tick until nothing is left to do."""
        while self.scheduler.busy and ticks:
            self.tick()
            ticks -= 1
        return self

    def assert_right(self, *numbers):
        """These jobs (else all) have been answered, and rightly."""
        label = self.metadata.task == "label"
        for number in numbers or range(len(self.jobs)):
            told = self.told[number]
            assert isinstance(told, JobResult)
            assert 0 < told.started <= told.ended
            answer = np.frombuffer(told.probabilities, np.float32)
            answer = answer.reshape(-1, len(CLASSES)) if label else answer
            (steps, first), start = self.jobs[number], self.starts.get(number, 0)
            assert_belongs(answer, start + steps, first, self.metadata.task, start)

    def assert_failed(self, number, **why):
        """This job was told to have failed, and why."""
        told = self.told[number]
        assert isinstance(told, JobFailure)
        assert told.reason
        assert (told.extreme, told.dropped) == (
            why.get("extreme", False),
            why.get("dropped", False),
        )

    def assert_counted(self):
        """Nothing is left to do; every step that was taken on has been settled, and
        the figures are those of the engine's calls that did not fail."""
        assert not self.scheduler.busy
        assert self.told.keys() == set(range(len(self.jobs)))
        assert sum(t.settled for t in self.ticks) == sum(n for n, _ in self.jobs)
        assert self.engine.faults == []

    def steps_of(self, first):
        """The steps computed of a sequence."""
        return sum(
            length
            for call in self.engine.calls
            for length, one in zip(call.lengths, call.firsts, strict=True)
            if one == first
        )


def poisoned(values):
    """A hook that raises where it meets the sequences with these first values."""

    def hook(call, answer):
        if set(call.firsts) & set(values):
            raise RuntimeError("poison")

    return hook


def write_bundle(folder, task="classify", kind="lanes"):
    """A bundle for which the engine gives the golden answers, and nothing else can."""
    lengths = np.array([1, 2, 5], np.int32)
    given = np.zeros((3, 5, 1), np.float32)
    for row, (place, length) in zip(given, enumerate(lengths), strict=True):
        row[:length] = frames(int(length), float(place))
    metadata = metadata_of(task, kind)
    state = np.zeros((3, metadata.state_size), np.float32)
    answers = FakeEngine(task).step(given, lengths, state)
    (folder / bundle.EXTRA).mkdir(parents=True)
    Golden(given, lengths, *answers).save(folder / bundle.GOLDEN)
    bundle.seal(folder, metadata)
    return folder
