"""The training commands: datasets, describe, train, evaluate, export, inspect, keygen, sign."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from model import workflow
from model.bundle import signature
from model.bundle.folders import TRAINED
from model.cli import arguments, flags, libraries
from model.config import Config, ConfigError, presets

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown" if sys.stdout.isatty() else None,
    help="Train a recurrent network on sequences, and export it as a bundle.\n\n"
    "`unrolled datasets` lists the built-in data sets and the file formats.\n\n"
    "`unrolled train vowels` trains on a built-in set in a minute.\n\n"
    "`unrolled train my.csv` trains on your own file.",
)
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
    bool,
    typer.Option("--int8", help="Add int8 weights: about twice as fast. LSTM only."),
]
Output = Annotated[Path, typer.Option(help="Folder to write bundles to.")]
Promote = Annotated[
    Literal["better", "always", "never"],
    typer.Option(
        help="Serve the new version: if its error on the test part is not higher than"
        " that of the version in service, always, or never."
    ),
]


@app.command()
def datasets() -> None:
    """List the built-in data sets and the supported file formats."""
    from model.cli import console
    from model.datasets import builtin

    console.console.print(console.datasets_table(builtin.BUILTIN.values()))
    console.console.print(console.FORMATS, markup=False)


@app.command()
@flags.config_flags(flags.DATA)
def describe(source: Source, *, flags: dict[str, Any]) -> None:
    """Show what a data set holds, and warn of likely mistakes, as `train` does first.

    Tables show the sequences in each part, their lengths, the classes, and the range of
    each feature.

    Example: `unrolled describe my.csv --sequence-column run`
    """
    with _reported_errors():
        from model.cli import console

        config = arguments.build_config(source, None, None, None, flags)
        console.print_dataset(arguments.load_dataset(config))


@app.command()
@flags.config_flags()
def train(
    source: Source,
    preset: Annotated[
        str | None,
        typer.Option(help=f"Start from one of: {', '.join(presets())}."),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(help="Start from a TOML file like `model/presets/*.toml`."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the bundle. [default: the preset's or the file's]"),
    ] = None,
    output: Output = TRAINED,
    promote: Promote = "better",
    runs: Annotated[Path, typer.Option(help="Folder for checkpoints and logs.")] = Path(
        "runs"
    ),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Resume an interrupted run, or extend a complete one."
        ),
    ] = False,
    int8: Int8 = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Train a network and write its bundle.

    The network is calibrated on the validation part and evaluated on the test part.
    If the bundle has a version already, both are compared on the new test part; the new
    one is served if it isn't worse. Otherwise `unrolled promote NAME@VERSION` serves it.

    A built-in set uses the preset of its name. Options override the preset or TOML
    file. Ctrl-C stops a run; `--resume` continues it.

    Examples:

    `unrolled train digits`

    `unrolled train letters-live --epochs 40`

    `unrolled train walks.csv --test walks_test.csv --cell gru --layers 1 --hidden 64`
    """
    with _reported_errors():
        config = arguments.build_config(source, preset, settings, name, flags)
        dataset = arguments.load_dataset(config)
        try:
            workflow.run(
                dataset,
                config,
                output=output,
                promote=promote,
                runs=runs,
                resume=resume,
                int8=int8,
                progress=True,
            )
        except workflow.Interrupted as stopped:
            lines = ["stopped", "continue: the same command with --resume"]
            if stopped.epoch is not None:
                weights = f"the best weights so far (epoch {stopped.epoch})"
                lines[0] += f"; {weights} are in {stopped.run / 'best'}"
                export = f"unrolled export {stopped.run} --output {output}"
                lines.append(f"or use them: {export}")
            typer.echo("\n".join(lines), err=True)
            raise typer.Exit(130) from None


