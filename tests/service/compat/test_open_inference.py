"""The Open Inference Protocol v2 on the wire, without a client library."""

import json
import struct

import numpy as np
import pytest

from service.settings import Settings
from tests.support.bundles import OnnxEngine, random_frames
from tests.support.servers import running, send

TASKS = {"walks": "classify", "tags": "label", "both": "label"}
CLASSES = {
    "walks": ["run", "sit", "stand", "wälk"],
    "tags": ["noun", "verb", "other"],
    "both": ["down", "flat", "up"],
}
LENGTHS = [2, 5, 1]
HEADER = "Inference-Header-Content-Length"
LIMITS = {"max_sequences": 4, "max_steps": 20, "max_cells": 90}
BINARY = {"binary_data": True}


@pytest.fixture
def http(running_server):
    return running_server.http


@pytest.fixture(scope="module")
def limited(bundles):
    """A service with small limits."""
    settings = Settings(port=0, bundles=bundles, workers=1, **LIMITS)
    with running(settings, load_engine=OnnxEngine) as service:
        yield service.http


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
    """The text of an error response."""
    assert response.status_code == status, response.content[:500]
    assert response.headers["content-type"] == "application/json"
    assert HEADER not in response.headers
    assert list(response.json()) == ["error"]
    return response.json()["error"]


def padded(rows):
    """The rows in one tensor, padded with sevens, and their lengths."""
    lengths = np.array([len(row) for row in rows], np.int32)
    frames = np.full((len(rows), max(lengths), 3), 7, np.float32)
    for to, row in zip(frames, rows, strict=True):
        to[: len(row)] = row
    return frames, lengths


def expected(http, name, rows):
    """The answer of the service's own API, padded with zeros."""
    body = {"model": name, "sequences": [row.tolist() for row in rows]}
    predictions = http.post(f"/{TASKS[name]}", json=body).json()["predictions"]
    arrays = [np.array(p["probabilities"], np.float32) for p in predictions]
    if TASKS[name] == "classify":
        return np.stack(arrays)
    result = np.zeros((len(rows), max(map(len, rows)), 3), np.float32)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return result


def assert_right(output, numbers):
    assert (output["name"], output["datatype"]) == ("probabilities", "FP32")
    assert output["shape"] == list(numbers.shape)
    np.testing.assert_allclose(output["data"], numbers.ravel(), atol=1e-5)


def rows_of(name, lengths=LENGTHS):
    rng = np.random.default_rng(len(name))
    return [random_frames(rng, length) for length in lengths]


FRAMES, COUNTS = padded(rows_of("walks"))
ONES = np.ones((1, 2, 3), np.float32)


def flat(frames, lengths):
    return [tensor("frames", frames), tensor("lengths", lengths)], b""


def nested(frames, lengths):
    inputs = [tensor("frames", frames, nested=True), tensor("lengths", lengths)]
    return inputs, b""


def lengths_first(frames, lengths):
    return flat(frames, lengths)[0][::-1], b""


def column_of_lengths(frames, lengths):
    return flat(frames, lengths[:, None])


def all_binary(frames, lengths):
    inputs = [binary("frames", frames), binary("lengths", lengths)]
    return inputs, frames.tobytes() + lengths.tobytes()


def all_binary_reversed(frames, lengths):
    inputs = [binary("lengths", lengths[:, None]), binary("frames", frames)]
    return inputs, lengths.tobytes() + frames.tobytes()


def binary_frames(frames, lengths):
    return [binary("frames", frames), tensor("lengths", lengths)], frames.tobytes()


def binary_frames_last(frames, lengths):
    return binary_frames(frames, lengths)[0][::-1], frames.tobytes()


def binary_lengths(frames, lengths):
    return [tensor("frames", frames), binary("lengths", lengths)], lengths.tobytes()


def binary_lengths_first(frames, lengths):
    return binary_lengths(frames, lengths)[0][::-1], lengths.tobytes()


def null_data(frames, lengths):
    inputs, tail = all_binary(frames, lengths)
    return [tensor | {"data": None} for tensor in inputs], tail


