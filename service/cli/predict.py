"""The commands `classify` and `label`: ask a service, or compute on a Ray cluster."""

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

from service import values
from service.bulk import object_store
from service.settings import load

if TYPE_CHECKING:
    from service.bulk.scorer import ShardResult

LOG_SECONDS = 10.0  # between progress lines, if stderr is no terminal
INTERRUPTED = 130  # exit code after Ctrl-C, as in shells


def predict(
    task: str,
    file: str,
    texts: list[str],
    model: str | None,
    top_k: int | None,
    url: str,
    headers: dict[str, str],
    engine: str,
    to: str | None,
    bundles: str | None,
) -> None:
    """Run the command for a task with the chosen engine."""
    if bool(file) == bool(texts):
        typer.echo("error: give FILE, or --text", err=True)
        raise typer.Exit(2)
    if engine == "ray":
        run_job(file, to, bundles, task, model, top_k)
    elif to or bundles:
        typer.echo("error: --to and --bundles need --engine ray", err=True)
        raise typer.Exit(2)
    else:
        ask_service(Path(file), texts, url, headers, task, model, top_k)


def ask_service(
    file: Path,
    texts: list[str],
    url: str,
    headers: dict[str, str],
    task: str,
    model: str | None,
    top_k: int | None,
) -> None:
    """Send the file's sequences, or texts, to a service, and print a JSON line for each.

    Raises:
        typer.Exit: with exit code 1, after an error was printed.
    """
    from service.cli import errors, files, model_choice
    from service.client import Client

    ids: tuple[str, ...] = ()
    with errors.report(), Client(url, headers=headers) as client:
        try:
            sequences: list[Any]
            if texts or file.suffix == ".txt":
                sequences = texts or files.read_lines(file)
            elif files.is_table(file):
                chosen, data = model_choice.read(
                    file,
                    model_choice.of_service(
                        client, model, lambda info: info.default and info.task == task
                    ),
                )
                for line in model_choice.notes(chosen, data):
                    typer.echo(line, err=True)
                sequences, model = data.inputs, chosen.reference
                ids = data.ids
            else:
                sequences, file_model, file_top_k = files.read(file)
                model, top_k = model or file_model, top_k or file_top_k
            method = client.classify if task == "classify" else client.label
            answer = method(sequences, model=model, top_k=top_k)
            if ids:
                model_choice.check_version(chosen, answer.version)
        except MemoryError:  # the request's body is several times as large as the file
            raise files.ReadError(f"{file}: {files.NO_MEMORY}") from None
    names = iter(ids)
    for prediction in answer.predictions:
        members: dict[str, Any] = {"id": next(names)} if ids else {}
        members |= {k: v for k, v in asdict(prediction).items() if v is not None}
        text = orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY)
        sys.stdout.write(text.decode() + "\n")


def run_job(
    file: str,
    to: str | None,
    bundles: str | None,
    task: str,
    model: str | None,
    top_k: int | None,
) -> None:
    """Compute the file's sequences on a Ray cluster, into a folder; print a summary."""
    start = time.monotonic()
    try:
        from service.bulk import runner, shards  # need Ray and PyArrow

        settings = load().without_secrets()
        # The nodes have another working directory.
        file, to = map(shards.absolute, (file, to or _default_output(file, task)))
        places = values.split_list(bundles or settings.bundles)
        folders = [shards.absolute(p) for p in places or map(str, settings.folders)]
        if settings.bundle_keys:
            keys = shards.absolute(settings.bundle_keys)
            settings = settings.model_copy(update={"bundle_keys": keys})
        job, missing = runner.prepare(
            file, to, task, model=model, top_k=top_k, bundles=folders, settings=settings
        )
        with JobProgress(job.shards, job.shards - len(missing)) as progress:
            if missing:
                runner.run(missing, (file, to, job, folders, settings), progress.add)
    except ModuleNotFoundError as error:
        typer.echo(
            f"error: {error.name} is not installed: pip install 'WHEEL[ray]'",
            err=True,
        )
        raise typer.Exit(1) from None
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped; run the same command to continue", err=True)
        raise typer.Exit(INTERRUPTED) from None
    summary = {
        "model": f"{job.model}@{job.version}",
        "shards": job.shards,
        "computed": len(missing),
        **progress.totals,
        "seconds": round(time.monotonic() - start, 1),
        "to": object_store.without_credentials(to),
    }
    typer.echo(orjson.dumps(summary).decode())
    if progress.totals["refused"]:
        typer.echo(f"{progress.totals['refused']} lines are errors", err=True)


def _default_output(file: str, task: str) -> str:
    """FILE.TASK; in a URI like `s3://...?region=...` the query stays at the end."""
    path, mark, query = file.partition("?") if "://" in file else (file, "", "")
    return f"{path}.{task}{mark}{query}"


class JobProgress:
    """The progress of a job: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, shards: int, done: int):
        """
        Args:
            done: number of shards that an earlier run has computed.
        """
        self.totals = {"sequences": 0, "steps": 0, "refused": 0}
        self._start = self._last_line = time.monotonic()
        self._shards, self._done = shards, done
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
        self._task = self._bar.add_task("", total=shards, completed=done)
        if done:
            typer.echo(f"{done} of {shards} shards are there already", err=True)

    def add(self, result: "ShardResult") -> None:
        """Count a finished shard."""
        counts = result._asdict()
        self.totals = {name: n + counts[name] for name, n in self.totals.items()}
        self._done += 1
        now = time.monotonic()
        rate = self.totals["sequences"] / (now - self._start)
        text = f"{self.totals['sequences']:,} sequences, {rate:,.0f} per second"
        self._bar.update(self._task, advance=1, description=text)
        if not self._terminal and now > self._last_line + LOG_SECONDS:
            self._last_line = now
            typer.echo(f"{self._done} of {self._shards} shards: {text}", err=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
