"""Invalid and unusual JSON, which the fast parser leaves to the strict one."""

import pytest

from service.codecs import fast_json, native, stream_messages
from service.errors import ServiceError
from service.settings import Limits

LIMITS = Limits(max_sequences=6, max_steps=40, max_cells=300)
PARSER = fast_json.FastParser(LIMITS)  # one for all bodies, as in the service


def parse_request(body):
    return PARSER.parse_request(body, fast_json.count_lists(body))


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
    "nested-for-a-number": b'{"frames": [[[1], 2]]}',
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


def test_hostile():
    """The fast parser returns None for invalid and unusual bodies, also right before a
    plain one. The strict parser refuses them all, except where a key repeats: the last
    value wins."""
    accepted = set()
    for name, body in HOSTILE.items():
        assert parse_request(body) is None, name
        plain = parse_request(b'{"sequences": [[[1, 2]]]}')
        assert plain.sequences[0].tolist() == [[1, 2]], name
        for features in (1, 2):
            try:
                native.to_arrays(native.decode(body), features, LIMITS)
            except ServiceError:
                continue
            accepted.add(name)
    repeated = {name for name in HOSTILE if name.endswith("-twice")}
    assert accepted == repeated | {"same-member-escaped"}


def test_other_messages():
    """Messages with other fields than frames, and invalid ones, are left to the strict
    parser, which refuses the invalid ones."""
    for message in [*OTHER_MESSAGES.values(), *HOSTILE_MESSAGES.values()]:
        assert PARSER.parse_message(message) is None, message
        frames, return_state = PARSER.parse_message(
            b'{"frames": [[1, 2]], "return_state": true}'
        )
        assert (frames.tolist(), return_state) == ([[1, 2]], True)
    for message in OTHER_MESSAGES.values():
        stream_messages.decode(message, 1, LIMITS)
    for message in HOSTILE_MESSAGES.values():
        for features in (1, 2, 8):
            with pytest.raises(ServiceError):
                stream_messages.decode(message, features, LIMITS)