FORMS = [
    flat,
    nested,
    lengths_first,
    column_of_lengths,
    all_binary,
    all_binary_reversed,
    binary_frames,
    binary_frames_last,
    binary_lengths,
    binary_lengths_first,
    null_data,
]


def test_inputs(http):
    """Inputs in JSON, in binary and mixed, in any order, small and large, give the same
    answer as the service's own API."""
    for form in FORMS:
        for name, lengths in (("walks", LENGTHS), ("tags", [200] * 12)):
            rows = rows_of(name, lengths)
            inputs, tail = form(*padded(rows))
            output, answer = parsed(post(http, {"inputs": inputs}, tail, name))
            assert_right(output, expected(http, name, rows))
            assert set(answer) == {"model_name", "model_version", "id", "outputs"}
            assert (answer["model_name"], answer["model_version"]) == (name, "1")
    inputs, tail = all_binary(*padded(rows_of("both")))
    output, _ = parsed(post(http, {"inputs": inputs}, tail, "both"))
    assert_right(output, expected(http, "both", rows_of("both")))


class TestRaw:
    """A body that is one tensor and nothing else: its header is 0."""

    def test_good(self, http):
        """It is one sequence, whose answer is binary."""
        for name in TASKS:
            (row,) = rows_of(name, [5])
            response = post(http, b"", row.tobytes(), name, **{HEADER: "0"})
            assert HEADER in response.headers
            assert_right(parsed(response)[0], expected(http, name, [row]))

    def test_refused(self, http):
        """A body that is not whole steps of finite numbers is refused."""
        for size in (0, 1, 4, 11, 13, 12 * 5 + 4):
            response = post(http, b"", b"\0" * size, **{HEADER: "0"})
            assert "3 for each step" in refused(response)
        row = np.array([[1, 2, np.nan]], np.float32)
        response = post(http, b"", row.tobytes(), **{HEADER: "0"})
        assert "finite" in refused(response)


HEAD = {"inputs": [binary("frames", ONES)]}
SIZE = len(json.dumps(HEAD))
TAIL = ONES.tobytes()


