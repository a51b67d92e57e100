"""Train `tags` with fewer columns of ids, and forward only: what each of them brings.

    python -m bench.training.text_columns [--columns all] [--directions forward]

Prints the error on the validation part, of all words and of new ones, and the seconds of an
epoch. The table in docs/decisions.md has `--epochs 4`.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import msgspec
import numpy as np

from bench.environment import parser, progress
from model import config
from model.bundle.vocabulary import Vocabulary
from model.datasets import builtin, encoding, text
from model.datasets.dataset import Dataset
from model.evaluation import evaluation
from model.evaluation import text as metrics
from model.training import loop, steps

COLUMNS = {
    "words": ("word",),
    "words+lower": ("word", "lower"),
    "all": ("word", "lower", *encoding.HASHED),
}
DIRECTIONS = {"both": True, "forward": False}


def main() -> None:
    command = parser("bench.training.text_columns", __doc__)
    command.add_argument("--epochs", type=int, default=5)
    command.add_argument("--columns", nargs="+", choices=COLUMNS, default=[*COLUMNS])
    command.add_argument(
        "--directions", nargs="+", choices=DIRECTIONS, default=[*DIRECTIONS]
    )
    command.add_argument("--seed", type=int, default=0)
    options = command.parse_args()
    settings, raw, whole = load(options.epochs, options.seed)
    print(
        "| columns | direction | error, validation | on new words | seconds an epoch |"
    )
    print("| --- | --- | --- | --- | --- |", flush=True)
    for way in options.directions:
        run = settings.update({"network": {"bidirectional": DIRECTIONS[way]}})
        for name in options.columns:
            dataset = encode(raw, whole, COLUMNS[name])
            clock = Progress(name)
            trained = loop.fit(dataset, run, callback=clock)
            error, new = errors(dataset, steps.scorer(trained.network))
            print(
                f"| {name} | {way} | {error:.2f} % | {new:.2f} % | {clock.median:.0f} |",
                flush=True,
            )


def load(epochs: int, seed: int) -> tuple[config.Config, Dataset, Vocabulary]:
    """Return the settings of `tags`, its data with strings, and its whole vocabulary."""
    settings = config.load(config.presets()["tags"])
    settings = settings.update({"training": {"epochs": epochs, "seed": seed}})
    data = settings.data
    chosen = text.TextOptions(
        max_words=data.max_words, buckets=data.buckets, embedding=data.embedding
    )
    raw = builtin.load("tags")
    return settings, raw, encoding.build_vocabulary(raw, chosen)


def encode(raw: Dataset, whole: Vocabulary, columns: tuple[str, ...]) -> Dataset:
    """Return the data with some columns of the vocabulary."""
    kept = tuple(c for c in whole.columns if c.name in columns)
    vocabulary = msgspec.structs.replace(whole, columns=kept, examples=())
    vocabulary = type(whole).read(vocabulary.to_json())
    return encoding.encode(raw, vocabulary)


def errors(
    dataset: Dataset, scorer: Callable[..., np.ndarray]
) -> tuple[float, float | None]:
    """Return the error on the validation part, of all words and of new ones, in percent."""
    part = dataset.part("validation")
    answers = evaluation.predict(part, scorer)
    wrong = 100 * float((answers.scores.argmax(1) != answers.targets).mean())
    new = metrics.parts(dataset, {"validation": answers})["validation"].error_new
    return wrong, new


class Progress(loop.Callback):
    """Reports each epoch, and keeps the seconds of its updates."""

    def __init__(self, name: str):
        self._name = name
        self._seconds: list[float] = []
        self._begun, self._left = 0.0, 0

    @property
    def median(self) -> float:
        """The seconds of an epoch's updates; the middle of all epochs."""
        return statistics.median(self._seconds)

    def on_epoch_begin(self, epoch: int, batches: int) -> None:
        self._begun, self._left = time.perf_counter(), batches

    def on_batch_end(self, cost: float, error: float) -> None:
        self._left -= 1
        if not self._left:
            self._seconds.append(time.perf_counter() - self._begun)

    def on_epoch_end(self, epoch: loop.Epoch) -> None:
        values = dataclasses.asdict(epoch)
        progress(
            f"{self._name}: {values['epoch']}: {values['validation_error']:.2f} %,"
            f" {self._seconds[-1]:.0f} s"
        )


if __name__ == "__main__":
    main()
