"""Bodies to arrays: small ones here, large ones in another process, and no other
answer for it."""

import asyncio
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from service.codecs import process
from service.codecs.process import CodecProcesses, RequestDecoder
from service.errors import (
    InternalError,
    InvalidJson,
    InvalidRequest,
    ServiceError,
    TooLarge,
)
from service.settings import Settings
from tests.support.servers import SECONDS, wait

SETTINGS = Settings(max_sequences=5, max_steps=40, max_cells=300, queue_steps=100)
# Of models by name; under None the default's.
FEATURES = {None: 2, "pairs": 2, "threes": 3}


def body(sequences, **members):
    return json.dumps({"sequences": sequences, **members}).encode()


SOUND = {
    "default": body([[[1, 2]] * 3, [[3, 4.5]]]),
    "by-name": body([[[1, 2, 3]]], model="threes", top_k=2),
    "twice": b'{"sequences": [[[1]]], "sequences": [[[1, 2]]]}',
    "bracket": b' {"sequences": [[[1, 2]]], "model": "pairs"}',
    "large-numbers": body([[[3e38, -3e38]]]),
    "states": body([[[1, 2]], [[3, 4]]], states=["abc", None], return_state=True),
    "states-not-plain": b" " + body([[[1, 2]]], states=["a[b"], return_state=False),
    "return-state": body([[[1, 2, 3]]], model="threes", return_state=True),
}
UNSOUND = {
    "no-json": (b"{", InvalidJson, []),
    "another-shape": (b'{"sequences": 1}', InvalidRequest, ["sequences"]),
    "width": (body([[[1, 2, 3]]]), InvalidRequest, ["sequences[0][0]"]),
    "width-by-name": (
        body([[[1, 2]]], model="threes"),
        InvalidRequest,
        ["sequences[0][0]"],
    ),
    "two-widths": (body([[[1, 2], [1]]]), InvalidRequest, ["sequences[0][1]"]),
    "top-k": (body([[[1, 2]]], top_k=0), InvalidRequest, ["top_k"]),
    "states": (body([[[1, 2]]], states=["a", "b"]), InvalidRequest, ["states"]),
    "states-and-width": (
        body([[[1, 2, 3]]], states=[]),
        InvalidRequest,
        ["states", "sequences[0][0]"],
    ),
    "state-number": (body([[[1, 2]]], states=[1]), InvalidRequest, ["states[0]"]),
    "infinite": (body([[[1, 1e39]]]), InvalidRequest, ["sequences[0][0][1]"]),
    "sequences": (body([[[1, 2]]] * 6), TooLarge, []),
    "steps": (body([[[1, 2]] * 41]), TooLarge, ["sequences[0]"]),
    "lists": (body([[[]] * 1000]), TooLarge, []),
    "lists-of-nobody": (body([[[]] * 1000], model="nobody"), TooLarge, []),
}


def read(text):
    return RequestDecoder(SETTINGS.limits).decode_request(text, FEATURES)


def told(error):
    """Everything that a caller hears of it."""
    assert isinstance(error, ServiceError)
    return type(error), error.body("id"), error.headers


class TestReader:
    @pytest.mark.parametrize("text", SOUND.values(), ids=SOUND)
    def test_sound(self, text):
        """What is sound is read, plain or not, for the model that it names."""
        asked, said = read(text), json.loads(text)
        assert (asked.model, asked.top_k) == (said.get("model"), said.get("top_k"))
        assert asked.states == said.get("states")
        assert asked.return_state is said.get("return_state", False)
        assert len(asked.sequences) == len(said["sequences"])
        for array, numbers in zip(asked.sequences, said["sequences"], strict=True):
            np.testing.assert_array_equal(array, np.array(numbers, np.float32))
            assert array.dtype == np.float32

    @pytest.mark.parametrize(("text", "kind", "paths"), UNSOUND.values(), ids=UNSOUND)
    def test_unsound(self, text, kind, paths):
        """What is not is refused, with the path."""
        with pytest.raises(ServiceError) as caught:
            read(text)
        assert type(caught.value) is kind
        assert [error.path for error in caught.value.errors] == paths

    @pytest.mark.parametrize("states", [None, ["a"] * 5], ids=["without", "with"])
    def test_largest(self, states):
        """A request that is as large as every limit allows is read, with states or
        without."""
        assert SETTINGS.max_cells == 5 * 30 * 2
        sequences = [[[1, 2]] * 30] * SETTINGS.max_sequences
        asked = read(body(sequences, states=states))
        assert [len(sequence) for sequence in asked.sequences] == [30] * 5
        assert asked.states == states

    @pytest.mark.parametrize("width", [1, 2, 3])
    def test_nobody(self, width):
        """Of a model that isn't known the name comes back, whatever its width: who
        knows the models refuses it."""
        for space in (b"", b" "):
            text = space + body([[[1] * width]], model="nobody", top_k=3)
            asked = read(text)
            assert (asked.model, asked.top_k) == ("nobody", 3)

    def test_after_a_refusal(self):
        """A body that was refused changes nothing for the next one."""
        made = RequestDecoder(SETTINGS.limits)
        for text, kind, _ in UNSOUND.values():
            with pytest.raises(kind):
                made.decode_request(text, FEATURES)
            (array,) = made.decode_request(body([[[1, 2]]]), FEATURES).sequences
            assert array.tolist() == [[1, 2]]


