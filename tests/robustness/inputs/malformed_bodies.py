"""Bodies that are malformed or unfit, and the status that each must get."""

from collections.abc import Iterator
from typing import NamedTuple

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import DOORS, HTTP, STREAMS, Door, refusal
from tests.robustness.harness.service import serving
from tests.robustness.harness.strict_http import Answer, Wire


class Case(NamedTuple):
    """A body, and its status where own endpoints are asked."""

    name: str
    body: bytes
    status: int


KINDS = ("text/plain", "application/octet-stream", "multipart/form-data", "a", "\x85")
TIMEOUTS = (
    "0",
    "-1",
    "1.5",
    "a",
    "86400001",
    "9" * 400,
    "",
    "1e3",
    "+5",
    "0x10",
    "1 2",
    "\xb2",
)
# In the place of a number: what is no JSON, and JSON that is no number of a model.
NO_NUMBERS = (
    b"NaN", b"Infinity", b"-Infinity", b"01", b"-01", b"1.", b".5", b"+1", b"-",
    b"0x10", b"1e", b"1e+", b"1_0", b"", b"'1'", b"nul", b"True", b"undefined",
    b"1 2", b"\x00", b"\xff",
)  # fmt: skip
UNFIT_NUMBERS = (
    b"null", b'"1"', b'"text"', b'""', b"true", b"false", b"[]", b"[1]", b"{}", b'{"a": 1}',
    b"1e999", b"-1e999", b"1e39", b"-1e39", b"9" * 40, b"9" * 5000, b"1e400000",
)  # fmt: skip
UNFIT_COUNTS = (b"0", b"-1", b"1.5", b'"3"', b"true", b"[1]", b"1e400", b"9" * 5000)
# In the place of a sequence.
UNFIT_SEQUENCES = (
    b"null", b'"text"', b"5", b"true", b"{}", b'{"a": 1}', b"[]", b"[[]]", b"[null]",
    b"[[],[]]", b"[[null]]", b"[[[[]]]]", b"[{}]", b'["text"]', b"[[0.5]]",
)  # fmt: skip
UNFIT_SHAPES = (
    b"[-1, 2, 28]", b"[1, 2]", b"[]", b"[1, 2, 28, 1]", b"[0, 2, 28]", b"[1, 2.5, 28]",
    b"[16, 1152921504606846978, 28]", b"56", b'"[1, 2, 28]"', b"null",
)  # fmt: skip
# In the place of a text.
NO_TEXTS = (
    b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"', b'"\xc0\xaf"', b'"\xed\xa0\x80"',
    b'"a\x01b"', b'"\\x41"', b'"\\u12"', b'"open', b"'text'",
)  # fmt: skip
UNFIT_BODIES = (b"null", b"[]", b"5", b'"text"', b"true", b"{}", b"[[[1]]]", b"[" * 300)
NOBODY = (
    "", " ", "..", "../../etc/passwd", "/etc/passwd", "digits/1", "DIGITS", "\\u0000", "a\\nb", "\\u2028",
    "x" * 10_000, "digits@", "digits@9", "@1",
)  # fmt: skip
UNFIT_TEXTS = (b"5", b"[]", b"{}", b"true", b'["digits"]')


def cases(door: Door) -> Iterator[Case]:
    """All of a door's."""
    good = door.good()
    for name, body in _no_json(good):
        if door.breaks or b"\n" not in body:
            yield Case(name, body, 400)
    for text in NO_NUMBERS:
        yield Case(f"cell {text!r:.20}", door.cell(text), 400)
    for text in UNFIT_NUMBERS:
        # The numbers of a tensor may be nested in whatever way.
        wanted = 200 if door.name == "infer" and text == b"[1]" else 422
        yield Case(f"cell {text!r:.20}", door.cell(text), wanted)
    for text in UNFIT_SEQUENCES:
        yield Case(f"sequence {text!r:.20}", door.body(text), 422)
    for text in NO_TEXTS:
        yield Case(f"text {text!r:.20}", member(good, door.text, text), 400)
    for text in UNFIT_TEXTS:
        yield Case(f"text {text!r:.20}", member(good, door.text, text), 422)
    for text in UNFIT_BODIES:
        yield Case(f"body {text!r:.20}", text, 422)
    few, many = door.frame(features=door.features - 1), door.frame() + b","
    many += door.frame(features=door.features + 1)
    short = door.frame() + b",[]"
    for name, text in (("few", few), ("ragged", many), ("short", short)):
        yield Case(f"{name} features", door.body(b"[%b]" % text), 422)
    yield Case("given twice", twice(door), 200)
    unknown = member(good, b"unknown", b"1")
    yield Case("unknown member", unknown, 200 if door.dialect else 422)
    yield from _own(door, good)
    yield Case("good", good, 200)


