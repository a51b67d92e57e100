"""Large bodies in which everything is wrong."""

import json
import os
from contextlib import suppress
from pathlib import Path

from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.endpoints import HTTP, Door, refusal
from tests.robustness.harness.service import Service, serving

MOST_ERRORS = 20
BYTES = 8 * 2**20
QUICK = 0.3  # seconds of computing
CELL = b"1e39"  # JSON, and no float32


def wrong(door: Door, cells: int) -> tuple[bytes, int]:
    """Sequences of which every number is wrong, and how many numbers that is."""
    step = b"[%b]" % b",".join([CELL] * door.features)
    steps = min(cells // door.features, BYTES // (len(step) + 1) - 10)
    if door.name == "infer":
        shape = b"[1, %d, %d]" % (min(steps, 9_999), door.features)
        body = door.form.replace(b"[1, 2, 28]", shape)
        text = b"[%b]" % b",".join([step] * min(steps, 9_999))
        return body.replace(b"%s", text), 1
    between = b'}, {"frames": ' if door.name == "examples" else b","
    whole, rest = divmod(steps, 9_000)
    parts = [9_000] * whole + ([rest] if rest else [])
    sequences = [b"[%b]" % b",".join([step] * part) for part in parts]
    return door.body(between.join(sequences)), steps * door.features


@row("A9", "The largest bodies, wrong in every number", full=20, fast=2)
def amplified(tally: Tally, amount: int) -> None:
    """At most 20 errors are told, with how many there were, in at most 8 KiB."""
    with serving(tally) as service:
        for door in HTTP:
            body, count = wrong(door, 1_600_000 if amount > 5 else 300_000)
            begun = computed(service)
            with door.visit(service.port, 10) as visit:
                for _ in range(amount):
                    answer = visit.ask(body)
                    told = f"{door.name}: {answer.status} {answer.text:.100}"
                    tally.check(answer.status == door.wanted(422), told)
                    refusal(tally, told, answer, dialect=door.dialect)
                    problem = json.loads(answer.body)
                    if door.dialect:
                        texts = problem["error"].count("must be finite")
                        tally.check(0 < texts <= MOST_ERRORS, f"{told}: {texts} told")
                        continue
                    listed = len(problem["errors"])
                    tally.check(listed == MOST_ERRORS, f"{told}: {listed} told")
                    said = problem["error_count"]
                    tally.check(said == count, f"{told}: {said} of {count}")
            each = (computed(service) - begun) / amount
            tally.figure(f"{door.name} {len(body) / 2**20:.1f} MiB, ms", 1000 * each)
            if amount > 5:  # in the default tests no time is asserted
                tally.check(each < QUICK, f"{door.name}: {each:.2f} s")


def computed(service: Service) -> float:
    """Seconds that its processes have computed: others on the machine don't count."""
    ticks = 0
    for pid in service.family():
        with suppress(OSError):  # it has just ended
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
