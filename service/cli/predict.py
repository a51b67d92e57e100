"""What the commands `classify` and `label` do: ask a service, or compute on a cluster."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from service.bulk import object_store
from service.settings import load

if TYPE_CHECKING:
    from service.bulk.scorer import Scored

LINE_SECONDS = 10.0  # between lines of progress, elsewhere than on a terminal
STOPPED = 130  # exit code, as shells have it


def predict(
    task: str,
    file: str,
    model: str | None,
    top_k: int | None,
    url: str,
    headers: dict[str, str],
    engine: str,
    to: str | None,
    bundles: str | None,
) -> None:
    """Either of the commands, as `engine` says."""
    if engine == "ray":
        compute(file, to, bundles, task, model, top_k)
    elif to or bundles:
        typer.echo("error: --to and --bundles go with --engine ray", err=True)
        raise typer.Exit(2)
    else:
        ask(Path(file), url, headers, task, model, top_k)


def ask(
    file: Path,
    url: str,
    headers: dict[str, str],
    task: str,
    model: str | None,
    top_k: int | None,
) -> None:
    """Print a line for each sequence of the file.

    Raises:
        typer.Exit: after a line that says why there is no answer, with exit code 1.
    """
    import httpx

    from service.cli import files
    from service.client import Client, RequestError

    failures = (httpx.HTTPError, httpx.InvalidURL, RequestError, ValueError)
    try:
        frames, named, k = files.read(file)
        with Client(url, headers=headers) as client:
            call = client.classify if task == "classify" else client.label
            answer = call(frames, model=model or named, top_k=top_k or k)
    except MemoryError:  # as a body it takes several times as much
        typer.echo(f"error: {file}: {files.NO_MEMORY}", err=True)
        raise typer.Exit(1) from None
    except (*failures, orjson.JSONEncodeError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    for prediction in answer.predictions:
        told = {k: v for k, v in asdict(prediction).items() if v is not None}
        line = orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)
        sys.stdout.write(line.decode() + "\n")


def compute(
    file: str,
    to: str | None,
    bundles: str | None,
    task: str,
    model: str | None,
    top_k: int | None,
) -> None:
    """Write a line for each sequence into a folder, and print what was done."""
    begun = time.monotonic()
    try:
        from service.bulk import runner, shards  # need what is not always there

        settings = load().without_secrets()
        # As other machines find them.
        file, to = map(shards.whole, (file, to or _beside(file, task)))
        bundles = bundles or object_store.setting() or str(settings.bundles)
        bundles = shards.whole(bundles)
        if settings.bundle_keys:
            keys = shards.whole(settings.bundle_keys)
            settings = settings.model_copy(update={"bundle_keys": keys})
        job, todo = runner.prepare(
            file, to, task, model=model, top_k=top_k, bundles=bundles, settings=settings
        )
        with Done(job.shards, job.shards - len(todo)) as done:
            if todo:
                runner.run(todo, (file, to, job, bundles, settings), done.add)
    except ModuleNotFoundError as error:
        typer.echo(f"error: {error.name} is not installed: the extra ray", err=True)
        raise typer.Exit(1) from None
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from here", err=True)
        raise typer.Exit(STOPPED) from None
    told = {"model": f"{job.model}@{job.version}", "shards": job.shards}
    seconds = {"seconds": round(time.monotonic() - begun, 1)}
    told |= (
        {"computed": len(todo)}
        | done.figures
        | seconds
        | {"to": object_store.shown(to)}
    )
    typer.echo(orjson.dumps(told).decode())
    if done.figures["refused"]:
        typer.echo(f"{done.figures['refused']} lines are errors", err=True)


def _beside(file: str, task: str) -> str:
    """The folder for the answers; of `s3://...` without touching what follows a `?`."""
    path, mark, rest = file.partition("?") if "://" in file else (file, "", "")
    return f"{path}.{task}{mark}{rest}"


class Done:
    """What has been computed so far, as a bar, or as a line now and then."""

    def __init__(self, shards: int, before: int):
        """
        Args:
            before: shards that there were already.
        """
        self.figures = {"sequences": 0, "steps": 0, "refused": 0}
        self._begun = self._told = time.monotonic()
        self._shards, self._count = shards, before
        console = Console(stderr=True)
        self._terminal = console.is_terminal
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("shards  {task.description}"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._terminal,
        )
        self._task = self._bar.add_task("", total=shards, completed=before)
        if before:
            typer.echo(f"{before} of {shards} shards are there already", err=True)

    def add(self, scored: "Scored") -> None:
        """A shard is done."""
        given: dict[str, Any] = scored._asdict()
        self.figures = {name: n + given[name] for name, n in self.figures.items()}
        self._count += 1
        now = time.monotonic()
        rate = self.figures["sequences"] / (now - self._begun)
        told = f"{self.figures['sequences']:,} sequences, {rate:,.0f} a second"
        self._bar.update(self._task, advance=1, description=told)
        if not self._terminal and now > self._told + LINE_SECONDS:
            self._told = now
            typer.echo(f"{self._count} of {self._shards} shards: {told}", err=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
