"""A worker: jobs and bundles in over its sockets, answers out."""

import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from model.bundle import bundle
from service.pool import spawn
from service.settings import Settings
from service.worker import cost
from service.worker.cost import Cost
from service.worker.protocol import (
    BatchReport,
    CancelJob,
    Channel,
    FromWorker,
    Job,
    JobFailure,
    JobResult,
    LoadModel,
    LoadResult,
)
from tests.support.bundles import OnnxEngine, copy_bundle, random_frames
from tests.support.scheduler import (
    CLASSES,
    KINDS,
    TASKS,
    FakeEngine,
    assert_belongs,
    frames,
    state_of,
    write_bundle,
)
from tests.support.servers import SECONDS

LONG = 5_000  # steps: many ticks, and less than a socket holds


class Talk:
    """The serving process's side of a worker."""

    def __init__(self, launched):
        self.launched = launched
        self._jobs = Channel(launched.jobs, FromWorker)
        self._control = Channel(launched.control, LoadResult)
        self._models = 0
        self.asked: dict[int, tuple] = {}
        self.told: dict[int, JobResult | JobFailure] = {}
        self.ticks: list[BatchReport] = []

    def load(self, folder):
        self.ask_to_load(folder)
        return self.loaded()

    def ask_to_load(self, folder, *, background=False):
        self._control.send(
            [LoadModel(self._models, str(folder), background=background)]
        )
        self._models += 1

    def loaded(self):
        (loaded,) = self._control.receive()
        return loaded

    def give(self, model, *sequences, task="classify", caller=("", 0)):
        """Sequences given as (length, first value); their numbers."""
        jobs = []
        for length, first in sequences:
            number = len(self.asked)
            self.asked[number] = (length, first, task)
            jobs.append(Job(number, model, length, frames(length, first).tobytes()))
            jobs[-1].caller = caller
        self.send(jobs)
        return [job.number for job in jobs]

    def go_on(
        self, model, steps, first, state=b"", start=0, *, return_state, task="classify"
    ):
        """So many steps of a sequence of which `start` have been taken; the number."""
        number = len(self.asked)
        self.asked[number] = (start + steps, first, task, start)
        part = frames(start + steps, first)[start:].tobytes()
        self.send([Job(number, model, steps, part, state, return_state)])
        return number

    def send(self, sent):
        self._jobs.send(sent)

    def receive(self):
        """What comes next."""
        for message in self._jobs.receive():
            if isinstance(message, BatchReport):
                self.ticks.append(message)
            else:
                assert message.number not in self.told, "it was told twice"
                self.told[message.number] = message

    def wait(self, *numbers):
        """What became of these jobs."""
        while not self.told.keys() >= set(numbers):
            self.receive()
        return [self.told[number] for number in numbers]

    def assert_right(self, *numbers):
        for number in numbers:
            (told,) = self.wait(number)
            assert isinstance(told, JobResult), told
            length, first, task, *start = self.asked[number]
            answer = np.frombuffer(told.probabilities, np.float32)
            answer = answer.reshape(-1, len(CLASSES)) if task == "label" else answer
            assert_belongs(answer, length, first, task, *start)


@contextmanager
def talking(start=None, **settings):
    """With a worker, a thread unless `start` makes another; its end is waited for."""
    limits = {"max_steps": LONG}
    launched = (start or spawn.thread({"given": engine_of}))(
        Settings(**limits | settings)
    )
    launched.jobs.settimeout(SECONDS)
    launched.control.settimeout(SECONDS)
    try:
        yield Talk(launched)
    finally:
        for engine in engines:
            engine.gate.set()
        launched.jobs.close()
        launched.control.close()
        launched.wait(SECONDS)


engines: list[FakeEngine] = []  # those that have been made, the latest last


def engine_of(found, settings):
    engines.append(FakeEngine(found.metadata.task))
    return engines[-1]


@pytest.fixture(autouse=True)
def _engines(monkeypatch):
    """None is left of another test; each costs what a network does."""
    engines.clear()
    monkeypatch.setattr(cost, "measure", lambda *_: Cost(1e-4, 1e-5, 1e-5))


