"""The Open Inference Protocol v2 on the wire, with no client's library between."""

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
LARGE = 64 * 1024  # bytes, above which another process parses
LIMITS = {"max_sequences": 4, "max_steps": 20, "max_cells": 90}
BINARY = {"binary_data": True}


@pytest.fixture
def http(running_server):
    return running_server.http


@pytest.fixture(scope="module")
def limited(bundles):
    """A service with small limits."""
    settings = Settings(port=0, bundles=bundles, workers=1, **LIMITS)
    with running(settings, load_engine=OnnxEngine) as made:
        yield made.http


def tensor(name, numbers, *, nested=False, **changes):
    """An input in JSON."""
    kind = "FP32" if name == "frames" else "INT32"
    data = numbers.tolist() if nested else numbers.ravel().tolist()
    one = {"name": name, "shape": list(numbers.shape), "datatype": kind, "data": data}
    return one | changes


def binary(name, numbers, **changes):
    """An input whose numbers stand behind the JSON."""
    one = tensor(name, numbers)
    del one["data"]
    return one | {"parameters": {"binary_data_size": numbers.nbytes}} | changes


def post(http, body, tail=b"", name="walks", **headers):
    """The response to a body with the tensors behind it."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    if tail and HEADER not in headers:
        headers = headers | {HEADER: str(len(content))}
    path = f"/v2/models/{name}/infer"
    return http.post(path, content=content + tail, headers=headers)


def parsed(response):
    """The output, and the JSON of an answer; a binary output's numbers (or texts) are
    put where they belong."""
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
    """The text of a refusal."""
    assert response.status_code == status, response.content[:500]
    assert response.headers["content-type"] == "application/json"
    assert HEADER not in response.headers
    assert list(response.json()) == ["error"]
    return response.json()["error"]


def padded(rows):
    """The rows in one tensor, and their lengths; what is behind a row is no number."""
    lengths = np.array([len(row) for row in rows], np.int32)
    frames = np.full((len(rows), max(lengths), 3), 7, np.float32)
    for to, row in zip(frames, rows, strict=True):
        to[: len(row)] = row
    return frames, lengths


def expected(http, name, rows):
    """What the service's own API says, padded with zeros."""
    body = {"model": name, "sequences": [row.tolist() for row in rows]}
    told = http.post(f"/{TASKS[name]}", json=body).json()["predictions"]
    answers = [np.array(one["probabilities"], np.float32) for one in told]
    if TASKS[name] == "classify":
        return np.stack(answers)
    made = np.zeros((len(rows), max(map(len, rows)), 3), np.float32)
    for to, answer in zip(made, answers, strict=True):
        to[: len(answer)] = answer
    return made


def assert_right(output, numbers):
    assert (output["name"], output["datatype"]) == ("probabilities", "FP32")
    assert output["shape"] == list(numbers.shape)
    np.testing.assert_allclose(output["data"], numbers.ravel(), atol=1e-5)


def rows_of(name, lengths=LENGTHS):
    rng = np.random.default_rng(len(name))
    return [random_frames(rng, length) for length in lengths]


FRAMES, COUNTS = padded(rows_of("walks"))
ONE = np.ones((1, 2, 3), np.float32)


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


def all_binary_turned(frames, lengths):
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
    return [one | {"data": None} for one in inputs], tail


FORMS = [
    flat,
    nested,
    lengths_first,
    column_of_lengths,
    all_binary,
    all_binary_turned,
    binary_frames,
    binary_frames_last,
    binary_lengths,
    binary_lengths_first,
    null_data,
]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
class TestForms:
    @pytest.mark.parametrize("lengths", [LENGTHS, [200] * 12], ids=["small", "large"])
    def test_inputs(self, http, name, form, lengths):
        """Inputs in JSON, in binary and mixed, in any order, small and large, are
        answered as the service's own API answers them."""
        rows = rows_of(name, lengths)
        inputs, tail = form(*padded(rows))
        output, answer = parsed(post(http, {"inputs": inputs}, tail, name))
        assert_right(output, expected(http, name, rows))
        assert set(answer) == {"model_name", "model_version", "id", "outputs"}
        assert (answer["model_name"], answer["model_version"]) == (name, "1")


