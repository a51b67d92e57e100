"""Workers that die: what becomes of their jobs, and who takes their place."""

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest

from model.bundle import bundle
from model.bundle.bundle import BundleError
from service import errors
from service.pool import pool
from service.pool.admission import Admission
from service.pool.pool import Pool
from service.pool.spawn import WorkerDied, WorkerHandle
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.bundles import OnnxEngine, random_frames
from tests.support.pool import flush, wait_until
from tests.support.servers import ROOT, SECONDS, running, value, wait

DEADLY = 1e6  # a network that is given this takes its process down
HANGING = 1e5  # with this it never comes to an end
LOAD_SECONDS = 6  # that a load may take, where one hangs; and a process, to start
# A worker in a process of its own, whose engine is that of ONNX Runtime but for that.
SCRIPT = f"""
import os, socket, sys, time
import numpy as np
from service.worker.onnx_engine import OnnxEngine
from service.settings import Settings
from service.worker.main import Worker

class Deadly(OnnxEngine):
    def __init__(self, found, settings):
        if found.metadata.name == sys.argv[4]:
            os._exit(1)
        if found.metadata.name == sys.argv[5]:
            time.sleep(600)
        super().__init__(found)

    def step(self, frames, lengths, state):
        if np.abs(frames).max() >= {DEADLY}:
            os._exit(1)
        if np.abs(frames).max() >= {HANGING}:
            time.sleep(600)
        return super().step(frames, lengths, state)

jobs, control = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
settings = Settings.model_validate_json(sys.argv[3])
Worker(jobs, control, settings, {{"deadly": Deadly}}).run()
"""


class Mortals:
    """Starts such workers; those with these numbers die of loading `tags`, or never
    return from it."""

    def __init__(self, *weak, hanging=()):
        self.processes = []
        self._weak, self._hanging = weak, hanging

    def __call__(self, settings):
        jobs, control = socket.socketpair(), socket.socketpair()
        with jobs[1], control[1]:
            numbers = [jobs[1].fileno(), control[1].fileno()]
            command = [sys.executable, "-c", SCRIPT, *map(str, numbers)]
            text = settings.model_dump_json()
            number = len(self.processes)
            faults = (number in numbers for numbers in (self._weak, self._hanging))
            made = subprocess.Popen(
                [*command, text, *("tags" if fault else "" for fault in faults)],
                pass_fds=numbers,
                cwd=ROOT,
            )
        self.processes.append(made)

        def wait(seconds):  # as that of multiprocessing: it raises nothing
            with suppress(subprocess.TimeoutExpired):
                made.wait(seconds)

        return WorkerHandle(jobs[0], control[0], wait, made.kill)


