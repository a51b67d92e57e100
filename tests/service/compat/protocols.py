"""Requests of the other servers' protocols, and checks of the responses."""

import json
import struct

import numpy as np

SECRET = "s3cr3t"
HEADER = "Inference-Header-Content-Length"
FRAME = [1, 2, 3]
PREDICT, INFER = "/v1/models/walks:predict", "/v2/models/walks/infer"
CLASSIFY = "/v1/models/walks:classify"
ONES = np.ones((1, 2, 3), np.float32)


def instances(*rows, **fields):
    """A request of TensorFlow Serving's."""
    return {"instances": list(rows) or [[FRAME]]} | fields


def ask(http, path, body):
    """The JSON of a successful response."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = http.post(f"/v1/models/{path}", content=content)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def tensor(name, numbers, *, nested=False, **changes):
    """An input in JSON."""
    kind = "FP32" if name == "frames" else "INT32"
    data = numbers.tolist() if nested else numbers.ravel().tolist()
    shape = list(numbers.shape)
    return {"name": name, "shape": shape, "datatype": kind, "data": data} | changes


def binary(name, numbers, **changes):
    """An input whose numbers follow the JSON."""
    fields = tensor(name, numbers)
    del fields["data"]
    return fields | {"parameters": {"binary_data_size": numbers.nbytes}} | changes


def infer(frames=(FRAME,), **fields):
    """A request of the Open Inference Protocol with one sequence."""
    return {"inputs": [tensor("frames", np.array([frames]))]} | fields


def frames_of(**changes):
    """A request with a changed tensor."""
    return {"inputs": [tensor("frames", ONES) | changes]}


def output(name="probabilities", **parameters):
    """An output that a request asks for."""
    return {"name": name, "parameters": parameters}


def asking(*outputs, **parameters):
    """A request with outputs and parameters."""
    return frames_of() | {"outputs": list(outputs), "parameters": parameters}


def post(http, body, tail=b"", name="walks", **headers):
    """The response to a body followed by binary tensors."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    if tail and HEADER not in headers:
        headers = headers | {HEADER: str(len(content))}
    path = f"/v2/models/{name}/infer"
    return http.post(path, content=content + tail, headers=headers)


def parsed(response):
    """The output and the JSON of a response, with a binary output's numbers or texts as
    its data."""
    assert response.status_code == 200, response.text
    size = response.headers.get(HEADER)
    if size is None:
        assert response.headers["content-type"] == "application/json"
        answer = response.json()
        (output,) = answer["outputs"]
        assert "parameters" not in output
        return output, answer
    assert response.headers["content-type"] == "application/octet-stream"
    answer = json.loads(response.content[: int(size)])
    tail = response.content[int(size) :]
    (output,) = answer["outputs"]
    assert output["parameters"] == {"binary_data_size": len(tail)}
    assert "data" not in output
    if output["datatype"] == "FP32":
        output["data"] = np.frombuffer(tail, "<f4").tolist()
        return output, answer
    output["data"] = []
    while tail:
        (length,) = struct.unpack_from("<I", tail)
        output["data"].append(tail[4 : 4 + length].decode())
        tail = tail[4 + length :]
    return output, answer


def refused(response, status=400):
    """Check an error response, which repeats nothing of the client's; returns its text."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert "content-encoding" not in response.headers
    assert HEADER not in response.headers
    body = response.json()
    assert list(body) == ["error"]
    assert isinstance(body["error"], str)
    assert 0 < len(body["error"]) < 4096
    assert SECRET not in str([response.text, response.headers])
    for leak in ("Traceback", "site-packages", "msgspec", "numpy", "Error("):
        assert leak not in response.text
    return body["error"]


def assert_answers(http):
    """Check that both protocols answer, on the same connection."""
    assert http.post(PREDICT, json=instances()).status_code == 200
    assert http.post(INFER, json=infer()).status_code == 200
