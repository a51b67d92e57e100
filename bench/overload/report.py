"""The figures as a table, and as a picture."""

from collections.abc import Iterator
from pathlib import Path

from bench.overload.series import Run

LAG_MS = 5  # p99 of the generator itself, at most
COLUMNS = ("offered/s", "good/s", "of R", "p50", "p99", "rejects", "p99 rejects")
COLUMNS += ("busy", "late", "lost", "probes failed", "MiB more", "well after s")


def lines(runs: list[Run], most: dict[str, float]) -> Iterator[str]:
    """A table for each deadline.

    Args:
        most: R of each server.
    """
    for deadline in sorted({run.deadline for run in runs}):
        yield f"\nDeadline {deadline:g} s. Milliseconds of what was good; rejects are"
        yield "answers other than 200; busy: no connection was free; late: hung up."
        yield f"{'':22}" + "".join(f"{name:>14}" for name in COLUMNS)
        for run in (one for one in runs if one.deadline == deadline):
            yield _line(run, most[run.server])
        yield from _doubts([one for one in runs if one.deadline == deadline])


def _line(run: Run, most: float) -> str:
    result, statuses = run.result, run.result["statuses"]
    good, bad = result["accepted_ms"] or {}, result["rejected_ms"] or {}
    rejects = sum(n for s, n in statuses.items() if int(s) > 200)
    cells = [
        f"{result['offered']:.0f}",
        f"{result['goodput']:.0f}",
        f"{result['goodput'] / most:.0%}",
        f"{good.get('p50', 0):.1f}",
        f"{good.get('p99', 0):.1f}",
        str(rejects),
        f"{bad.get('p99', 0):.1f}",
        *(str(statuses.get(one, 0)) for one in ("-1", "-2", "0")),
        f"{run.probes['failed']}/{run.probes['asked']}",
        f"{run.memory['after'] - run.memory['before']:.1f}",
        "-" if run.recovery is None else f"{run.recovery:.1f}",
    ]
    head = f"{run.server}, {run.factor:g} R"
    return f"{head:22}" + "".join(f"{cell:>14}" for cell in cells)


def _doubts(runs: list[Run]) -> Iterator[str]:
    """What the generator itself did wrong."""
    for run in runs:
        lag = (run.result["lag_ms"] or {}).get("p99", 0)
        told = []
        if lag > LAG_MS:
            told.append(f"the generator was late: p99 {lag:.1f} ms")
        if run.result["offered"] < 0.97 * run.rate:
            told.append(f"{run.result['offered']:.0f} of {run.rate:.0f}/s were due")
        if run.result["wrong"]:
            told.append(f"{run.result['wrong']} wrong answers")
        if told:
            yield f"! {run.server}, {run.factor:g} R: {'; '.join(told)}"
    used = max(run.result["cores"] for run in runs)
    lag = max((run.result["lag_ms"] or {}).get("p99", 0) for run in runs)
    yield f"(the generator used up to {used:.2f} cores, late by {lag:.1f} ms at p99)"


def plot(runs: list[Run], most: dict[str, float], file: Path) -> None:
    """Goodput against what is offered; a picture for each deadline, side by side."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    deadlines = sorted({run.deadline for run in runs})
    figure, axes = pyplot.subplots(
        1, len(deadlines), figsize=(6.4 * len(deadlines), 4.8), squeeze=False
    )
    for axis, deadline in zip(axes[0], deadlines, strict=True):
        own = [run for run in runs if run.deadline == deadline]
        for place, server in enumerate(dict.fromkeys(run.server for run in own)):
            points = [run for run in own if run.server == server]
            x = [run.result["offered"] for run in points]
            y = [run.result["goodput"] for run in points]
            axis.plot(
                x,
                y,
                "os"[place % 2] + "-",
                label=f"{server} (R = {most[server]:.0f}/s)",
            )
        end = max(run.result["goodput"] for run in own)
        low = min(run.result["offered"] for run in own)
        perfect = [low * (end / low) ** (n / 50) for n in range(51)]
        axis.plot(perfect, perfect, "k--", lw=1, label="all that is offered")
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
