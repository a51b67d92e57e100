"""Row A8: sequences and tensors that are too large, or do not match their numbers."""

import json
import struct
from collections.abc import Iterator
from typing import NamedTuple

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import (
    ENDPOINTS,
    HTTP,
    INFER,
    STEPS,
    STREAMS,
    Endpoint,
    check_refusal,
)
from tests.robustness.harness.service import MIB, serving, watch_memory
from tests.robustness.harness.strict_http import StrictConnection

MEMORY_PEAK = 64  # MiB
LENGTH = "Inference-Header-Content-Length"
MAX_STEPS, MAX_SEQUENCES = 10_000, 256
FEATURES = INFER.features
SHAPE = [1, STEPS, FEATURES]
BYTES = 4 * STEPS * FEATURES
SHAPES = (
    ([1, MAX_STEPS + 1, FEATURES], 413), ([MAX_SEQUENCES + 1, 1, FEATURES], 413),
    ([200, 1_000, FEATURES], 413), ([16, 2**60 + 2, FEATURES], 400), ([2**31, 1, FEATURES], 400),
    ([2**63 - 1, 1, FEATURES], 400), ([2**64, 1, FEATURES], 400), ([-1, 1, FEATURES], 400),
    ([-1, -1, FEATURES], 400), ([1, 0, FEATURES], 400), ([0, 1, FEATURES], 400), ([1, STEPS], 400),
    ([1, STEPS, FEATURES, 1], 400), ([1] * 5_000, 400), ([1, 1, 10**6], 400),
    ([1, STEPS + 1, FEATURES], 400), ([1, STEPS - 1, FEATURES], 400), ([2, STEPS, FEATURES], 400),
)  # fmt: skip


class Case(NamedTuple):
    """A body, its status at native endpoints, and its headers."""

    name: str
    body: bytes
    status: int
    headers: dict[str, str] = {}  # noqa: RUF012 (never changed)


