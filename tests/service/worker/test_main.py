"""A worker: it takes jobs and bundles over its sockets, and sends results."""

import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest

from model.bundle import bundle
from service.pool import spawn
from service.settings import Settings
from service.worker import cost
from service.worker.cost import Cost
from service.worker.protocol import (
    BatchReport,
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
    write_bundle,
)
from tests.support.servers import SECONDS

LONG = 5_000  # steps: many engine calls, and less than a socket's buffer


class WorkerClient:
    """The serving process's side of a worker.

    Sequences are given as (length, first value).
    """

    def __init__(self, handle):
        self.handle = handle
        self._jobs = Channel(handle.jobs, FromWorker)
        self._control = Channel(handle.control, LoadResult)
        self._models = 0
        self.jobs: dict[int, tuple] = {}
        self.results: dict[int, JobResult | JobFailure] = {}
        self.reports: list[BatchReport] = []

    def load(self, folder):
        self.request_load(folder)
        return self.receive_loaded()

    def request_load(self, folder, *, background=False):
        request = LoadModel(self._models, str(folder), background=background)
        self._control.send([request])
        self._models += 1

    def receive_loaded(self):
        (loaded,) = self._control.receive()
        return loaded

    def submit(self, model, *sequences, task="classify", caller=("", 0)):
        """Send jobs, and return their numbers."""
        jobs = []
        for length, first in sequences:
            number = len(self.jobs)
            self.jobs[number] = (length, first, task)
            jobs.append(Job(number, model, length, frames(length, first).tobytes()))
            jobs[-1].caller = caller
        self.send(jobs)
        return [job.number for job in jobs]

    def send(self, messages):
        self._jobs.send(messages)

    def wait(self, *numbers):
        """Return the results of these jobs."""
        while not self.results.keys() >= set(numbers):
            for message in self._jobs.receive():
                if isinstance(message, BatchReport):
                    self.reports.append(message)
                else:
                    assert message.number not in self.results, "two results of a job"
                    self.results[message.number] = message
        return [self.results[number] for number in numbers]

    def assert_right(self, *numbers):
        for number in numbers:
            (result,) = self.wait(number)
            assert isinstance(result, JobResult), result
            assert result.state == b""  # not requested
            length, first, task = self.jobs[number]
            answer = np.frombuffer(result.probabilities, np.float32)
            answer = answer.reshape(-1, len(CLASSES)) if task == "label" else answer
            assert_belongs(answer, length, first, task)


@contextmanager
def running_worker(start=None, **limits):
    """A worker, as a thread with fake engines unless `start` is passed."""
    start = start or spawn.thread({"fake": make_engine})
    handle = start(Settings(**{"max_steps": LONG} | limits))
    handle.jobs.settimeout(SECONDS)
    handle.control.settimeout(SECONDS)
    try:
        yield WorkerClient(handle)
    finally:
        for engine in engines:
            engine.gate.set()
        handle.jobs.close()
        handle.control.close()
        handle.wait(SECONDS)


engines: list[FakeEngine] = []  # of the current test's worker


def make_engine(bundle, settings):
    engines.append(FakeEngine(bundle.metadata.task))
    return engines[-1]


@pytest.fixture(autouse=True)
def _engines(monkeypatch):
    """Forget other tests' engines, and use a network's cost for all."""
    engines.clear()
    monkeypatch.setattr(cost, "measure", lambda *_: Cost(1e-4, 1e-5, 1e-5))


class TestJobs:
    def test_answers(self, tmp_path):
        """Jobs of several models get the answers of their own model, and all their
        steps are settled by then."""
        with running_worker() as worker:
            tasks = {}
            for task, kind in product(TASKS, KINDS):
                folder = write_bundle(tmp_path / f"{task}-{kind}", task, kind)
                loaded = worker.load(folder)
                assert (loaded.engine, loaded.error) == ("fake", "")
                tasks[loaded.model] = task
            rng = np.random.default_rng(1)
            numbers = []
            for turn in range(10):
                for model, task in tasks.items():
                    lengths = rng.integers(1, 500, rng.integers(1, 6)).tolist()
                    jobs = [(n, float(turn * 10 + i)) for i, n in enumerate(lengths)]
                    numbers += worker.submit(model, *jobs, task=task)
            worker.assert_right(*numbers)
            settled = sum(report.settled for report in worker.reports)
            assert settled == sum(length for length, *_ in worker.jobs.values())
            assert {report.model for report in worker.reports} == set(tasks)

    def test_during_a_long_job(self, tmp_path):
        """A job that comes while a long one is computed is answered first."""
        with running_worker() as worker:
            worker.load(write_bundle(tmp_path / "made"))
            (engine,) = engines
            engine.closed()
            (long,) = worker.submit(0, (LONG, 1.0))
            while not engine.calls or engine.calls[-1].firsts != [1.0]:
                assert engine.entered.acquire(timeout=SECONDS)
            (short,) = worker.submit(0, (3, 2.0))
            engine.gate.set()
            worker.assert_right(short, long)
            assert list(worker.results) == [short, long]

    def test_callers(self, tmp_path):
        """A job of another key or connection is answered before the last of a caller
        with many jobs."""
        for kind, caller in product(KINDS, [("", 2), ("key", 1)]):
            engines.clear()
            with running_worker(batch_rows=4) as worker:
                worker.load(write_bundle(tmp_path / f"{kind}-{caller[1]}", kind=kind))
                (engine,) = engines
                engine.closed()
                jobs = [(400, float(n)) for n in range(40)]
                many = worker.submit(0, *jobs, caller=("", 1))
                assert engine.entered.acquire(timeout=SECONDS)
                (single,) = worker.submit(0, (400, 50.0), caller=caller)
                engine.gate.set()
                worker.assert_right(single, *many)
                assert list(worker.results).index(single) < 20

    def test_unknown_model(self):
        """A job of a model that was unloaded before the worker started fails, and its
        steps are settled."""
        with running_worker() as worker:
            (number,) = worker.submit(7, (5, 1.0))
            (result,) = worker.wait(number)
            assert "after the model was replaced" in result.reason
            assert [(r.model, r.settled) for r in worker.reports] == [(7, 5)]


