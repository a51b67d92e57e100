"""Sequences and tensors of impossible sizes, or of other sizes than they say."""

import json
import struct
from collections.abc import Iterator
from typing import NamedTuple

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import (
    DOORS,
    HTTP,
    STEPS,
    STREAMS,
    Door,
    refusal,
)
from tests.robustness.harness.memory import watched
from tests.robustness.harness.service import serving
from tests.robustness.harness.strict_http import Wire

PEAK = 64  # MiB
LENGTH = "Inference-Header-Content-Length"
MOST_STEPS, MOST_SEQUENCES = 10_000, 256
FEATURES = 28


class Bomb(NamedTuple):
    """A body, its status where own endpoints are asked, and its headers."""

    name: str
    body: bytes
    status: int
    headers: dict[str, str] = {}  # noqa: RUF012 (never changed)


def bombs(door: Door) -> Iterator[Bomb]:
    """Every door's, where it takes lists within lists."""
    zeros = b"[%b]" % b",".join([b"0"] * door.features)
    over = b"[%b]" % b",".join([zeros] * (MOST_STEPS + 1))
    good = b"[%b]" % zeros
    if len(over) < 2**20 or door in HTTP:
        yield Bomb("steps: one more", door.body(over), 413)
    if door in STREAMS:
        wide = b"[[%b]]" % b",".join([b"0"] * 400_000)
        yield Bomb("no step", door.body(b"[]"), 422)
        yield Bomb("a wide step", door.body(wide), 422)
        yield Bomb("300,000 empty", door.body(b"[%b[]]" % (b"[]," * 300_000)), 413)
        return
    for name, step in (("empty", b"[],"), ("narrow", b"[0],")):
        many = b"[%b]" % (step * 10**6)[:-1]
        yield Bomb(f"steps: a million {name}", door.body(many), 413)
    many = b"[%b]" % (b"[]," * 10**7)[:-1]
    yield Bomb("steps: ten million", door.body(many), 413)
    yield Bomb("a wide step", door.body(b"[[%b0]]" % (b"0," * 10**6)), 422)
    yield Bomb("sequences: one more", _several(door, [good] * 257), 413)
    yield Bomb("sequences: 100,000", _several(door, [good] * 100_000), 413)
    nine = b"[%b]" % b",".join([zeros] * 9_000)
    count = 2_000_000 // 9_000 // door.features + 1
    yield Bomb("numbers", _several(door, [nine] * count), 413)
    yield Bomb("no step", door.body(b"[]"), 422)
    yield Bomb("no step later", _several(door, [good, b"[]"]), 422)
    short = b"[%b,%b]" % (zeros, zeros[:-3] + b"]")
    yield Bomb("ragged", _several(door, [good, short]), 422)


def _several(door: Door, sequences: list[bytes]) -> bytes:
    between = b'}, {"frames": ' if door.name == "examples" else b","
    return door.body(between.join(sequences))


