"""Workers that die or hang: their jobs are retried, and they are replaced."""

import asyncio
import signal
from contextlib import asynccontextmanager

import numpy as np
import pytest

from model.bundle import bundle
from model.bundle.bundle import BundleError
from service import errors
from service.pool import pool
from service.pool.admission import Admission
from service.pool.spawn import WorkerDied
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.bundles import OnnxEngine, random_frames
from tests.support.pool import (
    CRASH,
    HANG,
    FragileWorkers,
    LateWorkers,
    UnstartableWorkers,
    attached_pool,
    flush,
    wait_until,
)
from tests.support.servers import SECONDS, running, value, wait

LOAD_SECONDS = 6  # limit of a load that hangs; a process has to start within it


class Harness:
    """A pool of two fragile workers."""

    def __init__(self, pool, metrics, start):
        self.pool, self.metrics, self.start = pool, metrics, start
        self.rng = np.random.default_rng(0)

    @property
    def processes(self):
        return self.start.processes

    async def load(self, model, folder):
        return await asyncio.to_thread(self.pool.load, model, str(folder))

    def serve(self, folder):
        """Serve the loaded bundle `walks`."""
        self.bundle = bundle.read(folder)
        self._engine = OnnxEngine(self.bundle, Settings())
        self._admission = Admission(
            self.pool, 1, self.bundle.metadata, Settings(workers=2), self.metrics
        )

    def submit(self, frames):
        return self._admission.submit([frames])

    async def assert_crashes(self):
        with pytest.raises(errors.InternalError):
            await self.submit(filled(CRASH)).future

    async def assert_right(self, request, frames):
        async with asyncio.timeout(SECONDS):
            (answer,) = await request.future
        state = np.zeros((1, self.bundle.metadata.state_size), np.float32)
        lengths = np.array([len(frames)], np.int32)
        expected, _ = self._engine.step(frames[None], lengths, state)
        np.testing.assert_allclose(answer, expected[0], atol=1e-5)

    async def assert_serves(self, requests=1):
        for _ in range(requests):
            frames = random_frames(self.rng, 20)
            await self.assert_right(self.submit(frames), frames)

    async def replaced(self, size=2):
        await wait_until(lambda: self.pool.size == size, "dead workers are replaced")

    async def started(self, count):
        await wait_until(lambda: len(self.processes) == count, "another is started")

    async def idle(self):
        await wait_until(lambda: not self.pool._tasks, "no worker is being replaced")

    def value(self, name, **labels):
        return value(self.metrics.text().decode(), f"unrolled_{name}", **labels)


@asynccontextmanager
async def fragile_pool(walks=None, start=None, **settings):
    """A pool of two fragile workers, with the bundle `walks` if it is passed."""
    start, metrics = start or FragileWorkers(), Metrics()
    try:
        settings = Settings(workers=2, **settings)
        async with attached_pool(settings, start, metrics) as workers:
            harness = Harness(workers, metrics, start)
            if walks is not None:
                await harness.load(1, walks)
                harness.serve(walks)
            yield harness
    finally:
        for process in start.processes:
            assert process.wait(SECONDS) is not None


@pytest.fixture(autouse=True)
def _restart_at_once(monkeypatch):
    monkeypatch.setattr(pool, "RESTART_SECONDS", 0.01)


@pytest.fixture
def walks(bundles):
    return bundles / "walks" / "1"


@pytest.fixture
def tags(bundles):
    return bundles / "tags" / "1"


def filled(number):
    return np.full((3, 3), number, np.float32)


