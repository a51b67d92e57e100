"""The command `predict`: a table of the answers for a file, by a service or by a bundle."""

import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar

from model.datasets import answers
from model.datasets.dataset import hash_sequences
from model.datasets.readers import Columns, ReadError, Sequences, files
from service.cli import agreement, errors, kept_columns, model_choice
from service.cli.model_choice import Candidate
from service.client import Client
from service.settings import load
from service.values import split_list

INTERRUPTED = 130  # exit code after Ctrl-C, as in shells
BLANK = b"\xef\xbb\xbf \t\r\n"  # before the text: the byte order mark, empty lines
BLOCK_STEPS = 2**18  # of the sequences that are encoded at a time
NO_MEMORY = "not enough memory for the file and its answers"

Progress = Callable[[int, int], None]  # called with the sequences done, and all
Probabilities = list[np.ndarray]  # for each sequence [C], or [T, C]
Seen = np.ndarray | None  # [N] bool, the sequences used in training; None: unknown
Predict = Callable[[Candidate, Sequences, Progress], tuple[Probabilities, Seen]]


def run(
    file: str,
    output: str,
    model: str | None,
    columns: tuple[str | None, str | None, str | None],
    ignore: str,
    copied: str,
    encoding: str | None,
    *,
    url: str,
    headers: dict[str, str],
    bundle: str | None,
) -> None:
    """Read a file, and write the table of its answers.

    Args:
        output: file to write, or - for CSV on standard output.
        columns: the names of a table's columns of ids, labels and steps.
        ignore: columns that are no features, separated by commas.
        copied: columns to copy to the answers, separated by commas.
        encoding: of a text file; None: UTF-8.
        bundle: folder of a bundle that computes the answers; None: the service does.

    Raises:
        typer.Exit: with exit code 1, after an error was printed.
    """
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        with errors.report(), ExitStack() as stack:
            write = answers.writer(output)
            if output != "-" and Path(output).resolve() == Path(file).resolve():
                raise ValueError(f"{output}: is the file to read; write to another")
            path = stack.enter_context(_local(file))
            if encoding and path.suffix.lower() in (".npz", ".parquet"):
                raise ReadError(
                    path, None, "--encoding is not used: it is no text file"
                )
            stack.enter_context(files.encoded(encoding))
            if bundle is not None:
                candidates, predict = _open_folder(bundle, model, stack)
            else:
                client = stack.enter_context(Client(url, headers=headers))
                candidates = model_choice.of_service(client, model)
                predict = partial(_ask, client)
            special = Columns(*columns, tuple(split_list(ignore)))
            chosen, data = model_choice.read(path, candidates, special, skip_empty=True)
            for line in model_choice.notes(chosen, data):
                console.print(line)
            with _bar(chosen, console) as progress:
                probabilities, seen = predict(chosen, data, progress)
            table = answers.of_sequences(
                data, chosen.task, chosen.classes, probabilities
            )
            whole = table
            if chosen.task == "classify":
                whole = answers.with_empty(table, data)
            if names := split_list(copied):
                whole = kept_columns.add(whole, path, data, chosen.task, names)
            try:
                write(whole, data.zoned)
            except BrokenPipeError:  # as in `| head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MemoryError:
        typer.echo(f"error: {file}: {NO_MEMORY}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if output != "-":
        count = agreement.counted(len(data), "sequences")
        console.print(f"{output}: {count}, answers of {chosen.reference}")
    rows = 1 if chosen.task == "classify" else [len(p) for p in probabilities]
    seen_rows = None if seen is None else np.repeat(seen, rows).tolist()
    agreement.show(table, chosen.task, chosen.classes, console, seen_rows)


@contextmanager
def _local(file: str) -> Iterator[Path]:
    """The path of a file; standard input is copied to one, with the ending of its format."""
    if file != "-":
        yield Path(file)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = sys.stdin.buffer
        head = b""
        while not head.lstrip(BLANK) and (line := source.readline()):
            head += line
        lines = head.lstrip(BLANK).startswith(b"{")
        path = Path(folder, "input.jsonl" if lines else "input.csv")
        with path.open("wb") as copy:
            copy.write(head)
            shutil.copyfileobj(source, copy)
        try:
            yield path
        except ReadError as error:
            raise ReadError("standard input", error.line, error.reason) from None


@contextmanager
def _bar(chosen: Candidate, console: Console) -> Iterator[Progress]:
    """Show a progress bar on a terminal while the block runs."""
    bar = ProgressBar(
        TextColumn(chosen.reference),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sequences"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _ask(
    client: Client, chosen: Candidate, data: Sequences, progress: Progress
) -> tuple[Probabilities, Seen]:
    """Ask the service for the probabilities of each sequence. It does not say which
    sequences a model was trained on."""
    method = client.classify if chosen.task == "classify" else client.label
    answer = method(data.inputs, model=chosen.reference, progress=progress)
    model_choice.check_version(chosen, answer.version)
    rows = (prediction.probabilities for prediction in answer.predictions)
    return [row for row in rows if row is not None], None


def _shifted(progress: Progress, start: int, total: int, done: int, _: int) -> None:
    """Report the progress in a block that begins after `start` sequences."""
    progress(start + done, total)


def _open_folder(
    folder: str, reference: str | None, stack: ExitStack
) -> tuple[list[Candidate], Predict]:
    """The models of a folder of bundles, and a function that computes one of them."""
    from service.bulk import bundle_choice
    from service.bulk.local_model import LocalModel

    settings = load()
    roots = stack.enter_context(bundle_choice.BundleFolders(split_list(folder)))
    bundles = {
        bundle.metadata.name: bundle
        for bundle in bundle_choice.find(roots, reference, settings)
    }

    def predict(
        chosen: Candidate, data: Sequences, progress: Progress
    ) -> tuple[Probabilities, Seen]:
        bundle = bundles[chosen.reference]
        model = LocalModel(bundle, settings)
        schema, vocabulary = bundle.schema(), bundle.vocabulary()
        inputs, known = data.inputs, bundle.training_hashes()
        recorded = (bundle.metadata.training.columns or {}).get("sequence")
        if recorded and data.columns.sequence not in (None, recorded):
            known = None  # joined by other ids, these are not the sequences of training
        probabilities: Probabilities = []
        seen: list[np.ndarray] = []
        # Encoded in blocks: the numbers of text take many times its bytes.
        numbers = (np.cumsum(data.lengths, dtype=np.int64) - 1) // BLOCK_STEPS
        starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
        for start, end in itertools.pairwise([*starts, len(data)]):
            frames = inputs[start:end]
            if schema is not None:
                frames = [schema.encode(records)[0] for records in frames]
            elif vocabulary is not None:
                frames = [vocabulary.encode(tokens) for tokens in frames]
            shift = partial(_shifted, progress, start, len(data))
            results = model.predict(frames, shift)
            for name, answer in zip(data.ids[start:end], results, strict=True):
                if isinstance(answer, str):
                    raise ReadError(data.path, None, f"sequence {name!r:.40}: {answer}")
                probabilities.append(answer)
            if known is not None:
                seen.append(np.isin(hash_sequences(frames), known[:, 0]))
        return probabilities, np.concatenate(seen) if seen else None

    candidates = [model_choice.of_bundle(b.metadata) for b in bundles.values()]
    return candidates, predict
