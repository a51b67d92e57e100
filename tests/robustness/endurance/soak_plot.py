"""Memory over the time of a soak, as a picture."""

from pathlib import Path

from tests.robustness.endurance.soak import Soak, verdict


def plot(soak: Soak, file: Path) -> None:
    """The serving process, the others, and all; the minutes' p99 below."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (memory, time) = pyplot.subplots(
        2, 1, figsize=(9, 6.5), sharex=True, height_ratios=[2.2, 1]
    )
    minutes = [second / 60 for second in soak.seconds]
    memory.plot(minutes, soak.total, label="all")
    memory.plot(minutes, soak.others, label="workers and their forkserver")
    memory.plot(minutes, soak.serving, label="the serving process")
    half = minutes[len(minutes) // 2]
    memory.axvspan(half, minutes[-1], alpha=0.1, label="what the rule looks at")
    memory.set_ylabel("memory (MiB, anonymous, proportional)")
    memory.set_ylim(0)
    memory.legend(loc="lower left", ncols=2)
    memory.grid(alpha=0.3)
    middles = [minute + 0.5 for minute in range(len(soak.p99))]
    time.plot(middles, soak.p99, "o-", label="p99")
    time.plot(middles, soak.p50, "s-", label="p50")
    time.set_xlabel("time (minutes)")
    time.set_ylabel("latency (ms)")
    time.set_ylim(0)
    time.legend()
    time.grid(alpha=0.3)
    kinds = {k: n for k, n in soak.counts.items() if k not in ("compared", "faults")}
    counts = ", ".join(f"{n:,} {kind}" for kind, n in kinds.items())
    rules = ", ".join(f"{k} {value:.2f}" for k, (value, _) in verdict(soak).items())
    wrong = sum(soak.faults.values())
    figure.suptitle(f"{counts}\n{wrong} faults; {rules}", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
