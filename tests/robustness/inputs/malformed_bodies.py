"""Row A1: bodies that are malformed or invalid, and the status of each."""

from collections.abc import Iterator
from typing import NamedTuple

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import (
    ENDPOINTS,
    HTTP,
    STREAMS,
    Endpoint,
    check_refusal,
)
from tests.robustness.harness.service import serving
from tests.robustness.harness.strict_http import Response, StrictConnection


class Case(NamedTuple):
    """A body, and its status at native endpoints."""

    name: str
    body: bytes
    status: int


MEDIA_TYPES = (
    "text/plain",
    "application/octet-stream",
    "multipart/form-data",
    "a",
    "\x85",
)
TIMEOUTS = ("0", "-1", "1.5", "a", "86400001", "9" * 400, "", "1e3", "+5", "0x10", "1 2", "\xb2")  # fmt: skip
# In place of a number: invalid JSON, then JSON that is no finite float32.
INVALID_NUMBERS = (
    b"NaN", b"Infinity", b"-Infinity", b"01", b"-01", b"1.", b".5", b"+1", b"-",
    b"0x10", b"1e", b"1e+", b"1_0", b"", b"'1'", b"nul", b"True", b"undefined",
    b"1 2", b"\x00", b"\xff",
)  # fmt: skip
WRONG_NUMBERS = (
    b"null", b'"1"', b'"text"', b'""', b"true", b"false", b"[]", b"[1]", b"{}", b'{"a": 1}',
    b"1e999", b"-1e999", b"1e39", b"-1e39", b"9" * 40, b"9" * 5000, b"1e400000",
)  # fmt: skip
WRONG_COUNTS = (b"0", b"-1", b"1.5", b'"3"', b"true", b"[1]", b"1e400", b"9" * 5000)
# In place of a sequence.
WRONG_SEQUENCES = (
    b"null", b'"text"', b"5", b"true", b"{}", b'{"a": 1}', b"[]", b"[[]]", b"[null]",
    b"[[],[]]", b"[[null]]", b"[[[[]]]]", b"[{}]", b'["text"]', b"[[0.5]]",
)  # fmt: skip
WRONG_SHAPES = (
    b"[-1, 2, 28]", b"[1, 2]", b"[]", b"[1, 2, 28, 1]", b"[0, 2, 28]", b"[1, 2.5, 28]",
    b"[16, 1152921504606846978, 28]", b"56", b'"[1, 2, 28]"', b"null",
)  # fmt: skip
# In place of a text.
INVALID_TEXTS = (
    b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"', b'"\xc0\xaf"', b'"\xed\xa0\x80"',
    b'"a\x01b"', b'"\\x41"', b'"\\u12"', b'"open', b"'text'",
)  # fmt: skip
WRONG_BODIES = (b"null", b"[]", b"5", b'"text"', b"true", b"{}", b"[[[1]]]", b"[" * 300)
UNKNOWN_MODELS = (
    "", " ", "..", "../../etc/passwd", "/etc/passwd", "digits/1", "DIGITS", "\\u0000", "a\\nb", "\\u2028",
    "x" * 10_000, "digits@", "digits@9", "@1",
)  # fmt: skip
WRONG_TEXTS = (b"5", b"[]", b"{}", b"true", b'["digits"]')


def cases(endpoint: Endpoint) -> Iterator[Case]:
    """The cases of an endpoint."""
    valid = endpoint.valid_body()
    for name, body in _invalid_json(valid):
        if endpoint.allows_newlines or b"\n" not in body:
            yield Case(name, body, 400)
    for text in INVALID_NUMBERS:
        yield Case(f"cell {text!r:.20}", endpoint.body_with_number(text), 400)
    for text in WRONG_NUMBERS:
        # The numbers of a tensor may be nested in any way.
        status = 200 if endpoint.name == "infer" and text == b"[1]" else 422
        yield Case(f"cell {text!r:.20}", endpoint.body_with_number(text), status)
    for text in WRONG_SEQUENCES:
        yield Case(f"sequence {text!r:.20}", endpoint.body(text), 422)
    for text in INVALID_TEXTS:
        yield Case(f"text {text!r:.20}", member(valid, endpoint.text_field, text), 400)
    for text in WRONG_TEXTS:
        yield Case(f"text {text!r:.20}", member(valid, endpoint.text_field, text), 422)
    for text in WRONG_BODIES:
        yield Case(f"body {text!r:.20}", text, 422)
    few, many = endpoint.frame(features=endpoint.features - 1), endpoint.frame() + b","
    many += endpoint.frame(features=endpoint.features + 1)
    short = endpoint.frame() + b",[]"
    for name, text in (("few", few), ("ragged", many), ("short", short)):
        yield Case(f"{name} features", endpoint.body(b"[%b]" % text), 422)
    yield Case("repeated member", _repeated_member(endpoint), 200)
    unknown = member(valid, b"unknown", b"1")
    yield Case("unknown member", unknown, 200 if endpoint.compat else 422)
    yield from _specific(endpoint, valid)
    yield Case("valid", valid, 200)


