"""Invalid requests of the Open Inference Protocol."""

import json

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
from tests.support.servers import send

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


def lengths_of(data, shape=(1,), **changes):
    fields = {"name": "lengths", "shape": list(shape), "datatype": "INT32"}
    return {"inputs": [tensor("frames", ONES), fields | {"data": data} | changes]}


def frames_text(text):
    return json.dumps(frames_of(data=["here"])).replace('["here"]', text).encode()


def with_binary_size(size, shape=(1, 2, 3)):
    fields = {"shape": list(shape), "parameters": {"binary_data_size": size}}
    return {"inputs": [{"name": "frames", "datatype": "FP32"} | fields]}


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
