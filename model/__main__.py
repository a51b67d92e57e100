"""The commands: datasets, train, evaluate, export, inspect, keygen, sign."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from model import config
from model.bundle import quiet, signature
from model.cli import arguments, flags

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown" if sys.stdout.isatty() else None,
    help="Train a recurrent network on sequences, and export it as a bundle.\n\n"
    "`unrolled datasets` lists the built-in data and the formats of files.\n\n"
    "`unrolled train vowels` trains on a built-in set in a minute.\n\n"
    "`unrolled train my.jsonl --name mine` trains on a file of yours.",
)
Source = Annotated[
    str,
    typer.Argument(
        help="A built-in set, a preset, or a file (see `datasets`).",
        metavar="NAME|FILE",
    ),
]
Folder = Annotated[
    Path,
    typer.Argument(help="Folder of a bundle, or of its versions.", metavar="BUNDLE"),
]
Int8 = Annotated[
    bool,
    typer.Option(
        "--int8", help="Add a network with int8 weights, twice as fast; LSTM only."
    ),
]
Output = Annotated[Path, typer.Option(help="Folder of the bundles.")]


@app.command()
def datasets() -> None:
    """List the built-in data sets and the formats that files may have."""
    from model.cli import console
    from model.datasets import builtin as datasets

    console.console.print(console.datasets_table(datasets.BUILTIN.values()))
    console.console.print(console.FORMATS, markup=False)


@app.command()
@flags.of_config
def train(
    source: Source,
    preset: Annotated[
        str | None,
        typer.Option(help=f"Start from one of: {', '.join(config.presets())}."),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="Start from a TOML file like the presets.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Bundle's name. [default: the preset's or the file's]"),
    ] = None,
    output: Output = Path("bundles"),
    runs: Annotated[Path, typer.Option(help="Folder of the training runs.")] = Path(
        "runs"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was cut off.")
    ] = False,
    int8: Int8 = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Train, calibrate, measure on the test part, and write a bundle.

    A built-in set brings the preset of its name; flags override a preset or a TOML
    file.

    Examples:

    `unrolled train digits`

    `unrolled train letters-live --epochs 40`

    `unrolled train walks_TRAIN.ts --test walks_TEST.ts --task classify
    --name walks --cell gru --layers 1 --hidden 64 --epochs 60`
    """
    with _refusing():
        chosen = arguments.config_of(source, preset, settings, name, flags)
        with quiet.imports():
            from model.cli import console
            from model.cli.progress import ProgressBars
            from model.export import publish, quantize
            from model.training import loop
            from model.training.runs import Run

        if int8:
            quantize.check(chosen.network.cell)
        dataset, run = arguments.dataset(chosen), Run(runs / chosen.name)
        console.console.print(console.summary(dataset, chosen))
        with ProgressBars(chosen.training.epochs) as bars:
            trained = loop.fit(dataset, chosen, run, resume=resume, callback=bars)
        if trained.finished_before:
            again = f"unrolled export {run.folder} --output {output}"
            raise config.ConfigError(f"{run.folder} is finished; its bundle: {again}")
        if trained.interrupted:
            best = max(entry.epoch for entry in trained.history if entry.best)
            typer.echo(
                f"stopped; the best weights so far (epoch {best}) are in"
                f" {run.folder / 'best'}\n"
                "go on: the same command with --resume\n"
                f"or take them: unrolled export {run.folder} --output {output}",
                err=True,
            )
            raise typer.Exit(130)
        published = publish.publish(
            trained.network, trained.history, dataset, chosen, output, int8=int8
        )
        console.published(*published)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    output: Output = Path("bundles"),
    int8: Int8 = False,
) -> None:
    """Write the bundle of a run's best weights, also of one that was cut off.

    Example: `unrolled export runs/digits`
    """
    with _refusing():
        with quiet.imports():
            from model.cli import console
            from model.export import publish, quantize
            from model.training import loop
            from model.training.runs import Run

        folder = Run(run)
        chosen, digest = folder.config()
        if int8:
            quantize.check(chosen.network.cell)
        dataset = arguments.dataset(chosen)
        if dataset.digest != digest:
            raise config.ConfigError(f"{run}: the data has changed since the training")
        network = loop.build(dataset, chosen)
        folder.restore_best(network)
        history = folder.history()
        console.published(
            *publish.publish(network, history, dataset, chosen, output, int8=int8)
        )


@app.command()
def evaluate(
    path: Folder,
    source: Source,
    part: Annotated[
        Literal["train", "validation", "test", "all"],
        typer.Option(help="Which sequences; all: also those of a file without parts."),
    ] = "test",
    test: Annotated[
        Path | None, typer.Option(help="File that holds the test part.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print every figure.")] = False,
) -> None:
    """Measure a bundle, as it was exported, on data.

    Examples:

    `unrolled evaluate bundles/letters letters`

    `unrolled evaluate bundles/walks more_walks.csv --part all`
    """
    with _refusing():
        with quiet.imports():
            from model.cli import console
            from model.training import evaluation

        found = arguments.bundle(path)
        dataset = arguments.judged(source, part, test, found.metadata)
        figures = evaluation.evaluate_bundle(found, dataset)
        if json:
            console.console.print_json(data=asdict(figures))
            return
        title = f"{found.metadata.name}, version {found.metadata.version}: {source}"
        console.console.print(console.figures_table(title, {part: figures}))
        console.console.print(console.class_table(figures))


@app.command()
def inspect(path: Folder) -> None:
    """Verify a bundle's files, and that its networks only compute; show what it is.

    Example: `unrolled inspect bundles/digits`
    """
    with _refusing():
        from model.cli import console

        found = arguments.bundle(path)
        console.console.print(console.bundle_table(found))


@app.command()
def keygen(
    file: Annotated[Path, typer.Argument(help="Where to write the private key.")],
) -> None:
    """Make a key that signs bundles; what the service takes is in FILE.pub."""
    with _refusing():
        public = signature.generate(file)
        typer.echo(f"{file} signs; UNROLLED_BUNDLE_KEYS={public} asks for it")


@app.command()
def sign(
    path: Folder,
    key: Annotated[Path, typer.Option(help="File of the private key.")],
) -> None:
    """Verify a bundle as `inspect` does, and sign it.

    Example: `unrolled sign bundles/digits --key my.pem`
    """
    with _refusing():
        typer.echo(f"signed: {arguments.sign(path, key)}")


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turn a refusal of settings, data or bundles into one line and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except ModuleNotFoundError as error:
        if str(error.name).startswith("model."):
            raise
        typer.echo(
            f"error: {error.name} is not installed. TensorFlow and what else training"
            " needs are in the extra `train`: pip install 'unrolled[train]'",
            err=True,
        )
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app(prog_name="python -m model")