@pytest.mark.parametrize("name", TASKS)
class TestRaw:
    """A body that is a tensor and nothing else, which the header's 0 says."""

    def test_good(self, http, name):
        """It is one sequence, whose answer is binary."""
        (row,) = rows_of(name, [5])
        response = post(http, b"", row.tobytes(), name, **{HEADER: "0"})
        assert HEADER in response.headers
        assert_right(parsed(response)[0], expected(http, name, [row]))

    @pytest.mark.parametrize("size", [0, 1, 4, 11, 13, 12 * 5 + 4])
    def test_size(self, http, name, size):
        """A body that is not so many whole steps is refused."""
        response = post(http, b"", b"\0" * size, name, **{HEADER: "0"})
        assert "3 for each step" in refused(response)

    def test_not_finite(self, http, name):
        """So are numbers that are none."""
        row = np.array([[1, 2, np.nan]], np.float32)
        response = post(http, b"", row.tobytes(), name, **{HEADER: "0"})
        assert "finite" in refused(response)


HEAD = {"inputs": [binary("frames", ONE)]}
SIZE = len(json.dumps(HEAD))
TAIL = ONE.tobytes()


class TestHeader:
    @pytest.mark.parametrize(
        "given",
        ["", "x", "-1", "+5", "1.0", "1e2", "0x10", "1 2", "1,2", "²", "٣", "9" * 5000],
        ids=lambda given: given[:8],
    )
    def test_no_number(self, server, given):
        """A header that is no number is refused, and doesn't come back."""
        body = json.dumps(HEAD).encode() + TAIL
        head = (
            f"POST /v2/models/walks/infer HTTP/1.1\r\nHost: here\r\n{HEADER}: {given}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        status, headers, told = send(server, head.encode() + body)
        assert (status, headers["content-type"]) == (400, "application/json")
        assert "must be a number" in json.loads(told)["error"]

    @pytest.mark.parametrize("more", [1, 10**9, 10**14])
    def test_more_than_the_body(self, http, more):
        """JSON that is longer than the body isn't there."""
        size = str(SIZE + len(TAIL) + more)
        assert "exceeds" in refused(post(http, HEAD, TAIL, **{HEADER: size}))

    @pytest.mark.parametrize("off", [-1, 1, -SIZE + 1, len(TAIL)])
    def test_wrong(self, http, off):
        """One that is not where the JSON ends is refused."""
        assert refused(post(http, HEAD, TAIL, **{HEADER: str(SIZE + off)}))

    @pytest.mark.parametrize(
        "tail",
        [b"", TAIL[:-1], TAIL[:-4], TAIL + b"\0", TAIL * 2],
        ids=["none", "a-byte-less", "a-number-less", "a-byte-more", "twice"],
    )
    def test_tail(self, http, tail):
        """Neither less nor more than the binary tensors may stand behind the JSON."""
        assert refused(post(http, HEAD, tail, **{HEADER: str(SIZE)}))

    @pytest.mark.parametrize("given", [str(SIZE), f"000{SIZE}"])
    def test_right(self, http, given):
        """The right one is taken."""
        assert parsed(post(http, HEAD, TAIL, **{HEADER: given}))


def frames_of(**changes):
    return {"inputs": [tensor("frames", ONE) | changes]}


def lengths_of(data, shape=(1,), **changes):
    given = {"name": "lengths", "shape": list(shape), "datatype": "INT32", "data": data}
    return {"inputs": [tensor("frames", ONE), given | changes]}


def frames_text(text):
    return json.dumps(frames_of(data=["here"])).replace('["here"]', text).encode()


def sized(size, shape=(1, 2, 3)):
    given = {"shape": list(shape), "parameters": {"binary_data_size": size}}
    return {"inputs": [{"name": "frames", "datatype": "FP32"} | given]}


def asking(*outputs, **parameters):
    return frames_of() | {"outputs": list(outputs), "parameters": parameters}


def output(name="probabilities", **parameters):
    return {"name": name, "parameters": parameters}


SHAPES = [
    [],
    [6],
    [2, 3],
    [1, 2, 3, 1],
    [1] * 100_000,
    [2, 2, 3],
    [1, 3, 2],
    [0, 2, 3],
    [1, 0, 3],
    [-1, 2, 3],
    [-1, -2, 3],
    [1, 2, -3],
    [1, 2**31, 3],
    [2**63, 2, 3],
    [2**64, 2, 3],
    [10**400, 2, 3],
    [1, 2.5, 3],
    [1, "2", 3],
    [True, 2, 3],
    [None, 2, 3],
    "1,2,3",
    None,
]
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
ODD_LENGTHS = [
    [0],
    [-1],
    [3],
    [2**31],
    [2**32 + 1],
    [2**40],
    [2**63],
    [2**64 + 1],
    [10**400],
    [1.5],
    [1e999],
    ["1"],
    [True],
    [None],
    [],
    [1, 1],
    1,
    None,
]


def bad(body, id):
    return pytest.param(body, id=id)


BODIES = [
    *(bad(frames_of(shape=s), f"shape-{str(s)[:20]}") for s in SHAPES),
    *(bad(sized(s), f"size-{str(s)[:9]}") for s in SIZES),
    *(bad(frames_text(t), f"data-{t[:24]}") for t in DATA),
    *(bad(frames_of(datatype=t), f"type-{t}") for t in TYPES),
    *(bad(lengths_of(n), f"length-{str(n)[:9]}") for n in ODD_LENGTHS),
    bad(b"", "empty"),
    bad(b"null", "null"),
    bad(b"[]", "list"),
    bad({}, "nothing"),
    bad({"inputs": []}, "no-input"),
    bad({"inputs": lengths_of([1])["inputs"][1:]}, "no-frames"),
    bad({"inputs": frames_of()["inputs"] * 2}, "frames-twice"),
    bad(frames_of(name="input"), "other-input"),
    bad(frames_of() | {"id": 5}, "id-number"),
    bad(
        lengths_of(None, [2**31 - 1], parameters={"binary_data_size": 4 * (2**31 - 1)}),
        "size-of-8-GiB",
    ),
    bad(lengths_of([1], [1, 2]), "lengths-[1,2]"),
    bad(lengths_of([1], [1, 1, 1]), "lengths-[1,1,1]"),
    bad(lengths_of([1], []), "lengths-[]"),
    bad(lengths_of([1], datatype="INT64"), "lengths-INT64"),
    bad(lengths_of([1], datatype="UINT32"), "lengths-UINT32"),
    bad(asking(output("other")), "other-output"),
    bad(asking(output(), output()), "output-twice"),
    bad(asking(output(), output("other")), "another-output"),
    bad(asking({}), "output-without-name"),
    bad(asking(output(binary_data=1)), "binary-1"),
    bad(asking(output(binary_data="true")), "binary-text"),
    bad(asking(binary_data_output="true"), "binary-output-text"),
    bad(asking(output(classification=-1)), "classes--1"),
    bad(asking(output(classification=True)), "classes-true"),
    bad(asking(output(classification="2")), "classes-text"),
    bad(asking(output(classification=1.0)), "classes-float"),
    bad(asking(output(classification=None)), "classes-null"),
    bad(asking(timeout="5"), "timeout-text"),
    bad(asking(timeout=True), "timeout-true"),
    bad(asking(timeout=-1), "timeout--1"),
    bad(asking(timeout=1e6), "timeout-float"),
    bad(asking(timeout=None), "timeout-null"),
    bad(asking(sequence_id=1.0), "sequence-float"),
    bad(asking(sequence_id=True), "sequence-true"),
    bad(asking(sequence_id=[1]), "sequence-list"),
    bad(asking(sequence_id="x" * 257), "sequence-long"),
    bad(asking(sequence_id=1, sequence_start=1), "start-1"),
    bad(asking(sequence_id=1, sequence_end="true"), "end-text"),
    bad(asking(sequence_id="never", sequence_end=True), "not-begun"),
    bad(frames_of() | {"parameters": [1]}, "parameters-list"),
]


@pytest.mark.parametrize("body", BODIES)
def test_refused(http, body):
    """What can't be taken is 400, with few words, and harms nothing."""
    assert len(refused(post(http, body))) < 500
    assert parsed(post(http, frames_of()))


@pytest.mark.parametrize(
    "parameters",
    [
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
    ],
    ids=str,
)
def test_parameters(http, parameters):
    """Parameters within their bounds, and unknown ones, are taken."""
    assert parsed(post(http, asking(**parameters)))


@pytest.mark.parametrize("digits", [20, 300, 310, 400, 4000])
def test_huge_timeout(http, digits):
    """A time without an end is no reason to fail."""
    assert post(http, asking(timeout=10**digits)).status_code in (200, 400)


class TestLengths:
    @pytest.mark.parametrize("behind", [np.nan, np.inf, 3e38])
    @pytest.mark.parametrize("name", TASKS)
    def test_behind(self, http, name, behind):
        """What stands behind a length is ignored, also what is no number."""
        rows = rows_of(name)
        frames, lengths = padded(rows)
        for row, length in zip(frames, lengths, strict=True):
            row[length:] = behind
        inputs, tail = all_binary(frames, lengths)
        output, _ = parsed(post(http, {"inputs": inputs}, tail, name))
        assert_right(output, expected(http, name, rows))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_within(self, http, value):
        """What stands before it must be finite."""
        frames = FRAMES.copy()
        frames[1, 4, 2] = value
        inputs, tail = all_binary(frames, COUNTS)
        assert "frames[1]" in refused(post(http, {"inputs": inputs}, tail))

    @pytest.mark.parametrize("length", [0, -1, 6, 2**31 - 1, -(2**31)])
    def test_binary(self, http, length):
        """A length out of bounds is refused in binary as well."""
        counts = COUNTS.copy()
        counts[2] = length
        inputs, tail = all_binary(FRAMES, counts)
        assert "lengths[2]" in refused(post(http, {"inputs": inputs}, tail))


class TestAnswer:
    @pytest.mark.parametrize("given", ["a", "ä\u2028\n", "x" * 10_000])
    def test_id(self, http, given):
        """The caller's id comes back as it was."""
        assert parsed(post(http, frames_of() | {"id": given}))[1]["id"] == given

    @pytest.mark.parametrize("members", [{}, {"id": None}, {"id": ""}], ids=str)
    def test_no_id(self, http, members):
        """Without one there is one, that of the request."""
        response = post(http, frames_of() | members)
        assert parsed(response)[1]["id"] == response.headers["x-request-id"]

    @pytest.mark.parametrize(
        ("outputs", "whole", "binary"),
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
    def test_binary(self, http, outputs, whole, binary):
        """An output is binary where it asks for that, or the request does and it says
        nothing else; without a binary output the answer is plain JSON."""
        body = {"inputs": flat(FRAMES, COUNTS)[0], "outputs": outputs}
        if whole is not None:
            body["parameters"] = {"binary_data_output": whole}
        response = post(http, body)
        assert (HEADER in response.headers) == binary
        assert_right(parsed(response)[0], expected(http, "walks", rows_of("walks")))

    @pytest.mark.parametrize("members", [{"model_name": "x"}, {"more": [[1]]}], ids=str)
    def test_other_members(self, http, members):
        """Members that are unknown are ignored, wherever they stand."""
        body = {"inputs": [tensor("frames", ONE) | members]} | members
        assert parsed(post(http, body | {"outputs": [output() | members]}))

    @pytest.mark.parametrize(
        "kind", [None, "application/octet-stream", "text/plain", "x"]
    )
    def test_any_type(self, http, kind):
        """The body's media type says nothing, nor does its absence."""
        headers = {} if kind is None else {"content-type": kind}
        response = post(http, frames_of(), **headers)
        assert response.request.headers.get("content-type") == kind
        assert parsed(response)

    @pytest.mark.parametrize("binary_data", [False, True])
    @pytest.mark.parametrize("top", [0, 1, 2, 100, 2**70])
    @pytest.mark.parametrize("name", TASKS)
    def test_classification(self, http, name, top, binary_data):
        """The likeliest classes are texts, best first; 0 asks for numbers, and more
        than there are gives all; behind a length there is nothing."""
        rows, asked = rows_of(name), {"classification": top, "binary_data": binary_data}
        inputs, tail = all_binary(*padded(rows))
        body = {"inputs": inputs, "outputs": [output(**asked)]}
        told, _ = parsed(post(http, body, tail, name))
        numbers = expected(http, name, rows)
        if top == 0:
            assert_right(told, numbers)
            return
        count = min(top, len(CLASSES[name]))
        assert told["datatype"] == "BYTES"
        assert told["shape"] == [*numbers.shape[:-1], count]
        texts = np.array(told["data"]).reshape(-1, count)
        for given, row in zip(
            texts, numbers.reshape(-1, numbers.shape[-1]), strict=True
        ):
            if not row.any():
                assert given.tolist() == [""] * count
                continue
            for text, index in zip(given, np.argsort(-row)[:count], strict=True):
                value, place, label = text.split(":")
                assert (int(place), label) == (index, CLASSES[name][index])
                assert float(value) == pytest.approx(row[index], abs=1e-5)


class TestLimits:
    @pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
    @pytest.mark.parametrize(
        ("shape", "limit"),
        [((5, 1), "sequences"), ((1, 21), "steps"), ((2, 16), "numbers")],
    )
    def test_over(self, limited, form, shape, limit):
        """What is over a limit is 413, padding included; what is just within is not."""
        for less, status in ((0, 413), (1, 200)):
            batch, steps = shape[0] - (less if shape[1] == 1 else 0), shape[1]
            steps -= less if shape[1] > 1 else 0
            frames = np.ones((batch, steps, 3), np.float32)
            inputs, tail = form(frames, np.ones(batch, np.int32))
            response = post(limited, {"inputs": inputs}, tail)
            assert response.status_code == status, response.text
            if less == 0:
                assert limit in refused(response, 413)

    def test_raw(self, limited):
        """So are a raw request's steps."""
        for steps, status in ((20, 200), (21, 413)):
            response = post(limited, b"", b"\0" * 12 * steps, **{HEADER: "0"})
            assert response.status_code == status

    def test_before_the_data(self, limited):
        """A shape over a limit is refused whatever its data."""
        body = frames_of(shape=[1, 21, 3], data=[])
        assert "steps" in refused(post(limited, body), 413)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v2", "GET"),
        ("/v2/", "GET"),
        ("/v2/health/ready", "GET"),
        ("/v2/models/walks", "GET"),
        ("/v2/models/walks/config", "GET"),
        ("/v2/models/walks/infer", "POST"),
        ("/v2/models/walks/versions/1/infer", "POST"),
        ("/v2/repository/index", "POST"),
    ],
)
@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_method(http, method, path, allowed):
    """Another method is refused with the one that works."""
    response = http.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert response.headers["content-type"] == "application/json"
    assert (response.content == b"") == (method == "HEAD")
