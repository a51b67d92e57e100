"""The fast reading of a request: what it gives is what the strict one gives, and of
everything that is not plain it gives nothing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.codecs import fast_json, native, stream_messages
from service.codecs.stream_messages import StreamMessage
from service.errors import ServiceError, TooLarge
from service.settings import Limits

LIMITS = Limits(max_sequences=6, max_steps=40, max_cells=300)


PARSER = fast_json.FastParser(LIMITS)  # the one for all bodies, as in the service


def read(body, limits=LIMITS):
    parser = PARSER if limits is LIMITS else fast_json.FastParser(limits)
    return parser.parse_request(body, fast_json.count_lists(body))


def assert_same(body, limits=LIMITS):
    """Where the fast reading gives something, the strict one gives the same; whether
    it does."""
    asked = read(body, limits)
    if asked is None:
        return False
    features = asked.sequences[0].shape[1]
    given = native.decode(body)
    arrays = native.to_arrays(given, features, limits)
    assert len(asked.sequences) == len(arrays)
    for ours, theirs in zip(asked.sequences, arrays, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs, strict=True)
    assert (asked.model, asked.top_k) == (given.model, given.top_k)
    assert type(asked.top_k) is type(given.top_k)
    assert asked.states == given.states
    assert asked.return_state is given.return_state
    return True


def assert_same_frames(message, limits=LIMITS):
    """Where the fast reading gives frames of a stream's message, the strict one gives
    the same, and nothing besides; whether it does."""
    parser = PARSER if limits is LIMITS else fast_json.FastParser(limits)
    given = parser.parse_message(message)
    if given is None:
        return False
    ours, wanted = given
    sent = stream_messages.decode(message, ours.shape[1], limits)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, sent.frames, strict=True)
    assert sent.return_state is wanted
    assert (sent.state, sent.end) == (StreamMessage(None).state, False)
    return True


NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.floats(-1e3, 1e3),
    st.integers(-(2**70), 2**70),
    st.integers(-5, 5),
    st.just(-0.0),
)


TOKENS = st.one_of(st.text("abcXYZ019-_", max_size=50), st.text())


@st.composite
def requests(draw):
    """A request as any client may write it."""
    features = draw(st.integers(1, 4))
    frame = st.lists(NUMBERS, min_size=features, max_size=features)
    sequence = st.lists(frame, min_size=1, max_size=12)
    members = {"sequences": draw(st.lists(sequence, min_size=1, max_size=5))}
    if draw(st.booleans()):
        members["model"] = draw(st.one_of(st.none(), st.text()))
    if draw(st.booleans()):
        members["top_k"] = draw(st.one_of(st.none(), st.integers(1, 2**64)))
    if draw(st.booleans()):
        count = len(members["sequences"]) + draw(st.sampled_from([0, 0, 0, -1, 1]))
        tokens = st.lists(st.one_of(st.none(), TOKENS), min_size=count, max_size=count)
        members["states"] = draw(st.one_of(st.none(), tokens))
    if draw(st.booleans()):
        members["return_state"] = draw(st.booleans())
    return draw(written(members))


@st.composite
def written(draw, members):
    """Members in any order and writing."""
    names = draw(st.permutations(list(members)))
    text = json.dumps(
        {name: members[name] for name in names},
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 1, "\t"])),
        separators=draw(st.sampled_from([None, (",", ":"), (" , ", "\n:\r")])),
    )
    return text.encode("utf-8", "surrogatepass")


@st.composite
def messages(draw):
    """A stream's message as any client may write it."""
    features = draw(st.integers(1, 4))
    frame = st.lists(NUMBERS, min_size=features, max_size=features)
    members = {"frames": draw(st.lists(frame, min_size=1, max_size=12))}
    others = {"return_state": st.booleans(), "state": TOKENS, "end": st.booleans()}
    for name, values in others.items():
        if draw(st.sampled_from([True, False, False])):
            members[name] = draw(values)
    return draw(written(members))