class TestJobs:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("task", TASKS)
    def test_answers(self, tmp_path, task, kind):
        """Each job gets its own answer, and all that was given is settled by then."""
        with talking() as talk:
            loaded = talk.load(write_bundle(tmp_path / "made", task, kind))
            assert (loaded.model, loaded.engine, loaded.error) == (0, "fake", "")
            rng = np.random.default_rng(1)
            numbers = []
            for turn in range(20):
                lengths = rng.integers(1, 500, rng.integers(1, 6)).tolist()
                asked = [(n, float(turn * 10 + i)) for i, n in enumerate(lengths)]
                numbers += talk.give(0, *asked, task=task)
            talk.assert_right(*numbers)
            settled = sum(tick.settled for tick in talk.ticks)
            assert settled == sum(length for length, *_ in talk.asked.values())

    @pytest.mark.parametrize("task", TASKS)
    def test_goes_on(self, tmp_path, task):
        """A job that brings a state goes on from it, and who asks for the new state
        is told it: part by part the answers are those of the whole sequence."""
        with talking() as talk:
            talk.load(write_bundle(tmp_path / "made", task))
            rng = np.random.default_rng(2)
            for first in range(1, 9):
                start, state = 0, b""
                for steps in rng.integers(1, 400, 4).tolist():
                    # With another sequence, that begins.
                    other = talk.give(0, (steps, 100.0 + first), task=task)
                    number = talk.go_on(
                        0,
                        steps,
                        float(first),
                        state,
                        start,
                        return_state=True,
                        task=task,
                    )
                    talk.assert_right(number, *other)
                    start += steps
                    state = talk.told[number].state
                    assert state == state_of(start, first).tobytes()
                    assert talk.told[other[0]].state == b""
                last = talk.go_on(
                    0, 3, float(first), state, start, return_state=False, task=task
                )
                talk.assert_right(last)
                assert talk.told[last].state == b""

    def test_several_models(self, tmp_path):
        """Jobs of several models at once each go to their own."""
        with talking() as talk:
            tasks = {}
            for task in TASKS:
                for kind in KINDS:
                    folder = write_bundle(tmp_path / f"{task}-{kind}", task, kind)
                    tasks[talk.load(folder).model] = task
            numbers = []
            for turn in range(10):
                for model, task in tasks.items():
                    numbers += talk.give(model, (300 + turn, 1.0 + turn), task=task)
            talk.assert_right(*numbers)
            assert {tick.model for tick in talk.ticks} == set(tasks)

    def test_taken_between_ticks(self, tmp_path):
        """A job that comes while a long one is under way has its answer first."""
        with talking() as talk:
            talk.load(write_bundle(tmp_path / "made"))
            (engine,) = engines
            engine.closed()
            (long,) = talk.give(0, (LONG, 1.0))
            while not engine.calls or engine.calls[-1].firsts != [1.0]:
                assert engine.entered.acquire(timeout=SECONDS)
            (short,) = talk.give(0, (3, 2.0))
            engine.gate.set()
            talk.assert_right(short, long)
            assert list(talk.told) == [short, long]

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("caller", [("", 2), ("key", 1)])
    def test_shared_by_callers(self, tmp_path, kind, caller):
        """A job of another key or connection has its answer before the last of one
        that has given many."""
        with talking(batch_rows=4) as talk:
            talk.load(write_bundle(tmp_path / "made", kind=kind))
            (engine,) = engines
            engine.closed()
            many = talk.give(0, *[(400, float(n)) for n in range(40)], caller=("", 1))
            assert engine.entered.acquire(timeout=SECONDS)
            (one,) = talk.give(0, (400, 50.0), caller=caller)
            engine.gate.set()
            talk.assert_right(one, *many)
            assert list(talk.told).index(one) < 20

    def test_cancel(self, tmp_path):
        """A job that is cancelled is told to be dropped, and not stepped further."""
        with talking() as talk:
            talk.load(write_bundle(tmp_path / "made"))
            (engine,) = engines
            engine.closed()
            (first,) = talk.give(0, (LONG, 1.0))
            assert engine.entered.acquire(timeout=SECONDS)
            gone, kept = talk.give(0, (LONG, 2.0), (5, 3.0))
            talk.send([CancelJob(first), CancelJob(gone), CancelJob(99)])
            engine.gate.set()
            talk.assert_right(kept)
            for told in talk.wait(first, gone):
                assert (told.dropped, told.extreme) == (True, False)
            assert sum(tick.settled for tick in talk.ticks) == 2 * LONG + 5
            assert sum(tick.useful for tick in talk.ticks) < LONG

    def test_failure(self, tmp_path):
        """A job that the engine fails on is told to have failed; others are right."""
        with talking() as talk:
            talk.load(write_bundle(tmp_path / "made"))

            def hook(call, answer):
                if 2.0 in call.firsts:
                    raise RuntimeError("poison")

            engines[0].hook = hook
            good, bad, after = talk.give(0, (5, 1.0), (6, 2.0), (7, 3.0))
            talk.assert_right(good, after)
            (told,) = talk.wait(bad)
            assert isinstance(told, JobFailure)
            assert (told.dropped, told.extreme) == (False, False)
            assert "RuntimeError" in told.reason


