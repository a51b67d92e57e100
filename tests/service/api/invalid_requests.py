"""Tables of invalid requests to `/classify` or `/label`, each with its exact error."""

import gzip
import json
from dataclasses import dataclass, field

CANARY = "c4n4ry"  # input that no response may contain
FRAME = [1, 2, 3]


@dataclass(frozen=True)
class Case:
    """A request, and its error."""

    name: str
    body: bytes
    status: int
    slug: str
    paths: tuple[str, ...] = ()  # of exactly these fields
    headers: dict[str, str] = field(default_factory=dict)


def case(name, body, status, slug, *paths, headers=None):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Case(name, body, status, slug, paths, headers or {})


def malformed(name, body, *paths):
    return case(name, body, 400, "invalid-json", *paths)


def misfit(name, body, *paths):
    return case(name, body, 422, "invalid-request", *paths)


def unsupported(name, body=b'{"sequences": [[[1, 2, 3]]]}', **headers):
    headers = {name.replace("_", "-"): text for name, text in headers.items()}
    return case(name, body, 415, "unsupported-media-type", headers=headers)


def encoded(name, body, coding):
    return case(name, body, 400, "bad-encoding", headers={"content-encoding": coding})


def stated(states, *sequences, **members):
    """A request of two sequences (else of these) with `states`."""
    return {"sequences": list(sequences) or [[FRAME]] * 2, "states": states} | members


def no_token(name, token):
    body = stated([None, token])
    return case(name, body, 422, "invalid-state", "states[1]")


def unknown(name, model):
    body = {"sequences": [[FRAME]], "model": model}
    return case(name, body, 404, "unknown-model")


def cell(text):
    return b'{"sequences": [[[1, 2, ' + text + b"]]]}"


def nested(depth):
    return b"[" * depth + b"]" * depth


GOOD = b'{"sequences": [[[1, 2, 3]]]}'