class TestSame:
    @settings(max_examples=1000)
    @given(requests())
    def test_valid(self, body):
        """Of a request in any writing it gives the same as the strict reading, in all
        of its members, or nothing."""
        assert_same(body)

    @settings(max_examples=500)
    @given(messages())
    def test_valid_message(self, message):
        """So it does of a stream's message."""
        assert_same_frames(message)

    @settings(max_examples=300)
    @given(
        st.integers(1, 4).flatmap(
            lambda features: st.lists(
                st.lists(
                    st.lists(
                        st.floats(-1e30, 1e30), min_size=features, max_size=features
                    ),
                    min_size=1,
                    max_size=12,
                ),
                min_size=1,
                max_size=5,
            )
        ),
        st.one_of(st.none(), st.sampled_from(["walks", "wälk", 'a"b'])),
        st.one_of(st.none(), st.integers(1, 100)),
        st.one_of(st.none(), st.sampled_from([None, "AbC-_09", ""])),
        st.booleans(),
    )
    def test_plain(self, sequences, model, top_k, state, wanted):
        """Of a plain request it always gives something: nothing is left to the slow
        reading; nor of a plain message of a stream."""
        body = {"sequences": sequences, "model": model, "top_k": top_k}
        body["states"] = ([state, None] * 3)[: len(sequences)]
        body["return_state"] = wanted
        message = {"frames": sequences[0], "return_state": wanted}
        for indent, ascii_only in ((None, True), (2, False)):
            writing = {"indent": indent, "ensure_ascii": ascii_only}
            assert assert_same(json.dumps(body, **writing).encode())
            assert assert_same_frames(json.dumps(message, **writing).encode())
        assert assert_same(json.dumps(body | {"states": None}).encode())
        assert assert_same_frames(json.dumps({"frames": sequences[0]}).encode())

    @settings(max_examples=500)
    @given(
        st.from_regex(
            r"-?(0|[1-9]\d{0,24})(\.\d{1,30})?([eE][+-]?\d{1,3})?", fullmatch=True
        )
    )
    def test_digits(self, digits):
        """Of a number in any digits it gives the same float32, to the last bit."""
        assert_same(b'{"sequences": [[[1, %s]]]}' % digits.encode())


# What a careless or hostile caller puts together: pieces of requests, and of none.
PIECES = [
    *(bytes([byte]) for byte in b'[]{},:" \n0123456789-+.eE\\ntf'),
    *(b"[[", b"]]", b"],[", b"[]", b"{}", b"null", b"true", b"false", b"NaN", b"1e400"),
    *(b"Infinity", b"-0", b"1.0", b"00", b'"[[["', b'"a"', b'{"a":1}', b"[1,2]"),
    *(
        b'"sequences":',
        b'"model":',
        b'"top_k":',
        b'"top_k":true',
        b'"sequences":[[[1]]]',
        b'"states":',
        b'"states":["a"]',
        b'"return_state":true',
        b'"frames":[[1]]',
        b'"state":"a"',
        b'"end":true',
    ),
    *(b"\xff", b"\x00", b"\xef\xbb\xbf", b"\\ud800", b"\\u0061", b"9" * 30, b"/*x*/"),
]
NUMERALS = [
    b"7",
    b"-7",
    b"0.25",
    b"1e5",
    b"12345678901234567890",
    b"1E-9",
    b"07",
    b"1.",
]
SOUND = [
    b'{"sequences": [[[1, 2], [3, 4]], [[5, 6]]], "model": "walks", "top_k": 2}',
    b'{"sequences":[[[1.5,-2e3],[0,4],[7,8]]]}',
    b'{"top_k": null, "model": null, "sequences": [[[1], [2]], [[3]], [[4]]]}',
    b'{"model": "a[b", "sequences": [[[1, 2, 3]]]}',
    b'{"sequences": [[[1, 2]], [[3, 4], [5, 6]]], "states": ["Ab-_9", null]}',
    b'{"return_state": true, "states": ["Q"], "sequences": [[[1], [2]]]}',
]
SOUND_MESSAGES = [
    b'{"frames": [[1, 2], [3, 4]]}',
    b'{"frames":[[1.5,-2e3],[0,4],[7,8]],"return_state":true}',
    b'{"return_state": false, "frames": [[1]]}',
]


