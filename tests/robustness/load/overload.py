"""Rows B3 and B4: more requests than the service can answer."""

from functools import cache

from bench import networks, workloads
from bench.overload import runs as overload
from tests.robustness.harness.checklist import Tally, row
from tests.robustness.harness.service import serving

NETWORK, WORKLOAD = "lstm", "W2"
REQUEST_SECONDS = 1.0
GOODPUT_SHARE = 0.9  # of the goodput at 1 R
REFUSED_MS = 50
RECOVERY_SECONDS = 5
MEMORY_GROWTH = 20  # MiB


@cache
def _measure(seconds: int) -> tuple[Tally, float, tuple[overload.Run, ...]]:
    """The runs of `bench.overload` for this service alone, shared by both rows."""
    tally = Tally()
    folder = networks.folder(networks.CACHE)
    pool = workloads.load(folder, NETWORK, WORKLOAD)
    bundles = folder / "bundles" / pool.network
    settings = {"request_seconds": REQUEST_SECONDS, "log_level": "error"}
    with serving(tally, bundles=bundles, **settings) as service:
        pid, port = service.process.pid, service.port
        target = overload.Target("Unrolled", pid, port, pool.path, "/livez", "/readyz")
        capacity = overload.capacity(target, pool, seconds)
        runs = overload.measure(
            target, pool, capacity,
            deadline=REQUEST_SECONDS, send_deadline=True, seconds=seconds,
        )  # fmt: skip
    return tally, capacity, tuple(runs)


@row("B3", "Open loop at 0.5, 1, 2, 5, 10 R: goodput, refusals, recovery", full=30)
def load_shedding(tally: Tally, amount: int) -> None:
    """Beyond its capacity R the service answers as many requests as before, refuses
    the others fast with Retry-After, and recovers within seconds."""
    health, capacity, runs = _measure(amount)
    tally.total, tally.passed = health.total, health.passed
    tally.failures += health.failures
    tally.figure("R", capacity)
    goodput_at_r = next(run for run in runs if run.factor == 1).result["goodput"]
    for run in runs:
        result, name = run.result, f"{run.factor:g} R"
        goodput, accepted = result["goodput"], result["accepted_ms"] or {}
        refused = (result["refused_ms"] or {}).get("p99", 0.0)
        figure = f"{goodput:.0f}/s ({refused:.0f} ms refusals)"
        tally.figure(f"goodput at {name}", figure)
        wrong = result["wrong"]
        tally.check(not wrong, f"{name}: {wrong} wrong responses")
        p99 = accepted.get("p99", float("inf"))
        in_time = p99 <= 1000 * REQUEST_SECONDS
        tally.check(in_time, f"{name}: accepted p99 {p99:.0f} ms")
        if run.factor < 2:
            continue
        share = f"{name}: goodput {goodput:.0f}, at 1 R {goodput_at_r:.0f}"
        tally.check(goodput >= GOODPUT_SHARE * goodput_at_r, share)
        tally.check(refused < REFUSED_MS, f"{name}: refused p99 {refused:.0f} ms")
        silent = result["refused_without_retry_after"]
        tally.check(not silent, f"{name}: {silent} refusals without Retry-After")
        seconds = run.recovery
        recovered = seconds is not None and seconds <= RECOVERY_SECONDS
        tally.check(recovered, f"{name}: recovered after {seconds} s")
        grown = run.memory["after"] - run.memory["before"]
        tally.check(grown <= MEMORY_GROWTH, f"{name}: {grown:.0f} MiB more")


@row("B4", "Probes during overload: /livez within 1 s, /readyz steady", full=30)
def probes(tally: Tally, amount: int) -> None:
    """Every `/livez` responds, and `/readyz` changes at most once."""
    _, _, runs = _measure(amount)
    for run in runs:
        name, probes = f"{run.factor:g} R", run.probes
        failed, flaps = probes["failed"], probes["ready_flaps"]
        for place in range(probes["count"]):
            tally.check(place >= failed, f"{name}: {failed} x /livez failed")
        tally.check(flaps <= 1, f"{name}: /readyz changed {flaps} times")
    slowest = max(run.probes["slowest_ms"] for run in runs)
    tally.figure("slowest /livez ms", slowest)