@asynccontextmanager
async def pooled(start, metrics=None, **settings):
    """A pool of two workers, until the block ends."""
    made = Pool(Settings(workers=2, **settings), metrics or Metrics(), start)
    made.start()
    try:
        await made.attach()
        yield made
    finally:
        await asyncio.to_thread(made.close)
        await flush()
        for process in start.processes:
            assert process.wait(SECONDS) is not None


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Workers are replaced without a pause."""
    monkeypatch.setattr(pool, "RESTART_SECONDS", 0.01)


class Model:
    """The bundle `walks` in a pool."""

    def __init__(self, made, metrics, folder):
        self.found = bundle.read(folder)
        self._engine = OnnxEngine(self.found, Settings())
        self.admission = Admission(
            made, 1, self.found.metadata, Settings(workers=2), metrics
        )

    @classmethod
    async def load(cls, made, metrics, folder):
        await asyncio.to_thread(made.load, 1, str(folder))
        return cls(made, metrics, folder)

    async def assert_right(self, request, *sequences):
        async with asyncio.timeout(SECONDS):
            answers = await request.future
        for answer, asked in zip(answers, sequences, strict=True):
            begin = np.zeros((1, self.found.metadata.state_size), np.float32)
            lengths = np.array([len(asked)], np.int32)
            expected, _ = self._engine.step(asked[None], lengths, begin)
            np.testing.assert_allclose(answer, expected[0], atol=1e-5)


def deadly():
    return np.full((3, 3), DEADLY, np.float32)


@pytest.mark.anyio
class TestJobs:
    async def test_one_dies(self, bundles, caplog):
        """When a worker dies all that it had is computed by others, but for what it
        died of, and others take the places of those that died of it."""
        metrics, start = Metrics(), Mortals()
        async with pooled(start, metrics) as made:
            model = await Model.load(made, metrics, bundles / "walks" / "1")
            rng = np.random.default_rng(0)
            # In turns to the one worker and to the other.
            lengths = [2000, 1999, 3, 4]
            asked = [random_frames(rng, length) for length in lengths]
            asked[2] = deadly()
            requests = [model.admission.submit([frames]) for frames in asked]
            told = await asyncio.gather(
                *(request.future for request in requests), return_exceptions=True
            )
            failed = [isinstance(one, errors.InternalError) for one in told]
            assert failed == [False, False, True, False]
            assert "died" in str(told[2].__cause__)
            for frames, request in zip(asked, requests, strict=True):
                if frames is not asked[2]:
                    await model.assert_right(request, frames)
            await wait_until(lambda: made.size == 2, "others take their places")
            assert made.alive
            assert len(start.processes) == 4  # once among others, once alone
            for _ in range(6):
                frames = random_frames(rng, 20)
                await model.assert_right(model.admission.submit([frames]), frames)
            text = metrics.text().decode()
            assert value(text, "unrolled_worker_deaths_total") == 2
            assert value(text, "unrolled_waiting_steps", model="walks") == 0
        assert "a worker died" in caplog.messages

    async def test_all_die(self, bundles):
        """While no worker is left new requests wait for those that take their places,
        and are answered."""
        metrics, start = Metrics(), Mortals()
        async with pooled(start, metrics) as made:
            model = await Model.load(made, metrics, bundles / "walks" / "1")
            for process in start.processes:
                process.kill()
            await wait_until(lambda: not made.size, "none is left")
            assert made.alive
            frames = random_frames(np.random.default_rng(0), 20)
            await model.assert_right(model.admission.submit([frames]), frames)

    async def test_hangs(self, bundles, caplog):
        """A worker that is in one call for too long is replaced, what else it had is
        answered, and what it hung on fails."""
        metrics, start = Metrics(), Mortals()
        async with pooled(start, metrics, stall_seconds=1) as made:
            model = await Model.load(made, metrics, bundles / "walks" / "1")
            hanging = model.admission.submit([np.full((3, 3), HANGING, np.float32)])
            rng = np.random.default_rng(0)
            asked = [random_frames(rng, 20) for _ in range(6)]
            requests = [model.admission.submit([frames]) for frames in asked]
            for frames, request in zip(asked, requests, strict=True):
                await model.assert_right(request, frames)
            with pytest.raises(errors.InternalError):
                await hanging.future
            await wait_until(lambda: made.size == 2, "others take their places")
            assert caplog.messages.count("a worker hangs") == 2
            text = metrics.text().decode()
            assert value(text, "unrolled_waiting_steps", model="walks") == 0

    async def test_idle_does_not_hang(self, bundles, caplog):
        """One that has nothing to say because it has nothing to do stays."""
        metrics, start = Metrics(), Mortals()
        async with pooled(start, metrics, stall_seconds=0.2) as made:
            model = await Model.load(made, metrics, bundles / "walks" / "1")
            await asyncio.sleep(1)
            frames = random_frames(np.random.default_rng(0), 20)
            await model.assert_right(model.admission.submit([frames]), frames)
            assert len(start.processes) == 2
        assert "a worker hangs" not in caplog.messages

    async def test_no_worker_for_a_while(self, bundles):
        """What was given away waits for the next worker where none is left, and can
        be cancelled meanwhile."""
        metrics, start = Metrics(), Late()
        async with pooled(start, metrics) as made:
            model = await Model.load(made, metrics, bundles / "walks" / "1")
            frames = random_frames(np.random.default_rng(0), 5000)
            stays, goes = (model.admission.submit([frames]) for _ in range(2))
            await flush()
            for process in start.processes:
                process.kill()
            await wait_until(lambda: not made.size, "none is left")
            goes.future.cancel()
            await flush()
            start.goes_on.set()
            await model.assert_right(stays, frames)
            await wait_until(lambda: made.size == 2, "others take their places")
            text = metrics.text().decode()
            assert value(text, "unrolled_waiting_steps", model="walks") == 0

    async def test_again_and_again(self, bundles):
        """However often workers die, each time others take their places, and no
        process is left over."""
        metrics, start = Metrics(), Mortals()
        async with pooled(start, metrics) as made:
            model = await Model.load(made, metrics, bundles / "walks" / "1")
            for turn in range(1, 4):
                request = model.admission.submit([deadly()])
                with pytest.raises(errors.InternalError):
                    await request.future
                await wait_until(lambda: made.size == 2, "another takes its place")
                assert len(start.processes) == 2 + 2 * turn
                alive = [one for one in start.processes if one.poll() is None]
                assert len(alive) == 2


@pytest.mark.anyio
@pytest.mark.parametrize("weak", [(0,), (1,), (0, 1)], ids=["first", "last", "all"])
async def test_a_bundle_is_deadly(bundles, weak):
    """A bundle that workers die of is told as broken, and the next bundle is loaded
    by all that serve: none is taken for broken with it, and the answer about one is
    not taken for that about another."""
    metrics, start = Metrics(), Mortals(*weak)
    async with pooled(start, metrics) as made:
        with pytest.raises(BundleError, match="the process that loaded it died"):
            await asyncio.to_thread(made.load, 0, str(bundles / "tags" / "1"))
        walks = bundles / "walks" / "1"
        loaded = await asyncio.to_thread(made.load, 1, str(walks))
        assert loaded.model == 1
        model = Model(made, metrics, walks)
        await wait_until(lambda: made.size == 2, "others take their places")
        rng = np.random.default_rng(0)
        asked = [random_frames(rng, 20) for _ in range(8)]
        await model.assert_right(model.admission.submit(asked), *asked)


@pytest.mark.anyio
@pytest.mark.parametrize("hanging", [(1,), (0, 1)], ids=["one", "all"])
async def test_a_load_hangs(bundles, hanging):
    """A bundle that a worker is not done with in time is told as broken, and not to
    be tried again; that worker is killed, and another takes its place."""
    metrics, start = Metrics(), Mortals(hanging=hanging)
    async with pooled(start, metrics, load_seconds=LOAD_SECONDS) as made:
        tags, walks = (bundles / name / "1" for name in ("tags", "walks"))
        async with asyncio.timeout(SECONDS):
            with pytest.raises(BundleError) as caught:
                await asyncio.to_thread(made.load, 0, str(tags))
            assert str(caught.value) == f"{tags}: did not load within {LOAD_SECONDS} s"
            assert not isinstance(caught.value, WorkerDied)
            model = await Model.load(made, metrics, walks)
        for number, process in enumerate(start.processes[:2]):
            ended = (
                await asyncio.to_thread(process.wait, 5) if number in hanging else None
            )
            assert ended == (-signal.SIGKILL if number in hanging else None)
        await wait_until(lambda: made.size == 2, "others take their places")
        asked = [random_frames(np.random.default_rng(0), 20) for _ in range(8)]
        await model.assert_right(model.admission.submit(asked), *asked)


class Reluctant(Mortals):
    """Workers of which the first ones to take another's place can't be started."""

    def __init__(self, times):
        super().__init__()
        self.refusals = times

    def __call__(self, settings):
        if len(self.processes) >= 2 and self.refusals:
            self.refusals -= 1
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return super().__call__(settings)


class Late(Mortals):
    """Workers of which the third is started when it is told to."""

    def __init__(self):
        super().__init__()
        self.begins, self.goes_on = threading.Event(), threading.Event()

    def __call__(self, settings):
        if len(self.processes) == 2 and not self.begins.is_set():
            self.begins.set()
            assert self.goes_on.wait(SECONDS)
        return super().__call__(settings)


@pytest.mark.anyio
class TestReplacing:
    async def test_cannot_be_started(self, bundles):
        """Where no process can be started at the time, it is tried again."""
        metrics, start = Metrics(), Reluctant(3)
        async with pooled(start, metrics) as made:
            model = await Model.load(made, metrics, bundles / "walks" / "1")
            with pytest.raises(errors.InternalError):
                await model.admission.submit([deadly()]).future
            await wait_until(lambda: made.size == 2, "another takes its place")
            assert start.refusals == 0

    async def test_load_hangs(self, bundles):
        """A new worker that does not come to the end of a load is replaced by one
        that goes without that model; all the while the others answer. The one after
        it tries again."""
        metrics, start = Metrics(), Mortals(hanging=(2,))
        async with pooled(start, metrics, load_seconds=LOAD_SECONDS) as made:
            await asyncio.to_thread(made.load, 0, str(bundles / "tags" / "1"))
            model = await Model.load(made, metrics, bundles / "walks" / "1")
            rng = np.random.default_rng(0)
            start.processes[0].kill()
            await wait_until(lambda: len(start.processes) == 3, "a new one is started")
            async with asyncio.timeout(SECONDS):
                while made.size < 2:
                    frames = random_frames(rng, 20)
                    await model.assert_right(model.admission.submit([frames]), frames)
            assert len(start.processes) == 4
            assert start.processes[2].poll() == -signal.SIGKILL
            found = [one.models for one in made.workers.all]
            assert found == [{0, 1}, {1}]
            assert list(made.workers.load_failures) == [0]
            start.processes[1].kill()
            await wait_until(lambda: len(start.processes) == 5, "a new one is started")
            await wait_until(lambda: made.size == 2, "another takes its place")
            assert made.workers.all[-1].models == {0, 1}
            assert not made.workers.load_failures

    async def test_start_hangs(self, bundles):
        """A process that does not come up in time is waited for no more: another is
        started, meanwhile bundles are loaded, and it is ended when it comes."""
        metrics, start = Metrics(), Late()
        async with pooled(start, metrics, load_seconds=LOAD_SECONDS) as made:
            model = await Model.load(made, metrics, bundles / "walks" / "1")
            start.processes[0].kill()
            await wait_until(start.begins.is_set, "a new one is started")
            async with asyncio.timeout(SECONDS / 2):
                await asyncio.to_thread(made.load, 2, str(bundles / "tags" / "1"))
            await wait_until(lambda: made.size == 2, "another takes its place")
            frames = random_frames(np.random.default_rng(0), 20)
            await model.assert_right(model.admission.submit([frames]), frames)
            start.goes_on.set()
            await wait_until(lambda: len(start.processes) == 4, "it is there")
            await asyncio.to_thread(start.processes[3].wait, SECONDS)
            assert made.size == 2

    async def test_closed_while_one_loads(self, bundles):
        """Closed while a new worker hangs in a load, nobody waits for that load."""
        metrics, start = Metrics(), Mortals(hanging=(2,))
        async with asyncio.timeout(SECONDS):  # half of what a load may take
            async with pooled(start, metrics) as made:
                await asyncio.to_thread(made.load, 0, str(bundles / "tags" / "1"))
                start.processes[0].kill()
                await wait_until(
                    lambda: len(start.processes) == 3, "a new one is started"
                )
                await asyncio.sleep(1)  # it loads, or will
            await wait_until(lambda: not made._tasks, "nothing goes on")

    @pytest.mark.parametrize("pause", [0, 0.5])
    async def test_closed_meanwhile(self, bundles, pause):
        """Closed while a worker is being replaced, no process is left over, and
        nothing fails."""
        metrics, start = Metrics(), Mortals()
        async with pooled(start, metrics) as made:
            model = await Model.load(made, metrics, bundles / "walks" / "1")
            with pytest.raises(errors.InternalError):
                await model.admission.submit([deadly()]).future
            await asyncio.sleep(pause)
        await wait_until(lambda: not made._tasks, "nothing goes on")

    async def test_closed_while_one_starts(self, bundles):
        """So it is where a new one is being started in that moment."""
        metrics, start = Metrics(), Late()
        async with pooled(start, metrics) as made:
            model = await Model.load(made, metrics, bundles / "walks" / "1")
            with pytest.raises(errors.InternalError):
                await model.admission.submit([deadly()]).future
            await wait_until(lambda: start.begins.is_set(), "a new one is started")
            await asyncio.to_thread(made.close)
            start.goes_on.set()
            await wait_until(lambda: len(start.processes) == 3, "it is there")
            await wait_until(lambda: not made._tasks, "nothing goes on")
            for process in start.processes:
                await asyncio.to_thread(process.wait, SECONDS)


class TestServed:
    def test_a_worker_dies(self, bundles, caplog):
        """A caller whose worker dies is told of an error of ours; the process lives,
        and the next callers are answered."""
        caplog.set_level(logging.INFO, logger="service")
        settings = Settings(port=0, bundles=bundles / "walks", workers=2)
        with running(settings, start=Mortals()) as made:
            for turn in range(1, 3):
                body = json.dumps({"sequences": [deadly().tolist()]})
                response = made.http.post("/classify", content=body)
                assert response.status_code == 500
                assert response.json()["type"] == "urn:unrolled:error:internal-error"
                assert "died" not in response.text
                assert made.http.get("/livez").status_code == 200
                wait(lambda: made.registry._pool.size, "one is replaced")
                body = {"sequences": [[[1, 2, 3]]]}
                assert made.http.post("/classify", json=body).status_code == 200
                name = "unrolled_worker_deaths_total"
                assert value(made.metrics(), name) == 2 * turn
                wait(lambda: made.registry._pool.size == 2, "it is replaced")

    def test_goes_on(self, bundles):
        """A sequence that is under way when all workers die goes on with others from
        its token: its answer is that of the whole."""
        settings = Settings(port=0, bundles=bundles / "walks", workers=1)
        frames = random_frames(np.random.default_rng(4), 30).tolist()
        with running(settings, start=Mortals()) as made:

            def ask(part, **members):
                body = {"sequences": [part]} | members
                response = made.http.post("/classify", json=body)
                assert response.status_code == 200, response.text
                return response.json()["predictions"][0]

            whole = ask(frames)
            begun = ask(frames[:11], return_state=True)
            body = {"sequences": [deadly().tolist()], "states": [begun["state"]]}
            assert made.http.post("/classify", json=body).status_code == 500
            wait(lambda: made.registry._pool.size == 1, "it is replaced")
            ended = ask(frames[11:], states=[begun["state"]], return_state=True)
            assert ended["steps"] == 30
            np.testing.assert_allclose(
                ended["probabilities"], whole["probabilities"], atol=1e-5
            )