def mutated(random, sound=SOUND):
    """A sound body with a few accidents, some of which it survives."""
    body = bytearray(sound[random.integers(len(sound))])
    for _ in range(random.integers(1, 4)):
        at, end = sorted(random.integers(0, len(body) + 1, 2).tolist())
        end = min(end, at + 12)
        kind = random.integers(8)
        if kind == 0:
            body[at:at] = PIECES[random.integers(len(PIECES))]
        elif kind == 1:
            body[at:end] = PIECES[random.integers(len(PIECES))]
        elif kind == 2:
            body[at:end] = body[at:end] * random.integers(3)
        elif kind == 3 and at < len(body):
            body[at] ^= 1 << random.integers(8)
        elif kind == 4:
            place = body.find(b",", at) + 1
            body[place:place] = b" \n" if place else b""
        else:  # a number
            places = [i for i, byte in enumerate(body) if chr(byte).isdecimal()]
            if places:
                place = places[random.integers(len(places))]
                body[place : place + 1] = NUMERALS[random.integers(len(NUMERALS))]
    return bytes(body)


@pytest.mark.parametrize("seed", range(8))
def test_mutated(seed):
    """Of thousands of spoilt bodies, whenever it gives something the strict reading
    accepts the body and gives the same."""
    random = np.random.default_rng(seed)
    outcomes = [assert_same(mutated(random)) for _ in range(2500)]
    assert 0.1 < np.mean(outcomes) < 0.9  # both kinds have been met


@pytest.mark.parametrize("seed", range(4))
def test_mutated_messages(seed):
    """So it is with the messages of streams."""
    random = np.random.default_rng(seed)
    outcomes = [
        assert_same_frames(mutated(random, SOUND_MESSAGES)) for _ in range(2500)
    ]
    assert 0.1 < np.mean(outcomes) < 0.9


def frame(text):
    return b'{"sequences": [[' + text + b"]]}"


