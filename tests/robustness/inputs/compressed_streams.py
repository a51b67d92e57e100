"""Streams whose lines come compressed, and such that never end to inflate."""

import gzip
import json
import threading
import time
import zlib
from contextlib import suppress

from tests.robustness.harness.checklist import Tally
from tests.robustness.harness.endpoints import STREAMS
from tests.robustness.harness.memory import watched
from tests.robustness.harness.service import MIB, Service
from tests.robustness.harness.strict_http import Closed, Malformed, Wire
from tests.robustness.inputs.decompression import WINDOWS, bomb, broken

LINES = STREAMS[0]
SENT = 2 * MIB  # which inflates to 2 GiB
LOOKS = 6
PEAK = 64  # MiB
# Of what a bomb inflates to: one line that has no end, none, and wrong ones.
KINDS = {"spaces": b" ", "breaks": b"\n", "faults": b"x\n", "brackets": b"["}


def streams(tally: Tally, service: Service, *, bombs: bool) -> None:
    """Compressed lines are answered as plain ones; what isn't compressed as it says is
    told; a bomb stops nobody else, and is over when its caller has gone."""
    good = (LINES.good() + b"\n") * 3
    kind = {"Content-Type": "application/x-ndjson"}
    with Wire(service.port) as wire:
        plain = wire.request("POST", LINES.path, good, kind)
        tally.check(plain.status == 200, f"plain lines: {plain.status}")
        for coding in WINDOWS:
            given = kind | {"Content-Encoding": coding}
            pack = gzip.compress if coding == "gzip" else zlib.compress
            answer = wire.request("POST", LINES.path, pack(good), given)
            # The token of the end is signed anew.
            same = answer.body.splitlines()[:3] == plain.body.splitlines()[:3]
            tally.check(same, f"{coding} lines: {answer.text[:100]}")
            for name, body in broken(coding, good):
                if name == "more" or "members" in name:
                    continue  # whose lines are whole, or blank
                answer = wire.request("POST", LINES.path, body, given)
                told = [json.loads(line) for line in answer.body.splitlines()]
                failed = [one["error"]["status"] for one in told if "error" in one]
                good_end = "end" in told[-1] and failed[-1:] == [400]
                tally.check(good_end, f"{coding} lines, {name}: {answer.text[:100]}")
    for coding in WINDOWS if bombs else ():
        for name, text in KINDS.items():
            _bomb(tally, service, f"{coding}, {name}", coding, bomb(coding, SENT, text))


def _bomb(tally: Tally, service: Service, where: str, coding: str, body: bytes) -> None:
    """Send it, look whether the service lives meanwhile, and go."""
    head = (
        f"POST {LINES.path} HTTP/1.1\r\nHost: here\r\nContent-Encoding: {coding}\r\n"
        f"Content-Type: application/x-ndjson\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with watched(service, PEAK) as memory, Wire(service.port, 2) as wire:

        def send() -> None:
            with suppress(OSError, Closed, Malformed):
                wire.send(head.encode() + body)
                wire.answer()

        sending = threading.Thread(target=send)
        sending.start()
        for _ in range(LOOKS):
            lives = service.lives()
            tally.check(lives, f"/livez isn't answered beside a bomb of {where}")
            if not lives or not sending.is_alive():
                break
            time.sleep(0.05)
        sending.join()
    tally.check(memory.risen < PEAK, f"{where}: a peak of {memory.risen:.0f} MiB")
    try:
        with LINES.visit(service.port) as visit:
            after = visit.ask(LINES.good()).status
    except (Closed, TimeoutError) as error:
        after = repr(error)
    tally.check(after == 200, f"after {where}: {after}")