@pytest.mark.anyio
class TestJobs:
    async def test_crash(self, walks, caplog):
        """When a worker crashes, its jobs are retried by others, one at a time. So the
        next crash fails only the job that is the cause."""
        async with fragile_pool(walks) as harness:
            lengths = [2000, 1999, 3, 4]  # alternately for the two workers
            jobs = [random_frames(harness.rng, length) for length in lengths]
            jobs[2] = filled(CRASH)
            requests = [harness.submit(frames) for frames in jobs]
            results = await asyncio.gather(
                *(request.future for request in requests), return_exceptions=True
            )
            failed = [isinstance(result, errors.InternalError) for result in results]
            assert failed == [False, False, True, False]
            assert "died" in str(results[2].__cause__)
            for number in (0, 1, 3):
                await harness.assert_right(requests[number], jobs[number])
            await harness.replaced()
            assert harness.pool.alive
            assert len(harness.processes) == 4  # one crash with others, one alone
            await harness.assert_serves(6)
            assert harness.value("worker_deaths_total") == 2
            assert harness.value("waiting_steps", model="walks") == 0
        assert "a worker died" in caplog.messages

    async def test_all_workers_die(self, walks):
        """While there is no worker, requests wait for new ones."""
        async with fragile_pool(walks) as harness:
            for process in harness.processes:
                process.kill()
            await wait_until(lambda: not harness.pool.size, "all are dead")
            assert harness.pool.alive
            await harness.assert_serves()

    @pytest.mark.slow
    async def test_hang(self, walks, caplog):
        """A worker that hangs in an engine call is replaced. The job fails, and its
        other jobs are answered."""
        async with fragile_pool(walks, stall_seconds=1) as harness:
            hanging = harness.submit(filled(HANG))
            jobs = [random_frames(harness.rng, 20) for _ in range(6)]
            requests = [harness.submit(frames) for frames in jobs]
            for request, frames in zip(requests, jobs, strict=True):
                await harness.assert_right(request, frames)
            with pytest.raises(errors.InternalError):
                await hanging.future
            await harness.replaced()
            assert caplog.messages.count("a worker hangs") == 2
            assert harness.value("waiting_steps", model="walks") == 0

    @pytest.mark.slow
    async def test_idle_is_no_hang(self, walks, caplog):
        """A worker without jobs is not replaced."""
        async with fragile_pool(walks, stall_seconds=0.2) as harness:
            await asyncio.sleep(1)
            await harness.assert_serves()
            assert len(harness.processes) == 2
        assert "a worker hangs" not in caplog.messages

    async def test_jobs_without_worker(self, walks):
        """The jobs of dead workers wait for a new one, and can be cancelled."""
        async with fragile_pool(walks, LateWorkers()) as harness:
            frames = random_frames(harness.rng, 5000)
            waits, cancelled = (harness.submit(frames) for _ in range(2))
            await flush()
            for process in harness.processes:
                process.kill()
            await wait_until(lambda: not harness.pool.size, "all are dead")
            cancelled.future.cancel()
            await flush()
            harness.start.resume.set()
            await harness.assert_right(waits, frames)
            await harness.replaced()
            assert harness.value("waiting_steps", model="walks") == 0


@pytest.mark.anyio
class TestLoading:
    @pytest.mark.parametrize(
        "crashing",
        [(1,), *(pytest.param(n, marks=pytest.mark.slow) for n in [(0,), (0, 1)])],
        ids=["last", "first", "all"],
    )
    async def test_crash(self, walks, tags, crashing):
        """A bundle that crashes a worker is broken. The next one is loaded by all
        workers: it is not blamed, and its result is not mixed up."""
        async with fragile_pool(start=FragileWorkers(crashing)) as harness:
            with pytest.raises(BundleError, match="the process that loaded it died"):
                await harness.load(0, tags)
            assert (await harness.load(1, walks)).model == 1
            harness.serve(walks)
            await harness.replaced()
            await harness.assert_serves(8)

    @pytest.mark.slow
    @pytest.mark.parametrize("hanging", [(1,), (0, 1)], ids=["one", "all"])
    async def test_hang(self, walks, tags, hanging):
        """A bundle that a worker does not load in time is broken, and not tried again.
        That worker is killed and replaced."""
        start = FragileWorkers(hanging=hanging)
        options = {"load_seconds": LOAD_SECONDS, "precision": "float32"}
        async with fragile_pool(start=start, **options) as harness:
            async with asyncio.timeout(SECONDS):
                with pytest.raises(BundleError) as caught:
                    await harness.load(0, tags)
                reason = f"{tags}: did not load within {LOAD_SECONDS} s"
                assert str(caught.value) == reason
                assert not isinstance(caught.value, WorkerDied)
                await harness.load(1, walks)
            harness.serve(walks)
            for number in (0, 1):
                if number in hanging:
                    process = harness.processes[number]
                    code = await asyncio.to_thread(process.wait, 5)
                    assert code == -signal.SIGKILL
            await harness.replaced()
            await harness.assert_serves(8)