def _invalid_json(valid: bytes) -> Iterator[tuple[str, bytes]]:
    yield "truncated", valid[:-3]
    yield "word", b"sequences"
    for more in (b"x", b"{}", b"\0", b","):
        yield f"trailing {more!r}", valid + more
    yield "trailing comma within", valid[:-1] + b",}"
    yield "comment", b"/* */" + valid
    yield "single quotes", valid.replace(b'"', b"'")
    yield "no quotes", valid.replace(b'"', b"")
    yield "bom", b"\xef\xbb\xbf" + valid
    for coding in ("utf-16", "utf-16-be", "utf-32"):
        yield coding, valid.decode().encode(coding)
    yield "bytes", bytes(range(256))
    yield "zeros", bytes(300)
    yield "key that is not UTF-8", member(valid, b"a\xff", b"1")
    yield "blank", b" \n\t "


def _specific(endpoint: Endpoint, valid: bytes) -> Iterator[Case]:
    """Cases of one API only."""
    if endpoint.name in ("classify", "label"):
        for text in WRONG_COUNTS:
            yield Case(f"top_k {text[:9]!r}", member(valid, b"top_k", text), 422)
        for text in (b"1", b'"a"', b"{}", b"[]", b"[1]", b"[null,null]", b'["A"]'):
            yield Case(f"states {text!r}", member(valid, b"states", text), 422)
        for text in (b"1", b"null", b'"true"', b"[true]"):
            yield Case(
                f"return_state {text!r}", member(valid, b"return_state", text), 422
            )
        bare = endpoint.template.partition(b', "model"')[0].rstrip(b"}") + b"}"
        bare = bare.replace(b"%s", b"[%b]" % endpoint.frame())
        for name in UNKNOWN_MODELS:
            body = member(bare, b"model", b'"%b"' % name.encode())
            yield Case(f"model {name!r:.20}", body, 404)
    elif endpoint.name == "predict":
        yield Case("both", member(valid, b"inputs", b"[[[1]]]"), 422)
        yield Case("signature", member(valid, b"signature_name", b'"none"'), 422)
    elif endpoint.name == "infer":
        for shape in WRONG_SHAPES:
            yield Case(f"shape {shape!r:.30}", valid.replace(b"[1, 2, 28]", shape), 422)
        for old, new in (
            (b"FP32", b"FP64"),
            (b"FP32", b"BYTES"),
            (b"frames", b"frame"),
        ):
            yield Case(f"{new!r}", valid.replace(old, new), 422)
        for text in (b"-1", b'"a"', b"1.5", b"18446744073709551616"):
            parameters = b'{"timeout": %b}' % text
            body = member(valid, b"parameters", parameters)
            yield Case(f"timeout {text!r}", body, 422)
    elif endpoint in STREAMS:
        for text in (b'"AAAA"', b'""', b'"../../etc"', b'"%b"' % (b"A" * 60_000)):
            yield Case(f"state {text[:12]!r}", member(valid, b"state", text), 422)


def member(body: bytes, name: bytes, value: bytes) -> bytes:
    """A body with one more member, before the others."""
    return b'{"%b": %b, ' % (name, value) + body[1:]


def _repeated_member(endpoint: Endpoint) -> bytes:
    """A valid body with an invalid member of the same name before the valid one."""
    valid = endpoint.valid_body()
    return member(valid, valid[2 : valid.index(b'"', 2)], b"[]")


def headers(endpoint: Endpoint) -> Iterator[tuple[str, str, int]]:
    """A header of a request with a valid body, its value, and the status."""
    for value in MEDIA_TYPES:
        yield "Content-Type", value, 200 if endpoint.compat else 415
    for value in TIMEOUTS:
        yield "X-Request-Timeout-Ms", value, 400
    yield "X-Request-Timeout-Ms", "86400000", 200


def responses(port: int, amount: int) -> Iterator[tuple[Endpoint, Case, Response]]:
    """The responses to `amount` cases of each endpoint."""
    for endpoint in ENDPOINTS:
        every = list(cases(endpoint))
        with endpoint.connect(port) as client:
            for case in every[:: max(1, len(every) // amount)]:
                yield endpoint, case, client.send(case.body)
                if endpoint in STREAMS:  # consecutive errors end a stream
                    client.send(endpoint.valid_body())


@row("A1", "Malformed bodies: exact status and form", full=10_000, fast=10_000)
def malformed(tally: Tally, amount: int) -> None:
    """Each malformed or invalid body gets its status, in its API's form, in at most
    8 KiB and without internals; valid ones are answered as before."""

    def check(where: str, endpoint: Endpoint, response: Response, status: int) -> None:
        got = f"{response.status}, not {status}: {response.text[:120]}"
        tally.check(response.status == status, f"{where}: {got}")
        if response.status != 200:
            check_refusal(tally, where, response, compat=endpoint.compat)

    with serving(tally) as service:
        count = 0
        for endpoint, case, response in responses(service.port, amount):
            count += 1
            where, status = (
                f"{endpoint.name}, {case.name}",
                endpoint.status(case.status),
            )
            check(where, endpoint, response, status)
        with StrictConnection(service.port) as connection:
            for endpoint in HTTP:
                body = endpoint.valid_body()
                for name, value, status in headers(endpoint):
                    count += 1
                    fields = {name: value}
                    response = connection.request("POST", endpoint.path, body, fields)
                    where = f"{endpoint.name}, {name} {value:.20}"
                    check(where, endpoint, response, status)
        tally.figure("cases", count)
