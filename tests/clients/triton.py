"""Triton's own client, synchronous or asynchronous, and the tensors that it sends."""

import asyncio
from contextlib import contextmanager

import numpy as np
import pytest
from tritonclient import http as plain
from tritonclient.http import InferInput, InferRequestedOutput, aio
from tritonclient.utils import InferenceServerException

from tests.support.servers import SECONDS, padded

SERVED = {
    "binary_tensor_data",
    "parameters",
    "classification",
    "sequence",
    "sequence(string_id)",
    "model_configuration",
    "statistics",
}
# What the client says of responses that it can't read.
UNREADABLE = ("an exception occurred in the client", "empty response")


class Triton:
    """One of the clients; `call` works the same for both."""

    def __init__(self, runner, client):
        self._runner, self._client = runner, client

    def call(self, method, *args, **options):
        result = getattr(self._client, method)(*args, **options)
        return self._runner.run(result) if self._runner else result

    def infer_all(self, name, inputs):
        """The results of concurrent requests."""
        if self._runner is None:
            requests = [self._client.async_infer(name, tensors) for tensors in inputs]
            return [request.get_result(timeout=SECONDS) for request in requests]

        async def gather():
            calls = [self._client.infer(name, tensors) for tensors in inputs]
            return await asyncio.gather(*calls)

        return self._runner.run(gather())

    def refused(self, method, *args, **options):
        """The error of a call, whose message is the service's own."""
        with pytest.raises(InferenceServerException) as caught:
            self.call(method, *args, **options)
        message = caught.value.message()
        assert message
        assert not any(text in message for text in UNREADABLE), message
        return caught.value


@contextmanager
def connected(kind, url):
    address = url.removeprefix("http://")
    if kind == "plain":
        with plain.InferenceServerClient(address, concurrency=4) as client:
            yield Triton(None, client)
        return

    async def connect():
        return aio.InferenceServerClient(address)

    with asyncio.Runner() as runner:
        client = runner.run(connect())
        try:
            yield Triton(runner, client)
        finally:
            runner.run(client.close())


def tensor(name, array, *, binary=True):
    kinds = {"float32": "FP32", "float64": "FP64", "int32": "INT32", "int64": "INT64"}
    result = InferInput(name, list(array.shape), kinds[str(array.dtype)])
    result.set_data_from_numpy(array, binary_data=binary)
    return result


def inputs_of(sequences, *, binary=True, padding=0.0):
    """Padded frames, and the lengths."""
    frames, lengths = padded(sequences, padding)
    return [
        tensor("frames", frames, binary=binary),
        tensor("lengths", lengths, binary=binary),
    ]


def outputs_of(binary, count=0):
    """The requested output; None: the client's default."""
    if binary is None:
        return None
    return [
        InferRequestedOutput("probabilities", binary_data=binary, class_count=count)
    ]


def assert_same(result, answers):
    """Check that the result is the answers, padded with zeros."""
    probabilities = result.as_numpy("probabilities")
    assert probabilities.dtype == np.float32
    for row, answer in zip(probabilities, answers, strict=True):
        unpadded = row if answer.ndim == 1 else row[: len(answer)]
        np.testing.assert_allclose(unpadded, answer, atol=1e-5, strict=True)
        if answer.ndim == 2:
            assert not row[len(answer) :].any()