@pytest.fixture
async def elsewhere():
    before = set(children())  # of a server that other tests share
    made = CodecProcesses(SETTINGS)
    made.start()
    yield made
    await asyncio.to_thread(made.close)
    wait(lambda: set(children()) <= before, "its process has ended")


def children():
    """Processes of readers, of the one that runs here."""
    return [p for p in multiprocessing.active_children() if p.name != "worker"]


def workers(elsewhere):
    return [p for pool in elsewhere._processes for p in pool._processes.values()]


CALLER = ("", 1)


async def run(elsewhere, text):
    async with asyncio.timeout(SECONDS):
        return await elsewhere.run(
            CALLER,
            len(text),
            process.decode,
            RequestDecoder.decode_request,
            text,
            FEATURES,
        )


@pytest.mark.anyio
class TestElsewhere:
    async def test_the_same(self, elsewhere):
        """Another process reads what is sound as this one does, and refuses what is
        not in the same words."""
        for text in SOUND.values():
            asked, expected = await run(elsewhere, text), read(text)
            assert (asked.model, asked.top_k) == (expected.model, expected.top_k)
            given = asked.states, asked.return_state
            assert given == (expected.states, expected.return_state)
            for ours, theirs in zip(asked.sequences, expected.sequences, strict=True):
                np.testing.assert_array_equal(ours, theirs, strict=True)
        for text, kind, _ in UNSOUND.values():
            with pytest.raises(kind) as here:
                read(text)
            with pytest.raises(kind) as there:
                await run(elsewhere, text)
            assert told(there.value) == told(here.value)

    async def test_many_at_once(self, elsewhere):
        """Of many at once each gets its own."""

        async def one(number):
            asked = await run(elsewhere, body([[[number, -number]] * 30]))
            assert asked.sequences[0].tolist() == [[number, -number]] * 30

        await asyncio.gather(*(one(number) for number in range(50)))

    async def test_dies(self, elsewhere):
        """When that process dies those who wait are told of an error of ours, and the
        next are read by another."""
        await run(elsewhere, body([[[1, 2]]]))
        for worker in workers(elsewhere):
            os.kill(worker.pid, signal.SIGKILL)

        async def until_it_is_dead():
            while True:
                await run(elsewhere, body([[[1, 2]]]))

        with pytest.raises(InternalError):
            await until_it_is_dead()
        asked = await run(elsewhere, body([[[3, 4]]]))
        assert asked.sequences[0].tolist() == [[3, 4]]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    async def test_signals(self, elsewhere, number):
        """A signal that all processes are sent does not end it: requests under way
        are still read."""
        await run(elsewhere, body([[[1, 2]]]))
        for worker in workers(elsewhere):
            os.kill(worker.pid, number)
        asked = await run(elsewhere, body([[[3, 4]]]))
        assert asked.sequences[0].tolist() == [[3, 4]]

    async def test_caller_goes(self, elsewhere):
        """A caller that goes while its body is read hinders nobody."""
        tasks = [
            asyncio.create_task(run(elsewhere, body([[[n, n]] * 30]))) for n in range(9)
        ]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, result in enumerate(results):
            if number % 2:
                assert result.sequences[0][0].tolist() == [number, number]
            else:
                assert isinstance(result, asyncio.CancelledError)


class TestServed:
    def test_large_and_small(self, running_server):
        """A body is answered alike whether it is read here or elsewhere: spaces make
        it large."""
        frames = np.random.default_rng(0).normal(size=(30, 3)).round(3).tolist()
        for name, path in (("walks", "/classify"), ("tags", "/label")):
            small = body([frames], model=name)
            large = small[:-1] + b" " * process.INLINE_BYTES + b"}"
            answers = [
                running_server.http.post(path, content=text).json()
                for text in (small, large)
            ]
            first, second = (
                np.array(answer["predictions"][0]["probabilities"])
                for answer in answers
            )
            np.testing.assert_allclose(first, second, atol=1e-6)

    def test_large_and_wrong(self, running_server):
        """And refused alike."""
        spaces = b" " * process.INLINE_BYTES
        for text in (
            b"{",
            body([[[1, 2]]]),
            body([[[1, 2, 3]]], model="nobody"),
            body([[[1, 2, 3]]], model="tags"),
            body([]),
        ):
            small, large = (
                running_server.http.post("/classify", content=one)
                for one in (text, spaces + text)
            )
            problems = [response.json() for response in (small, large)]
            for problem in problems:
                del problem["request_id"]
            if small.status_code == 400:  # it tells the place, which is another
                for problem in problems:
                    del problem["detail"]
            assert small.status_code == large.status_code >= 400
            assert problems[0] == problems[1]
