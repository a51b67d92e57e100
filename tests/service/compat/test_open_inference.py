"""The Open Inference Protocol v2 on the wire, without a client library."""

import numpy as np
import pytest

from tests.service.compat.protocols import (
    HEADER,
    ONES,
    asking,
    binary,
    frames_of,
    output,
    parsed,
    post,
    refused,
    tensor,
)
from tests.support.servers import (
    CLASSES,
    LENGTHS,
    TASKS,
    native_answers,
    padded,
    sequences_of,
)

BINARY = {"binary_data": True}


def expected(http, name, rows):
    """The answer of the service's own API, padded with zeros."""
    arrays = native_answers(http, name, rows)
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


FRAMES, COUNTS = padded(sequences_of("walks"), 7)


def inputs_of(
    frames, lengths, *binaries, nested=False, column=False, last=None, **fields
):
    """The inputs of a request, and the numbers that follow its JSON.

    Args:
        binaries: the names of the binary inputs.
        nested: numbers in JSON are lists of lists.
        column: the lengths have two dimensions.
        last: the name of the input that stands last.
        fields: further fields of each input.
    """
    arrays = {"frames": frames, "lengths": lengths[:, None] if column else lengths}
    inputs, tail = [], b""
    for name, numbers in sorted(arrays.items(), key=lambda pair: pair[0] == last):
        if name in binaries:
            inputs.append(binary(name, numbers, **fields))
            tail += numbers.tobytes()
        else:
            inputs.append(tensor(name, numbers, nested=nested, **fields))
    return inputs, tail


def flat(frames, lengths):
    return inputs_of(frames, lengths)


def all_binary(frames, lengths):
    return inputs_of(frames, lengths, "frames", "lengths")


FORMS = [  # the names of the binary inputs, and options
    ((), {}),
    ((), {"nested": True}),
    ((), {"last": "frames"}),
    ((), {"column": True}),
    (("frames", "lengths"), {}),
    (("frames", "lengths"), {"last": "frames", "column": True}),
    (("frames", "lengths"), {"data": None}),
    (("frames",), {}),
    (("frames",), {"last": "frames"}),
    (("lengths",), {}),
    (("lengths",), {"last": "frames"}),
]


def test_inputs(http):
    """Inputs in JSON, in binary and mixed, in any order, small and large, give the same
    answer as the service's own API."""
    for binaries, options in FORMS:
        for name, lengths in (("walks", LENGTHS), ("tags", [200] * 12)):
            rows = sequences_of(name, lengths)
            inputs, tail = inputs_of(*padded(rows, 7), *binaries, **options)
            output, answer = parsed(post(http, {"inputs": inputs}, tail, name))
            assert_right(output, expected(http, name, rows))
            assert set(answer) == {"model_name", "model_version", "id", "outputs"}
            assert (answer["model_name"], answer["model_version"]) == (name, "1")
    inputs, tail = all_binary(*padded(sequences_of("both"), 7))
    output, _ = parsed(post(http, {"inputs": inputs}, tail, "both"))
    assert_right(output, expected(http, "both", sequences_of("both")))


class TestRaw:
    """A body that is one tensor and nothing else: its header is 0."""

    def test_good(self, http):
        """It is one sequence, whose answer is binary."""
        for name in TASKS:
            (row,) = sequences_of(name, [5])
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
                rows = sequences_of(name)
                frames, lengths = padded(rows, 7)
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
        for length in (0, -1, 121, 2**31 - 1, -(2**31)):
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
        assert_right(
            parsed(response)[0], expected(http, "walks", sequences_of("walks"))
        )

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
            rows = sequences_of(name)
            parameters = {"classification": top, "binary_data": binary_data}
            inputs, tail = all_binary(*padded(rows, 7))
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
