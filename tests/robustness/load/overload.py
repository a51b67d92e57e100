"""More requests than can be answered: as many are answered as before, the others are
refused at once, and the service stays well."""

from functools import cache

from bench import networks, workloads
from bench.overload import series
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import serving

NETWORK, WORKLOAD = "lstm", "W2"
REQUEST_SECONDS = 1.0
KEPT = 0.9  # of the goodput at 1 R
REJECT_MS = 50
BACK_SECONDS = 5
GROWTH_MIB = 20


@cache
def _measured(seconds: int) -> tuple[Tally, float, tuple[series.Run, ...]]:
    """What `bench.overload` has of this service alone, once for both rows."""
    tally = Tally()
    folder = networks.folder(networks.CACHE)
    pool = workloads.load(folder, NETWORK, WORKLOAD)
    with serving(
        tally,
        bundles=folder / "bundles" / pool.network,
        request_seconds=REQUEST_SECONDS,
        log_level="error",
    ) as service:
        target = series.Target(
            "Unrolled",
            service.process.pid,
            service.port,
            pool.path,
            "/livez",
            "/readyz",
        )
        most = series.closed(target, pool, seconds)
        made = series.runs(
            target, pool, most, deadline=REQUEST_SECONDS, told=True, seconds=seconds
        )
    return tally, most, tuple(made)


@row("B3", "open loop at 0.5, 1, 2, 5, 10 R: goodput, rejects, recovery", full=30)
def shed(tally: Tally, amount: int) -> None:
    well, most, runs = _measured(amount)
    tally.total, tally.passed = well.total, well.passed
    tally.faults += well.faults
    tally.figure("R", most)
    base = next(run for run in runs if run.factor == 1).result["goodput"]
    for run in runs:
        result, name = run.result, f"{run.factor:g} R"
        good, accepted = result["goodput"], result["accepted_ms"] or {}
        rejected = (result["rejected_ms"] or {}).get("p99", 0.0)
        tally.figure(f"good at {name}", f"{good:.0f}/s ({rejected:.0f} ms rejects)")
        tally.check(not result["wrong"], f"{name}: {result['wrong']} wrong answers")
        late = accepted.get("p99", float("inf"))
        tally.check(
            late <= 1000 * REQUEST_SECONDS, f"{name}: accepted p99 {late:.0f} ms"
        )
        if run.factor < 2:
            continue
        tally.check(
            good >= KEPT * base, f"{name}: {good:.0f} good of {base:.0f} at 1 R"
        )
        tally.check(rejected < REJECT_MS, f"{name}: p99 of rejects {rejected:.0f} ms")
        silent = result["rejected_without_retry_after"]
        tally.check(not silent, f"{name}: {silent} rejects without Retry-After")
        back = run.recovery
        tally.check(
            back is not None and back <= BACK_SECONDS, f"{name}: well after {back} s"
        )
        more = run.memory["after"] - run.memory["before"]
        tally.check(more <= GROWTH_MIB, f"{name}: {more:.0f} MiB more")


@row("B4", "probes meanwhile: /livez within 1 s, /readyz steady", full=30)
def probed(tally: Tally, amount: int) -> None:
    _, _, runs = _measured(amount)
    for run in runs:
        name, probes = f"{run.factor:g} R", run.probes
        for place in range(probes["asked"]):
            tally.check(
                place >= probes["failed"], f"{name}: {probes['failed']} x /livez failed"
            )
        flaps = probes["ready_flaps"]
        tally.check(flaps <= 1, f"{name}: /readyz changed {flaps} times")
    slowest = max(run.probes["slowest_ms"] for run in runs)
    tally.figure("slowest /livez ms", slowest)
