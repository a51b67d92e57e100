"""Text as whole numbers: tokenizers, and the vocabulary that a bundle carries.

Training and the service turn text into ids by this module, so that both get the same. A
network of words reads several columns for each word: its place in a list of frequent words,
and hashes of its lower-case form, its first and last letters, and its shape. So a word that
training has never seen still has a suffix. A network of characters reads one column.

No text is normalised: an answer would depend on where a text is cut.
"""

import re
import zlib
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, Self

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import force_setattr

FILE = Path("assets.extra") / "vocabulary.json"
MAX_BYTES = 2**25  # size of the file
# The serving process holds the entries in memory, and parses them between requests.
MAX_ENTRIES, MAX_IDS = 250_000, 2**24  # whole numbers up to that are exact in float32
# Some more of each than so many entries and 1,000 examples have.
MAX_COUNTS = {b"[": 2 * MAX_ENTRIES, b'"': 6 * MAX_ENTRIES, b",": 8 * MAX_ENTRIES}
MAX_KEPT = 20_000  # words whose ids are kept, with at most so many letters:
MAX_KEPT_LETTERS = 64
SHAPE_LETTERS = 24  # of a word that its shape shows
MAX_TOKEN = 4_096  # characters
# Numbers with their points and commas; words with inner apostrophes and hyphens; any other
# visible character by itself. The quantifiers are possessive: a pattern that may backtrack
# keeps memory for each repetition. They have a limit, so a longer word is several tokens.
WORD = re.compile(
    r"\d{1,255}+(?:[.,:]\d{1,255}+){0,15}+|\w{1,255}+(?:['’.-]\w{1,255}+){0,15}+|[^\w\s]"
)
Kind = Literal["tokens", "characters"]
KINDS: tuple[Kind, ...] = ("tokens", "characters")
# The columns of a word that are hashed: what they read of it.
PIECES = {
    "lower": str.lower,
    "prefix1": lambda word: word[:1],
    "prefix3": lambda word: word[:3],
    "suffix1": lambda word: word[-1:],
    "suffix2": lambda word: word[-2:],
    "suffix3": lambda word: word[-3:],
    "suffix4": lambda word: word[-4:],
    "shape": lambda word: shape(word),
}
MAX_ENTRY = 256  # characters
Entry = Annotated[str, Meta(min_length=1, max_length=MAX_ENTRY)]
Width = Annotated[int, Meta(ge=1, le=4096)]


class Section(
    msgspec.Struct, frozen=True, dict=True, kw_only=True, forbid_unknown_fields=True
):
    """A part of `vocabulary.json`."""

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read a file's content.

        Raises:
            ValueError: it has another content, or the ids and numbers of its examples
                are not what this code makes of them.
        """
        # Counted before anything becomes an object, which takes ten times as much memory.
        if any(data.count(mark) > most for mark, most in MAX_COUNTS.items()):
            raise ValueError(f"more than {MAX_ENTRIES:,} entries, or other values")
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(str(error)) from None

    def to_json(self) -> bytes:
        """Return the file's content."""
        return msgspec.json.encode(self)


class Column(Section, frozen=True, kw_only=True):
    """A column of ids: how many there are, and the numbers that stand for one.

    A size of 0 is a column of numbers, in which a number stands for itself.
    """

    name: str
    size: Annotated[int, Meta(ge=0, le=MAX_IDS)]
    width: Width


class Vocabulary(Section, frozen=True, kw_only=True):
    """Turns the tokens of a text into ids; `vocabulary.json`.

    The first column's ids are places in `entries`, from 1; 0 is any other token.
    """

    format: Literal[1] = 1
    kind: Kind
    columns: Annotated[tuple[Column, ...], Meta(min_length=1, max_length=32)]
    entries: Annotated[tuple[Entry, ...], Meta(max_length=MAX_ENTRIES)]
    examples: Annotated[
        tuple[tuple[str, tuple[int, ...]], ...], Meta(max_length=1000)
    ] = ()

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if names[0] != self.first or not {*names[1:]} <= {*PIECES}:
            raise ValueError(f"unknown columns {', '.join(names)}")
        if len(set(names)) < len(names) or (self.kind != "tokens" and len(names) > 1):
            raise ValueError("a column too many")
        if any(column.size < 1 for column in self.columns):
            raise ValueError("a column without ids")
        if self.columns[0].size != 1 + len(self.entries):
            raise ValueError("the first column's size is not that of the entries")
        places = {entry: i for i, entry in enumerate(self.entries, 1)}
        if len(places) < len(self.entries):
            raise ValueError("an entry is repeated")
        force_setattr(self, "_places", places)
        force_setattr(self, "_kept", {})
        for token, ids in self.examples:
            if self.row(token) != ids:
                raise ValueError(f"other ids than those of its example {token!r:.40}")

    @property
    def first(self) -> str:
        """The name of the first column."""
        return "word" if self.kind == "tokens" else "character"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.name for column in self.columns)

    def is_known(self, token: str) -> bool:
        """Return whether a token is among the entries."""
        return token in self._places  # type: ignore[attr-defined]

    def row(self, token: str) -> tuple[int, ...]:
        """Return the ids of a token, one for each column."""
        first: int = self._places.get(token, 0)  # type: ignore[attr-defined]
        return (first, *(_hash(c, token) for c in self.columns[1:]))

    def encode(self, tokens: Iterable[str]) -> np.ndarray:
        """Return the ids of tokens as frames [T, K] float32, which hold them exactly."""
        kept: dict[str, bytes] = self._kept  # type: ignore[attr-defined]
        rows = [kept.get(token) or self._frame(token) for token in tokens]
        numbers = np.frombuffer(bytearray().join(rows), np.float32)
        return numbers.reshape(len(rows), len(self.columns))

    def _frame(self, token: str) -> bytes:
        """Return the ids of a token as the bytes of a frame, and keep them."""
        kept: dict[str, bytes] = self._kept  # type: ignore[attr-defined]
        frame = np.array(self.row(token), np.float32).tobytes()
        if len(kept) < MAX_KEPT and len(token) <= MAX_KEPT_LETTERS:
            kept[token] = frame
        return frame

    def with_examples(self, tokens: Sequence[str]) -> Self:
        """Return the same vocabulary with the ids of these tokens, which `read` checks."""
        examples = tuple((token, self.row(token)) for token in tokens)
        return msgspec.structs.replace(self, examples=examples)


def tokenize(text: str, kind: Kind, most: int | None = None) -> list[str]:
    """Cut a text into words, or into characters; at most so many."""
    if kind == "characters":
        return list(text[:most])
    if most is None or len(text) <= most:
        return WORD.findall(text)
    return [match[0] for match in islice(WORD.finditer(text), most)]


def starts(text: str, tokens: Iterable[str]) -> list[int]:
    """Return where each token of a text starts, in Unicode code points."""
    results, end = [], 0
    for token in tokens:  # only spaces are between them
        start = text.index(token, end)
        results.append(start)
        end = start + len(token)
    return results


def shape(word: str) -> str:
    """Return the kinds of a word's characters: `Xxx` for `Dan`, `dd.d` for `12.5`."""
    return "".join(
        "X"
        if letter.isupper()
        else "x"
        if letter.isalpha()
        else "d"
        if letter.isdigit()
        else letter
        for letter in word[:SHAPE_LETTERS]
    )


def _hash(column: Column, token: str) -> int:
    """Return the id of a token in a hashed column. Python's `hash` changes by process."""
    piece = PIECES[column.name](token)
    data = f"{column.name}:{piece}".encode("utf-8", "surrogatepass")
    return zlib.crc32(data) % column.size
