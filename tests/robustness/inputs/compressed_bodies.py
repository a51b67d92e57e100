"""Compressed bodies: good ones, broken ones, and such that would inflate for ever."""

import gzip
import time
import zlib

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import HTTP, refusal
from tests.robustness.harness.memory import watched
from tests.robustness.harness.service import MIB, serving
from tests.robustness.harness.strict_http import Wire
from tests.robustness.inputs import compressed_streams
from tests.robustness.inputs.decompression import WINDOWS, bomb, broken

GROWS = 32  # MiB
PEAK = 64  # MiB: a body of the limit is there as it came, and inflated
QUICK = 2.0  # seconds for a bomb


@row("A6", "Compressed bodies, and bombs", full=100, fast=10)
def compressed(tally: Tally, amount: int) -> None:
    """A compressed body is answered as the plain one is; broken ones are 400, other
    codings 415, and what would inflate beyond the limit 413, at once and in little
    memory."""
    with serving(tally) as service, Wire(service.port) as wire:

        def post(path: str, body: bytes, coding: str):
            return wire.request("POST", path, body, {"Content-Encoding": coding})

        for door in HTTP:
            good = door.good()
            for coding in WINDOWS:
                pack = gzip.compress if coding == "gzip" else zlib.compress
                for written in (coding, coding.upper(), f" {coding} "):
                    answer = post(door.path, pack(good), written)
                    told = (
                        f"{door.name}, {written!r}: {answer.status} {answer.text:.80}"
                    )
                    tally.check(answer.status == 200, told)
                for name, body in broken(coding, good):
                    answer = post(door.path, body, coding)
                    told = f"{door.name}, {coding}, {name}: {answer.status}"
                    tally.check(answer.status == 400, told)
                    refusal(tally, told, answer, dialect=door.dialect)
            twice = gzip.compress(gzip.compress(good))
            for coding in ("gzip, gzip", "identity, gzip", "br", "zstd", "compress", "x", "gzip;q=1"):  # fmt: skip
                answer = post(door.path, twice, coding)
                told = f"{door.name}, {coding}: {answer.status}"
                tally.check(answer.status == 415, told)
                tally.check("accept-encoding" in answer.headers, f"{told}, no Accept")
                refusal(tally, told, answer, dialect=door.dialect)
        spaces = gzip.compress(b" " * MIB)
        bombs = [bomb(coding, size * MIB) for coding in WINDOWS for size in (7, 10)]
        with watched(service, GROWS) as memory:
            for number in range(amount):
                door = HTTP[number % len(HTTP)]
                answer = post(door.path, spaces, "gzip")
                told = f"{door.name}, spaces: {answer.status}"
                tally.check(answer.status in (400, 422), told)
        tally.figure("grown MiB", memory.grown)
        tally.check(memory.grown < GROWS, f"grown by {memory.grown:.1f} MiB")
        with watched(service, GROWS) as memory:
            for door in HTTP:
                for number, body in enumerate(bombs):
                    begun = time.monotonic()
                    answer = post(door.path, body, list(WINDOWS)[number // 2])
                    took = time.monotonic() - begun
                    told = f"{door.name}, bomb {number}: {answer.status}, {took:.1f} s"
                    good = answer.status == 413 and (took < QUICK or amount <= 10)
                    tally.check(good, told)
        tally.figure("bombs' peak MiB", memory.risen)
        tally.check(memory.grown < GROWS, f"bombs: grown by {memory.grown:.1f} MiB")
        tally.check(memory.risen < PEAK, f"bombs: a peak of {memory.risen:.1f} MiB")
        compressed_streams.streams(tally, service, bombs=amount > 10)