HOSTILE = {
    "nested-to-the-right-count": frame(b"[[], [2, 3]], [4, 5]"),
    "nested-alone": frame(b"[[2, 3]], [[4, 5]]"),
    "nested-for-a-number": frame(b"[1, [2]], [3, 4]"),
    "nested-and-a-string-frame": frame(b'[[], [1, 2]], "ab"'),
    "nested-and-an-object-frame": frame(b'[[], [1, 2]], {"a": 1, "b": 2}'),
    "nested-and-a-bracket-less": frame(b'[[1], [2]], "ab", "cd"'),
    "string-of-the-right-length": frame(b'[1, 2], "ab"'),
    "strings-only": frame(b'"ab", "cd"'),
    "string-with-brackets": frame(b'"[[", "[["'),
    "string-for-a-sequence": b'{"sequences": ["abc"], "model": "[[[["}',
    "string-for-all": b'{"sequences": "abc", "model": "[[[["}',
    "object-for-a-frame": frame(b'{"a": 1, "b": 2}, [3, 4]'),
    "object-for-a-sequence": b'{"sequences": [{"ab": [1, 2]}]}',
    "object-for-a-sequence-nested": b'{"sequences": [{"ab": [[1, 2]]}]}',
    "object-for-all": b'{"sequences": {"a": [[1]], "b": [[2]]}}',
    "object-empty": b'{"sequences": {}}',
    "same-member-twice": b'{"sequences": [[[1]]], "sequences": [[[2]]]}',
    "same-member-escaped": b'{"sequences": [[[1]]], "sequence\\u0073": [[[2]]]}',
    "model-twice": b'{"sequences": [[[1]]], "model": "a", "model": "b"}',
    "top-k-twice": b'{"top_k": 1, "sequences": [[[1]]], "top_k": 2}',
    "unknown-member": b'{"sequences": [[[1]]], "x": 1}',
    "other-case": b'{"Sequences": [[[1]]]}',
    "byte-order-mark": b'\xef\xbb\xbf{"sequences": [[[1]]]}',
    "boolean": frame(b"[true, 2]"),
    "null": frame(b"[null, 2]"),
    "digits-in-a-string": frame(b'["1", 2]'),
    "1e400": frame(b"[1e400, 2]"),
    "minus-1e400": frame(b"[-1e400, 2]"),
    "1e39": frame(b"[1e39, 2]"),
    "huge-integer": frame(b"[" + b"9" * 60 + b", 2]"),
    "nan": frame(b"[NaN, 2]"),
    "leading-zero": frame(b"[01, 2]"),
    "ragged": frame(b"[1, 2], [3]"),
    "ragged-to-the-right-count": frame(b"[1, 2], [3], [4, 5, 6]"),
    "other-width-later": b'{"sequences": [[[1, 2]], [[1, 2, 3]]]}',
    "empty-frame": frame(b"[], []"),
    "empty-sequence": b'{"sequences": [[[1]], []]}',
    "no-sequence": b'{"sequences": []}',
    "no-member": b"{}",
    "top-k-true": b'{"sequences": [[[1]]], "top_k": true}',
    "top-k-1.0": b'{"sequences": [[[1]]], "top_k": 1.0}',
    "top-k-string": b'{"sequences": [[[1]]], "top_k": "1"}',
    "top-k-0": b'{"sequences": [[[1]]], "top_k": 0}',
    "model-number": b'{"sequences": [[[1]]], "model": 1}',
    "model-list": b'{"sequences": [[[1]]], "model": ["a"]}',
    "model-surrogate": b'{"sequences": [[[1]]], "model": "\\ud800"}',
    "states-too-few": b'{"sequences": [[[1]], [[2]]], "states": ["a"]}',
    "states-too-many": b'{"sequences": [[[1]]], "states": ["a", "b"]}',
    "states-none": b'{"sequences": [[[1]]], "states": []}',
    "states-number": b'{"sequences": [[[1]]], "states": [1]}',
    "states-boolean": b'{"sequences": [[[1]]], "states": [false]}',
    "states-object": b'{"sequences": [[[1]]], "states": {"a": "b"}}',
    "states-string": b'{"sequences": [[[1]]], "states": "a"}',
    "states-of-lists": b'{"sequences": [[[1]]], "states": [["a"]]}',
    "states-of-objects": b'{"sequences": [[[1]]], "states": [{"a": "b"}]}',
    "states-in-a-frame": b'{"sequences": [[[[]]]], "states": null}',
    "states-that-hide-a-list": b'{"sequences": [[[1], "a"]], "states": [[]]}',
    "states-surrogate": b'{"sequences": [[[1]]], "states": ["\\ud800"]}',
    "states-twice": b'{"states": ["a"], "sequences": [[[1]]], "states": ["b"]}',
    "return-state-null": b'{"sequences": [[[1]]], "return_state": null}',
    "return-state-number": b'{"sequences": [[[1]]], "return_state": 1}',
    "return-state-string": b'{"sequences": [[[1]]], "return_state": "true"}',
    "return-state-twice": b'{"sequences": [[[1]]], "return_state": true,'
    b' "return_state": false}',
    "invalid-utf-8": b'{"sequences": [[[1]]], "model": "\xff"}',
    "trailing": b'{"sequences": [[[1]]]}x',
    "trailing-nul": b'{"sequences": [[[1]]]}\0',
    "two-bodies": b'{"sequences": [[[1]]]}{"sequences": [[[2]]]}',
    "trailing-comma": b'{"sequences": [[[1,]]]}',
    "comment": b'{"sequences": [[[1]]]/**/}',
    "list": b"[[[1]]]",
    "empty": b"",
    "deep": b'{"sequences": ' + b"[" * 3000 + b"1" + b"]" * 3000 + b"}",
    "over-sequences": b'{"sequences": [' + b",".join([b"[[1]]"] * 7) + b"]}",
    "over-steps": frame(b",".join([b"[1]"] * 41)),
    "over-cells": b'{"sequences": [%s]}'
    % b",".join([b"[" + b",".join([b"[1,2]"] * 40) + b"]"] * 4),
}
# Sound, though they look odd: both readings take them.
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


