"""The commands: serve, settings, and a client's classify, label, stream and health."""

import inspect
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from service.settings import API_KEY, PREFIX, Settings, SettingsError, load

BROKEN = 3  # exit code: a bundle that must be served can't be

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown" if sys.stdout.isatty() else None,
    help="Serve recurrent networks over HTTP, and call the service.\n\n"
    "`python -m service serve` serves the shipped bundles on port 8000.\n\n"
    "`python -m service serve --bundles my/bundles --port 9000` serves yours.\n\n"
    "`python -m service classify examples/digit.json` asks a running service.\n\n"
    "`python -m service stream examples/word.json --model letters-live` shows how its"
    " probabilities move.",
)
Url = Annotated[str, typer.Option(help="Where the service is.")]
Key = Annotated[
    str | None, typer.Option(envvar=API_KEY, help="Key that the service wants.")
]
File = Annotated[
    str,
    typer.Argument(
        help="Sequences: .json (a request, or frames [T, F]), .jsonl"
        ' (`{"frames": ...}` a line), .csv (a row a step) or .npy ([T, F]); - is'
        " JSON from standard input.",
        metavar="FILE",
    ),
]
ModelName = Annotated[str | None, typer.Option(help="Which model.")]
TopK = Annotated[int | None, typer.Option(help="Only so many classes.", min=1)]
Engine = Annotated[
    Literal["service", "ray"],
    typer.Option(help="Who computes; ray: .jsonl or .parquet, also at s3://..."),
]
To = Annotated[
    str | None,
    typer.Option(help="Of ray: folder for the answers. [default: FILE.TASK]"),
]
Bundles = Annotated[
    str | None,
    typer.Option(help="Of ray: folder of bundles. [default: the setting's]"),
]
AT = "http://127.0.0.1:8000"


def serve(**flags: Any) -> None:
    """Serve every bundle of a folder until told to stop.

    Each flag is also an environment variable: `--max-steps 500` is
    `UNROLLED_MAX_STEPS=500`. Flags go first.

    Exit codes: 0 stopped when told to, 1 the port is taken, 2 a setting is wrong,
    3 a bundle is broken.
    """
    try:
        settings = load(**{k: v for k, v in flags.items() if v is not None})
    except SettingsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    from service.pool import spawn

    spawn.prepare()  # beside what is imported here
    from service import app as application
    from service import server
    from service.telemetry import logs

    logs.setup(settings.log_format, settings.log_level)
    try:
        made = application.create_app(settings, on_failure=lambda: running.stop())
    except SettingsError as error:  # of traces
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    running = server.create_server(made, settings)
    try:
        running.run()
    except SystemExit:  # uvicorn's own: it could not listen
        raise typer.Exit(1) from None
    if made.registry.failed:
        raise typer.Exit(BROKEN)


def _flags() -> list[inspect.Parameter]:
    """A flag for each setting, so that there is one table of them."""
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
    """A default as the README and `--help` have it."""
    if isinstance(default, Path):
        return "the shipped bundles"
    return str(default).lower() if isinstance(default, bool) else str(default) or "none"


serve.__signature__ = inspect.Signature(_flags())  # type: ignore[attr-defined]
serve.__annotations__ = {p.name: p.annotation for p in _flags()}
app.command()(serve)


@app.command()
def settings() -> None:
    """Print every setting with its value here, its variable and its meaning."""
    try:
        values = load()
    except SettingsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    for name, field in Settings.model_fields.items():
        typer.echo(
            f"{PREFIX}{name.upper()}={getattr(values, name)}  # {field.description}"
        )


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Whose it is; stands in the log.")] = "",
) -> None:
    """Make a key for callers, and what `UNROLLED_API_KEYS` must have for it.

    A new key is added to the setting after a comma, then handed out; the old one is
    removed when nobody uses it any more.
    """
    import hashlib
    import secrets

    made = secrets.token_urlsafe(32)
    digest = hashlib.sha256(made.encode()).hexdigest()
    typer.echo(f"key (for its caller only): {made}")
    typer.echo(f"{PREFIX}API_KEYS={name + ':' if name else ''}{digest}")


@app.command()
def classify(
    file: File,
    model: ModelName = None,
    top_k: TopK = None,
    url: Url = AT,
    key: Key = None,
    engine: Engine = "service",
    to: To = None,
    bundles: Bundles = None,
) -> None:
    """Print the class of each sequence of FILE, a JSON object a line."""
    _predict("classify", file, model, top_k, url, _headers(key), engine, to, bundles)


@app.command()
def label(
    file: File,
    model: ModelName = None,
    top_k: TopK = None,
    url: Url = AT,
    key: Key = None,
    engine: Engine = "service",
    to: To = None,
    bundles: Bundles = None,
) -> None:
    """Print the classes of the steps of each sequence of FILE, a JSON object a line.

    With `--engine ray` a file of millions of sequences is computed on a Ray cluster (or
    on the cores of this machine), and the lines go into a folder. Whatever ends that, the
    same command goes on where it was.
    """
    _predict("label", file, model, top_k, url, _headers(key), engine, to, bundles)


@app.command()
def stream(
    file: File,
    model: ModelName = None,
    rate: Annotated[
        float, typer.Option(min=0.01, help="Steps a second, of a file.")
    ] = 10,
    url: Url = AT,
    key: Key = None,
) -> None:
    """Send FILE step by step, and show how the probabilities move.

    With - each line of standard input is sent as it comes: a step `[0.1, 0.2]`, or
    several `[[0.1, 0.2], [0.3, 0.4]]`. Elsewhere than on a terminal each answer is a
    JSON object on a line.
    """
    import httpx

    from service.cli import chart, files
    from service.client import RequestError, StreamLost

    failures = (httpx.HTTPError, httpx.InvalidURL, RequestError, StreamLost)
    try:
        given, named = None, None
        if file != "-":
            given, named, _ = files.read(Path(file))
        chart.run(url, given, model or named, rate, _headers(key))
    except (*failures, OSError, ValueError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def health(url: Url = AT, key: Key = None) -> None:
    """Say whether the service is ready; exit code 1 when it is not."""
    import httpx

    from service.client import Client, RequestError

    try:
        with Client(url, timeout=5, headers=_headers(key)) as client:
            reasons = client.ready()
    except (httpx.HTTPError, httpx.InvalidURL, RequestError, ValueError) as error:
        reasons = [str(error)]
    typer.echo("; ".join(reasons) or "ready")
    raise typer.Exit(1 if reasons else 0)


def _headers(key: str | None) -> dict[str, str]:
    return {"X-API-Key": key} if key else {}


def _predict(*given: Any) -> None:
    from service.cli import predict

    predict.predict(*given)


if __name__ == "__main__":
    app(prog_name="python -m service")
