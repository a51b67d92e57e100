"""The fast JSON parser: either it decodes exactly what the strict parser decodes, or it
returns None."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.codecs import fast_json, native, stream_messages
from service.codecs.stream_messages import StreamMessage
from service.errors import TooLarge
from service.settings import Limits

LIMITS = Limits(max_sequences=6, max_steps=40, max_cells=300)
PARSER = fast_json.FastParser(LIMITS)  # one for all bodies, as in the service


def parse(body, limits=LIMITS):
    parser = PARSER if limits is LIMITS else fast_json.FastParser(limits)
    return parser.parse_request(body, fast_json.count_lists(body))


def assert_same(body, limits=LIMITS):
    """If the fast parser decodes a body, the strict one decodes the same. Returns whether
    it does."""
    fast = parse(body, limits)
    if fast is None:
        return False
    strict = native.decode(body)
    arrays = native.to_arrays(strict, fast.sequences[0].shape[1], limits)
    assert len(fast.sequences) == len(arrays)
    for ours, theirs in zip(fast.sequences, arrays, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs, strict=True)
    assert (fast.model, fast.top_k) == (strict.model, strict.top_k)
    assert type(fast.top_k) is type(strict.top_k)
    assert fast.states == strict.states
    assert fast.return_state is strict.return_state
    return True


def assert_same_message(message):
    """The same for a stream's message."""
    fast = PARSER.parse_message(message)
    if fast is None:
        return False
    frames, return_state = fast
    strict = stream_messages.decode(message, frames.shape[1], LIMITS)
    assert frames.dtype == np.float32
    np.testing.assert_array_equal(frames, strict.frames, strict=True)
    assert strict.return_state is return_state
    assert (strict.state, strict.end) == (StreamMessage(None).state, False)
    return True


NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.floats(-1e3, 1e3),
    st.integers(-(2**70), 2**70),
    st.integers(-5, 5),
    st.just(-0.0),
)
TOKENS = st.one_of(st.text("abcXYZ019-_", max_size=50), st.text())


def sequences_of(features, numbers=NUMBERS):
    frame = st.lists(numbers, min_size=features, max_size=features)
    return st.lists(frame, min_size=1, max_size=12)


@st.composite
def written(draw, fields):
    """Fields as JSON, in any order and formatting."""
    names = draw(st.permutations(list(fields)))
    text = json.dumps(
        {name: fields[name] for name in names},
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 1, "\t"])),
        separators=draw(st.sampled_from([None, (",", ":"), (" , ", "\n:\r")])),
    )
    return text.encode("utf-8", "surrogatepass")


@st.composite
def requests(draw):
    """The body of a request, as any client may write it."""
    sequence = sequences_of(draw(st.integers(1, 4)))
    fields = {"sequences": draw(st.lists(sequence, min_size=1, max_size=5))}
    if draw(st.booleans()):
        fields["model"] = draw(st.one_of(st.none(), st.text()))
    if draw(st.booleans()):
        fields["top_k"] = draw(st.one_of(st.none(), st.integers(1, 2**64)))
    if draw(st.booleans()):
        count = len(fields["sequences"]) + draw(st.sampled_from([0, 0, 0, -1, 1]))
        tokens = st.lists(st.one_of(st.none(), TOKENS), min_size=count, max_size=count)
        fields["states"] = draw(st.one_of(st.none(), tokens))
    if draw(st.booleans()):
        fields["return_state"] = draw(st.booleans())
    return draw(written(fields))


@st.composite
def messages(draw):
    """A stream's message, as any client may write it."""
    fields = {"frames": draw(sequences_of(draw(st.integers(1, 4))))}
    others = {"return_state": st.booleans(), "state": TOKENS, "end": st.booleans()}
    for name, values in others.items():
        if draw(st.sampled_from([True, False, False])):
            fields[name] = draw(values)
    return draw(written(fields))


class TestSame:
    @given(requests(), messages())
    def test_valid(self, body, message):
        """Valid bodies and messages in any formatting are decoded the same, or not."""
        assert_same(body)
        assert_same_message(message)

    @given(
        st.integers(1, 4).flatmap(
            lambda features: st.lists(
                sequences_of(features, st.floats(-1e30, 1e30)), min_size=1, max_size=5
            )
        ),
        st.one_of(st.none(), st.sampled_from(["walks", "wälk", 'a"b'])),
        st.one_of(st.none(), st.integers(1, 100)),
        st.one_of(st.none(), st.sampled_from([None, "AbC-_09", ""])),
        st.booleans(),
    )
    def test_plain(self, sequences, model, top_k, state, return_state):
        """Plain bodies and messages are always decoded: none is left to the slow
        parser."""
        body = {"sequences": sequences, "model": model, "top_k": top_k}
        body["states"] = ([state, None] * 3)[: len(sequences)]
        body["return_state"] = return_state
        message = {"frames": sequences[0], "return_state": return_state}
        for indent, ascii_only in ((None, True), (2, False)):
            options = {"indent": indent, "ensure_ascii": ascii_only}
            assert assert_same(json.dumps(body, **options).encode())
            assert assert_same_message(json.dumps(message, **options).encode())
        assert assert_same(json.dumps(body | {"states": None}).encode())
        assert assert_same_message(json.dumps({"frames": sequences[0]}).encode())

    @given(
        st.from_regex(
            r"-?(0|[1-9]\d{0,24})(\.\d{1,30})?([eE][+-]?\d{1,3})?", fullmatch=True
        )
    )
    def test_digits(self, digits):
        """A number in any digits gives the same float32, to the last bit."""
        assert_same(b'{"sequences": [[[1, %s]]]}' % digits.encode())