def tensors() -> Iterator[Bomb]:
    """Of the Open Inference Protocol: JSON and binary."""
    for shape, status in (
        ([1, MOST_STEPS + 1, FEATURES], 413), ([MOST_SEQUENCES + 1, 1, FEATURES], 413),
        ([200, 1_000, FEATURES], 413), ([16, 2**60 + 2, FEATURES], 400), ([2**31, 1, FEATURES], 400),
        ([2**63 - 1, 1, FEATURES], 400), ([2**64, 1, FEATURES], 400), ([-1, 1, FEATURES], 400),
        ([-1, -1, FEATURES], 400), ([1, 0, FEATURES], 400), ([0, 1, FEATURES], 400), ([1, STEPS], 400),
        ([1, STEPS, FEATURES, 1], 400), ([1] * 5_000, 400), ([1, 1, 10**6], 400),
        ([1, STEPS + 1, FEATURES], 400), ([1, STEPS - 1, FEATURES], 400), ([2, STEPS, FEATURES], 400),
    ):  # fmt: skip
        yield Bomb(f"tensor {shape!s:.40}", _json(shape), status)
        yield _binary(f"binary {shape!s:.40}", shape, status)
    whole = 4 * STEPS * FEATURES
    for size in (
        whole - 1,
        whole + 1,
        whole - 4,
        0,
        -whole,
        2**40,
        "a",
        1.5,
        None,
        True,
    ):
        if size is not None:
            yield _binary(f"binary size {size}", [1, STEPS, FEATURES], 400, size)
    for more in (-1, 1, 4):
        yield _binary(f"binary {more} bytes", [1, STEPS, FEATURES], 400, more=more)
    for number in ("nan", "inf", "-inf"):
        yield _binary(
            f"binary {number}", [1, STEPS, FEATURES], 400, first=float(number)
        )
    good = _json([1, STEPS, FEATURES])
    for length in (
        "-1",
        "1",
        str(len(good) + 1),
        "99999999999",
        "9" * 400,
        "a",
        "",
        "1.0",
    ):
        yield Bomb(f"header {length:.12}", good, 400, {LENGTH: length})
    for size in (0, 1, 4 * FEATURES - 1, 4 * FEATURES + 4):
        yield Bomb(f"raw {size}", bytes(size), 400, {LENGTH: "0"})
    yield Bomb("raw steps", bytes(4 * FEATURES * (MOST_STEPS + 1)), 413, {LENGTH: "0"})
    for lengths in ([0], [-1], [STEPS + 1], [1, 1], [2**40], []):
        yield Bomb(f"lengths {lengths}", _json([1, STEPS, FEATURES], lengths), 400)


def _json(shape: list[int], lengths: list[int] | None = None) -> bytes:
    frames = {"name": "frames", "datatype": "FP32", "shape": shape}
    inputs = [frames | {"data": [0.5] * (STEPS * FEATURES)}]
    if lengths is not None:
        one = {"name": "lengths", "datatype": "INT32", "shape": [len(lengths)]}
        inputs.append(one | {"data": lengths})
    return json.dumps({"inputs": inputs}).encode()


def _binary(
    name: str,
    shape: list[int],
    status: int,
    size: object = 4 * STEPS * FEATURES,
    more: int = 0,
    first: float = 0.5,
) -> Bomb:
    frames = {"name": "frames", "datatype": "FP32", "shape": shape}
    frames |= {"parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [frames]}).encode()
    data = struct.pack("<f", first) + bytes(4 * STEPS * FEATURES - 4 + max(more, 0))
    data = data[: len(data) + min(more, 0)]
    return Bomb(name, head + data, status, {LENGTH: str(len(head))})


@row("A8", "Shapes too large, or not those of the numbers", full=2**25, fast=2**20)
def large(tally: Tally, amount: int) -> None:
    """Each is refused before any engine sees it, in little memory; `amount` is how many
    bytes the longest body has."""
    with serving(tally) as service:
        steps = service.metric("unrolled_steps_total")
        count = 0
        with watched(service, PEAK) as memory:
            for door in DOORS:
                if door.name == "infer":
                    continue
                with door.visit(service.port, 10) as visit:
                    for bomb in bombs(door):
                        if len(bomb.body) > amount:
                            continue
                        count += 1
                        answer = visit.ask(bomb.body)
                        told = f"{door.name}, {bomb.name}: {answer.status}"
                        wanted = door.wanted(bomb.status)
                        tally.check(answer.status == wanted, f"{told}, not {wanted}")
                        refusal(tally, told, answer, dialect=door.dialect)
            with Wire(service.port) as wire:
                for bomb in tensors():
                    count += 1
                    path = "/v2/models/digits/infer"
                    answer = wire.request("POST", path, bomb.body, bomb.headers)
                    told = f"infer, {bomb.name}: {answer.status}"
                    good = answer.status == bomb.status
                    tally.check(good, f"{told}, not {bomb.status}: {answer.text:.80}")
                    refusal(tally, told, answer, dialect=True)
        more = service.metric("unrolled_steps_total") - steps
        tally.check(more == 0, f"the engines took {more} steps")
        tally.figure("cases", count)
        tally.figure("peak MiB", memory.risen)
        tally.check(memory.risen < PEAK, f"a peak of {memory.risen:.0f} MiB")
