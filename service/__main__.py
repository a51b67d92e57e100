"""The serving commands, and those that call a service: predict, classify, label, stream, health."""

import inspect
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from service.cli import address
from service.settings import API_KEY, CLIENT_URL, PREFIX, Settings, SettingsError, load

BROKEN_BUNDLE = 3  # exit code

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown" if sys.stdout.isatty() else None,
    help="Serve recurrent networks over HTTP, and call the service.\n\n"
    "`unrolled serve` serves the shipped bundles on port 8000.\n\n"
    "`unrolled serve --bundles my/bundles --port 9000` serves yours.\n\n"
    "`unrolled classify examples/digit.json` asks a running service.\n\n"
    "`unrolled stream examples/word.json --model letters-live` shows how the"
    " probabilities change from step to step.\n\n"
    "`python -m service` is the same as `unrolled`, without the training commands.",
)
Url = Annotated[
    str,
    typer.Option(
        envvar=CLIENT_URL,
        help="Address of the service. Default: by UNROLLED_HOST and UNROLLED_PORT.",
    ),
]
Key = Annotated[
    str | None, typer.Option(envvar=API_KEY, help="API key, if the service needs one.")
]
File = Annotated[
    str,
    typer.Argument(
        help="Sequences in a format of training (`unrolled datasets`), .json (a request,"
        " or frames [T, F]), .npy ([T, F]), or .txt (a text a line); - reads JSON, or a"
        " text a line, from standard input.",
        metavar="FILE",
    ),
]
Texts = Annotated[
    list[str] | None,
    typer.Option("--text", help="A text, in place of FILE; may be repeated."),
]
Table = Annotated[
    str,
    typer.Argument(
        help="Sequences in a format of training (`unrolled datasets`); - reads CSV or"
        " JSON Lines from standard input.",
        metavar="FILE",
    ),
]
SequenceColumn = Annotated[
    str | None, typer.Option(help="Column of ids. [default: as in training]")
]
LabelColumn = Annotated[
    str | None, typer.Option(help="Column of known labels. [default: as in training]")
]
StepColumn = Annotated[
    str | None, typer.Option(help="Column of steps. [default: as in training]")
]
Encoding = Annotated[
    str | None, typer.Option(help="Encoding of a text file. [default: UTF-8]")
]
Ignore = Annotated[
    str, typer.Option(help="Columns that are no features, separated by commas.")
]
ModelName = Annotated[
    str | None, typer.Option(help="Model name. [default: the task's default model]")
]
TopK = Annotated[
    int | None, typer.Option(help="Print only the K likeliest classes.", min=1)
]
Engine = Annotated[
    Literal["service", "ray"],
    typer.Option(
        help="Ask a running service, or compute on a Ray cluster (also files at"
        " s3://...)."
    ),
]
To = Annotated[
    str | None,
    typer.Option(help="Output folder, with --engine ray. [default: FILE.TASK]"),
]
Bundles = Annotated[
    str | None,
    typer.Option(
        help="Folders of bundles, with --engine ray. [default: UNROLLED_BUNDLES]"
    ),
]
LocalBundles = Annotated[
    str | None,
    typer.Option(
        "--bundles",
        help="Folders of bundles, separated by commas; labels are written to the last."
        " [default: UNROLLED_BUNDLES]",
    ),
]
URL = address.default_url(os.environ)


def serve(**flags: Any) -> None:
    """Serve the bundles of one or several folders over HTTP.

    Each option is also an environment variable: `--max-steps 500` is
    `UNROLLED_MAX_STEPS=500`. Options override variables.

    Exit codes: 0 stopped by a signal, 1 the port is in use, 2 a setting is wrong,
    3 a bundle is broken.
    """
    try:
        settings = load(**{k: v for k, v in flags.items() if v is not None})
    except SettingsError as error:
        _refuse(error)
    from service.pool import spawn

    spawn.prepare()  # the fork server starts while this process imports the rest
    from service import app as application
    from service import server as http_server
    from service.telemetry import logs

    logs.setup(settings.log_format, settings.log_level)
    try:
        http_server.check_file_limit(settings)
        service = application.create_app(settings, on_failure=lambda: server.stop())
    except SettingsError as error:  # the system's, or raised where traces are set up
        _refuse(error)
    server = http_server.create_server(service, settings)
    try:
        server.run()
    except SystemExit:  # uvicorn exits when it cannot listen, and logs why
        place = f"{settings.host}:{settings.port}"
        hint = f"choose another port: --port, or {PREFIX}PORT"
        typer.echo(f"error: can't listen on {place}; {hint}", err=True)
        raise typer.Exit(1) from None
    if service.registry.failed:
        raise typer.Exit(BROKEN_BUNDLE)


def _options() -> list[inspect.Parameter]:
    """One option for each setting, so that settings are declared in one place."""
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                field.annotation | None,  # type: ignore[operator]
                typer.Option(
                    help=f"{field.description} [default: {shown(field.default)}]"
                ),
            ],
        )
        for name, field in Settings.model_fields.items()
    ]


def shown(default: Any) -> str:
    """A setting's default as `--help` and the documentation show it."""
    return str(default).lower() if isinstance(default, bool) else str(default) or "none"


serve.__signature__ = inspect.Signature(_options())  # type: ignore[attr-defined]
serve.__annotations__ = {p.name: p.annotation for p in _options()}
app.command()(serve)


@app.command()
def settings() -> None:
    """Print every setting: variable, current value and meaning."""
    try:
        values = load()
    except SettingsError as error:
        _refuse(error)
    for name, field in Settings.model_fields.items():
        typer.echo(
            f"{PREFIX}{name.upper()}={getattr(values, name)}  # {field.description}"
        )


