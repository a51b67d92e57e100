"""Error messages of the strict parsers, for bodies that they refuse."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given

from service.codecs import native, stream_messages, tf_serving
from service.errors import InvalidJson, InvalidRequest, ServiceError
from service.settings import Settings

LIMITS = Settings().limits
CANARY = "c4n4ry"  # input that no message may contain
FILL_IN = "fill in missing values, or leave their steps out"


def refused(body, decode=native.decode):
    """The error of a body, which has one field error at most: its path and message."""
    with pytest.raises(ServiceError) as caught:
        decode(body)
    fields = [(field.path, field.message) for field in caught.value.errors]
    return caught.value, *(fields or [("", "")])


def decode_message(text):
    return stream_messages.decode(text, 2, LIMITS)


def decode_instances(text):
    return tf_serving.decode(text, 2, 0, LIMITS)


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
STEPS = st.lists(st.lists(NUMBERS, max_size=4), max_size=4)


@given(
    st.lists(STEPS, min_size=1, max_size=4),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.data(),
)
def test_path_of_a_constant(sequences, constant, indent, model_first, data):
    """NaN or an infinity anywhere in a body that Python writes is found: the error has
    its path, however long the lists before it are and whatever the strings hold."""
    path = []
    place = sequences
    for _ in range(3):
        index = data.draw(st.integers(0, len(place)))
        path.append(index)
        if len(path) == 3:
            place.insert(index, constant)
            break
        if index == len(place):
            place.append([])
        place = place[index]
    fields = {"sequences": sequences}
    model = {"model": '[[,"NaN'}
    fields = model | fields if model_first else fields | model
    error, (where, message) = refused(json.dumps(fields, indent=indent).encode())
    assert type(error) is InvalidJson
    expected = "sequences" + "".join(f"[{index}]" for index in path)
    word = "NaN" if constant != constant else "Infinity"
    assert error.detail == f"{word} is not allowed: {expected}"
    assert (where, message) == (expected, f"must be a finite number: {FILL_IN}")


def test_other_constants():
    """NaN is found in every format's sequences; elsewhere the error has no path."""
    for decode, body, path in (
        (native.decode, b'{"top_k": NaN}', "top_k"),
        (native.decode, b'{"sequences": [NaN]}', "sequences[0]"),
        (decode_message, b'{"frames": [[1, 2], [1, NaN]]}', "frames[1][1]"),
        (decode_instances, b'{"instances": [[[-Infinity]]]}', "instances[0][0][0]"),
        (decode_instances, b'{"inputs": [[[1]], [[NaN]]]}', "inputs[1][0][0]"),
        (decode_instances, b'{"instances": [{"frames": [[NaN]]}]}', ""),
        (decode_instances, b'{"c4n4ry": [{"inputs": [[[[[[NaN', ""),
        (native.decode, b'{"model": "NaN", "sequences": [[[1]], Nan', ""),
        (native.decode, b'{"sequences": NaN', "sequences"),
        (native.decode, b'{"model": "NaN", NaN: 1}', ""),
    ):
        error, (where, _) = refused(body, decode)
        assert type(error) is InvalidJson, body
        assert where == path, body
        assert CANARY not in error.detail


def test_null():
    """A null in place of a number, as JavaScript writes NaN, gets its path."""
    _, field = refused(b'{"sequences": [[[1, 2], [1, null]]]}')
    assert field == ("sequences[0][1][1]", f"is null: {FILL_IN}")


def test_depth():
    """Lists with a level too few or too many: the error says how to write them."""
    for body, path, hint in (
        (
            b'{"sequences": [[1, 2], [3, 4]]}',
            "[0][0]",
            "one sequence: wrap it in a list",
        ),
        (b'{"sequences": [[1.5]]}', "[0][0]", "one sequence: wrap it in a list"),
        (b'{"sequences": [1, 2]}', "[0]", "one step as [[[1, 2]]]"),
        (b'{"sequences": [[[[1, 2]]]]}', "[0][0][0]", "too deep"),
        (b'{"sequences": [[[1], 2]]}', "[0][1]", "Expected `array`, got `int`"),
        (b'{"sequences": [["1"]]}', "[0][0]", "Expected `array`, got `str`"),
    ):
        error, (where, message) = refused(body)
        assert type(error) is InvalidRequest
        assert where == f"sequences{path}"
        assert hint in message
        instances = body.replace(b"sequences", b"instances")
        _, (where, other) = refused(instances, decode_instances)
        assert where == f"instances{path}"
        assert other == message or "array" in message
    for decode, place, field in (
        (native.decode, "body", "sequences"),
        (decode_instances, "body", "instances"),
        (decode_message, "message", "frames"),
    ):
        _, (where, message) = refused(b"[[[1, 2]]]", decode)
        assert (where, message) == (
            place,
            f'is a list: send an object, {{"{field}": [...]}}',
        )
    for body, path, hint in (
        (b'{"frames": [1, 2]}', "frames[0]", "one step: wrap it in a list"),
        (b'{"frames": [[[1, 2]]]}', "frames[0][0]", "steps of one sequence"),
    ):
        _, (where, message) = refused(body, decode_message)
        assert where == path
        assert hint in message


def test_unknown_field():
    """A misspelt field gets the one that is meant; nothing of it is repeated, whatever it
    holds."""
    for decode, body, path, meant in (
        (native.decode, {"sequence": [[[1, 2]]]}, "body", "sequences"),
        (native.decode, {"Sequences": [[[1, 2]]]}, "body", "sequences"),
        (native.decode, {"topk": 1}, "body", "top_k"),
        (native.decode, {"returnState": 1}, "body", "return_state"),
        (native.decode, {CANARY: 1}, "body", None),
        (native.decode, {CANARY * 100_000: 1}, "body", None),
        (native.decode, {"": 1}, "body", None),
        (native.decode, {f"x` - at `$.{CANARY}": 1}, "body", None),
        (native.decode, {f"x\n` - at `$.{CANARY}[9]": 1}, "body", None),
        (decode_message, {"frame": [[1, 2]]}, "message", "frames"),
        (decode_message, {f"` - at `$.{CANARY}": 1}, "message", None),
        (decode_instances, {"instances": [{"frame": []}]}, "instances[0]", "frames"),
        (decode_instances, {"inputs": {"length": []}}, "inputs", "lengths"),
        (decode_instances, {"inputs": {f"` - at `$.{CANARY}": []}}, "inputs", None),
    ):
        error, (where, message) = refused(json.dumps(body).encode(), decode)
        assert CANARY not in f"{error.detail}{where}{message}"
        assert where == path, body
        assert message.startswith("allows only the fields ")
        _, _, question = message.partition("; ")
        assert question == (f"did you mean {meant}?" if meant else "")