class TestBundles:
    def test_broken(self, bundles, tmp_path):
        """A bundle that can't be loaded is told with the reason, and others load."""
        folder = copy_bundle(bundles / "walks" / "1", tmp_path / "walks" / "1")
        (folder / bundle.NETWORK).write_bytes(b"")
        with talking(spawn.thread({"given": OnnxEngine})) as talk:
            told = talk.load(folder)
            assert str(folder / bundle.NETWORK) in told.error
            assert "SHA-256" in told.error
            assert str(tmp_path / "nowhere") in talk.load(tmp_path / "nowhere").error
            loaded = talk.load(bundles / "walks" / "1")
            assert (loaded.model, loaded.engine, loaded.error) == (2, "onnx", "")
            assert loaded.precision == "float32"
            assert "golden answers" in loaded.reason

    @pytest.mark.parametrize("background", [False, True])
    def test_while_it_works(self, tmp_path, background):
        """While it loads a bundle it answers jobs of another."""
        gate = threading.Event()

        def slow(found, settings):
            if engines:
                assert gate.wait(SECONDS)
            return engine_of(found, settings)

        with talking(spawn.thread({"given": slow})) as talk:
            talk.load(write_bundle(tmp_path / "first"))
            second = write_bundle(tmp_path / "second", "label")
            talk.ask_to_load(second, background=background)
            talk.assert_right(*talk.give(0, (700, 1.0), (3, 2.0)))
            gate.set()
            assert talk.loaded().model == 1
            talk.assert_right(*talk.give(1, (700, 1.0), task="label"))

    def test_warm(self, tmp_path):
        """Its engine has run at small and large sizes before a bundle is told to be
        loaded."""
        with talking() as talk:
            talk.load(write_bundle(tmp_path / "made"))
            sizes = {call.frames.shape[:2] for call in engines[0].calls}
            assert {(1, 1), (1, 128), (8, 128)} <= sizes


class TestEnd:
    @pytest.mark.parametrize("which", ["jobs", "control"])
    def test_hangs_up(self, tmp_path, which):
        """It ends when the other side hangs up on jobs, also with some to do; that
        nothing more is to be loaded ends nothing."""
        with talking() as talk:
            talk.load(write_bundle(tmp_path / "made"))
            if which == "control":
                talk.launched.control.close()
                talk.assert_right(*talk.give(0, (5, 1.0)))
                return
            engines[0].closed()
            talk.give(0, (LONG, 1.0))
            assert engines[0].entered.acquire(timeout=SECONDS)
            talk.launched.jobs.close()
            engines[0].gate.set()
            talk.launched.wait(SECONDS)
            threads = [t for t in threading.enumerate() if t.name == "worker"]
            assert threads == []


class TestProcess:
    @pytest.fixture
    def others(self):
        """Processes of servers that other tests share."""
        return set(multiprocessing.active_children())

    @pytest.fixture
    def talk(self, others, bundles):
        with talking(spawn.process) as talk:
            loaded = talk.load(bundles / "walks" / "1")
            assert (loaded.engine, loaded.error) == ("onnx", "")
            yield talk

    def ask(self, talk, bundles):
        """A real answer, held against the network's own."""
        rng = np.random.default_rng(len(talk.asked))
        number, asked = len(talk.asked), random_frames(rng, 30)
        talk.asked[number] = ()
        talk.send([Job(number, 0, 30, asked.tobytes())])
        (told,) = talk.wait(number)
        engine = OnnxEngine(bundle.read(bundles / "walks" / "1"), Settings())
        begin = np.zeros((1, 6), np.float32)
        lengths = np.array([30], np.int32)
        expected, _ = engine.step(asked[None], lengths, begin)
        answer = np.frombuffer(told.probabilities, np.float32)
        np.testing.assert_allclose(answer, expected[0], atol=1e-5)

    def test_answers(self, talk, bundles):
        """A worker in a process of its own answers as one in a thread."""
        self.ask(talk, bundles)

    def test_goes_on(self, talk, bundles):
        """It goes on from a state of another process's: its answer is that of the
        whole, and so is its new state."""
        engine = OnnxEngine(bundle.read(bundles / "walks" / "1"), Settings())
        asked, begin = random_frames(np.random.default_rng(3), 30), np.zeros((1, 6))

        def of_the_whole(steps):
            lengths = np.array([steps], np.int32)
            given, state = asked[None, :steps], begin.astype(np.float32)
            return engine.step(given, lengths, state)

        _, state = of_the_whole(12)
        talk.send([Job(0, 0, 18, asked[12:].tobytes(), state.tobytes(), True)])
        (told,) = talk.wait(0)
        for given, expected in zip(
            (told.probabilities, told.state), of_the_whole(30), strict=True
        ):
            given = np.frombuffer(given, np.float32)
            np.testing.assert_allclose(given, expected[0], atol=1e-5)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals(self, talk, others, bundles, number):
        """A signal that all processes are sent does not end it: whoever started it
        decides, and it ends with that one."""
        (process,) = set(multiprocessing.active_children()) - others
        os.kill(process.pid, number)
        self.ask(talk, bundles)
        talk.launched.jobs.close()
        talk.launched.wait(SECONDS)
        assert process.exitcode == 0