@app.command()
def key(
    name: Annotated[
        str, typer.Argument(help="Name of the key's owner, shown in the log.")
    ] = "",
) -> None:
    """Generate an API key, and its entry for `UNROLLED_API_KEYS`.

    To rotate a key, add the new entry to the setting after a comma, hand out the new
    key, and remove the old entry when nobody uses it any more.
    """
    import hashlib
    import secrets

    key = secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    typer.echo(f"key (for its owner only): {key}")
    typer.echo(f"{PREFIX}API_KEYS={name + ':' if name else ''}{digest}")


@app.command()
def classify(
    file: File = "",
    text: Texts = None,
    model: ModelName = None,
    top_k: TopK = None,
    url: Url = URL,
    key: Key = None,
    engine: Engine = "service",
    to: To = None,
    bundles: Bundles = None,
) -> None:
    """Print the class of each sequence of FILE as a JSON line."""
    from service.cli import predict

    options = (file, text or [], model, top_k, url, _headers(key), engine, to, bundles)
    predict.predict("classify", *options)


@app.command()
def label(
    file: File = "",
    text: Texts = None,
    model: ModelName = None,
    top_k: TopK = None,
    url: Url = URL,
    key: Key = None,
    engine: Engine = "service",
    to: To = None,
    bundles: Bundles = None,
) -> None:
    """Print the classes of each sequence's steps as a JSON line.

    With `--engine ray` a file of millions of sequences is computed on a Ray cluster (or
    on the cores of this machine), and the lines are written to a folder. If the job is
    interrupted, the same command continues it.
    """
    from service.cli import predict

    options = (file, text or [], model, top_k, url, _headers(key), engine, to, bundles)
    predict.predict("label", *options)


@app.command()
def predict(
    file: Table,
    model: Annotated[
        str | None,
        typer.Option(help="Model name. [default: the only one that fits the file]"),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="File to write: .csv, .jsonl or .parquet; - is CSV on standard output.",
        ),
    ] = "-",
    bundle: Annotated[
        str | None,
        typer.Option(
            help="Compute without a service: folder of a bundle, or of several."
        ),
    ] = None,
    sequence_column: SequenceColumn = None,
    label_column: LabelColumn = None,
    step_column: StepColumn = None,
    ignore: Ignore = "",
    copied: Annotated[
        str, typer.Option("--keep", help="Columns to copy to the answers, as A,B.")
    ] = "",
    encoding: Encoding = None,
    url: Url = URL,
    key: Key = None,
) -> None:
    """Write a table of the answers for FILE: a row for each sequence, or for each step.

    Columns are matched by the names of the model's features, in any order. If FILE has
    labels, how many answers agree with them is printed.

    Examples:

    `unrolled predict my.csv --model mine -o answers.csv`

    `unrolled predict my.csv --bundle trained/mine -o answers.parquet`
    """
    from service.cli import predict_file

    columns = (sequence_column, label_column, step_column)
    predict_file.run(
        *(file, output, model, columns, ignore, copied, encoding),
        url=url,
        headers=_headers(key),
        bundle=bundle,
    )


@app.command()
def stream(
    file: File,
    model: ModelName = None,
    rate: Annotated[
        float, typer.Option(min=0.01, help="Steps of the file to send per second.")
    ] = 10,
    url: Url = URL,
    key: Key = None,
) -> None:
    """Send FILE step by step, and show the probabilities live.

    With - each line of standard input is sent as it comes: a step `[0.1, 0.2]`, several
    `[[0.1, 0.2], [0.3, 0.4]]`, or a message such as `{"text": "on"}`. If the output is no
    terminal, each answer is printed as a JSON line.
    """
    from service.cli import chart, errors

    path = None if file == "-" else Path(file)
    try:
        with errors.report():
            chart.run(url, path, model, rate, _headers(key))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def versions(
    name: Annotated[
        str | None, typer.Argument(help="Name of a model. [default: all]")
    ] = None,
    bundles: LocalBundles = None,
) -> None:
    """List the versions of each model, their errors and labels."""
    from service.cli import versions

    versions.show(bundles, name)


@app.command()
def promote(
    reference: Annotated[str, typer.Argument(metavar="NAME@VERSION")],
    label: Annotated[
        str, typer.Option(help="Label to give to the version.")
    ] = "default",
    bundles: LocalBundles = None,
) -> None:
    """Serve a version by default, or give it another label.

    A running service follows within `UNROLLED_RELOAD_SECONDS`.

    Example: `unrolled promote walks@2`
    """
    from service.cli import versions

    versions.promote(bundles, reference, label)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Name of a model.")],
    bundles: LocalBundles = None,
) -> None:
    """Serve the version again that was the default before.

    Example: `unrolled rollback walks`
    """
    from service.cli import versions

    versions.rollback(bundles, name)


@app.command()
def health(url: Url = URL, key: Key = None) -> None:
    """Print whether the service is ready; exit code 1 if it is not."""
    from service.cli import errors
    from service.client import Client

    try:
        with Client(url, timeout=5, headers=_headers(key)) as client:
            reasons = client.ready()
    except errors.FAILURES as error:
        reasons = [str(error)]
    typer.echo("; ".join(reasons) or "ready")
    raise typer.Exit(1 if reasons else 0)


def _headers(key: str | None) -> dict[str, str]:
    return {"X-API-Key": key} if key else {}


def _refuse(error: SettingsError) -> NoReturn:
    """Print a wrong setting on one line, and exit with code 2."""
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(2) from None


if __name__ == "__main__":
    app(prog_name="python -m service")
