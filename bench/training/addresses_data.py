"""Write the built-in data set `addresses` from the labelled addresses of usaddress.

    pip download --no-binary :all: --no-deps usaddress==0.5.16
    python -m bench.training.addresses_data usaddress-0.5.16.tar.gz

An address that differs from an earlier one in case or punctuation only is left out. Those
with a rare label are for training, and the others are drawn.
"""

import argparse
import gzip
import json
import random
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from model.bundle.spans import OUTSIDE
from model.bundle.vocabulary import tokenize
from model.datasets.dataset import PARTS

OUTPUT = Path("model/datasets/data/addresses.jsonl.gz")
MEMBER = "training/labeled.xml"  # what the package's own model is trained on
NOT_ADDRESS = "NotAddress"  # the package's label of words outside of an address
BETWEEN = ",;"  # spans neither begin nor end with these, as in `usaddress.tag`
SHARES = (0.15, 0.15)  # for validation and for testing
MIN_ADDRESSES = 5  # with a label; of others, all are for training
Labelled = tuple[list[str], list[str]]  # the words of an address, and their labels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="source distribution of usaddress")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    lines = assign(distinct(read(options.archive)), random.Random(options.seed))
    with (
        options.output.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
    ):
        for line in lines:
            packed.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
    counts = Counter(line["split"] for line in lines)
    tokens = sum(len(line["tokens"]) for line in lines)
    types = {label[2:] for line in lines for label in line["labels"]} - {""}
    print(f"{options.output}: {dict(counts)}, {tokens:,} tokens, {len(types)} types")


def read(archive: Path) -> list[Labelled]:
    """Return the labelled addresses of a source distribution, in order."""
    with tarfile.open(archive) as files:
        name = next(name for name in files.getnames() if name.endswith(MEMBER))
        content = files.extractfile(name)
        assert content is not None
        root = ElementTree.parse(content).getroot()
    return [
        ([(part.text or "").strip(" ") for part in item], [part.tag for part in item])
        for item in root
    ]


def distinct(addresses: Iterable[Labelled]) -> list[Labelled]:
    """Return the addresses of which no earlier one has the same letters and digits."""
    first: dict[str, Labelled] = {}
    for words, labels in addresses:
        key = " ".join(re.findall(r"\w+", " ".join(words).lower()))
        first.setdefault(key, (words, labels))
    return list(first.values())


def assign(addresses: Sequence[Labelled], draw: random.Random) -> list[dict[str, Any]]:
    """Return a line for each address, with its part."""
    lines: list[dict[str, Any]] = []
    for words, names in addresses:
        tokens, labels = to_bio(words, names)
        lines.append({"text": " ".join(words), "tokens": tokens, "labels": labels})
    counts = Counter(label for line in lines for label in {*line["labels"]})
    common = [
        index
        for index, line in enumerate(lines)
        if min(counts[label] for label in line["labels"]) >= MIN_ADDRESSES
    ]
    draw.shuffle(common)
    first, second = (round(share * len(lines)) for share in SHARES)
    parts = dict.fromkeys(common[:first], 1)
    parts |= dict.fromkeys(common[first : first + second], 2)
    return [
        {**line, "split": PARTS[parts.get(index, 0)]}
        for index, line in enumerate(lines)
    ]


def to_bio(words: Sequence[str], labels: Sequence[str]) -> Labelled:
    """Return the tokens of an address and their BIO labels.

    Neighbouring words with one label are a span, as `usaddress.tag` joins them. Our
    tokenizer cuts off punctuation; a comma at an end of a span is outside of it.
    """
    tokens: list[str] = []
    types: list[str] = []
    for word, label in zip(words, labels, strict=True):
        pieces = [token.text for token in tokenize(word, "tokens")]
        tokens += pieces
        types += [OUTSIDE if label == NOT_ADDRESS else label] * len(pieces)
    results = [OUTSIDE] * len(tokens)
    start = 0
    while start < len(tokens):
        end = start
        while end < len(tokens) and types[end] == types[start]:
            end += 1
        inner = [i for i in range(start, end) if tokens[i] not in BETWEEN]
        if inner and types[start] != OUTSIDE:
            for index in range(inner[0], inner[-1] + 1):
                results[index] = f"I-{types[start]}"
            results[inner[0]] = f"B-{types[start]}"
        start = end
    return tokens, results


def to_words(text: str, tokens: Sequence[str], labels: Sequence[str]) -> Labelled:
    """Return an address as the package labels it: its words, and their labels."""
    words = text.split(" ")
    names, place = [], 0
    for word in words:
        count = len(tokenize(word, "tokens"))
        inside = {label[2:] for label in labels[place : place + count]} - {""}
        names.append(inside.pop() if inside else NOT_ADDRESS)
        place += count
    assert place == len(tokens), text
    return words, names


if __name__ == "__main__":
    main()
