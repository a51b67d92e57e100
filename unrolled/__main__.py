"""The command `unrolled`: train recurrent networks, and serve them over REST.

`python -m model` and `python -m service` have the same commands, half of them each.
"""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

PANELS = {
    "Train a network": (
        *("describe", "train", "search", "evaluate", "export", "inspect"),
        *("datasets", "keygen", "sign"),
    ),
    "Choose the version to serve": ("versions", "promote", "rollback"),
    "Serve it, and call the service": (
        *("serve", "predict", "classify", "label", "stream"),
        *("health", "key", "settings"),
    ),
}
TRAINING = next(iter(PANELS))


class Commands(TyperGroup):
    """The commands of both halves. Either half is imported when a command of it is
    looked up: serving doesn't wait for what only training imports."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for names in PANELS.values() for name in names]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        for panel, names in PANELS.items():
            if cmd_name in names:
                command = _group(panel).commands[cmd_name]
                command.rich_help_panel = panel  # type: ignore[attr-defined]
                return command
        # Typer suggests similar names from these.
        self.commands = {n: self.get_command(ctx, n) for n in self.list_commands(ctx)}
        return None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each half under its heading; on a terminal Rich does that."""
        for panel, names in PANELS.items():
            with formatter.section(panel):
                width = formatter.width - 6 - max(map(len, names))
                commands = ((name, self.get_command(ctx, name)) for name in names)
                formatter.write_dl(
                    [(name, c.get_short_help_str(width)) for name, c in commands]
                )


def _group(panel: str) -> TyperGroup:
    if panel == TRAINING:
        from model.__main__ import app as half
    else:
        from service.__main__ import app as half
    group = typer.main.get_command(half)
    assert isinstance(group, TyperGroup)
    return group


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown" if sys.stdout.isatty() else None,
)


@app.callback()
def main() -> None:
    """Train recurrent networks on sequences, and serve them over REST.

    `unrolled serve` serves the shipped bundles on port 8000: open
    http://localhost:8000/ and draw a digit.

    `unrolled train my.csv` trains on your data, and writes the bundle trained/my/1,
    which `unrolled serve` serves too. `unrolled datasets` shows the formats.

    `unrolled predict new.csv --model my -o answers.csv` asks the running service.
    """


if __name__ == "__main__":
    app(prog_name="unrolled")
