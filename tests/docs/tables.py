"""Writes the generated tables of docs: `python -m tests.docs.tables`."""

import re
from collections.abc import Callable
from pathlib import Path

from service.__main__ import shown
from service.settings import PREFIX, Settings
from service.telemetry.metrics import Metrics
from tests.support.servers import ROOT


def settings() -> str:
    """A row for each setting, in the order of the code."""
    rows = [
        (f"`{PREFIX}{name.upper()}`", f"`{shown(field.default)}`", field.description)
        for name, field in Settings.model_fields.items()
    ]
    return table(("Variable", "Default", "Meaning"), rows)


def metrics() -> str:
    """A row for each metric of the service, but for those of the process."""
    rows = [
        (f"`{name(family)}`", family.type, family.documentation)
        for family in Metrics().registry.collect()
        if not family.name.startswith("process_")
    ]
    return table(("Metric", "Type", "Meaning"), rows)


def name(family) -> str:
    """A metric's name as Prometheus reads it: counters end in `_total`."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def table(head, rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


GENERATED: list[tuple[Path, str, Callable[[], str]]] = [
    (ROOT / "docs/configuration.md", "settings", settings),
    (ROOT / "docs/operations.md", "metrics", metrics),
]


def updated(page: str, name: str, content: str) -> str:
    """A page with the content of one of its generated parts replaced."""
    begin = f"<!-- generated: {name}, by python -m tests.docs.tables -->\n"
    end = "<!-- end -->"
    pattern = f"({re.escape(begin)}).*?({re.escape(end)})"
    assert re.search(pattern, page, re.DOTALL), f"no place for {name}"
    return re.sub(
        pattern,
        lambda match: f"{match[1]}\n{content}\n{match[2]}",
        page,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for path, part, make in GENERATED:
        page = path.read_text(encoding="utf-8")
        path.write_text(updated(page, part, make()), encoding="utf-8")
