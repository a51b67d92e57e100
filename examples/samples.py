"""Print the playground's samples: sequences of the test parts of built-in data sets.

    python examples/samples.py > service/playground/samples.json

Origins and licences: model/datasets/data/SOURCES.md.
"""

import base64
import json
from collections.abc import Iterator

import numpy as np

from model.datasets import builtin, dataset

DIGITS = 2  # samples of each class
# Index of each word's sample: the first, or one that the two networks read differently.
WORDS = {"omplex": 0, "enu": 0, "uzz": 0, "acking": 0, "axi": 15, "ate": 0, "ump": 11}
WORDS |= {"ero": 6, "uff": 3, "ylophone": 0, "ransform": 5, "ommanding": 11}


def test_part(name: str) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Yield the frames [T, F] and labels of each test sequence of a built-in data set."""
    data = builtin.load(name)
    for place in np.flatnonzero(data.split == dataset.TEST).tolist():
        begin, end = data.offsets[place : place + 2]
        whole = data.task == "classify"
        targets = data.targets[[place] if whole else slice(begin, end)]
        yield data.frames[begin:end], [data.classes[code] for code in targets.tolist()]


def by_label(name: str) -> dict[str, list[np.ndarray]]:
    """Return the frames of each class or word, sorted by label."""
    samples: dict[str, list[np.ndarray]] = {}
    for frames, labels in test_part(name):
        samples.setdefault("".join(labels), []).append(frames)
    return dict(sorted(samples.items()))


def encode(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def main() -> None:
    """Print JSON: pixels as bytes, letters as bits, other numbers as they are."""
    digits = [
        {"label": label, "pixels": encode(np.round(frames * 255).astype(np.uint8))}
        for label, all_frames in by_label("digits").items()
        for frames in all_frames[:DIGITS]
    ]
    letters = by_label("letters")
    words = [
        {"label": word, "letters": encode(np.packbits(frames.astype(bool), axis=1))}
        for word, which in WORDS.items()
        for frames in [letters[word][which]]
    ]
    vowels = [
        {"label": label, "frames": np.round(frames.astype(float), 4).tolist()}
        for label, (frames, *_) in by_label("vowels").items()
    ]
    samples = {"digits": digits, "words": words, "vowels": vowels}
    print(json.dumps(samples, separators=(",", ":")))


if __name__ == "__main__":
    main()