# Pieces that mutations insert.
PIECES = [
    *(bytes([byte]) for byte in b'[]{},:" \n0123456789-+.eE\\ntf'),
    *(b"[[", b"]]", b"],[", b"[]", b"{}", b"null", b"true", b"false", b"NaN", b"1e400"),
    *(b"Infinity", b"-0", b"1.0", b"00", b'"[[["', b'"a"', b'{"a":1}', b"[1,2]"),
    *(b'"sequences":', b'"model":', b'"top_k":', b'"top_k":true', b'"states":'),
    *(b'"sequences":[[[1]]]', b'"states":["a"]', b'"return_state":true'),
    *(b'"frames":[[1]]', b'"state":"a"', b'"end":true'),
    *(b"\xff", b"\x00", b"\xef\xbb\xbf", b"\\ud800", b"\\u0061", b"9" * 30, b"/*x*/"),
]
NUMERALS = b"7 -7 0.25 1e5 12345678901234567890 1E-9 07 1.".split()
VALID = [
    b'{"sequences": [[[1, 2], [3, 4]], [[5, 6]]], "model": "walks", "top_k": 2}',
    b'{"sequences":[[[1.5,-2e3],[0,4],[7,8]]]}',
    b'{"top_k": null, "model": null, "sequences": [[[1], [2]], [[3]], [[4]]]}',
    b'{"model": "a[b", "sequences": [[[1, 2, 3]]]}',
    b'{"sequences": [[[1, 2]], [[3, 4], [5, 6]]], "states": ["Ab-_9", null]}',
    b'{"return_state": true, "states": ["Q"], "sequences": [[[1], [2]]]}',
]
VALID_MESSAGES = [
    b'{"frames": [[1, 2], [3, 4]]}',
    b'{"frames":[[1.5,-2e3],[0,4],[7,8]],"return_state":true}',
    b'{"return_state": false, "frames": [[1]]}',
]


def mutate(random, valid):
    """A valid body with a few random changes, some of which leave it valid."""
    body = bytearray(valid[random.integers(len(valid))])
    for _ in range(random.integers(1, 4)):
        start, end = sorted(random.integers(0, len(body) + 1, 2).tolist())
        end = min(end, start + 12)
        kind = random.integers(8)
        if kind == 0:
            body[start:start] = PIECES[random.integers(len(PIECES))]
        elif kind == 1:
            body[start:end] = PIECES[random.integers(len(PIECES))]
        elif kind == 2:
            body[start:end] = body[start:end] * random.integers(3)
        elif kind == 3 and start < len(body):
            body[start] ^= 1 << random.integers(8)
        elif kind == 4:
            comma = body.find(b",", start) + 1
            body[comma:comma] = b" \n" if comma else b""
        else:  # another number
            digits = [i for i, byte in enumerate(body) if chr(byte).isdecimal()]
            if digits:
                digit = digits[random.integers(len(digits))]
                body[digit : digit + 1] = NUMERALS[random.integers(len(NUMERALS))]
    return bytes(body)


@pytest.mark.slow
def test_mutated():
    """Whenever the fast parser decodes a mutated body or message, the strict parser
    accepts it and decodes the same."""
    random = np.random.default_rng(0)
    for check, valid in ((assert_same, VALID), (assert_same_message, VALID_MESSAGES)):
        outcomes = [check(mutate(random, valid)) for _ in range(10_000)]
        assert 0.1 < np.mean(outcomes) < 0.9  # both kinds occur


def frame(text):
    return b'{"sequences": [[' + text + b"]]}"