def sequences(endpoint: Endpoint) -> Iterator[Case]:
    """Cases of an endpoint that takes nested lists."""
    zeros = b"[%b]" % b",".join([b"0"] * endpoint.features)
    long = b"[%b]" % b",".join([zeros] * (MAX_STEPS + 1))
    if len(long) < MIB or endpoint in HTTP:
        yield Case("steps: one more", endpoint.body(long), 413)
    yield Case("no step", endpoint.body(b"[]"), 422)
    if endpoint in STREAMS:
        wide = b"[[%b]]" % b",".join([b"0"] * 400_000)
        yield Case("a wide step", endpoint.body(wide), 422)
        empty = endpoint.body(b"[%b[]]" % (b"[]," * 300_000))
        yield Case("300,000 empty", empty, 413)
        return
    for name, step, count in (
        ("a million empty", b"[],", 10**6),
        ("a million narrow", b"[0],", 10**6),
        ("ten million", b"[],", 10**7),
    ):
        body = endpoint.body(b"[%b]" % (step * count)[:-1])
        yield Case(f"steps: {name}", body, 413)
    yield Case("a wide step", endpoint.body(b"[[%b0]]" % (b"0," * 10**6)), 422)
    short = b"[%b,%b]" % (zeros, zeros[:-3] + b"]")
    valid, long = b"[%b]" % zeros, b"[%b]" % b",".join([zeros] * 9_000)
    many_numbers = [long] * (2_000_000 // 9_000 // endpoint.features + 1)
    for name, parts, status in (
        ("sequences: one more", [valid] * (MAX_SEQUENCES + 1), 413),
        ("sequences: 100,000", [valid] * 100_000, 413),
        ("numbers", many_numbers, 413),
        ("no step later", [valid, b"[]"], 422),
        ("ragged", [valid, short], 422),
    ):
        yield Case(name, endpoint.body_of_sequences(parts), status)


def tensors() -> Iterator[Case]:
    """Cases of the Open Inference Protocol: JSON and binary tensors."""
    for shape, status in SHAPES:
        yield Case(f"tensor {shape!s:.40}", _json(shape), status)
        yield _binary(f"binary {shape!s:.40}", shape, status)
    for size in (BYTES - 1, BYTES + 1, BYTES - 4, 0, -BYTES, 2**40, "a", 1.5, True):
        yield _binary(f"binary size {size}", SHAPE, 400, size)
    for extra in (-1, 1, 4):
        yield _binary(f"binary {extra} bytes", SHAPE, 400, extra=extra)
    for number in ("nan", "inf", "-inf"):
        yield _binary(f"binary {number}", SHAPE, 400, first=float(number))
    valid = _json(SHAPE)
    for length in ("-1", "1", str(len(valid) + 1), "99999999999", "9" * 400, "a", "", "1.0"):  # fmt: skip
        yield Case(f"header {length:.12}", valid, 400, {LENGTH: length})
    for size in (0, 1, 4 * FEATURES - 1, 4 * FEATURES + 4):
        yield Case(f"raw {size}", bytes(size), 400, {LENGTH: "0"})
    yield Case("raw steps", bytes(4 * FEATURES * (MAX_STEPS + 1)), 413, {LENGTH: "0"})
    for lengths in ([0], [-1], [STEPS + 1], [1, 1], [2**40], []):
        yield Case(f"lengths {lengths}", _json(SHAPE, lengths), 400)


def _json(shape: list[int], lengths: list[int] | None = None) -> bytes:
    frames = {"name": "frames", "datatype": "FP32", "shape": shape}
    inputs = [frames | {"data": [0.5] * (STEPS * FEATURES)}]
    if lengths is not None:
        tensor = {"name": "lengths", "datatype": "INT32", "shape": [len(lengths)]}
        inputs.append(tensor | {"data": lengths})
    return json.dumps({"inputs": inputs}).encode()


def _binary(
    name: str,
    shape: list[int],
    status: int,
    size: object = BYTES,
    extra: int = 0,
    first: float = 0.5,
) -> Case:
    frames = {"name": "frames", "datatype": "FP32", "shape": shape}
    frames |= {"parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [frames]}).encode()
    data = struct.pack("<f", first) + bytes(BYTES - 4 + max(extra, 0))
    data = data[: len(data) + min(extra, 0)]
    return Case(name, head + data, status, {LENGTH: str(len(head))})


@row("A8", "Shapes that are too large or do not match", full=2**25, fast=2**20)
def shapes(tally: Tally, amount: int) -> None:
    """Each is refused before any engine computes it, in little memory; `amount` limits
    the size of bodies in bytes."""
    with serving(tally) as service:
        steps = service.metric("unrolled_steps_total")
        count = 0
        with watch_memory(service, MEMORY_PEAK) as memory:
            for endpoint in ENDPOINTS:
                if endpoint is INFER:
                    continue
                with endpoint.connect(service.port, 10) as client:
                    for case in sequences(endpoint):
                        if len(case.body) > amount:
                            continue
                        count += 1
                        response = client.send(case.body)
                        where = f"{endpoint.name}, {case.name}: {response.status}"
                        status = endpoint.status(case.status)
                        tally.check(response.status == status, f"{where}, not {status}")
                        check_refusal(tally, where, response, compat=endpoint.compat)
            with StrictConnection(service.port) as connection:
                for case in tensors():
                    count += 1
                    response = connection.request("POST", INFER.path, case.body, case.headers)  # fmt: skip
                    where = f"infer, {case.name}: {response.status}"
                    message = f"{where}, not {case.status}: {response.text:.80}"
                    tally.check(response.status == case.status, message)
                    check_refusal(tally, where, response, compat=True)
        more = service.metric("unrolled_steps_total") - steps
        tally.check(more == 0, f"the engines took {more} steps")
        tally.figure("cases", count)
        peak = memory.peak_increase
        tally.figure("peak MiB", peak)
        tally.check(peak < MEMORY_PEAK, f"a peak of {peak:.0f} MiB")
