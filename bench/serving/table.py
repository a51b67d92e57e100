"""The figures as tables, and whatever went wrong beside them."""

import statistics
from collections.abc import Iterator

from bench import workloads
from bench.serving import plan
from bench.serving.competitors import OURS
from bench.serving.plan import Cell, Run, median

LAG_MS = 5  # of the generator itself, p99, at most


def lines(runs: list[Run], cells: list[Cell], servers: list[str]) -> Iterator[str]:
    """A table for each network and workload, closed loops and open ones apart."""
    tables: dict[tuple, list[Cell]] = {}
    for cell in cells:
        tables.setdefault((cell.network, cell.workload, cell.open), []).append(cell)
    for (network, workload, is_open), columns in sorted(tables.items()):
        own = [r for r in runs if r.cell in columns]
        names = [name for name in servers if any(r.server == name for r in own)]
        if not own:
            continue
        yield f"\n{network}, {workload} ({workloads.TEXTS[workload]})"
        yield from (_open if is_open else _closed)(own, columns, names)
        yield from faults(own)


def _closed(runs: list[Run], columns: list[Cell], names: list[str]) -> Iterator[str]:
    yield "requests/s at so many connections (ours / theirs); ms at the most of them"
    yield _row("", [cell.text for cell in columns], "p50 / p99")
    ours = [name for name in names if name in OURS]
    for name in names:
        texts = []
        for cell in columns:
            rate = median(runs, name, cell, "rate")
            mine = [median(runs, our, cell, "rate") for our in ours]
            ratios = [_ratio(value, rate) for value in mine] if name not in OURS else []
            texts.append(_cell(f"{rate or 0:.1f}", ratios))
        last = columns[-1]
        times = [median(runs, name, last, "all", key) for key in ("p50", "p99")]
        yield _row(name, texts, " / ".join(f"{t:.1f}" if t else "-" for t in times))
    yield _footnote(runs, "rate")


def _open(runs: list[Run], columns: list[Cell], names: list[str]) -> Iterator[str]:
    yield "open loop: ms of the short ones (theirs / ours), which grow with the length"
    yield f"of the run where a server can't keep up; * {plan.SHARE:.0%} of our most"
    heads = [_rated(runs, cell) for cell in columns]
    yield _row("", [f"{head}: {key}" for head in heads for key in ("p50", "p99")], "")
    ours = [name for name in names if name in OURS]
    for name in names:
        texts = []
        for cell in columns:
            for key in ("p50", "p99"):
                time = median(runs, name, cell, "short", key)
                mine = [median(runs, our, cell, "short", key) for our in ours]
                ratios = [_ratio(time, v) for v in mine] if name not in OURS else []
                texts.append(_cell(f"{time:.1f}" if time else "-", ratios))
        yield _row(name, texts, "")
    yield _footnote(runs, "short", "p50")


def faults(runs: list[Run]) -> Iterator[str]:
    """Everything but right answers in good time."""
    for run in runs:
        result = run.result
        told = [result["error"]] if "error" in result else []
        for status, count in sorted(result.get("statuses", {}).items()):
            if status != "200":
                meaning = {"0": "hung up", "-1": "never sent: none was free in time"}
                told.append(f"{count} x {meaning.get(status, f'status {status}')}")
        if result.get("wrong"):
            told.append(f"{result['wrong']} wrong, by up to {result['worst']:.1e}")
        lag = (result.get("lag_ms") or {}).get("p99", 0)
        if lag > LAG_MS:
            told.append(f"the generator itself was late: p99 {lag:.1f} ms")
        if result.get("still_ms", 0) > plan.STILL_MS:
            told.append(f"the generator stood still for {result['still_ms']:.0f} ms")
        if result.get("others", 0) > plan.OTHERS:
            told.append(f"other programs used {result['others']:.1f} cores")
        if told:
            where = f"{run.server}, {_rated([run], run.cell)}, turn {run.turn + 1}"
            yield f"! {where}: {'; '.join(told)}"


def _rated(runs: list[Run], cell: Cell) -> str:
    rate = next((run.rate for run in runs if run.cell == cell), 0)
    return f"{rate:.0f}/s*" if cell.share else cell.text


def _footnote(runs: list[Run], *keys: str) -> str:
    """How far turns lie apart, and what the generator itself costs."""
    worst = 0.0
    for run in runs:
        middle = median(runs, run.server, run.cell, *keys)
        own = median([run], run.server, run.cell, *keys)
        if middle and own is not None:
            worst = max(worst, abs(own / middle - 1))
    used = [run.result["cpu_us"] for run in runs if "cpu_us" in run.result]
    cost = f"the generator took {statistics.median(used or [0]):.0f} us a request"
    if all(run.turn == 0 for run in runs):
        return f"({cost})"
    return f"(turns differ by up to {worst:.0%} from their median; {cost})"


def _ratio(above: float | None, below: float | None) -> str:
    if not above or not below:
        return "-"
    ratio = above / below
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.0f}x"


def _cell(figure: str, ratios: list[str]) -> str:
    return f"{figure} ({', '.join(ratios)})" if ratios else figure


def _row(name: str, texts: list[str], last: str) -> str:
    return f"{name:22}" + "".join(f"{text:>22}" for text in texts) + f"{last:>16}"