ODD = {
    "top-k-huge": b'{"sequences": [[[1]]], "top_k": 99999999999999999999}',
    "top-k-of-64-bits": b'{"sequences": [[[1]]], "top_k": 18446744073709551615}',
    "bracket-in-the-model": b'{"sequences": [[[1, 2]]], "model": "a[b"}',
    "brackets-in-the-model": b'{"model": "[[[]]]", "sequences": [[[1, 2]]]}',
    "escaped-member": b'{"sequence\\u0073": [[[1, 2]]]}',
    "bracket-in-a-state": b'{"sequences": [[[1, 2]]], "states": ["a[b"]}',
    "brackets-for-states": b'{"sequences": [[[1, 2]]], "states": null, "model": "["}',
    "escaped-state": b'{"sequences": [[[1]]], "states": ["\\u0061\\n\\ud83e\\udd80"]}',
    "empty-state": b'{"sequences": [[[1]]], "states": [""]}',
    "states-null": b'{"sequences": [[[1]]], "states": null}',
    "escaped-model": b'{"sequences": [[[1]]], "model": "\\u0061\\n\\ud83e\\udd80"}',
    "blank-before": b' \n{"sequences": [[[1, 2]]]}',
    "blank-behind": b'{"sequences": [[[1, 2]]]} \r\n\t',
    "underflow": frame(b"[1e-400, -1e-400]"),
    "minus-zero": frame(b"[-0, -0.0]"),
    "large-integer": frame(b"[18446744073709551615, -9223372036854775808]"),
    "halfway": frame(b"[16777217, 0.1000000014901161193847656250000001]"),
    "largest": frame(b"[3.4028235e38, -3.4028235e38]"),
}


def test_odd():
    """Odd but valid bodies are decoded as by the strict parser, or left to it."""
    for body in ODD.values():
        native.decode(body)
        assert_same(body)


def test_limits():
    """A body that just reaches a limit is decoded; a larger one is left to the strict
    parser."""
    frame, largest = [1, 2], [[[1, 2]] * 3, [[1, 2]] * 2]
    for changed, limit, body, larger in (
        ("max_sequences", 2, [[frame]] * 2, [[frame]] * 3),
        ("max_steps", 3, [[frame] * 3], [[frame] * 4]),
        ("max_cells", 10, largest, [*largest, [frame]]),
    ):
        limits = LIMITS._replace(**{changed: limit})
        assert assert_same(json.dumps({"sequences": body}).encode(), limits)
        assert parse(json.dumps({"sequences": larger}).encode(), limits) is None


def test_arrays_are_copies():
    """Decoded arrays don't change when the parser decodes further bodies."""
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(50, 3)).round(3).astype(np.float32)
    bodies = [json.dumps({"sequences": [[row.tolist()]]}).encode() for row in frames]
    requests = [parse(body) for body in bodies]
    for request, row in zip(requests, frames, strict=True):
        np.testing.assert_array_equal(request.sequences[0][0], row)


@given(st.binary())
def test_count_lists(body):
    assert fast_json.count_lists(body) == body.count(b"[")


class TestCheckSize:
    """Bodies over a limit are refused before they are parsed; no other is."""

    LIMITS = Limits(max_sequences=3, max_steps=1000, max_cells=60)

    def check(self, body, extra=0):
        fast_json.check_size(body, fast_json.count_lists(body), 2, self.LIMITS, extra)

    @given(
        st.lists(st.integers(1, 10), min_size=1, max_size=3),
        st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]),
        st.booleans(),
    )
    @example([10, 10, 10], (",", ":"), True)  # exactly at the limit
    @example([10, 10, 10], (" , ", " : "), True)
    def test_within(self, steps, separators, states):
        """A body within the limits passes in any formatting."""
        body = {"sequences": [[[0.5, 1]] * count for count in steps], "model": "a"}
        if states:
            body |= {"states": [None] * len(steps), "return_state": True, "top_k": 1}
        self.check(json.dumps(body, separators=separators).encode())
        rows = [{"frames": [[0, 1]] * n, "lengths": n, "state": [0] * 5} for n in steps]
        text = json.dumps({"instances": rows}, separators=separators)
        self.check(text.encode(), 5 + 4)

    def test_over(self):
        """Too many numbers, or too many lists, are refused."""
        for steps in (50, 1000):
            for frame in ([0.5, 1], [1] * 4, []):
                body = json.dumps({"sequences": [[frame] * steps]}).encode()
                with pytest.raises(TooLarge):
                    self.check(body)


@pytest.mark.parametrize(
    ("body", "name", "reads"),
    [
        (b'{"sequences": [[[1]]]}', None, "frames"),
        (b'{"sequences": [[[1]]], "model" : "a"}', "a", "frames"),
        (b'{"model": "a", "texts": ["[", "\\"model\\": \\"b\\"]"]}', "a", "text"),
        (b'{"tokens":[["\\"records\\":"]],"model":"a","model":"b"}', "b", "text"),
        (b'{"records": [[{"model": "a", "texts": "b"}]]}', None, "records"),
        (b'{"states": [null], "sequences": [[[1]]]}', None, ""),
        (b'{"model": null, "sequences": [[[1]]]}', "", "frames"),
        (b'{"model": "a\\u0062", "sequences": [[[1]]]}', "", ""),
        (b'{"model": "a[b]", "sequences": [[[1]]]}', "", ""),
        (b'{"s\\u0065quences": [[[1]]]}', "", ""),
        (b"{}", None, ""),
        (b"", None, ""),
    ],
)
def test_peek(body, name, reads):
    """The name and the input are what a parser reads, or empty where they are not
    certain: nothing in a text or a record is taken for them."""
    assert fast_json.peek(body) == (name, reads)
