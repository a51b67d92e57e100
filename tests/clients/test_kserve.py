"""KServe's own client, unmodified, in both of its protocols, against the running
service."""

import httpx
import numpy as np
import pytest
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

from tests.support.bundles import random_frames

pytestmark = pytest.mark.anyio

TASKS = {"walks": "classify", "tags": "label", "both": "label"}
LENGTHS = [2, 60, 1]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    """The client would ask the machine's proxy, where there is one."""
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def http(running_server):
    return running_server.http


@pytest.fixture
async def v2():
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        yield client


@pytest.fixture
async def v1():
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        yield client


def sequences_of(name, lengths=LENGTHS):
    rng = np.random.default_rng(len(name))
    return [random_frames(rng, length) for length in lengths]


def expected(http, name, sequences):
    """What the service's own API says of each sequence."""
    body = {"model": name, "sequences": [one.tolist() for one in sequences]}
    response = http.post(f"/{TASKS[name]}", json=body)
    assert response.status_code == 200, response.text
    predictions = response.json()["predictions"]
    return [np.array(one["probabilities"], np.float32) for one in predictions]


def tensor(name, datatype, array, *, binary):
    made = InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def request_of(name, sequences, *, binary=True, **options):
    """Frames, padded, and the lengths."""
    lengths = np.array([len(one) for one in sequences], np.int32)
    frames = np.zeros((len(sequences), lengths.max(), 3), np.float32)
    for row, one in zip(frames, sequences, strict=True):
        row[: len(one)] = one
    inputs = [
        tensor("frames", "FP32", frames, binary=binary),
        tensor("lengths", "INT32", lengths, binary=binary),
    ]
    return InferRequest(name, inputs, **options)


def assert_same(response, answers):
    (output,) = response.outputs
    assert (output.name, output.datatype) == ("probabilities", "FP32")
    for row, answer in zip(output.as_numpy(), answers, strict=True):
        there = row if answer.ndim == 1 else row[: len(answer)]
        np.testing.assert_allclose(there, answer, atol=1e-5)


class TestV2:
    async def test_health(self, v2, server):
        """The server lives and is ready, and so is each model that there is."""
        assert await v2.is_server_live(server) is True
        assert await v2.is_server_ready(server) is True
        for name in (*TASKS, "walks@latest"):
            assert await v2.is_model_ready(server, name) is True
        assert await v2.is_model_ready(server, "nothing") is False

    @pytest.mark.parametrize("binary", [True, False])
    @pytest.mark.parametrize(
        "options",
        [
            pytest.param({}, id="default"),
            pytest.param({"parameters": {"binary_data_output": True}}, id="binary"),
            pytest.param(
                {
                    "request_outputs": [
                        RequestedOutput("probabilities", {"binary_data": True})
                    ]
                },
                id="binary-output",
            ),
            pytest.param(
                {
                    "parameters": {"binary_data_output": True},
                    "request_outputs": [
                        RequestedOutput("probabilities", {"binary_data": False})
                    ],
                },
                id="json-output",
            ),
        ],
    )
    async def test_infer(self, v2, server, http, binary, options):
        """However a request and its answer are written, they say what the service's
        own API says."""
        for name in TASKS:
            sequences = sequences_of(name)
            request = request_of(name, sequences, binary=binary, **options)
            response = await v2.infer(server, request, model_name=name)
            assert response.model_name == name
            assert type(response.id) is str
            assert_same(response, expected(http, name, sequences))

    async def test_id(self, v2, server):
        """A request's id is its answer's."""
        request = request_of("walks", sequences_of("walks"), request_id="ours")
        response = await v2.infer(server, request, model_name="walks")
        assert response.id == "ours"

    async def test_dictionary(self, v2, server, http):
        """A request may be written by hand."""
        (frames,) = sequences = sequences_of("tags", [5])
        one = {"name": "frames", "datatype": "FP32", "shape": [1, 5, 3]}
        body = {"inputs": [one | {"data": frames.tolist()}]}
        response = await v2.infer(server, body, model_name="tags")
        assert_same(response, expected(http, "tags", sequences))

    @pytest.mark.parametrize(
        ("name", "shape", "status", "told"),
        [
            pytest.param(
                "nothing", [1, 5, 3], 404, "Request for unknown model", id="model"
            ),
            pytest.param("walks", [1, 5, 2], 400, "inputs[0].shape", id="shape"),
        ],
    )
    @pytest.mark.parametrize("binary", [True, False])
    async def test_errors(self, v2, server, name, shape, status, told, binary):
        """A refusal's text reaches the caller."""
        frames = np.zeros(shape, np.float32)
        inputs = [tensor("frames", "FP32", frames, binary=binary)]
        with pytest.raises(httpx.HTTPStatusError) as caught:
            await v2.infer(server, InferRequest(name, inputs), model_name=name)
        assert caught.value.response.status_code == status
        assert told in str(caught.value)
        assert "{'error'" not in str(caught.value)  # the text, not what it is in


class TestV1:
    async def test_health(self, v1, server):
        """The server lives, and each model that there is is ready."""
        assert await v1.is_server_live(server) is True
        for name in (*TASKS, "walks@latest"):
            assert await v1.is_model_ready(server, name) is True

    @pytest.mark.parametrize("name", TASKS)
    async def test_infer(self, v1, server, http, name):
        """Sequences of any lengths are answered as by the service's own API, each as
        long as it is."""
        sequences = sequences_of(name)
        body = {"instances": [one.tolist() for one in sequences]}
        response = await v1.infer(server, body, model_name=name)
        predictions = response["predictions"]
        answers = expected(http, name, sequences)
        for row, answer in zip(predictions, answers, strict=True):
            np.testing.assert_allclose(row, answer, atol=1e-5)

    @pytest.mark.parametrize(
        ("call", "name", "body", "status", "told"),
        [
            pytest.param(
                "infer",
                "nothing",
                {"instances": [[[0, 0, 0]]]},
                404,
                "found",
                id="model",
            ),
            pytest.param("infer", "walks", {"rows": []}, 400, "instances", id="body"),
            pytest.param(
                "infer",
                "walks",
                {"instances": [[[0, 0]]]},
                400,
                "instances[0]",
                id="shape",
            ),
            pytest.param("explain", "walks", {"instances": []}, 400, "", id="explain"),
            pytest.param("is_model_ready", "nothing", None, 404, "found", id="ready"),
        ],
    )
    async def test_errors(self, v1, server, call, name, body, status, told):
        """A refusal's text reaches the caller."""
        options = {} if body is None else {"data": body}
        with pytest.raises(httpx.HTTPStatusError) as caught:
            await getattr(v1, call)(server, model_name=name, **options)
        assert caught.value.response.status_code == status
        text = str(caught.value)
        assert told in text
        assert not text.startswith((",", "{"))  # there is one, and it is a text
