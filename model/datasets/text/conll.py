"""Read CoNLL files: a token a line with its columns, sentences between empty lines.

In CoNLL-U (.conllu) the columns are fixed. Else the first is the token, and the last, or
another one that is chosen, the label.
"""

from collections.abc import Iterator
from pathlib import Path

from model.datasets.readers import files
from model.datasets.readers.files import ReadError, Rows

UPOS, FORM = 4, 2  # columns of CoNLL-U files, from 1
NAMED = {"form": 2, "lemma": 3, "upos": 4, "xpos": 5, "feats": 6, "deprel": 8}

Tokens = dict[str, list[str]]  # tokens and labels of a sentence


def named_rows(path: Path, column: str | None) -> Rows:
    """Return the tokens and the labels of each sentence, as JSON Lines have them.

    Args:
        column: number of the label's column from 1, or its name in a CoNLL-U file.
            Default: the last, or UPOS.

    Raises:
        ReadError: there is no such column.
    """
    universal = path.suffix.lower() == ".conllu"
    place = _place(path, column, universal)
    return Rows(["tokens", "labels"], None, _sentences(path, place, universal))


def _sentences(
    path: Path, place: int | None, universal: bool
) -> Iterator[tuple[int, Tokens]]:
    """Yield each sentence with the line of its first token."""
    tokens: list[str] = []
    labels: list[str] = []
    first = columns = 0
    for number, content in files.numbered_lines(path):
        line = content.rstrip("\r\n")
        cells = line.split("\t") if "\t" in line or universal else line.split()
        if not line.strip() or cells[0] == "-DOCSTART-":
            if tokens:
                yield first, {"tokens": tokens, "labels": labels}
            tokens, labels = [], []
            continue
        if universal and (line[0] == "#" or not cells[0].isdigit()):
            continue  # comments, and words that are written as one
        if len(cells) < max(2, place or 0):
            reason = f"has {len(cells)} columns; expected {max(2, place or 0)}"
            raise ReadError(path, number, reason)
        columns = columns or len(cells)
        if place is None and len(cells) != columns:  # the last would be another column
            reason = f"has {len(cells)} columns; the lines before have {columns}"
            raise ReadError(
                path, number, f"{reason} (--column names that of the labels)"
            )
        first = first if tokens else number
        tokens.append(cells[FORM - 1 if universal else 0])
        labels.append(cells[place - 1 if place else -1])
    if tokens:
        yield first, {"tokens": tokens, "labels": labels}


def _place(path: Path, name: str | None, universal: bool) -> int | None:
    """Return the number of the label's column, from 1; None for the last."""
    if name is None:
        return UPOS if universal else None
    if name.isdecimal() and 0 < int(name) < 100:
        return int(name)
    if universal and name.lower() in NAMED:
        return NAMED[name.lower()]
    known = f", or one of {', '.join(NAMED)}" if universal else ""
    raise ReadError(path, None, f"no column {name!r}: give a number from 1{known}")