# Messages of streams that are left to the strict reading; it takes the first few.
OTHER_MESSAGES = {
    "state": b'{"frames": [[1]], "state": "a"}',
    "state-null": b'{"frames": [[1]], "state": null}',
    "end": b'{"frames": [[1]], "end": true}',
    "end-false": b'{"frames": [[1]], "end": false}',
    "end-only": b'{"end": true}',
    "frames-null": b'{"frames": null, "end": true}',
    "all": b'{"frames": [[1]], "state": "a", "return_state": true, "end": true}',
    "frames-twice": b'{"frames": [[1]], "frames": [[2]]}',
    "frames-twice-escaped": b'{"frames": [[1]], "fr\\u0061mes": [[2]]}',
    "return-state-twice": b'{"frames": [[1]], "return_state": true,'
    b' "return_state": false}',
}
HOSTILE_MESSAGES = {
    "nothing": b"{}",
    "return-state-only": b'{"return_state": true}',
    "unknown-member": b'{"frames": [[1]], "x": 1}',
    "sequences": b'{"sequences": [[[1]]]}',
    "frames-null-only": b'{"frames": null}',
    "frames-object": b'{"frames": {"a": [1]}}',
    "frames-string": b'{"frames": "ab", "return_state": true}',
    "no-frame": b'{"frames": []}',
    "empty-frame": b'{"frames": [[]]}',
    "one-frame-only": b'{"frames": [1, 2]}',
    "several-sequences": b'{"frames": [[[1, 2]], [[3, 4]]]}',
    "nested-to-the-right-count": b'{"frames": [[[], [1, 2]], "ab"]}',
    "ragged": b'{"frames": [[1, 2], [3]]}',
    "string-frame": b'{"frames": [[1, 2], "ab"]}',
    "boolean": b'{"frames": [[true]]}',
    "1e400": b'{"frames": [[1e400]]}',
    "1e39": b'{"frames": [[1e39]]}',
    "return-state-null": b'{"frames": [[1]], "return_state": null}',
    "return-state-1": b'{"frames": [[1]], "return_state": 1}',
    "return-state-string": b'{"frames": [[1]], "return_state": "true"}',
    "list": b"[[1]]",
    "empty": b"",
    "trailing": b'{"frames": [[1]]}{"frames": [[1]]}',
    "over-steps": b'{"frames": [' + b",".join([b"[1]"] * 41) + b"]}",
    "over-cells": b'{"frames": [' + b",".join([b"[1,2,3,4,5,6,7,8]"] * 40) + b"]}",
}


@pytest.mark.parametrize(
    "message",
    [*OTHER_MESSAGES.values(), *HOSTILE_MESSAGES.values()],
    ids=[*OTHER_MESSAGES, *HOSTILE_MESSAGES],
)
def test_other_messages(message):
    """A stream's message that holds more than frames, or no sound ones, is left to
    the strict reading, and spoils nothing for the next one."""
    assert PARSER.parse_message(message) is None
    frames, wanted = PARSER.parse_message(b'{"frames": [[1, 2]], "return_state": true}')
    assert (frames.tolist(), wanted) == ([[1, 2]], True)