@app.command()
def export(
    run: Annotated[
        Path, typer.Argument(help="Folder of a training run, such as runs/digits.")
    ],
    output: Output = TRAINED,
    promote: Promote = "better",
    int8: Int8 = False,
) -> None:
    """Write a bundle from the best weights of a run.

    The run may have been interrupted.

    Example: `unrolled export runs/digits`
    """
    with _reported_errors():
        with libraries.imports():
            from model.export import quantize
            from model.training import checkpoints, cross_validation, loop
            from model.training.runs import Run

        folder = Run(run)
        config, digest = folder.config()
        if int8:
            quantize.check(config.network.cell)
        dataset = arguments.load_dataset(config)
        if dataset.digest != digest:
            raise ConfigError(f"{run}: the data has changed since training")
        crossed = None
        if not len(dataset.part("validation")):
            crossed = cross_validation.restore(dataset, config, folder)
        network = loop.build(dataset, config)
        checkpoints.restore_best(folder, network)
        workflow.publish(
            network.in_float32(),
            folder.history(),
            dataset,
            config,
            cross_validation=crossed,
            output=output,
            promote=promote,
            int8=int8,
            progress=True,
        )


@app.command()
@flags.config_flags(flags.COLUMNS)
def evaluate(
    path: Folder,
    source: Source,
    part: Annotated[
        Literal["train", "validation", "test", "all"],
        typer.Option(help="Which sequences; `all` also of a file without parts."),
    ] = "test",
    test: Annotated[Path | None, typer.Option(help="File with the test part.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print all metrics as JSON.")
    ] = False,
    *,
    flags: dict[str, Any],
) -> None:
    """Evaluate an exported bundle on a data set.

    It says how many of the sequences the bundle was trained on, and measures the others
    by themselves.

    Examples:

    `unrolled evaluate bundles/letters letters`

    `unrolled evaluate trained/walks more_walks.csv --part all`
    """
    with _reported_errors():
        with libraries.imports():
            from model.cli import console
            from model.evaluation import membership

        bundle = arguments.load_bundle(path)
        metadata = bundle.metadata
        columns = arguments.file_columns(Config().update(flags))
        dataset = arguments.evaluation_data(source, part, test, metadata, columns)
        result = membership.evaluate(bundle, dataset)
        if json:
            data = {**asdict(result.metrics), "sequences": result.counts}
            console.console.print_json(data=data)
            return
        title = f"{metadata.name}, version {metadata.version}: {source}"
        tables = {part: result.metrics} | ({"new": result.new} if result.new else {})
        console.console.print(console.metrics_table(title, tables))
        if part == "all" or result.new:
            text = console.membership_text(result.counts)
            console.console.print(text, soft_wrap=True)
        console.console.print(console.class_table(result.metrics))


@app.command()
def inspect(path: Folder) -> None:
    """Verify a bundle and show what it holds.

    Compares every file with its digest, and checks that the networks only compute.

    Example: `unrolled inspect bundles/digits`
    """
    with _reported_errors():
        from model.cli import console

        bundle = arguments.load_bundle(path)
        console.console.print(console.bundle_table(bundle))


@app.command()
def keygen(
    file: Annotated[Path, typer.Argument(help="File to write the private key to.")],
) -> None:
    """Create a key pair for signing bundles.

    FILE is the private key, FILE.pub the public one.
    """
    with _reported_errors():
        public = signature.generate(file)
        typer.echo(
            f"private key: {file} (for `sign --key`)\npublic key:  {public}"
            f" (serve with UNROLLED_BUNDLE_KEYS={public})"
        )


@app.command()
def sign(
    path: Folder,
    key: Annotated[Path, typer.Option(help="File with the private key.")],
) -> None:
    """Sign a bundle, after checking it like `inspect`.

    Example: `unrolled sign bundles/digits --key my.pem`
    """
    with _reported_errors():
        typer.echo(f"signed: {arguments.sign_bundle(path, key)}")


@contextlib.contextmanager
def _reported_errors() -> Iterator[None]:
    """Report invalid settings, data or bundles in one line, with exit code 2."""
    try:
        yield
    except (ValueError, OSError, libraries.MissingLibraryError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    app(prog_name="python -m model")