class TestBundles:
    def test_broken(self, bundles, tmp_path):
        """The error of a bundle that cannot be loaded comes back, and others load."""
        folder = copy_bundle(bundles / "walks" / "1", tmp_path / "walks" / "1")
        (folder / bundle.NETWORK).write_bytes(b"")
        with running_worker(spawn.thread({"onnx": OnnxEngine})) as worker:
            result = worker.load(folder)
            assert str(folder / bundle.NETWORK) in result.error
            assert "SHA-256" in result.error
            assert str(tmp_path / "nowhere") in worker.load(tmp_path / "nowhere").error
            result = worker.load(bundles / "walks" / "1")
            assert (result.model, result.engine, result.error) == (2, "onnx", "")
            assert result.precision == "float32"
            assert "golden answers" in result.reason

    @pytest.mark.parametrize("background", [False, True])
    def test_while_it_works(self, tmp_path, background):
        """While a bundle loads, jobs of another model are answered."""
        gate = threading.Event()

        def make_slowly(bundle, settings):
            if engines:
                assert gate.wait(SECONDS)
            return make_engine(bundle, settings)

        with running_worker(spawn.thread({"fake": make_slowly})) as worker:
            worker.load(write_bundle(tmp_path / "first"))
            second = write_bundle(tmp_path / "second", "label")
            worker.request_load(second, background=background)
            worker.assert_right(*worker.submit(0, (700, 1.0), (3, 2.0)))
            gate.set()
            assert worker.receive_loaded().model == 1
            worker.assert_right(*worker.submit(1, (700, 1.0), task="label"))

    def test_warm_up(self, tmp_path):
        """When a bundle is loaded, its engine has run with small and large batches."""
        with running_worker() as worker:
            worker.load(write_bundle(tmp_path / "made"))
            sizes = {call.frames.shape[:2] for call in engines[0].calls}
            assert {(1, 1), (1, 128), (8, 128)} <= sizes


def test_end(tmp_path):
    """A worker ends when the socket for jobs is closed, even with jobs to do. That for
    control may be closed before."""
    with running_worker() as worker:
        worker.load(write_bundle(tmp_path / "made"))
        worker.handle.control.close()
        worker.assert_right(*worker.submit(0, (5, 1.0)))
        while engines[0].entered.acquire(blocking=False):
            pass
        engines[0].closed()
        worker.submit(0, (LONG, 1.0))
        assert engines[0].entered.acquire(timeout=SECONDS)
        worker.handle.jobs.close()
        engines[0].gate.set()
        worker.handle.wait(SECONDS)
        assert [t for t in threading.enumerate() if t.name == "worker"] == []


def test_process(bundles):
    """A worker process answers as the network does, also from another process's
    state. It ignores signals, and ends when the socket is closed."""
    others = set(multiprocessing.active_children())
    engine = OnnxEngine(bundle.read(bundles / "walks" / "1"), Settings())
    sequence = random_frames(np.random.default_rng(3), 30)

    def compute(steps):
        lengths, state = np.array([steps], np.int32), np.zeros((1, 20), np.float32)
        return engine.step(sequence[None, :steps], lengths, state)

    with running_worker(spawn.process) as worker:
        result = worker.load(bundles / "walks" / "1")
        assert (result.engine, result.error) == ("onnx", "")
        _, state = compute(12)
        (process,) = set(multiprocessing.active_children()) - others
        for number, signal_number in enumerate((signal.SIGINT, signal.SIGTERM)):
            os.kill(process.pid, signal_number)
            part = sequence[12:].tobytes()
            worker.send([Job(number, 0, 18, part, state.tobytes(), True)])
            (result,) = worker.wait(number)
            for data, array in zip(
                (result.probabilities, result.state), compute(30), strict=True
            ):
                values = np.frombuffer(data, np.float32)
                np.testing.assert_allclose(values, array[0], atol=1e-5)
        worker.handle.jobs.close()
        worker.handle.wait(SECONDS)
        assert process.exitcode == 0
