"""The playground's samples: sequences of the test parts, which no network was trained on.

    python examples/samples.py > service/playground/samples.json

Where they come from, and on which terms: model/data/SOURCES.md.
"""

import base64
import json
from collections.abc import Iterator

import numpy as np

from model.datasets import builtin, dataset

DIGITS = 2  # of each class
# Which of each word: the first, or one that the two networks read differently.
WORDS = {"omplex": 0, "enu": 0, "uzz": 0, "acking": 0, "axi": 12, "ate": 0, "ump": 11}
WORDS |= {"ero": 5, "uff": 2, "ylophone": 0, "ransform": 5, "ommanding": 11}


def test_part(name: str) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Frames [T, F] and the classes, one of each, of those of a built-in data set."""
    data = builtin.load(name)
    for place in np.flatnonzero(data.split == dataset.TEST).tolist():
        begin, end = data.offsets[place : place + 2]
        whole = data.task == "classify"
        targets = data.targets[[place] if whole else slice(begin, end)]
        yield data.frames[begin:end], [data.classes[one] for one in targets.tolist()]


def by_label(name: str) -> dict[str, list[np.ndarray]]:
    """Frames of each class or word, in the order of the labels."""
    found: dict[str, list[np.ndarray]] = {}
    for frames, labels in test_part(name):
        found.setdefault("".join(labels), []).append(frames)
    return dict(sorted(found.items()))


def packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def main() -> None:
    """Print them: pixels as bytes, letters as bits, numbers as they are."""
    digits = [
        {"label": label, "pixels": packed(np.round(frames * 255).astype(np.uint8))}
        for label, all_frames in by_label("digits").items()
        for frames in all_frames[:DIGITS]
    ]
    written = by_label("letters")
    words = [
        {"label": word, "letters": packed(np.packbits(frames.astype(bool), axis=1))}
        for word, which in WORDS.items()
        for frames in [written[word][which]]
    ]
    vowels = [
        {"label": label, "frames": np.round(frames.astype(float), 4).tolist()}
        for label, (frames, *_) in by_label("vowels").items()
    ]
    samples = {"digits": digits, "words": words, "vowels": vowels}
    print(json.dumps(samples, separators=(",", ":")))


if __name__ == "__main__":
    main()
