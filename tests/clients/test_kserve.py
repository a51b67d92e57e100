"""KServe's own client, unmodified, with both of its protocols, against the running
service."""

import httpx
import numpy as np
import pytest

from tests.support.servers import TASKS, native_answers, padded, sequences_of

# kserve is imported where it is used: that takes seconds, also of a run without it.
pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    """Otherwise the client would use the machine's proxy."""
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
async def v2():
    from kserve import InferenceRESTClient, RESTConfig

    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        yield client


@pytest.fixture
async def v1():
    from kserve import InferenceRESTClient, RESTConfig

    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        yield client


def tensor(name, datatype, array, *, binary):
    from kserve import InferInput

    result = InferInput(name, list(array.shape), datatype)
    result.set_data_from_numpy(array, binary_data=binary)
    return result


def request_of(name, sequences, *, binary=True, **options):
    """A request with padded frames, and the lengths."""
    from kserve import InferRequest

    frames, lengths = padded(sequences)
    inputs = [
        tensor("frames", "FP32", frames, binary=binary),
        tensor("lengths", "INT32", lengths, binary=binary),
    ]
    return InferRequest(name, inputs, **options)


def assert_same(response, answers):
    (output,) = response.outputs
    assert (output.name, output.datatype) == ("probabilities", "FP32")
    for row, answer in zip(output.as_numpy(), answers, strict=True):
        unpadded = row if answer.ndim == 1 else row[: len(answer)]
        np.testing.assert_allclose(unpadded, answer, atol=1e-5)


class TestV2:
    async def test_health(self, v2, server):
        """The server and each model are alive and ready."""
        assert await v2.is_server_live(server) is True
        assert await v2.is_server_ready(server) is True
        for name in (*TASKS, "walks@latest"):
            assert await v2.is_model_ready(server, name) is True
        assert await v2.is_model_ready(server, "nothing") is False

    async def test_infer(self, v2, server, http):
        """However a request and its response are encoded, the answer is the same."""
        from kserve.protocol.infer_type import RequestedOutput

        all_binary = {"parameters": {"binary_data_output": True}}
        output = {
            binary: {
                "request_outputs": [
                    RequestedOutput("probabilities", {"binary_data": binary})
                ]
            }
            for binary in (True, False)
        }
        for options in ({}, all_binary, output[True], all_binary | output[False]):
            for binary in (True, False):
                for name in TASKS:
                    sequences = sequences_of(name)
                    request = request_of(name, sequences, binary=binary, **options)
                    response = await v2.infer(server, request, model_name=name)
                    assert response.model_name == name
                    assert type(response.id) is str
                    assert_same(response, native_answers(http, name, sequences))

    async def test_id(self, v2, server):
        """The response has the request's id."""
        request = request_of("walks", sequences_of("walks"), request_id="ours")
        response = await v2.infer(server, request, model_name="walks")
        assert response.id == "ours"

    async def test_dictionary(self, v2, server, http):
        """A request may be a plain dictionary."""
        (frames,) = sequences = sequences_of("tags", [5])
        fields = {"name": "frames", "datatype": "FP32", "shape": [1, 5, 3]}
        body = {"inputs": [fields | {"data": frames.tolist()}]}
        response = await v2.infer(server, body, model_name="tags")
        assert_same(response, native_answers(http, "tags", sequences))

    async def test_errors(self, v2, server):
        """An error's text reaches the client's user."""
        from kserve import InferRequest

        for name, shape, status, message in (
            ("nothing", [1, 5, 3], 404, "Request for unknown model"),
            ("walks", [1, 5, 2], 400, "inputs[0].shape"),
        ):
            for binary in (True, False):
                frames = np.zeros(shape, np.float32)
                inputs = [tensor("frames", "FP32", frames, binary=binary)]
                with pytest.raises(httpx.HTTPStatusError) as caught:
                    await v2.infer(server, InferRequest(name, inputs), model_name=name)
                assert caught.value.response.status_code == status
                assert message in str(caught.value)
                assert "{'error'" not in str(caught.value)  # the text alone


class TestV1:
    async def test_health(self, v1, server):
        """The server is alive, and each model is ready."""
        assert await v1.is_server_live(server) is True
        for name in (*TASKS, "walks@latest"):
            assert await v1.is_model_ready(server, name) is True

    async def test_infer(self, v1, server, http):
        """Sequences of any lengths get the answers of the service's own API, each at its
        own length."""
        for name in TASKS:
            sequences = sequences_of(name)
            body = {"instances": [frames.tolist() for frames in sequences]}
            response = await v1.infer(server, body, model_name=name)
            predictions = response["predictions"]
            answers = native_answers(http, name, sequences)
            for row, answer in zip(predictions, answers, strict=True):
                np.testing.assert_allclose(row, answer, atol=1e-5)

    async def test_errors(self, v1, server):
        """An error's text reaches the client's user."""
        for call, name, body, status, message in (
            ("infer", "nothing", {"instances": [[[0, 0, 0]]]}, 404, "found"),
            ("infer", "walks", {"rows": []}, 400, "instances"),
            ("infer", "walks", {"instances": [[[0, 0]]]}, 400, "instances[0]"),
            ("explain", "walks", {"instances": []}, 400, ""),
            ("is_model_ready", "nothing", None, 404, "found"),
        ):
            options = {} if body is None else {"data": body}
            with pytest.raises(httpx.HTTPStatusError) as caught:
                await getattr(v1, call)(server, model_name=name, **options)
            assert caught.value.response.status_code == status
            text = str(caught.value)
            assert message in text
            assert not text.startswith((",", "{"))  # there is one, and it is a text
