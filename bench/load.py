"""The load generator: `python -m bench.load SPEC`, JSON in and JSON out.

It is a process of its own, so that it shares no interpreter with what it measures.
It runs at a higher priority than the servers, where it may: clients are elsewhere
in earnest and do not wait for the server's cores.
"""

import asyncio
import gc
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop

from bench.answers import Reference, judge, percentiles
from bench.http_connection import request
from bench.load_generator import UNSENT, Closed, Open, Spec

NICE = -10


def run(spec: Spec) -> dict[str, Any]:
    """What one run shows; see `_result`."""
    lines = (Path(spec.folder) / "bodies.jsonl").read_bytes().splitlines()
    requests = [request(spec.path, body) for body in lines]
    load = (Open if spec.rate else Closed)(spec, requests)
    gc.disable()

    async def drive() -> dict[str, Any]:
        watch = asyncio.create_task(load.watch())
        try:
            return await load.run()
        finally:
            watch.cancel()
            load.close()

    return _result(load, uvloop.run(drive()))


def _result(load: Closed | Open, seen: dict[str, Any]) -> dict[str, Any]:
    """Requests a second and percentiles of the right answers within the time that
    counts; statuses and faults of all answers. What an open loop never sent, since
    no connection was free, has waited at least until the end."""
    spec = load.spec
    reference = Reference.load(Path(spec.folder))
    right, result = judge(load.records, reference, spec.tolerance)
    right += [record for record in load.records if record.status == UNSENT]
    start, stop = seen.pop("start"), seen.pop("stop")
    counted = [record for record in right if load.counts(record, start, stop)]
    short = [record for record in counted if reference.short[record.place]]
    answered = [record for record in counted if record.status == 200]
    return result | {
        "rate": len(answered) / (stop - start),
        "all": percentiles([record.done - record.begun for record in counted]),
        "short": percentiles([record.done - record.begun for record in short]),
        "still_ms": 1000 * load.still,
        **seen,
    }


def main() -> None:
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    print(json.dumps(run(Spec(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