class TestHeader:
    def test_no_number(self, server):
        """A header that is not a number is refused, and is not repeated."""
        body = json.dumps(HEAD).encode() + TAIL
        for value in ["", "x", "-1", "+5", "1.0", "0x10", "1 2", "²", "٣", "9" * 5000]:
            head = (
                f"POST /v2/models/walks/infer HTTP/1.1\r\nHost: here\r\n"
                f"{HEADER}: {value}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            status, headers, content = send(server, head.encode() + body)
            assert (status, headers["content-type"]) == (400, "application/json")
            assert "must be a number" in json.loads(content)["error"], value

    def test_length(self, http):
        """Only the exact length of the JSON is accepted, also with leading zeros."""
        for more in (1, 10**9, 10**14):
            size = str(SIZE + len(TAIL) + more)
            assert "exceeds" in refused(post(http, HEAD, TAIL, **{HEADER: size}))
        for off in (-1, 1, -SIZE + 1, len(TAIL)):
            assert refused(post(http, HEAD, TAIL, **{HEADER: str(SIZE + off)}))
        for right in (str(SIZE), f"000{SIZE}"):
            assert parsed(post(http, HEAD, TAIL, **{HEADER: right}))

    def test_tail(self, http):
        """The binary tensors must fill the rest of the body exactly."""
        for tail in (b"", TAIL[:-1], TAIL[:-4], TAIL + b"\0", TAIL * 2):
            assert refused(post(http, HEAD, tail, **{HEADER: str(SIZE)}))


def frames_of(**changes):
    return {"inputs": [tensor("frames", ONES) | changes]}


def lengths_of(data, shape=(1,), **changes):
    fields = {"name": "lengths", "shape": list(shape), "datatype": "INT32"}
    return {"inputs": [tensor("frames", ONES), fields | {"data": data} | changes]}


def frames_text(text):
    return json.dumps(frames_of(data=["here"])).replace('["here"]', text).encode()


def with_binary_size(size, shape=(1, 2, 3)):
    fields = {"shape": list(shape), "parameters": {"binary_data_size": size}}
    return {"inputs": [{"name": "frames", "datatype": "FP32"} | fields]}


def asking(*outputs, **parameters):
    return frames_of() | {"outputs": list(outputs), "parameters": parameters}


def output(name="probabilities", **parameters):
    return {"name": name, "parameters": parameters}


SHAPES = json.loads(
    """[[], [6], [2, 3], [1, 2, 3, 1], [2, 2, 3], [1, 3, 2], [0, 2, 3], [1, 0, 3],
    [-1, 2, 3], [-1, -2, 3], [1, 2, -3], [1, 2147483648, 3], [9223372036854775808, 2, 3],
    [18446744073709551616, 2, 3], [1, 2.5, 3], [1, "2", 3], [true, 2, 3], [null, 2, 3],
    "1,2,3", null]"""
)
SHAPES += [[1] * 100_000, [10**400, 2, 3]]
SIZES = [True, False, "24", 24.5, -24, 0, 20, 28, 2**40, 10**400, [24], {"a": 24}]
DATA = [
    "null",
    "5",
    '"AAAA"',
    "{}",
    '{"0": 1}',
    "[]",
    "[1, 2, 3, 4, 5]",
    "[1, 2, 3, 4, 5, 6, 7]",
    "[1, 2, 3, 4, 5, null]",
    "[1, 2, 3, 4, 5, true]",
    '[1, 2, 3, 4, 5, "6"]',
    "[1, 2, 3, 4, 5, {}]",
    "[1, 2, 3, 4, 5, NaN]",
    "[1, 2, 3, 4, 5, Infinity]",
    "[1, 2, 3, 4, 5, 1e39]",
    "[1, 2, 3, 4, 5, 1e999]",
    "[1, 2, 3, 4, 5, -1e999]",
    f"[1, 2, 3, 4, 5, 1{'0' * 400}]",
    "[1, 2, 3, 4, 5, 6",
    "[" * 5000,
    "[" * 5000 + "]" * 5000,
]
TYPES = ["FP64", "FP16", "BF16", "INT64", "BYTES", "BOOL", "fp32", "", "X", None, 1]
ODD_LENGTHS = json.loads(
    """[[0], [-1], [3], [2147483648], [4294967297], [1099511627776],
    [9223372036854775808], [18446744073709551617], [1.5], [1e999], ["1"], [true], [null],
    [], [1, 1], 1, null]"""
)
ODD_LENGTHS.append([10**400])


BODIES = [
    *(frames_of(shape=s) for s in SHAPES),
    *(with_binary_size(s) for s in SIZES),
    *(frames_text(t) for t in DATA),
    *(frames_of(datatype=t) for t in TYPES),
    *(lengths_of(n) for n in ODD_LENGTHS),
    b"",
    b"null",
    b"[]",
    {},
    {"inputs": []},
    {"inputs": lengths_of([1])["inputs"][1:]},
    {"inputs": frames_of()["inputs"] * 2},
    frames_of(name="input"),
    frames_of() | {"id": 5},
    lengths_of(None, [2**31 - 1], parameters={"binary_data_size": 4 * (2**31 - 1)}),
    lengths_of([1], [1, 2]),
    lengths_of([1], [1, 1, 1]),
    lengths_of([1], []),
    lengths_of([1], datatype="INT64"),
    lengths_of([1], datatype="UINT32"),
    asking(output("other")),
    asking(output(), output()),
    asking(output(), output("other")),
    asking({}),
    asking(output(binary_data=1)),
    asking(output(binary_data="true")),
    asking(binary_data_output="true"),
    asking(output(classification=-1)),
    asking(output(classification=True)),
    asking(output(classification="2")),
    asking(output(classification=1.0)),
    asking(output(classification=None)),
    asking(timeout="5"),
    asking(timeout=True),
    asking(timeout=-1),
    asking(timeout=1e6),
    asking(timeout=None),
    asking(sequence_id=1.0),
    asking(sequence_id=True),
    asking(sequence_id=[1]),
    asking(sequence_id="x" * 257),
    asking(sequence_id=1, sequence_start=1),
    asking(sequence_id=1, sequence_end="true"),
    asking(sequence_id="never", sequence_end=True),
    frames_of() | {"parameters": [1]},
]


def test_refused(http):
    """Invalid requests are 400 with a short message, and harm nothing."""
    for body in BODIES:
        assert len(refused(post(http, body))) < 500
    assert parsed(post(http, frames_of()))


def test_parameters(http):
    """Parameters within their bounds, and unknown ones, are accepted."""
    for parameters in (
        {"timeout": 0},
        {"timeout": 60_000_000},
        {"timeout": 2**64 - 1},
        {"priority": 1},
        {"sequence_id": 0},
        {"sequence_id": "", "sequence_start": True},
        {"sequence_id": 2**64 - 1, "sequence_start": True, "sequence_end": True},
        {"sequence_id": "x" * 256, "sequence_start": True, "sequence_end": True},
        {"sequence_start": True, "sequence_end": False},
        {"unknown": [{"deep": 1}]},
    ):
        assert parsed(post(http, asking(**parameters)))
    for digits in (20, 300, 310, 400, 4000):  # a timeout without an end
        response = post(http, asking(timeout=10**digits))
        assert response.status_code in (200, 400)


class TestLengths:
    def test_padding(self, http):
        """Numbers after a sequence's length are ignored, even if they are not finite."""
        for padding in (np.nan, np.inf, 3e38):
            for name in TASKS:
                rows = rows_of(name)
                frames, lengths = padded(rows)
                for row, length in zip(frames, lengths, strict=True):
                    row[length:] = padding
                inputs, tail = all_binary(frames, lengths)
                output, _ = parsed(post(http, {"inputs": inputs}, tail, name))
                assert_right(output, expected(http, name, rows))

    def test_within(self, http):
        """Numbers before it must be finite."""
        for value in (np.nan, np.inf, -np.inf):
            frames = FRAMES.copy()
            frames[1, 4, 2] = value
            inputs, tail = all_binary(frames, COUNTS)
            assert "frames[1]" in refused(post(http, {"inputs": inputs}, tail))

    def test_binary(self, http):
        """A length out of bounds is refused in binary as well."""
        for length in (0, -1, 6, 2**31 - 1, -(2**31)):
            counts = COUNTS.copy()
            counts[2] = length
            inputs, tail = all_binary(FRAMES, counts)
            assert "lengths[2]" in refused(post(http, {"inputs": inputs}, tail))


class TestAnswer:
    def test_id(self, http):
        """The client's id is returned as it was; without one, the request's id."""
        for id in ("a", "ä\u2028\n", "x" * 10_000):
            assert parsed(post(http, frames_of() | {"id": id}))[1]["id"] == id
        for fields in ({}, {"id": None}, {"id": ""}):
            response = post(http, frames_of() | fields)
            assert parsed(response)[1]["id"] == response.headers["x-request-id"]

    @pytest.mark.parametrize(
        ("outputs", "all_outputs", "is_binary"),
        [
            (None, None, False),
            ([], None, False),
            ([{"name": "probabilities"}], None, False),
            (None, True, True),
            ([], True, True),
            ([output()], True, True),
            ([output(**BINARY)], None, True),
            ([output(**BINARY)], False, True),
            ([output(binary_data=False)], True, False),
        ],
    )
    def test_binary(self, http, outputs, all_outputs, is_binary):
        """An output is binary if its own parameter says so, else if the request's does;
        without a binary output the response is plain JSON."""
        body = {"inputs": flat(FRAMES, COUNTS)[0], "outputs": outputs}
        if all_outputs is not None:
            body["parameters"] = {"binary_data_output": all_outputs}
        response = post(http, body)
        assert (HEADER in response.headers) == is_binary
        assert_right(parsed(response)[0], expected(http, "walks", rows_of("walks")))

    def test_other_fields(self, http):
        """Unknown fields are ignored, wherever they stand."""
        for fields in ({"model_name": "x"}, {"more": [[1]]}):
            body = {"inputs": [tensor("frames", ONES) | fields]} | fields
            assert parsed(post(http, body | {"outputs": [output() | fields]}))

    def test_any_type(self, http):
        """Any media type of the body is accepted, also none."""
        for kind in (None, "application/octet-stream", "text/plain", "x"):
            headers = {} if kind is None else {"content-type": kind}
            response = post(http, frames_of(), **headers)
            assert response.request.headers.get("content-type") == kind
            assert parsed(response)

    def test_classification(self, http):
        """The most probable classes are texts, best first, with empty texts as padding;
        0 asks for numbers, and more classes than exist give all."""
        for name, top, binary_data in (
            *((name, top, top % 2 == 0) for name in TASKS for top in (0, 1, 2)),
            ("walks", 100, False),
            ("tags", 2**70, True),
        ):
            rows = rows_of(name)
            parameters = {"classification": top, "binary_data": binary_data}
            inputs, tail = all_binary(*padded(rows))
            body = {"inputs": inputs, "outputs": [output(**parameters)]}
            answer, _ = parsed(post(http, body, tail, name))
            numbers = expected(http, name, rows)
            if top == 0:
                assert_right(answer, numbers)
                continue
            count = min(top, len(CLASSES[name]))
            assert answer["datatype"] == "BYTES"
            assert answer["shape"] == [*numbers.shape[:-1], count]
            all_texts = np.array(answer["data"]).reshape(-1, count)
            flat_numbers = numbers.reshape(-1, numbers.shape[-1])
            for texts, row in zip(all_texts, flat_numbers, strict=True):
                if not row.any():
                    assert texts.tolist() == [""] * count
                    continue
                for text, index in zip(texts, np.argsort(-row)[:count], strict=True):
                    value, place, label = text.split(":")
                    assert (int(place), label) == (index, CLASSES[name][index])
                    assert float(value) == pytest.approx(row[index], abs=1e-5)


class TestLimits:
    def test_over(self, limited):
        """A request over a limit is 413, padding included; one just within is not."""
        for form in (flat, all_binary):
            for shape, over, limit in (
                ((4, 1), (5, 1), "sequences"),
                ((1, 20), (1, 21), "steps"),
                ((2, 15), (2, 16), "numbers"),
            ):
                for (batch, steps), status in ((shape, 200), (over, 413)):
                    frames = np.ones((batch, steps, 3), np.float32)
                    inputs, tail = form(frames, np.ones(batch, np.int32))
                    response = post(limited, {"inputs": inputs}, tail)
                    assert response.status_code == status, response.text
                assert limit in refused(response, 413)

    def test_raw(self, limited):
        """So is a raw request."""
        for steps, status in ((20, 200), (21, 413)):
            response = post(limited, b"", b"\0" * 12 * steps, **{HEADER: "0"})
            assert response.status_code == status

    def test_before_the_data(self, limited):
        """A shape over a limit is refused whatever its data."""
        body = frames_of(shape=[1, 21, 3], data=[])
        assert "steps" in refused(post(limited, body), 413)


def test_method(http):
    """Another method is refused with the one that is allowed."""
    for path, allowed in (
        ("/v2", "GET"),
        ("/v2/", "GET"),
        ("/v2/health/ready", "GET"),
        ("/v2/models/walks", "GET"),
        ("/v2/models/walks/config", "GET"),
        ("/v2/models/walks/infer", "POST"),
        ("/v2/models/walks/versions/1/infer", "POST"),
        ("/v2/repository/index", "POST"),
    ):
        for method in ("HEAD", "PUT", "OPTIONS"):
            response = http.request(method, path)
            assert response.status_code == 405
            assert response.headers["allow"] == allowed
            assert response.headers["content-type"] == "application/json"
            assert (response.content == b"") == (method == "HEAD")
