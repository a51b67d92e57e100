"""Admission: requests are admitted while not too much waits, shared among the workers,
and answered."""

import asyncio
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from service import errors
from service.worker import cost, scheduler
from service.worker.cost import Cost
from tests.support.pool import flush, running_pool, wait_until
from tests.support.scheduler import KINDS, TASKS, poisoned
from tests.support.servers import SECONDS

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _cost(monkeypatch):
    """Use a network's cost for fake engines."""
    monkeypatch.setattr(cost, "measure", lambda *_: Cost(1e-4, 1e-5, 1e-5))


@pytest.fixture(params=[1, 3])
def workers(request):
    return request.param


class TestAnswers:
    async def test_concurrent_requests(self, tmp_path):
        """Each answer belongs to its input, in the request's order, and the metrics
        count what was computed."""
        for task, (kind, workers) in product(TASKS, zip(KINDS, (3, 2), strict=True)):
            limits = {"workers": workers, "batch_rows": 8, "batch_steps": 300}
            folder = tmp_path / f"{task}-{kind}"
            async with running_pool(folder, task, kind, **limits) as harness:
                count = 0

                async def call(number, harness=harness):
                    nonlocal count
                    rng = np.random.default_rng(number)
                    for turn in range(8):
                        lengths = rng.integers(1, 150, rng.integers(1, 6)).tolist()
                        sequences = [
                            (length, float(1 + number + 16 * (turn * 8 + place)))
                            for place, length in enumerate(lengths)
                        ]
                        request = harness.submit(*sequences)
                        await harness.assert_right(request, *sequences)
                        assert 0 < request.submitted <= request.started
                        assert request.started <= request.ended
                        count += 1

                await asyncio.gather(*(call(number) for number in range(12)))
                await harness.settled()
                calls, value = harness.calls, harness.value
                rows = [len(c.lengths) for c in calls]
                useful = sum(sum(c.lengths) for c in calls)
                computed = sum(c.steps * len(c.lengths) for c in calls)
                assert value("batch_rows_count") == len(rows)
                assert value("batch_rows_sum") == sum(rows)
                assert value("chunk_steps_sum") == sum(c.steps for c in calls)
                assert value("execute_seconds_count") == len(rows)
                assert value("steps_total", kind="useful") == useful
                assert value("steps_total", kind="padding") == computed - useful
                assert value("sequence_steps_sum") == useful
                assert value("queue_seconds_count") == count
                assert all(harness.calls_of(engine) for engine in harness.engines)

    async def test_parts(self, tmp_path):
        """Parts of sequences get the answer and the new state of their own sequence,
        whichever worker computes the parts before and after."""
        for task in TASKS:
            limits = {"workers": 3, "batch_rows": 4}
            async with running_pool(tmp_path / task, task, **limits) as harness:

                async def call(number, harness=harness):
                    rng = np.random.default_rng(number)
                    computed = [0] * 5
                    for turn in range(6):
                        chosen = rng.permutation(5)[: rng.integers(1, 6)].tolist()
                        lengths = rng.integers(1, 120, len(chosen)).tolist()
                        parts = [
                            (length, float(1 + 8 * number + place), computed[place])
                            for length, place in zip(lengths, chosen, strict=True)
                        ]
                        requested = {"return_state": turn % 3 < 2}
                        request = harness.resume(*parts, **requested)
                        await harness.assert_parts_right(request, *parts, **requested)
                        for length, place in zip(lengths, chosen, strict=True):
                            computed[place] += length

                await asyncio.gather(*(call(number) for number in range(8)))
                await harness.settled()
                assert all(harness.calls_of(engine) for engine in harness.engines)

    async def test_least_pending_steps(self, tmp_path, workers):
        """Each sequence goes to the worker with the fewest pending steps. Steps that
        are computed, or were dropped, count no more."""
        async with running_pool(tmp_path, workers=workers) as harness:
            blocked = await harness.block()
            lengths = np.random.default_rng(0).permutation(np.arange(2, 62) ** 2 // 5)
            jobs = [(int(length), float(n)) for n, length in enumerate(lengths + 1)]
            requests = [harness.submit(*jobs[at : at + 3]) for at in range(0, 60, 3)]
            await harness.release(blocked)
            for at, request in enumerate(requests):
                await harness.assert_right(request, *jobs[3 * at : 3 * at + 3])
            loads = [[1, set()] for _ in range(workers)]
            for length, first in jobs:
                least = min(loads, key=lambda load: load[0])
                least[0] += length
                least[1].add(first)

            def computed(engine):
                calls = harness.calls_of(engine)
                return {f for call in calls for f in call.firsts if f >= 0}

            firsts = sorted(sorted(computed(engine)) for engine in harness.engines)
            assert firsts == sorted(sorted(load[1]) for load in loads)
            blocked = await harness.block()
            harness.submit((900, 100.0)).future.cancel()
            await flush()
            await harness.release(blocked)
            await harness.settled()
            jobs = [(60, 200.0 + number) for number in range(2 * workers)]
            await harness.assert_right(harness.submit(*jobs), *jobs)
            for engine in harness.engines:
                assert len({f for f in computed(engine) if f >= 200}) == 2

    async def test_answered_requests_do_not_wait(self, tmp_path, workers):
        """A client that has its answer can use the queue's whole room again."""
        limits = {"workers": workers, "max_steps": 10, "queue_steps": 10}
        async with running_pool(tmp_path, **limits) as harness:
            for number in range(50):
                request = harness.submit((10, float(number)))
                await harness.assert_right(request, (10, float(number)))


class TestCancel:
    async def test_before_it_runs(self, tmp_path, workers):
        """A cancelled request does not reach an engine, and affects no other."""
        rng = np.random.default_rng(0)
        async with running_pool(tmp_path, workers=workers, batch_rows=4) as harness:
            blocked = await harness.block()
            jobs = [(int(n), float(i)) for i, n in enumerate(rng.integers(1, 20, 40))]
            requests = [harness.submit(job) for job in jobs]
            cancelled = set(rng.choice(40, 15, replace=False).tolist())
            for number in cancelled:
                assert requests[number].future.cancel()
            await flush()
            await harness.release(blocked)
            for number in set(range(40)) - cancelled:
                await harness.assert_right(requests[number], jobs[number])
            await harness.settled()
            computed = {first for call in harness.calls for first in call.firsts}
            assert {f for f in computed if f >= 0} == set(range(40)) - cancelled
            assert harness.value("dropped_sequences_total") == 15

    async def test_part_of_a_request(self, tmp_path, workers):
        """The rest of a request that has started is dropped."""
        async with running_pool(tmp_path, workers=workers, batch_rows=1) as harness:
            harness.close_gates()
            request = harness.submit(*[(4, 1.0)] * 30)
            await wait_until(lambda: len(harness.calls) == workers, "it has started")
            request.future.cancel()
            await flush()
            harness.open_gates()
            await harness.settled()
            assert len(harness.calls) == workers
            assert harness.value("dropped_sequences_total") == 30 - workers

    async def test_makes_room(self, tmp_path):
        async with running_pool(tmp_path, max_steps=100, queue_steps=100) as harness:
            blocked = await harness.block()
            harness.submit((97, 1.0)).future.cancel()
            await flush()
            await harness.release(blocked)
            await harness.settled()
            await harness.assert_right(harness.submit((100, 5.0)), (100, 5.0))


class TestFaults:
    async def test_within_a_request(self, tmp_path):
        """A sequence that the engine fails on fails its request, and no other."""
        async with running_pool(tmp_path) as harness:
            blocked = await harness.block()
            harness.hook(poisoned([2]))
            bad = harness.submit((6, 1.0), (6, 2.0), (6, 3.0))
            good = harness.submit((6, 4.0), (6, 5.0))
            await harness.release(blocked)
            await harness.assert_fails(bad)
            await harness.assert_right(good, (6, 4.0), (6, 5.0))

    async def test_rest_is_dropped(self, tmp_path):
        """The rest of a request that has failed is not computed any further."""
        async with running_pool(tmp_path, max_steps=50_000) as harness:
            harness.hook(poisoned([1]))
            request = harness.submit((50_000, 1.0), (50_000, 2.0), (50_000, 3.0))
            await harness.assert_fails(request)
            await harness.settled()
            assert sum(sum(call.lengths) for call in harness.calls) < 100_000

    async def test_extreme_numbers(self, tmp_path):
        """Numbers so large that the network overflows are the client's mistake, and
        the sequence is named."""
        async with running_pool(tmp_path) as harness:

            def hook(call, answer):
                answer[np.array(call.firsts) > 1e30] = np.nan
                return answer

            harness.hook(hook)
            request = harness.submit((3, 1.0), (3, 3e38))
            async with asyncio.timeout(SECONDS):
                with pytest.raises(errors.InvalidRequest) as caught:
                    await request.future
            assert [error.path for error in caught.value.errors] == ["sequences[1]"]


class TestQueue:
    async def test_overloaded(self, tmp_path, workers):
        """Beyond the limit, requests are refused with the seconds until a retry, and
        admitted ones are still answered."""
        limits = {"workers": workers, "max_steps": 100, "queue_steps": 102}
        async with running_pool(tmp_path, **limits) as harness:
            blocked = await harness.block()
            jobs = [(33, 1.0), (33, 2.0), (102 - workers - 66, 3.0)]
            requests = [harness.submit(job) for job in jobs]
            for _ in range(5):
                with pytest.raises(errors.Overloaded) as caught:
                    harness.submit((1, 1.0))
                assert int(caught.value.headers["Retry-After"]) >= 1
                assert caught.value.status == 503
            assert harness.value("waiting_steps") == 102
            await harness.release(blocked)
            for request, job in zip(requests, jobs, strict=True):
                await harness.assert_right(request, job)
            await harness.settled()
            await harness.assert_right(harness.submit((100, 5.0)), (100, 5.0))

    async def test_all_or_none(self, tmp_path):
        """A request is admitted as a whole or not at all. It may be larger than the
        queue if nothing waits, or it could never be answered."""
        async with running_pool(tmp_path, max_steps=100, queue_steps=100) as harness:
            blocked = await harness.block()
            with pytest.raises(errors.Overloaded):
                harness.submit(*[(10, 1.0)] * 10)
            assert harness.value("waiting_steps") == 1
            await harness.release(blocked)
            await harness.settled()
            assert len(harness.calls) == 1
            jobs = [(100, float(number)) for number in range(5)]
            await harness.assert_right(harness.submit(*jobs), *jobs)

    async def test_retry_after(self, tmp_path, workers, monkeypatch):
        """The seconds until a retry follow from the waiting steps and the rate of all
        workers."""
        now = [1.0]
        clock = SimpleNamespace(perf_counter=lambda: now[0])
        monkeypatch.setattr(scheduler, "time", clock)
        limits = {"workers": workers, "max_steps": 100, "queue_steps": 100}
        async with running_pool(tmp_path, **limits) as harness:

            def hook(call, answer):
                now[0] += 0.25

            harness.hook(hook)
            await harness.submit((10, 1.0)).future  # 40 steps a second
            await harness.settled()
            harness.close_gates()
            harness.submit((100, 1.0))
            with pytest.raises(errors.Overloaded) as caught:
                harness.submit((100, 1.0))
            # 2.5 s, or a third of that, times up to 1.5.
            expected = {1: (3, 4), 3: (1, 2)}[workers]
            assert int(caught.value.headers["Retry-After"]) in expected
            assert "100 steps" in caught.value.detail
