"""Records from other systems' clients: Triton's own, and requests as TensorFlow Serving's
clients send them."""

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from service.settings import Settings
from tests.support.servers import running

ROWS = [
    [
        {"event": "login", "host": "host1", "bytes": 1.5, "at": "2026-01-31T12:00:00Z"},
        {"event": "naïve", "host": "host2", "bytes": 0.0, "at": "2026-01-31T12:00:09Z"},
    ],
    [{"event": "pay", "host": "host3", "bytes": 7.0, "at": "2026-01-31T12:00:00Z"}],
]
TYPES = {"event": "BYTES", "host": "BYTES", "bytes": "FP32", "at": "BYTES"}


@pytest.fixture(scope="module")
def url(text_bundles):
    with running(Settings(port=0, bundles=text_bundles, workers=1)) as service:
        yield service.url


@pytest.fixture(scope="module")
def expected(url):
    body = {"records": ROWS, "model": "visits"}
    response = httpx.post(f"{url}/classify", json=body)
    return [p["probabilities"] for p in response.json()["predictions"]]


@pytest.fixture(scope="module")
def triton(url):
    with InferenceServerClient(url.removeprefix("http://")) as client:
        yield client


def tensors(*, binary):
    """A padded tensor for each column, and the lengths."""
    inputs = []
    for name, datatype in TYPES.items():
        padding = 0 if datatype == "FP32" else ""
        rows = [
            [row[i][name] if i < len(row) else padding for i in (0, 1)] for row in ROWS
        ]
        array = np.array(rows, np.float32 if datatype == "FP32" else object)
        inputs.append(InferInput(name, [2, 2], datatype))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    lengths = InferInput("lengths", [2], "INT32")
    lengths.set_data_from_numpy(np.array([2, 1], np.int32), binary_data=binary)
    return [*inputs, lengths]


@pytest.mark.parametrize("binary", [True, False])
def test_triton_columns(triton, expected, binary):
    """A tensor for each column has the native answers."""
    answer = triton.infer("visits", tensors(binary=binary))
    numbers = answer.as_numpy("probabilities")
    np.testing.assert_allclose(numbers, expected, atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_sequence(triton, expected, binary):
    """A sequence in several requests keeps its last time."""
    for row, start in ((0, True), (1, False)):
        inputs = []
        for name, datatype in TYPES.items():
            kind = np.float32 if datatype == "FP32" else object
            inputs.append(InferInput(name, [1, 1], datatype))
            array = np.array([[ROWS[0][row][name]]], kind)
            inputs[-1].set_data_from_numpy(array, binary_data=binary)
        answer = triton.infer(
            "visits",
            inputs,
            sequence_id=5,
            sequence_start=start,
            sequence_end=not start,
        )
    numbers = answer.as_numpy("probabilities")
    np.testing.assert_allclose(numbers[0], expected[0], atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_refused(triton, binary):
    """Tensors that do not fit are refused by name."""
    good = tensors(binary=binary)
    for inputs, reason in (
        (good[:-2], "at is missing"),
        ([*good, good[0]], "each once"),
        ([InferInput("event", [2, 2], "FP64"), *good[1:]], "must be one of BYTES"),
    ):
        if inputs[0].datatype() == "FP64":
            inputs[0].set_data_from_numpy(np.zeros((2, 2)), binary_data=binary)
        with pytest.raises(InferenceServerException, match=reason):
            triton.infer("visits", inputs)


def test_metadata(url, triton):
    """The descriptions have an input for each column."""
    about = triton.get_model_metadata("visits")
    types = {tensor["name"]: tensor["datatype"] for tensor in about["inputs"]}
    assert types == TYPES | {"lengths": "INT32"}
    config = triton.get_model_config("visits")
    assert [tensor["optional"] for tensor in config["input"]] == [False] * 4 + [True]
    response = httpx.get(f"{url}/v1/models/visits/metadata").json()
    signature = response["metadata"]["signature_def"]["signature_def"]
    kinds = {k: v["dtype"] for k, v in signature["serving_default"]["inputs"].items()}
    assert kinds["event"] == kinds["at"] == "DT_STRING"
    assert kinds["bytes"] == "DT_FLOAT"
    assert "step" not in signature


def test_tensorflow_serving_rows(url, expected):
    """Lists of objects, or objects with `records`."""
    for instances in (ROWS, [{"records": row} for row in ROWS]):
        answer = predict(url, instances=instances)
        np.testing.assert_allclose(answer.json()["predictions"], expected)


def test_tensorflow_serving_columns(url, expected):
    """A list of rows for each column."""
    inputs = {name: [[r[name] for r in row] for row in ROWS] for name in TYPES}
    answer = predict(url, inputs=inputs)
    np.testing.assert_allclose(answer.json()["outputs"], expected)


def test_tensorflow_serving_refused(url):
    for body, reason in (
        ({"instances": [[1]]}, "list of records"),
        ({"instances": [ROWS[0], [{}]]}, "instances[1][0].event is missing"),
        ({"inputs": {"event": [["a"]]}}, "host is missing"),
        ({"inputs": {name: [["a"]] for name in TYPES} | {"at": [[]]}}, "lengths"),
        ({"instances": ROWS, "inputs": ROWS}, "either"),
    ):
        answer = predict(url, **body)
        assert (answer.status_code, reason in answer.text) == (400, True), answer.text


def predict(url, **body):
    return httpx.post(f"{url}/v1/models/visits:predict", json=body)
