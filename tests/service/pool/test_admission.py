"""A model's requests: let in while not too much waits, shared among the workers, and
answered."""

import asyncio
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
WORKERS = [1, 3]


@pytest.fixture(autouse=True)
def _cost(monkeypatch):
    """Our engines cost what a network does."""
    monkeypatch.setattr(cost, "measure", lambda *_: Cost(1e-4, 1e-5, 1e-5))


@pytest.mark.parametrize("workers", WORKERS)
class TestAnswers:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("task", TASKS)
    async def test_random(self, tmp_path, workers, kind, task):
        """Whatever is submitted by whomever: each answer belongs to its input, comes
        in the request's order, and is counted as what was computed."""
        limits = {"batch_rows": 8, "batch_steps": 300}
        async with running_pool(
            tmp_path, task, kind, workers=workers, **limits
        ) as made:
            count = 0

            async def talk(number):
                nonlocal count
                rng = np.random.default_rng(number)
                for turn in range(8):
                    lengths = rng.integers(1, 150, rng.integers(1, 6)).tolist()
                    asked = [
                        (length, float(1 + number + 16 * (turn * 8 + place)))
                        for place, length in enumerate(lengths)
                    ]
                    request = made.submit(*asked)
                    await made.assert_right(request, *asked)
                    assert 0 < request.submitted <= request.started <= request.ended
                    count += 1

            await asyncio.gather(*(talk(number) for number in range(12)))
            await made.settled()
            rows = [len(call.lengths) for call in made.calls]
            useful = sum(sum(call.lengths) for call in made.calls)
            computed = sum(call.steps * len(call.lengths) for call in made.calls)
            assert made.value("batch_rows_count") == len(rows)
            assert made.value("batch_rows_sum") == sum(rows)
            assert made.value("chunk_steps_sum") == sum(c.steps for c in made.calls)
            assert made.value("execute_seconds_count") == len(rows)
            assert made.value("steps_total", kind="useful") == useful
            assert made.value("steps_total", kind="padding") == computed - useful
            assert made.value("sequence_steps_sum") == useful
            assert made.value("queue_seconds_count") == count
            assert all(made.calls_of(engine) for engine in made.engines)

    @pytest.mark.parametrize("task", TASKS)
    async def test_parts(self, tmp_path, workers, task):
        """Parts of sequences, some of which begin, each get the answer and the new
        state of their own sequence, in the request's order, whichever worker takes
        the part before and after."""
        async with running_pool(tmp_path, task, workers=workers, batch_rows=4) as made:

            async def talk(number):
                rng = np.random.default_rng(number)
                taken = [0] * 5
                for turn in range(6):
                    chosen = rng.permutation(5)[: rng.integers(1, 6)].tolist()
                    lengths = rng.integers(1, 120, len(chosen)).tolist()
                    parts = [
                        (length, float(1 + 8 * number + place), taken[place])
                        for length, place in zip(lengths, chosen, strict=True)
                    ]
                    return_state = turn % 3 < 2
                    request = made.go_on(*parts, return_state=return_state)
                    await made.assert_parts_right(
                        request, *parts, return_state=return_state
                    )
                    for length, place in zip(lengths, chosen, strict=True):
                        taken[place] += length

            await asyncio.gather(*(talk(number) for number in range(8)))
            await made.settled()
            assert all(made.calls_of(engine) for engine in made.engines)

    async def test_shared(self, tmp_path, workers):
        """Each sequence goes to the worker with the fewest steps to compute."""
        async with running_pool(tmp_path, workers=workers) as made:
            blocked = await made.block()
            lengths = np.random.default_rng(0).permutation(np.arange(2, 62) ** 2 // 5)
            asked = [(int(length), float(n)) for n, length in enumerate(lengths + 1)]
            requests = [made.submit(*asked[at : at + 3]) for at in range(0, 60, 3)]
            await made.release(blocked)
            for at, request in enumerate(requests):
                await made.assert_right(request, *asked[3 * at : 3 * at + 3])
            loads = [[1, set()] for _ in range(workers)]
            for length, first in asked:
                least = min(loads, key=lambda load: load[0])
                least[0] += length
                least[1].add(first)
            given = [
                {first for call in made.calls_of(e) for first in call.firsts}
                for e in made.engines
            ]
            given = [{first for first in some if first >= 0} for some in given]
            assert sorted(map(sorted, given)) == sorted(sorted(x[1]) for x in loads)

    async def test_shared_again(self, tmp_path, workers):
        """What has been computed, or was dropped, counts for nothing any more: as
        many alike go to each worker."""
        async with running_pool(tmp_path, workers=workers) as made:
            await made.assert_right(made.submit((500, 1.0)), (500, 1.0))
            blocked = await made.block()
            made.submit((900, 2.0)).future.cancel()
            await flush()
            await made.release(blocked)
            await made.settled()
            asked = [(60, 10.0 + number) for number in range(2 * workers)]
            await made.assert_right(made.submit(*asked), *asked)
            for engine in made.engines:
                firsts = {first for c in made.calls_of(engine) for first in c.firsts}
                assert len(firsts & {first for _, first in asked}) == 2

    async def test_answered_is_not_waiting(self, tmp_path, workers):
        """A caller that has its answer is not counted as waiting any more: with the
        queue's whole room in use, its next request is taken."""
        limits = {"max_steps": 10, "queue_steps": 10}
        async with running_pool(tmp_path, workers=workers, **limits) as made:
            for number in range(50):
                request = made.submit((10, float(number)))
                await made.assert_right(request, (10, float(number)))


@pytest.mark.parametrize("workers", WORKERS)
class TestCancel:
    @pytest.mark.parametrize("seed", range(3))
    async def test_before_it_runs(self, tmp_path, workers, seed):
        """A cancelled request never reaches an engine, and nobody else is hurt."""
        rng = np.random.default_rng(seed)
        async with running_pool(tmp_path, workers=workers, batch_rows=4) as made:
            blocked = await made.block()
            asked = [(int(n), float(i)) for i, n in enumerate(rng.integers(1, 20, 40))]
            requests = [made.submit(one) for one in asked]
            gone = set(rng.choice(40, 15, replace=False).tolist())
            for number in gone:
                assert requests[number].future.cancel()
            await flush()
            await made.release(blocked)
            for number, request in enumerate(requests):
                if number not in gone:
                    await made.assert_right(request, asked[number])
            await made.settled()
            ran = {int(first) for call in made.calls for first in call.firsts}
            assert {first for first in ran if first >= 0} == set(range(40)) - gone
            assert made.value("dropped_sequences_total") == 15

    async def test_part_of_a_request(self, tmp_path, workers):
        """The rest of a request that was begun is dropped when its caller goes."""
        async with running_pool(tmp_path, workers=workers, batch_rows=1) as made:
            made.close_gates()
            request = made.submit(*[(4, 1.0)] * 30)
            await wait_until(lambda: len(made.calls) == workers, "it has begun")
            request.future.cancel()
            await flush()
            made.open_gates()
            await made.settled()
            assert len(made.calls) == workers
            assert made.value("dropped_sequences_total") == 30 - workers

    async def test_frees_the_queue(self, tmp_path, workers):
        """Work whose caller has gone makes room."""
        limits = {"max_steps": 100, "queue_steps": 100}
        async with running_pool(tmp_path, workers=workers, **limits) as made:
            blocked = await made.block()
            made.submit((97, 1.0)).future.cancel()
            await flush()
            await made.release(blocked)
            await made.settled()
            await made.assert_right(made.submit((100, 5.0)), (100, 5.0))


@pytest.mark.parametrize("workers", WORKERS)
class TestFaults:
    async def test_within_a_request(self, tmp_path, workers):
        """A sequence that the engine fails on fails the whole of its request, and no
        other."""
        async with running_pool(tmp_path, workers=workers) as made:
            blocked = await made.block()
            made.hook(poisoned([2]))
            bad = made.submit((6, 1.0), (6, 2.0), (6, 3.0))
            good = made.submit((6, 4.0), (6, 5.0))
            await made.release(blocked)
            await made.assert_fails(bad)
            await made.assert_right(good, (6, 4.0), (6, 5.0))

    async def test_rest_is_dropped(self, tmp_path, workers):
        """Of a request that has failed the rest is not computed any further."""
        async with running_pool(tmp_path, workers=workers, max_steps=50_000) as made:

            def hook(call, answer):
                if 1.0 in call.firsts:
                    raise RuntimeError("poison")

            made.hook(hook)
            request = made.submit((50_000, 1.0), (50_000, 2.0), (50_000, 3.0))
            await made.assert_fails(request)
            await made.settled()
            assert sum(sum(call.lengths) for call in made.calls) < 100_000

    async def test_extreme_numbers(self, tmp_path, workers):
        """Numbers so large that the network overflows are the caller's mistake, and
        the sequence is named."""
        async with running_pool(tmp_path, workers=workers) as made:

            def hook(call, answer):
                answer[np.array(call.firsts) > 1e30] = np.nan
                return answer

            made.hook(hook)
            request = made.submit((3, 1.0), (3, 3e38))
            async with asyncio.timeout(SECONDS):
                with pytest.raises(errors.InvalidRequest) as caught:
                    await request.future
            assert [error.path for error in caught.value.errors] == ["sequences[1]"]


@pytest.mark.parametrize("workers", WORKERS)
class TestQueue:
    async def test_overloaded(self, tmp_path, workers):
        """Past the limit a request is refused with the seconds to wait, and what was
        admitted is still answered."""
        limits = {"max_steps": 100, "queue_steps": 102}
        async with running_pool(tmp_path, workers=workers, **limits) as made:
            blocked = await made.block()
            asked = [(33, 1.0), (33, 2.0), (102 - workers - 66, 3.0)]
            requests = [made.submit(one) for one in asked]
            for _ in range(5):
                with pytest.raises(errors.Overloaded) as caught:
                    made.submit((1, 1.0))
                assert int(caught.value.headers["Retry-After"]) >= 1
                assert caught.value.status == 503
            assert made.value("waiting_steps") == 102
            await made.release(blocked)
            for request, one in zip(requests, asked, strict=True):
                await made.assert_right(request, one)
            await made.settled()
            await made.assert_right(made.submit((100, 5.0)), (100, 5.0))

    async def test_all_or_none(self, tmp_path, workers):
        """A request that does not fit as a whole is not begun."""
        limits = {"max_steps": 100, "queue_steps": 100}
        async with running_pool(tmp_path, workers=workers, **limits) as made:
            blocked = await made.block()
            with pytest.raises(errors.Overloaded):
                made.submit(*[(10, 1.0)] * 10)
            assert made.value("waiting_steps") == workers
            await made.release(blocked)
            await made.settled()
            assert len(made.calls) == workers

    async def test_alone_always_fits(self, tmp_path, workers):
        """One request may be larger than the queue, if nothing else waits: else it
        could never be answered."""
        limits = {"max_steps": 100, "queue_steps": 100}
        async with running_pool(tmp_path, workers=workers, **limits) as made:
            asked = [(100, float(number)) for number in range(5)]
            await made.assert_right(made.submit(*asked), *asked)

    async def test_wait_is_estimated(self, tmp_path, workers, monkeypatch):
        """The seconds to wait are what waits, at the speed of late of all workers."""
        now = [1.0]
        clock = SimpleNamespace(perf_counter=lambda: now[0])
        monkeypatch.setattr(scheduler, "time", clock)
        limits = {"max_steps": 100, "queue_steps": 100}
        async with running_pool(tmp_path, workers=workers, **limits) as made:

            def hook(call, answer):
                now[0] += 0.25

            made.hook(hook)
            await made.submit((10, 1.0)).future  # 40 steps a second
            await made.settled()
            made.close_gates()
            made.submit((100, 1.0))
            with pytest.raises(errors.Overloaded) as caught:
                made.submit((100, 1.0))
            most = {1: (3, 4), 3: (1, 2)}[workers]  # 2.5, or a third of that, and more
            assert int(caught.value.headers["Retry-After"]) in most
            assert "100 steps" in caught.value.detail
