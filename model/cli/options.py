"""The options that several commands have, and how the commands report errors."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from model.cli import libraries
from model.config import presets

Source = Annotated[
    str,
    typer.Argument(
        help="Built-in data set, preset, or file (see `datasets`).",
        metavar="NAME|FILE",
    ),
]
Folder = Annotated[
    Path,
    typer.Argument(
        help="Folder of a bundle, or of its versions, or a name: then the version that"
        " is served.",
        metavar="BUNDLE",
    ),
]
Int8 = Annotated[
    bool | None,
    typer.Option(
        "--int8/--no-int8",
        help="Add int8 weights, about twice as fast. Default: for an LSTM, if they change"
        " little.",
    ),
]
Output = Annotated[Path, typer.Option(help="Folder to write bundles to.")]
Promote = Annotated[
    Literal["better", "not-worse", "always", "never"],
    typer.Option(
        help="Serve the new version in place of the one in service: if its error on the"
        " test part is provably lower, or as low and it was trained on more (better); if"
        " it is not provably higher (not-worse); always; or never."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(help=f"Start from one of: {', '.join(presets())}."),
]
Settings = Annotated[
    Path | None,
    typer.Option(help="Start from a TOML file like `model/presets/*.toml`."),
]
Name = Annotated[
    str | None,
    typer.Option(help="Name of the bundle. [default: the preset's or the file's]"),
]
Runs = Annotated[Path, typer.Option(help="Folder for checkpoints and logs.")]


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """Report invalid settings, data or bundles in one line, with exit code 2."""
    try:
        yield
    except (ValueError, OSError, libraries.MissingLibraryError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None
