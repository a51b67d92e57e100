"""The training commands: datasets, describe, train, search, evaluate, export, inspect, keygen, sign."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from model import workflow
from model.bundle import signature
from model.bundle.folders import TRAINED
from model.cli import arguments, flags, libraries, options, search_steps
from model.config import Config, ConfigError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown" if sys.stdout.isatty() else None,
    help="Train a recurrent network on sequences, and export it as a bundle.\n\n"
    "`unrolled datasets` lists the built-in data sets and the file formats.\n\n"
    "`unrolled train vowels` trains on a built-in set in a minute.\n\n"
    "`unrolled train my.csv` trains on your own file.",
)


@app.command()
def datasets() -> None:
    """List the built-in data sets and the supported file formats."""
    from model.cli import console
    from model.datasets import builtin

    console.console.print(console.datasets_table(builtin.BUILTIN.values()))
    console.console.print(console.FORMATS, markup=False)


@app.command()
@flags.config_flags(flags.DATA)
def describe(source: options.Source, *, flags: dict[str, Any]) -> None:
    """Show what a data set holds, and warn of likely mistakes, as `train` does first.

    Tables show the sequences in each part, their lengths, the classes, and the range of
    each feature.

    Example: `unrolled describe my.csv --sequence-column run`
    """
    with options.reported_errors():
        from model.cli import console

        config = arguments.build_config(source, None, None, None, flags)
        console.print_dataset(arguments.load_dataset(config))


@app.command()
@flags.config_flags()
def train(
    source: options.Source,
    preset: options.Preset = None,
    settings: options.Settings = None,
    name: options.Name = None,
    output: options.Output = TRAINED,
    promote: options.Promote = "better",
    runs: options.Runs = arguments.RUNS,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Resume an interrupted run, or extend a complete one."
        ),
    ] = False,
    int8: options.Int8 = None,
    search: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="MINUTES",
            help="Search for better settings first, as `unrolled search` does.",
        ),
    ] = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Train a network and write its bundle.

    What you leave open is chosen by the data. Under 500 sequences the network is
    cross-validated, and calibrated on those answers; else on a validation part. The test
    part measures it. If the bundle has a version already, both are compared on the new
    test part; the new one is served if it is better (`--promote`). Otherwise `unrolled
    promote NAME@VERSION` serves it.

    A built-in set uses the preset of its name. Options override the preset or TOML
    file. Ctrl-C stops a run; `--resume` continues it.

    Examples:

    `unrolled train digits`

    `unrolled train letters-live --epochs 40`

    `unrolled train walks.csv --test walks_test.csv`
    """
    _train(
        *(source, preset, settings, name, flags),
        minutes=search,
        output=output,
        promote=promote,
        runs=runs,
        resume=resume,
        int8=int8,
    )


@app.command()
@flags.config_flags()
def search(
    source: options.Source,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Time for the search. [default: 10; with `--trials` as long as they"
            " take]",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="End after so many trials. The same seed and number of trials find the"
            " same settings.",
        ),
    ] = None,
    preset: options.Preset = None,
    settings: options.Settings = None,
    name: options.Name = None,
    output: options.Output = TRAINED,
    promote: options.Promote = "better",
    runs: options.Runs = arguments.RUNS,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the search in runs/NAME/search. With `--minutes 0` train"
            " with the best settings so far.",
        ),
    ] = False,
    int8: options.Int8 = None,
    *,
    flags: dict[str, Any],
) -> None:
    """Search for the settings that suit the data, then train with the best.

    Each trial trains networks with other settings: the cell, its size, both directions or
    one, dropout, learning rate, batch, number of updates, augmentation, and more. A small
    data set is cross-validated; one with a validation part is measured on that. Trials
    that begin badly are stopped. The test part is not used.

    The settings that you set by options, and those of a named preset or TOML file, are
    not changed. `--no-bidirectional` finds only networks that can read a live stream.

    In the end a network is trained with the best settings on all training data, as
    `unrolled train` does. `runs/NAME/search/report.html` shows what mattered. Ctrl-C stops
    the search and keeps its trials; `--resume` continues it.

    Examples:

    `unrolled search walks.csv --test walks_test.csv`

    `unrolled search walks.csv --minutes 30 --cell gru --no-bidirectional`

    `unrolled search walks.csv --trials 40 --seed 1`
    """
    _train(
        *(source, preset, settings, name, flags),
        minutes=10 if minutes is None and trials is None else minutes,
        trials=trials,
        output=output,
        promote=promote,
        runs=runs,
        resume=resume,
        int8=int8,
    )