@pytest.mark.anyio
class TestReplacing:
    @pytest.mark.slow
    async def test_cannot_start(self, walks):
        """If no process can be started, the pool tries again."""
        async with fragile_pool(walks, UnstartableWorkers(3)) as harness:
            await harness.assert_crashes()
            await harness.replaced()
            assert harness.start.failures == 0

    @pytest.mark.slow
    async def test_load_hangs(self, walks, tags):
        """A new worker that hangs in a load is replaced by one without that model. The
        next new worker tries the model again. Meanwhile the others serve."""
        start = FragileWorkers(hanging=(2,))
        async with fragile_pool(start=start, load_seconds=LOAD_SECONDS) as harness:
            await harness.load(0, tags)
            await harness.load(1, walks)
            harness.serve(walks)
            harness.processes[0].kill()
            await harness.started(3)
            async with asyncio.timeout(SECONDS):
                while harness.pool.size < 2:
                    await harness.assert_serves()
            assert len(harness.processes) == 4
            assert harness.processes[2].poll() == -signal.SIGKILL
            workers = harness.pool.workers
            assert [worker.models for worker in workers.all] == [{0, 1}, {1}]
            assert list(workers.load_failures) == [0]
            harness.processes[1].kill()
            await harness.started(5)
            await harness.replaced()
            assert workers.all[-1].models == {0, 1}
            assert not workers.load_failures

    @pytest.mark.slow
    async def test_start_hangs(self, walks, tags):
        """A process that does not start in time is given up: another is started, and
        the late one is ended. Meanwhile bundles can be loaded."""
        start = LateWorkers()
        async with fragile_pool(walks, start, load_seconds=LOAD_SECONDS) as harness:
            harness.processes[0].kill()
            await wait_until(start.starting.is_set, "another is started")
            async with asyncio.timeout(SECONDS / 2):
                await harness.load(2, tags)
            await harness.replaced()
            await harness.assert_serves()
            start.resume.set()
            await harness.started(4)
            await asyncio.to_thread(harness.processes[3].wait, SECONDS)
            assert harness.pool.size == 2

    @pytest.mark.slow
    async def test_closed_during_a_load(self, tags):
        """Closing does not wait for a new worker that hangs in a load."""
        async with asyncio.timeout(SECONDS):  # half of the default limit of a load
            start = FragileWorkers(hanging=(2,))
            async with fragile_pool(start=start) as harness:
                await harness.load(0, tags)
                harness.processes[0].kill()
                await harness.started(3)
                await asyncio.sleep(1)  # it loads, or will
            await harness.idle()

    @pytest.mark.slow
    @pytest.mark.parametrize("pause", [0, 0.5])
    async def test_closed_meanwhile(self, walks, pause):
        """Closing while a worker is replaced leaves no process."""
        async with fragile_pool(walks) as harness:
            await harness.assert_crashes()
            await asyncio.sleep(pause)
        await harness.idle()

    @pytest.mark.slow
    async def test_closed_during_a_start(self, walks):
        """Closing waits for a worker that starts meanwhile, and ends it: after that the
        interpreter may exit."""
        async with fragile_pool(walks, LateWorkers()) as harness:
            await harness.assert_crashes()
            await wait_until(harness.start.starting.is_set, "another is started")
            closing = asyncio.create_task(asyncio.to_thread(harness.pool.close))
            await asyncio.sleep(0.5)
            assert not closing.done()
            harness.start.resume.set()
            await closing
            assert len(harness.processes) == 3
            await harness.idle()
            for process in harness.processes:
                await asyncio.to_thread(process.wait, SECONDS)


def test_server(bundles):
    """A request that crashes a worker gets a 500 that does not disclose the cause. The
    next ones are answered; a sequence continues from its state token, though all
    workers have died."""
    settings = Settings(port=0, bundles=bundles / "walks", workers=1)
    frames = random_frames(np.random.default_rng(4), 30).tolist()
    with running(settings, start=FragileWorkers()) as server:

        def classify(part, **members):
            body = {"sequences": [part]} | members
            response = server.http.post("/classify", json=body)
            assert response.status_code == 200, response.text
            return response.json()["predictions"][0]

        whole = classify(frames)
        state = classify(frames[:11], return_state=True)["state"]
        body = {"sequences": [filled(CRASH).tolist()], "states": [state]}
        response = server.http.post("/classify", json=body)
        assert response.status_code == 500
        assert response.json()["type"] == "urn:unrolled:error:internal-error"
        assert "died" not in response.text
        assert server.http.get("/livez").status_code == 200
        wait(lambda: server.registry._pool.size == 1, "it is replaced")
        last = classify(frames[11:], states=[state], return_state=True)
        assert last["steps"] == 30
        np.testing.assert_allclose(
            last["probabilities"], whole["probabilities"], atol=1e-5
        )
        # One crash, then another one in isolation.
        assert value(server.metrics(), "unrolled_worker_deaths_total") == 2
