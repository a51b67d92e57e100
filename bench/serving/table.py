"""The comparison as tables, with everything that went wrong."""

import statistics
from collections.abc import Iterator

from bench import workloads
from bench.serving import runs as plan
from bench.serving.competitors import OURS
from bench.serving.runs import Cell, Run, median

LAG_MS = 5  # p99 of the generator itself


def lines(runs: list[Run], cells: list[Cell], servers: list[str]) -> Iterator[str]:
    """A table for each network, workload, and kind of loop."""
    tables: dict[tuple, list[Cell]] = {}
    for cell in cells:
        tables.setdefault((cell.network, cell.workload, cell.open), []).append(cell)
    for (network, workload, is_open), columns in sorted(tables.items()):
        own = [run for run in runs if run.cell in columns]
        names = [name for name in servers if any(run.server == name for run in own)]
        if not own:
            continue
        yield f"\n{network}, {workload} ({workloads.TEXTS[workload]})"
        yield from (_open_loop if is_open else _closed_loop)(own, columns, names)
        yield from problems(own)


def _closed_loop(
    runs: list[Run], columns: list[Cell], names: list[str]
) -> Iterator[str]:
    yield "requests/s by connections (ours / theirs); latency in ms with the most of them"
    yield _row("", [cell.text for cell in columns], "p50 / p99")
    for name in names:
        texts = []
        for cell in columns:
            rate = median(runs, name, cell, "rate")
            own = _ours(runs, name, names, cell, "rate")
            texts.append(_cell(f"{rate or 0:.1f}", [_ratio(o, rate) for o in own]))
        last = columns[-1]
        times = [median(runs, name, last, "all", key) for key in ("p50", "p99")]
        yield _row(name, texts, " / ".join(f"{t:.1f}" if t else "-" for t in times))
    yield _footnote(runs, "rate")


def _open_loop(runs: list[Run], columns: list[Cell], names: list[str]) -> Iterator[str]:
    yield "open loop: latency in ms of short sequences (theirs / ours), which grows with"
    yield f"the run's length if a server is too slow; * {plan.SHARE:.0%} of our capacity"
    heads = [_rate(runs, cell) for cell in columns]
    yield _row("", [f"{head}: {key}" for head in heads for key in ("p50", "p99")], "")
    for name in names:
        texts = []
        for cell in columns:
            for key in ("p50", "p99"):
                time = median(runs, name, cell, "short", key)
                own = _ours(runs, name, names, cell, "short", key)
                figure = f"{time:.1f}" if time else "-"
                texts.append(_cell(figure, [_ratio(time, o) for o in own]))
        yield _row(name, texts, "")
    yield _footnote(runs, "short", "p50")


def _ours(
    runs: list[Run], name: str, names: list[str], cell: Cell, *keys: str
) -> list[float | None]:
    """Our servers' figures, to compare a peer's with."""
    if name in OURS:
        return []
    return [median(runs, our, cell, *keys) for our in names if our in OURS]


def problems(runs: list[Run]) -> Iterator[str]:
    """Everything but correct responses in time."""
    meanings = {"0": "disconnected", "-1": "never sent: no connection was idle"}
    for run in runs:
        result = run.result
        texts = [result["error"]] if "error" in result else []
        for status, count in sorted(result.get("statuses", {}).items()):
            if status != "200":
                texts.append(f"{count} x {meanings.get(status, f'status {status}')}")
        if result.get("wrong"):
            texts.append(f"{result['wrong']} wrong, by up to {result['worst']:.1e}")
        lag = (result.get("lag_ms") or {}).get("p99", 0)
        if lag > LAG_MS:
            texts.append(f"the generator itself was late: p99 {lag:.1f} ms")
        if (stalled := result.get("stalled_ms", 0)) > plan.STALLED_MS:
            texts.append(f"the generator was stalled for {stalled:.0f} ms")
        if (others := result.get("others", 0)) > plan.OTHER_CORES:
            texts.append(f"other programs used {others:.1f} cores")
        if texts:
            where = f"{run.server}, {_rate([run], run.cell)}, turn {run.turn + 1}"
            yield f"! {where}: {'; '.join(texts)}"


def _rate(runs: list[Run], cell: Cell) -> str:
    rate = next((run.rate for run in runs if run.cell == cell), 0)
    return f"{rate:.0f}/s*" if cell.share else cell.text


def _footnote(runs: list[Run], *keys: str) -> str:
    """How much turns differ, and what the generator itself costs."""
    worst = 0.0
    for run in runs:
        middle = median(runs, run.server, run.cell, *keys)
        own = median([run], run.server, run.cell, *keys)
        if middle and own is not None:
            worst = max(worst, abs(own / middle - 1))
    cpu = [run.result["cpu_us"] for run in runs if "cpu_us" in run.result]
    cost = f"the generator took {statistics.median(cpu or [0]):.0f} us a request"
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
