"""The runs as a table, and as a picture."""

from collections.abc import Iterator
from pathlib import Path

from bench.overload.runs import Run

LAG_MS = 5  # p99 of the generator itself
COLUMNS = ("offered/s", "goodput/s", "of R", "p50", "p99", "refused", "refused p99")
COLUMNS += ("busy", "late", "lost", "probes failed", "MiB more", "recovery s")


def lines(runs: list[Run], capacities: dict[str, float]) -> Iterator[str]:
    """A table for each deadline."""
    for deadline in sorted({run.deadline for run in runs}):
        yield f"\nDeadline {deadline:g} s. Latencies in ms; refused: responses other than"
        yield "200; busy: no connection was idle; late: the deadline was missed."
        yield f"{'':22}" + "".join(f"{name:>14}" for name in COLUMNS)
        own = [run for run in runs if run.deadline == deadline]
        for run in own:
            yield _line(run, capacities[run.server])
        yield from _problems(own)


def _line(run: Run, capacity: float) -> str:
    result, statuses = run.result, run.result["statuses"]
    accepted, refused = result["accepted_ms"] or {}, result["refused_ms"] or {}
    cells = [
        f"{result['offered']:.0f}",
        f"{result['goodput']:.0f}",
        f"{result['goodput'] / capacity:.0%}",
        f"{accepted.get('p50', 0):.1f}",
        f"{accepted.get('p99', 0):.1f}",
        str(sum(n for status, n in statuses.items() if int(status) > 200)),
        f"{refused.get('p99', 0):.1f}",
        *(str(statuses.get(status, 0)) for status in ("-1", "-2", "0")),
        f"{run.probes['failed']}/{run.probes['count']}",
        f"{run.memory['after'] - run.memory['before']:.1f}",
        "-" if run.recovery is None else f"{run.recovery:.1f}",
    ]
    head = f"{run.server}, {run.factor:g} R"
    return f"{head:22}" + "".join(f"{cell:>14}" for cell in cells)


def _problems(runs: list[Run]) -> Iterator[str]:
    """Delays and errors of the generator itself."""
    for run in runs:
        result, texts = run.result, []
        lag = (result["lag_ms"] or {}).get("p99", 0)
        if lag > LAG_MS:
            texts.append(f"the generator was late: p99 {lag:.1f} ms")
        if result["offered"] < 0.97 * run.rate:
            texts.append(f"{result['offered']:.0f} of {run.rate:.0f}/s were sent")
        if result["wrong"]:
            texts.append(f"{result['wrong']} wrong responses")
        if texts:
            yield f"! {run.server}, {run.factor:g} R: {'; '.join(texts)}"
    cores = max(run.result["cores"] for run in runs)
    lag = max((run.result["lag_ms"] or {}).get("p99", 0) for run in runs)
    yield f"(the generator used up to {cores:.2f} cores, late by {lag:.1f} ms at p99)"


def plot(runs: list[Run], capacities: dict[str, float], file: Path) -> None:
    """Goodput by offered load; a panel for each deadline."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    deadlines = sorted({run.deadline for run in runs})
    size = (6.4 * len(deadlines), 4.8)
    figure, axes = pyplot.subplots(1, len(deadlines), figsize=size, squeeze=False)
    for axis, deadline in zip(axes[0], deadlines, strict=True):
        own = [run for run in runs if run.deadline == deadline]
        for place, server in enumerate(dict.fromkeys(run.server for run in own)):
            points = [run.result for run in own if run.server == server]
            axis.plot(
                [point["offered"] for point in points],
                [point["goodput"] for point in points],
                "os"[place % 2] + "-",
                label=f"{server} (R = {capacities[server]:.0f}/s)",
            )
        high = max(run.result["goodput"] for run in own)
        low = min(run.result["offered"] for run in own)
        ideal = [low * (high / low) ** (n / 50) for n in range(51)]
        axis.plot(ideal, ideal, "k--", lw=1, label="all that is offered")
        axis.set_xscale("log")
        axis.set_ylim(0)
        axis.set_xlabel("offered (requests a second, logarithmic)")
        axis.set_ylabel(f"answered within {deadline:g} s (requests a second)")
        axis.legend()
        axis.grid(alpha=0.3)
    figure.suptitle("Goodput under overload: 0.5, 1, 2, 5 and 10 times R")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