def _train(
    source: str,
    preset: str | None,
    settings: Path | None,
    name: str | None,
    flags: dict[str, Any],
    *,
    minutes: float | None,
    trials: int | None = None,
    output: Path,
    promote: workflow.Promote,
    runs: Path,
    resume: bool,
    int8: bool | None,
) -> None:
    """Search, if minutes or trials are set, and train. Ctrl-C says how to go on."""
    with options.reported_errors():
        config = arguments.build_config(source, preset, settings, name, flags)
        dataset = arguments.load_dataset(config)
        searched = minutes is not None or trials is not None
        proceed = "continue: the same command with --resume"
        try:
            if searched:
                named = preset is not None or settings is not None
                result = search_steps.run(
                    dataset,
                    config,
                    source=source,
                    fixed=arguments.fixed_settings(config, source, named, flags),
                    minutes=minutes,
                    trials=trials,
                    output=output,
                    runs=runs,
                    resume=resume,
                    int8=int8,
                    progress=True,
                )
                config, resume = result.config, False
                proceed = "continue: the command above, with --resume"
            workflow.run(
                dataset,
                config,
                output=output,
                promote=promote,
                runs=runs,
                resume=resume,
                int8=int8,
                progress=True,
                described=searched,
            )
        except search_steps.Interrupted as stopped:
            typer.echo(
                f"stopped; finished trials in {stopped.folder}: {stopped.trials}\n{proceed}\n"
                "or train with the best settings so far:"
                f" unrolled search {source} --resume --minutes 0, with the same options",
                err=True,
            )
            raise typer.Exit(130) from None
        except workflow.Interrupted as stopped:
            lines = ["stopped", proceed]
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
    output: options.Output = TRAINED,
    promote: options.Promote = "better",
    int8: options.Int8 = None,
) -> None:
    """Write a bundle from the best weights of a run.

    The run may have been interrupted.

    Example: `unrolled export runs/digits`
    """
    with options.reported_errors():
        with libraries.imports():
            from model.export import quantize
            from model.training import checkpoints, cross_validation, loop
            from model.training.runs import Run

        folder = Run(run)
        config, digest = folder.config()
        if int8:
            quantize.check(config.network.cell)
        dataset = arguments.load_dataset(config, checked=True)
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
            run=run,
            output=output,
            promote=promote,
            int8=int8,
            progress=True,
        )


@app.command()
@flags.config_flags(flags.COLUMNS)
def evaluate(
    path: options.Folder,
    source: options.Source,
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
    with options.reported_errors():
        with libraries.imports():
            from model.cli import console
            from model.evaluation import membership

        bundle = arguments.load_bundle(path)
        metadata = bundle.metadata
        config = Config().update(flags)
        arguments.refuse_unused(config, source, bundle.encoding())
        with arguments.encoded(config):
            dataset = arguments.evaluation_data(
                *(source, part, test, metadata, arguments.file_columns(config)),
                bundle.encoding(),
                arguments.text_options(config),
            )
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
def inspect(path: options.Folder) -> None:
    """Verify a bundle and show what it holds.

    Compares every file with its digest, and checks that the networks only compute.

    Example: `unrolled inspect bundles/digits`
    """
    with options.reported_errors():
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
    with options.reported_errors():
        public = signature.generate(file)
        typer.echo(
            f"private key: {file} (for `sign --key`)\npublic key:  {public}"
            f" (serve with UNROLLED_BUNDLE_KEYS={public})"
        )


@app.command()
def sign(
    path: options.Folder,
    key: Annotated[Path, typer.Option(help="File with the private key.")],
) -> None:
    """Sign a bundle, after checking it like `inspect`.

    Example: `unrolled sign bundles/digits --key my.pem`
    """
    with options.reported_errors():
        typer.echo(f"signed: {arguments.sign_bundle(path, key)}")


if __name__ == "__main__":
    app(prog_name="python -m model")
