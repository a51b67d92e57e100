"""Decoding of bodies: small ones here, large ones in another process, with the same
result."""

import asyncio
import json
import multiprocessing
import os
import signal
import tracemalloc

import numpy as np
import pytest

from service.codecs import open_inference, process
from service.codecs.fast_json import Inputs
from service.codecs.process import CodecProcesses, RequestDecoder
from service.errors import (
    InternalError,
    InvalidJson,
    InvalidRequest,
    ServiceError,
    TooLarge,
    WrongFeatureCount,
)
from service.settings import Settings
from tests.support.servers import SECONDS, wait

SETTINGS = Settings(max_sequences=5, max_steps=40, max_cells=300, queue_steps=100)
# By model; of the default model under None.
FEATURES = Inputs({None: 2, "pairs": 2, "threes": 3}, {})


def body(sequences, **fields):
    return json.dumps({"sequences": sequences, **fields}).encode()


VALID = [
    body([[[1, 2]] * 3, [[3, 4.5]]]),
    body([[[1, 2, 3]]], model="threes", top_k=2),
    b'{"sequences": [[[1]]], "sequences": [[[1, 2]]]}',
    b' {"sequences": [[[1, 2]]], "model": "pairs"}',
    body([[[3e38, -3e38]]]),
    body([[[1, 2]], [[3, 4]]], states=["abc", None], return_state=True),
    b" " + body([[[1, 2]]], states=["a[b"], return_state=False),
    body([[[1, 2, 3]]], model="threes", return_state=True),
]
INVALID = [
    (b"{", InvalidJson, []),
    (b'{"sequences": 1}', InvalidRequest, ["sequences"]),
    (body([[[1, 2, 3]]]), WrongFeatureCount, ["sequences[0][0]"]),
    (body([[[1, 2]]], model="threes"), WrongFeatureCount, ["sequences[0][0]"]),
    (body([[[1, 2], [1]]]), InvalidRequest, ["sequences[0][1]"]),
    (body([[[1, 2]]], top_k=0), InvalidRequest, ["top_k"]),
    (body([[[1, 2]]], states=["a", "b"]), InvalidRequest, ["states"]),
    (body([[[1, 2, 3]]], states=[]), WrongFeatureCount, ["states", "sequences[0][0]"]),
    (body([[[1, 2]]], states=[1]), InvalidRequest, ["states[0]"]),
    (body([[[1, 1e39]]]), InvalidRequest, ["sequences[0][0][1]"]),
    (body([[[1, 1e39, 3]]]), WrongFeatureCount, ["sequences[0][0]"]),
    (
        body([[[1, 1e39], [1]]]),
        InvalidRequest,
        ["sequences[0][0][1]", "sequences[0][1]"],
    ),
    (body([[[1, 2]]] * 6), TooLarge, []),
    (body([[[1, 2]] * 41]), TooLarge, ["sequences[0]"]),
    (body([[[]] * 1000]), TooLarge, []),
    (body([[[]] * 1000], model="nobody"), TooLarge, []),
]


def decode(text):
    return RequestDecoder(SETTINGS.limits).decode_request(text, FEATURES)


class TestRequestDecoder:
    def test_valid(self):
        """Valid bodies, plain or not, are decoded for the model that they name."""
        for text in VALID:
            request, fields = decode(text), json.loads(text)
            assert request.model == fields.get("model")
            assert request.top_k == fields.get("top_k")
            assert request.states == fields.get("states")
            assert request.return_state is fields.get("return_state", False)
            expected = [np.array(rows, np.float32) for rows in fields["sequences"]]
            for array, other in zip(request.sequences, expected, strict=True):
                np.testing.assert_array_equal(array, other, strict=True)

    def test_invalid(self):
        """Invalid bodies are refused with the fields' paths, and change nothing for the
        next one."""
        decoder = RequestDecoder(SETTINGS.limits)
        for text, error, paths in INVALID:
            with pytest.raises(ServiceError) as caught:
                decoder.decode_request(text, FEATURES)
            assert type(caught.value) is error
            assert [field.path for field in caught.value.errors] == paths
            (array,) = decoder.decode_request(body([[[1, 2]]]), FEATURES).sequences
            assert array.tolist() == [[1, 2]]

    def test_largest(self):
        """A request as large as every limit allows is decoded, with states or without."""
        assert SETTINGS.max_cells == 5 * 30 * 2
        sequences = [[[1, 2]] * 30] * SETTINGS.max_sequences
        for states in (None, ["a"] * 5):
            request = decode(body(sequences, states=states))
            assert [len(sequence) for sequence in request.sequences] == [30] * 5
            assert request.states == states

    def test_unknown_model(self):
        """For an unknown model the result has its name, whatever the width."""
        for width in (1, 2, 3):
            for space in (b"", b" "):
                text = space + body([[[1] * width]], model="nobody", top_k=3)
                request = decode(text)
                assert (request.model, request.top_k) == ("nobody", 3)


@pytest.fixture
async def codecs():
    before = set(children())  # of a server that other tests share
    processes = CodecProcesses(SETTINGS)
    processes.start()
    yield processes
    await asyncio.to_thread(processes.close)
    wait(lambda: set(children()) <= before, "the processes have ended")


def children():
    return [p for p in multiprocessing.active_children() if p.name != "worker"]


def pids(codecs):
    return [pid for pool in codecs._processes for pid in pool._processes]


async def run(codecs, text):
    """Decode in a process, however small the body is."""
    method = RequestDecoder.decode_request
    async with asyncio.timeout(SECONDS):
        return await codecs.run(
            ("", 1), len(text), process.decode, method, text, FEATURES
        )


