"""Text from other systems' clients: Triton's own, and requests as TensorFlow Serving's
clients send them."""

import base64

import httpx
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from service.settings import Settings
from tests.support.servers import running

TEXTS = ["Anna sees the dog", "Bob Smith likes naïve 🐕s", "x"]


@pytest.fixture(scope="module")
def url(text_bundles):
    with running(Settings(port=0, bundles=text_bundles, workers=1)) as service:
        yield service.url


@pytest.fixture(scope="module")
def triton(url):
    with InferenceServerClient(url.removeprefix("http://")) as client:
        yield client


def native(url, task, **body):
    response = httpx.post(f"{url}/{task}", json=body)
    return [p["probabilities"] for p in response.json()["predictions"]]


def tensor(name, values, *, binary):
    array = np.array(values, object)
    result = InferInput(name, list(array.shape), "BYTES")
    result.set_data_from_numpy(array, binary_data=binary)
    return result


@pytest.mark.parametrize("binary", [True, False])
def test_triton_text(url, triton, binary):
    """A batch of texts, as JSON and in binary, has the native answers, padded."""
    inputs = [tensor("text", [[text] for text in TEXTS], binary=binary)]
    output = InferRequestedOutput("probabilities", binary_data=binary)
    answer = triton.infer("names", inputs, outputs=[output])
    numbers = answer.as_numpy("probabilities")
    for row, expected in zip(
        numbers, native(url, "label", texts=TEXTS, model="names"), strict=True
    ):
        np.testing.assert_allclose(row[: len(expected)], expected, atol=1e-6)
        assert not row[len(expected) :].any()


@pytest.mark.parametrize("binary", [True, False])
def test_triton_tokens(url, triton, binary):
    """Padded tokens with their lengths."""
    rows = [["Anna", "sees", "Bob"], ["Dora", "", ""]]
    lengths = InferInput("lengths", [2], "INT32")
    lengths.set_data_from_numpy(np.array([3, 1], np.int32), binary_data=binary)
    inputs = [tensor("tokens", rows, binary=binary), lengths]
    numbers = triton.infer("names", inputs).as_numpy("probabilities")
    expected = native(url, "label", tokens=[rows[0], ["Dora"]], model="names")
    np.testing.assert_allclose(numbers[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(numbers[1, :1], expected[1], atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_refused(triton, binary):
    """Tensors that do not fit are refused by name."""
    for inputs, reason in (
        ([tensor("text", [""], binary=binary)], "at least one token"),
        ([tensor("words", ["a"], binary=binary)], "must be text"),
        ([tensor("tokens", [["a"]], binary=binary)], "reads characters"),
    ):
        with pytest.raises(InferenceServerException, match=reason):
            triton.infer("commands", inputs)


def test_metadata(url, triton):
    """The description has the input that is taken."""
    about = triton.get_model_metadata("names")
    assert [i["name"] for i in about["inputs"]] == ["text"]
    config = triton.get_model_config("names")
    assert config["input"][0]["data_type"] == "TYPE_STRING"
    about = httpx.get(f"{url}/v1/models/names/metadata").json()
    signatures = about["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["inputs"]["text"]["dtype"] == "DT_STRING"
    assert "step" not in signatures


@pytest.mark.parametrize(
    "body",
    [
        {"instances": TEXTS},
        {"instances": [{"text": text} for text in TEXTS]},
        {
            "instances": [
                {"b64": base64.b64encode(text.encode()).decode()} for text in TEXTS
            ]
        },
        {"inputs": TEXTS},
        {"inputs": {"text": TEXTS}},
    ],
)
def test_tensorflow_serving(url, body):
    """Strings, objects and base64, by row and by input, have the native answers."""
    response = httpx.post(f"{url}/v1/models/commands:predict", json=body)
    assert response.status_code == 200, response.text
    key = "predictions" if "instances" in body else "outputs"
    expected = native(url, "classify", texts=TEXTS, model="commands")
    np.testing.assert_allclose(response.json()[key], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"instances": []}, "must not be empty"),
        ({"instances": [{"b64": "?"}]}, "not base64"),
        ({"instances": [{"b64": "/w=="}]}, "not UTF-8"),
        ({"instances": [{"text": "a", "b64": "YQ=="}]}, "must be a text"),
        ({"inputs": {}}, "either text or tokens"),
        ({"instances": ["a"], "inputs": ["a"]}, "either instances or inputs"),
        ({"instances": [[[1.0]]]}, "instances"),
    ],
)
def test_tensorflow_serving_refused(url, body, reason):
    response = httpx.post(f"{url}/v1/models/commands:predict", json=body)
    assert response.status_code == 400
    assert reason in response.json()["error"]


def test_broken_tensors(url):
    """Lengths that lie about a binary tensor are refused."""
    head = (
        '{"inputs":[{"name":"text","datatype":"BYTES","shape":[1],'
        '"parameters":{"binary_data_size":%d}}]}'
    )
    for data, reason in (
        (b"\xff\xff\xff\xff", "longer than the tensor"),
        (b"\x01\x00", "longer than the tensor"),
        (b"\x01\x00\x00\x00\xff", "not UTF-8"),
        (b"\x01\x00\x00\x00a\x01\x00\x00\x00b", "more than the 1 texts"),
        (b"", "0 texts"),
    ):
        text = (head % len(data)).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        response = httpx.post(
            f"{url}/v2/models/names/infer", content=text + data, headers=headers
        )
        assert response.status_code == 400, response.text
        assert reason in response.json()["error"]