def test_hostile_messages_are_refused():
    """The strict reading takes those with a state or an end, and of a member that is
    given twice the last, and refuses the others."""
    for message in OTHER_MESSAGES.values():
        stream_messages.decode(message, 1, LIMITS)
    for message in HOSTILE_MESSAGES.values():
        for features in (1, 2, 8):
            with pytest.raises(ServiceError):
                stream_messages.decode(message, features, LIMITS)


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile(body):
    """What the strict reading refuses, or what needs it, is left to it."""
    assert read(body) is None


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
def test_odd(body):
    """What is sound but odd is read as the strict reading reads it, or left to it."""
    native.decode(body)
    assert_same(body)


def test_hostile_is_refused():
    """The strict reading refuses them all but where a member is given twice, of which
    it takes the last."""
    taken = set()
    for name, body in HOSTILE.items():
        for features in (1, 2):
            try:
                given = native.decode(body)
                native.to_arrays(given, features, LIMITS)
            except ServiceError:
                continue
            taken.add(name)
    twice = {name for name in HOSTILE if name.endswith("-twice")}
    assert taken == twice | {"same-member-escaped"}


@pytest.mark.parametrize(
    ("changed", "limit"),
    [("max_sequences", 2), ("max_steps", 3), ("max_cells", 10)],
)
def test_limits(changed, limit):
    """What is as large as a limit allows is read, and of anything larger the strict
    reading says what it is over."""
    largest = {
        "max_sequences": [[[1, 2]]] * 2,
        "max_steps": [[[1, 2]] * 3],
        "max_cells": [[[1, 2]] * 3, [[1, 2]] * 2],
    }[changed]
    limits = LIMITS._replace(**{changed: limit})
    assert assert_same(json.dumps({"sequences": largest}).encode(), limits)
    over = [*largest, [[1, 2]]] if changed != "max_steps" else [[[1, 2]] * 4]
    assert read(json.dumps({"sequences": over}).encode(), limits) is None


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_the_next_body(body):
    """A body that was given up spoils nothing for the next one."""
    read(body)
    asked = read(b'{"sequences": [[[1, 2]]]}')
    assert asked.sequences[0].tolist() == [[1, 2]]


def test_kept_arrays():
    """What was read stays as it is when other bodies are read after it."""
    made = np.random.default_rng(0).normal(size=(50, 3)).round(3).astype(np.float32)
    bodies = [json.dumps({"sequences": [one[None].tolist()]}).encode() for one in made]
    asked = [read(body) for body in bodies]
    for one, frames in zip(asked, made, strict=True):
        np.testing.assert_array_equal(one.sequences[0][0], frames)


@given(st.binary())
def test_lists(body):
    """The lists of a body are counted by their brackets."""
    assert fast_json.count_lists(body) == body.count(b"[")


class TestSize:
    """What is over the limit is seen before it is parsed; nothing else is refused."""

    LIMITS = Limits(max_sequences=3, max_steps=1000, max_cells=60)

    def check(self, body, others=0):
        fast_json.check_size(body, fast_json.count_lists(body), 2, self.LIMITS, others)

    @given(
        st.lists(st.integers(1, 10), min_size=1, max_size=3),
        st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]),
        st.booleans(),
    )
    def test_within(self, steps, separators, stated):
        """However it is written."""
        body = {"sequences": [[[0.5, 1]] * count for count in steps], "model": "a"}
        if stated:
            body |= {"states": [None] * len(steps), "return_state": True, "top_k": 1}
        self.check(json.dumps(body, separators=separators).encode())
        rows = [{"frames": [[0, 1]] * n, "lengths": n, "state": [0] * 5} for n in steps]
        text = json.dumps({"instances": rows}, separators=separators)
        self.check(text.encode(), 5 + 4)

    @pytest.mark.parametrize("steps", [50, 1000])
    def test_over(self, steps):
        """Whether the numbers or the lists are too many."""
        for frame in ([0.5, 1], [1] * 4, []):
            body = json.dumps({"sequences": [[frame] * steps]}).encode()
            with pytest.raises(TooLarge):
                self.check(body)