@pytest.mark.anyio
class TestCodecProcesses:
    async def test_same(self, codecs):
        """A process decodes valid bodies as this one does, and refuses invalid ones with
        the same error."""
        for text in VALID:
            request, expected = await run(codecs, text), decode(text)
            for name in ("model", "top_k", "states", "return_state"):
                assert getattr(request, name) == getattr(expected, name)
            pairs = zip(request.sequences, expected.sequences, strict=True)
            for ours, theirs in pairs:
                np.testing.assert_array_equal(ours, theirs, strict=True)
        for text, error, _ in INVALID:
            with pytest.raises(error) as here:
                decode(text)
            with pytest.raises(error) as there:
                await run(codecs, text)
            assert type(here.value) is type(there.value)
            assert here.value.body("id") == there.value.body("id")
            assert here.value.headers == there.value.headers

    async def test_concurrent(self, codecs):
        """Concurrent bodies get their own results, and cancelled ones hinder nobody."""
        tasks = [
            asyncio.create_task(run(codecs, body([[[n, -n]] * 30]))) for n in range(50)
        ]
        await asyncio.sleep(0)
        for task in tasks[::5]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for number, result in enumerate(results):
            if number % 5:
                assert result.sequences[0].tolist() == [[number, -number]] * 30
            else:
                assert isinstance(result, asyncio.CancelledError)

    async def test_death(self, codecs):
        """If a process dies, its work fails with an internal error, and the next work is
        done by another."""
        await run(codecs, body([[[1, 2]]]))
        for pid in pids(codecs):
            os.kill(pid, signal.SIGKILL)

        async def run_until_it_fails():
            while True:
                await run(codecs, body([[[1, 2]]]))

        with pytest.raises(InternalError):
            await run_until_it_fails()
        request = await run(codecs, body([[[3, 4]]]))
        assert request.sequences[0].tolist() == [[3, 4]]

    async def test_signals(self, codecs):
        """Signals that all processes receive do not end them."""
        await run(codecs, body([[[1, 2]]]))
        for pid in pids(codecs):
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        request = await run(codecs, body([[[3, 4]]]))
        assert request.sequences[0].tolist() == [[3, 4]]


class TestServed:
    """Spaces make a body large, so that another process decodes it."""

    SPACES = b" " * process.INLINE_BYTES

    def test_valid(self, running_server):
        """A large body gets the response of a small one."""
        frames = np.random.default_rng(0).normal(size=(30, 3)).round(3).tolist()
        for name, path in (("walks", "/classify"), ("tags", "/label")):
            small = body([frames], model=name)
            first, second = (
                running_server.http.post(path, content=text).json()["predictions"][0]
                for text in (small, small[:-1] + self.SPACES + b"}")
            )
            expected = second["probabilities"]
            np.testing.assert_allclose(first["probabilities"], expected, atol=1e-6)

    def test_invalid(self, running_server):
        """An invalid large body gets the error of a small one."""
        for text in (
            b"{",
            body([[[1, 2]]]),
            body([[[1, 2, 3]]], model="nobody"),
            body([[[1, 2, 3]]], model="tags"),
            body([]),
        ):
            problems = []
            for content in (text, self.SPACES + text):
                response = running_server.http.post("/classify", content=content)
                problem = response.json()
                del problem["request_id"]
                if response.status_code == 400:  # with the position in the body
                    del problem["detail"]
                problems.append((response.status_code, problem))
            assert problems[0] == problems[1]
            assert problems[0][0] >= 400


LIMITS = Settings().limits
COLUMNS = {"event": "category", "amount": "number"}
READERS = Inputs({None: 28}, {None: ("tokens", 9)}, {None: COLUMNS})
TENSOR = b'{"inputs": [{"name": "%b", "shape": [1, 1], "datatype": "BYTES", "data": ['


def decode_native(body):
    RequestDecoder(LIMITS).decode_request(body, READERS)


def decode_predict(body):
    RequestDecoder(LIMITS).decode_instances_of_text(body, "tokens", 9)


def infer_text(body):
    open_inference.decode(body, None, 9, LIMITS, "tokens")


def infer_records(body):
    open_inference.decode(body, None, 2, LIMITS, "records", COLUMNS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decode", "start", "middle", "end"),
    [
        (decode_native, b'{"texts": ["a', b" a", b'"]}'),
        (decode_native, b'{"texts": ["1', b".1", b'"]}'),
        (decode_native, b'{"texts": ["', "€".encode(), b'"]}'),
        (decode_native, b'{"tokens": [["\\"texts\\""', ', "€"'.encode(), b"]]}"),
        (decode_native, b'{"records": [[{"a": 1', b', "%d": 1', b"}]]}"),
        (decode_native, b'{"records": [[{}', b',{"event":"a","amount":1}', b"]]}"),
        (decode_predict, b'{"instances": [{}', b", {}", b"]}"),
        (infer_text, TENSOR % b"text", b"[],", b"[]]}]}"),
        (infer_records, TENSOR % b"event", b'"a\\"",', b'"a"]}]}'),
    ],
    ids=["words", "number", "letters", "tokens", "members", "records", "rows"]
    + ["tensor of text", "tensor of records"],
)
def test_refused_in_little_memory(decode, start, middle, end):
    """A body of 8 MiB with far more texts, lists, objects or members than allowed is
    refused in less than 64 MiB."""
    times = (8 * 2**20 - len(start) - len(end)) // len(middle)
    filled = middle * times
    if b"%d" in middle:
        filled = b"".join(middle % number for number in range(times // 2))
    body = start + filled + end
    tracemalloc.start()
    try:
        with pytest.raises((TooLarge, InvalidRequest)):
            decode(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 2**20