NO_JSON = [
    malformed("empty", b""),
    malformed("blank", b" \n\t "),
    malformed("word", b"sequences"),
    malformed("truncated", GOOD[:-3]),
    malformed("truncated-string", b'{"sequences": [], "model": "c4n4ry'),
    malformed("trailing-word", GOOD + b"x"),
    malformed("trailing-object", GOOD + GOOD),
    malformed("trailing-nul", GOOD + b"\0"),
    malformed("trailing-comma", b'{"sequences": [[[1, 2, 3]]],}'),
    malformed("comma-in-frame", b'{"sequences": [[[1, 2, 3,]]]}'),
    malformed("single-quotes", b"{'sequences': [[[1, 2, 3]]]}"),
    malformed("comment", b'{/* c4n4ry */ "sequences": [[[1, 2, 3]]]}'),
    malformed("unquoted-key", b"{sequences: [[[1, 2, 3]]]}"),
    malformed("bom", b"\xef\xbb\xbf" + GOOD),
    malformed("utf-16", GOOD.decode().encode("utf-16")),
    malformed("utf-16-be", GOOD.decode().encode("utf-16-be")),
    malformed("utf-32", GOOD.decode().encode("utf-32")),
    malformed("invalid-utf-8", b'{"sequences": [[[1, 2, 3]]], "model": "c4n4ry\xff"}'),
    malformed("invalid-utf-8-key", b'{"sequences": [[[1, 2, 3]]], "c4n4ry\xff": 1}'),
    malformed("overlong-utf-8", b'{"sequences": [[[1, 2, 3]]], "model": "\xc0\xaf"}'),
    malformed("binary", bytes(range(256))),
    malformed("surrogate", b'{"sequences": [[[1, 2, 3]]], "model": "\\ud800"}'),
    malformed("surrogate-key", b'{"sequences": [[[1, 2, 3]]], "\\udfff": 1}'),
    malformed("line-break-in-string", b'{"sequences": [], "model": "c4n4ry\n"}'),
    malformed("bad-escape", b'{"sequences": [[[1, 2, 3]]], "model": "\\x41"}'),
    malformed("nan", cell(b"NaN"), "sequences[0][0][2]"),
    malformed("infinity", cell(b"Infinity"), "sequences[0][0][2]"),
    malformed("minus-infinity", cell(b"-Infinity"), "sequences[0][0][2]"),
    malformed("leading-zero", cell(b"01")),
    malformed("no-fraction", cell(b"1.")),
    malformed("no-whole", cell(b".5")),
    malformed("plus", cell(b"+1")),
    malformed("minus", cell(b"-")),
    malformed("hexadecimal", cell(b"0x10")),
    malformed("no-exponent", cell(b"1e")),
    malformed("nesting-open", b'{"sequences": ' + b"[" * 3),
]
MISFITS = [
    misfit("null", b"null", "body"),
    misfit("list", b"[]", "body"),
    misfit("number", b"5", "body"),
    misfit("string", b'"c4n4ry"', "body"),
    misfit("frames-only", [[FRAME]], "body"),
    misfit("object", {}, "sequences"),
    misfit("unknown-member", {"sequences": [[FRAME]], "c4n4ry": 1}, "body"),
    misfit("unknown-member-only", {CANARY: [[FRAME]]}, "body"),
    misfit("other-case", {"Sequences": [[FRAME]]}, "body"),
    misfit("member-like-a-path", {"x` - at `$.c4n4ry": 1}, "body"),
    misfit("long-member", {CANARY * 5000: 1}, "body"),
    misfit("sequences-null", {"sequences": None}, "sequences"),
    misfit("sequences-object", {"sequences": {CANARY: 1}}, "sequences"),
    misfit("sequences-string", {"sequences": "c4n4ry"}, "sequences"),
    misfit("no-sequence", {"sequences": []}, "sequences"),
    misfit("no-step", {"sequences": [[]]}, "sequences[0]"),
    misfit("no-step-later", {"sequences": [[FRAME], []]}, "sequences[1]"),
    misfit("empty-frame", {"sequences": [[[]]]}, "sequences[0][0]"),
    misfit("sequence-null", {"sequences": [None]}, "sequences[0]"),
    misfit("frame-null", {"sequences": [[FRAME, None]]}, "sequences[0][1]"),
    misfit("frame-number", {"sequences": [FRAME]}, "sequences[0][0]"),
    misfit("cell-null", cell(b"null"), "sequences[0][0][2]"),
    misfit("cell-string", cell(b'"3"'), "sequences[0][0][2]"),
    misfit("cell-secret", cell(b'"c4n4ry"'), "sequences[0][0][2]"),
    misfit("cell-boolean", cell(b"true"), "sequences[0][0][2]"),
    misfit("cell-list", cell(b"[]"), "sequences[0][0][2]"),
    misfit("cell-object", cell(b'{"c4n4ry": 1}'), "sequences[0][0][2]"),
    misfit("cell-1e999", cell(b"1e999"), "sequences[0][0][2]"),
    misfit("cell-1e39", cell(b"1e39"), "sequences[0][0][2]"),
    misfit("cell-minus-1e39", cell(b"-1e39"), "sequences[0][0][2]"),
    misfit("cell-5000-digits", cell(b"9" * 5000), "sequences[0][0][2]"),
    misfit("cell-40-digits", cell(b"9" * 40), "sequences[0][0][2]"),
    misfit(
        "two-cells",
        b'{"sequences": [[[1, 2, 3]], [[1, 1e39, 3], [1, 2, -1e300]]]}',
        "sequences[1][0][1]",
        "sequences[1][1][2]",
    ),
    misfit("few-features", {"sequences": [[[1, 2]]]}, "sequences[0][0]"),
    misfit("many-features", {"sequences": [[[1, 2, 3, 4]]]}, "sequences[0][0]"),
    misfit("ragged", {"sequences": [[FRAME, [1, 2], FRAME]]}, "sequences[0][1]"),
    misfit(
        "ragged-both-ways",
        {"sequences": [[FRAME], [[1], FRAME, [1, 2, 3, 4]]]},
        "sequences[1][0]",
        "sequences[1][2]",
    ),
    misfit("top-k-0", {"sequences": [[FRAME]], "top_k": 0}, "top_k"),
    misfit("top-k-minus-1", {"sequences": [[FRAME]], "top_k": -1}, "top_k"),
    misfit("top-k-minus-huge", {"sequences": [[FRAME]], "top_k": -(2**70)}, "top_k"),
    misfit("top-k-1.5", {"sequences": [[FRAME]], "top_k": 1.5}, "top_k"),
    misfit("top-k-1e400", b'{"sequences": [[[1, 2, 3]]], "top_k": 1e400}', "top_k"),
    misfit("top-k-string", {"sequences": [[FRAME]], "top_k": "3"}, "top_k"),
    misfit("top-k-true", {"sequences": [[FRAME]], "top_k": True}, "top_k"),
    misfit("top-k-list", {"sequences": [[FRAME]], "top_k": [1]}, "top_k"),
    misfit(
        "top-k-5000-digits",
        b'{"sequences": [[[1, 2, 3]]], "top_k": ' + b"9" * 5000 + b"}",
        "top_k",
    ),
    misfit(
        "top-k-and-cells",
        {"sequences": [[[1, 2]]], "top_k": 0},
        "top_k",
        "sequences[0][0]",
    ),
    misfit("model-number", {"sequences": [[FRAME]], "model": 3}, "model"),
    misfit("model-list", {"sequences": [[FRAME]], "model": ["walks"]}, "model"),
    misfit("model-object", {"sequences": [[FRAME]], "model": {CANARY: 1}}, "model"),
    misfit("model-boolean", {"sequences": [[FRAME]], "model": False}, "model"),
    misfit("states-number", stated(1), "states"),
    misfit("states-string", stated(CANARY), "states"),
    misfit("states-boolean", stated(True), "states"),
    misfit("states-object", stated({CANARY: 1}), "states"),
    misfit("state-number", stated([None, 1]), "states[1]"),
    misfit("state-boolean", stated([False, None]), "states[0]"),
    misfit("state-object", stated([None, {CANARY: 1}]), "states[1]"),
    misfit("state-list", stated([[CANARY], None]), "states[0]"),
    misfit("states-none", stated([]), "states"),
    misfit("states-too-few", stated([CANARY]), "states"),
    misfit("states-too-many", stated([CANARY] * 3), "states"),
    misfit("states-many-more", stated([None] * 1000), "states"),
    misfit("states-and-cells", stated([None] * 2, [[1]]), "states", "sequences[0][0]"),
    misfit("return-state-1", stated([None] * 2, return_state=1), "return_state"),
    misfit("return-state-word", stated(None, return_state=CANARY), "return_state"),
    misfit("return-state-list", stated(None, return_state=[True]), "return_state"),
    misfit("nesting-120", nested(120), "body"),
    misfit("nesting-1100", nested(1100), "body"),
    misfit("nesting-250000", nested(250_000), "body"),
    misfit(
        "nesting-in-sequences",
        b'{"sequences": ' + nested(250_000) + b"}",
        "sequences[0][0][0]",
    ),
    misfit("nesting-in-model", b'{"model": ' + nested(250_000) + b"}", "model"),
    misfit("nesting-in-states", b'{"states": ' + nested(250_000) + b"}", "states[0]"),
    misfit("nesting-in-unknown", b'{"x": ' + nested(250_000) + b"}", "body"),
    misfit("nesting-of-objects", b'{"model": ' + b'{"a":' * 5000 + b"1", "model"),
]
NAMES = [
    unknown("model-unknown", CANARY),
    unknown("model-empty", ""),
    unknown("model-blank", " "),
    unknown("model-path", "../../etc/passwd"),
    unknown("model-absolute-path", "/etc/passwd"),
    unknown("model-dots", ".."),
    unknown("model-dot-slash", "./walks"),
    unknown("model-version", "walks/1"),
    unknown("model-case", "WALKS"),
    unknown("model-nul", "walks\0"),
    unknown("model-line-break", "walks\nc4n4ry"),
    unknown("model-escape", "\x1b[31mc4n4ry"),
    unknown("model-line-separator", "walks\u2028"),
    unknown("model-10-KB", CANARY * 1707),
    unknown("model-html", "<script>c4n4ry</script>"),
]
TOKENS = [
    no_token("token-secret", CANARY),
    no_token("token-empty", ""),
    no_token("token-path", "../../etc/passwd"),
    no_token("token-nul", "\0"),
    no_token("token-line-break", f"{CANARY}\r\n{CANARY}"),
    no_token("token-escape", f"\x1b[31m{CANARY}"),
    no_token("token-crab", "\U0001f980"),
    no_token("token-zeros", "A" * 200),
    no_token("token-padded", "A" * 200 + "===="),
    no_token("token-60-KB", CANARY * 10_000),
    no_token("token-600-KB", CANARY * 100_000),
]
MEDIA = [
    unsupported("type-text", content_type="text/plain"),
    unsupported("type-octets", b"\xff\xfe", content_type="application/octet-stream"),
    unsupported("type-multipart", content_type="multipart/form-data; boundary=c4n4ry"),
    unsupported("type-msgpack", content_type="application/msgpack"),
    unsupported("type-secret", content_type="application/c4n4ry"),
    unsupported("type-odd", content_type="application/json/c4n4ry"),
    encoded("gzip-said-only", GOOD, "gzip"),
    encoded("deflate-said-only", GOOD, "deflate"),
    encoded("gzip-cut", gzip.compress(GOOD)[:-1], "gzip"),
    encoded("gzip-goes-on", gzip.compress(GOOD) + GOOD, "gzip"),
    encoded("deflate-of-gzip", gzip.compress(GOOD), "deflate"),
    unsupported(
        "gzip-twice", gzip.compress(gzip.compress(GOOD)), content_encoding="gzip, gzip"
    ),
    unsupported("identity-and-gzip", content_encoding="identity, gzip"),
    unsupported("brotli", content_encoding="br"),
    unsupported("coding-secret", content_encoding="c4n4ry"),
    malformed("gzip-not-said", gzip.compress(GOOD)),
]


TABLES = {
    "json": NO_JSON,
    "shape": MISFITS,
    "model": NAMES,
    "token": TOKENS,
    "media": MEDIA,
}