def _no_json(good: bytes) -> Iterator[tuple[str, bytes]]:
    yield "truncated", good[:-3]
    yield "word", b"sequences"
    for more in (b"x", b"{}", b"\0", b","):
        yield f"trailing {more!r}", good + more
    yield "trailing comma within", good[:-1] + b",}"
    yield "comment", b"/* */" + good
    yield "single quotes", good.replace(b'"', b"'")
    yield "no quotes", good.replace(b'"', b"")
    yield "bom", b"\xef\xbb\xbf" + good
    for coding in ("utf-16", "utf-16-be", "utf-32"):
        yield coding, good.decode().encode(coding)
    yield "bytes", bytes(range(256))
    yield "zeros", bytes(300)
    yield "key of no UTF-8", member(good, b"a\xff", b"1")
    yield "blank", b" \n\t "


def _own(door: Door, good: bytes) -> Iterator[Case]:
    """What only one protocol has."""
    if door.name in ("classify", "label"):
        for text in UNFIT_COUNTS:
            yield Case(f"top_k {text[:9]!r}", member(good, b"top_k", text), 422)
        for text in (b"1", b'"a"', b"{}", b"[]", b"[1]", b"[null,null]", b'["A"]'):
            yield Case(f"states {text!r}", member(good, b"states", text), 422)
        for text in (b"1", b"null", b'"true"', b"[true]"):
            yield Case(
                f"return_state {text!r}", member(good, b"return_state", text), 422
            )
        bare = door.form.partition(b', "model"')[0].rstrip(b"}") + b"}"
        body = bare.replace(b"%s", b"[%b]" % door.frame())
        for name in NOBODY:
            given = member(body, b"model", b'"%b"' % name.encode())
            yield Case(f"model {name!r:.20}", given, 404)
    elif door.name == "predict":
        yield Case("both", member(good, b"inputs", b"[[[1]]]"), 422)
        yield Case("signature", member(good, b"signature_name", b'"none"'), 422)
    elif door.name == "infer":
        for shape in UNFIT_SHAPES:
            yield Case(f"shape {shape!r:.30}", good.replace(b"[1, 2, 28]", shape), 422)
        for old, new in (
            (b"FP32", b"FP64"),
            (b"FP32", b"BYTES"),
            (b"frames", b"frame"),
        ):
            yield Case(f"{new!r}", good.replace(old, new), 422)
        for text in (b"-1", b'"a"', b"1.5", b"18446744073709551616"):
            given = b'{"timeout": %b}' % text
            yield Case(f"timeout {text!r}", member(good, b"parameters", given), 422)
    elif door in STREAMS:
        for text in (b'"AAAA"', b'""', b'"../../etc"', b'"%b"' % (b"A" * 60_000)):
            yield Case(f"state {text[:12]!r}", member(good, b"state", text), 422)


def member(body: bytes, name: bytes, value: bytes) -> bytes:
    """A body with a member before its others."""
    return b'{"%b": %b, ' % (name, value) + body[1:]


def twice(door: Door) -> bytes:
    """A good body, with something unfit before it under the same name."""
    good = door.good()
    name = good[2 : good.index(b'"', 2)]
    return member(good, name, b"[]")


def headers(door: Door) -> Iterator[tuple[str, str, int]]:
    """A header of a good body, its value, and the status."""
    for value in KINDS:
        yield "Content-Type", value, 200 if door.dialect else 415
    for value in TIMEOUTS:
        yield "X-Request-Timeout-Ms", value, 400
    yield "X-Request-Timeout-Ms", "86400000", 200


def visited(port: int, amount: int) -> Iterator[tuple[Door, Case, Answer]]:
    """Every case's answer, `amount` evenly chosen of each door."""
    for door in DOORS:
        every = list(cases(door))
        step = max(1, len(every) // amount)
        with door.visit(port) as visit:
            for case in every[::step]:
                yield door, case, visit.ask(case.body)
                if door in STREAMS:  # many faults in a row end a stream
                    visit.ask(door.good())


@row("A1", "Malformed bodies: exact status, right form", full=10_000, fast=10_000)
def malformed(tally: Tally, amount: int) -> None:
    """Each malformed or unfit body gets its one status, in its endpoint's form, in at
    most 8 KiB, without a word of our insides; what is good is answered as before."""
    with serving(tally) as service:
        count = 0
        for door, case, answer in visited(service.port, amount):
            count += 1
            where = f"{door.name}, {case.name}"
            wanted = door.wanted(case.status)
            told = f"{where}: {answer.status}, not {wanted}: {answer.text[:120]}"
            tally.check(answer.status == wanted, told)
            if answer.status != 200:
                refusal(tally, where, answer, dialect=door.dialect)
        with Wire(service.port) as wire:
            for door in HTTP:
                for name, value, status in headers(door):
                    count += 1
                    answer = wire.request("POST", door.path, door.good(), {name: value})
                    where = f"{door.name}, {name} {value:.20}"
                    told = f"{where}: {answer.status}, not {status}: {answer.text:.90}"
                    tally.check(answer.status == status, told)
                    if answer.status != 200:
                        refusal(tally, where, answer, dialect=door.dialect)
        tally.figure("cases", count)
