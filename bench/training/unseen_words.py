"""The error of a preset of the letters on words that it has never seen, by group of words.

    python -m bench.training.unseen_words [--preset letters] [--groups 0 1 2 3 4] [--seeds 0]

Trains without the words of each group in turn, and without those of the validation part, and
tests on the words of the group, on single letters of theirs, and on strings of eight random
ones. Prints a Markdown table, with the mean of all rows.
"""

import argparse
import time
from dataclasses import replace

import numpy as np

from model import config
from model.datasets import builtin
from model.datasets.dataset import TEST, Dataset
from model.evaluation import evaluation
from model.training import defaults, loop, steps

MOST = 3000  # random letters
STRING = 8


def random_strings(data: Dataset, length: int) -> Dataset:
    """Return random steps of a data set as sequences of one length."""
    random = np.random.default_rng(0)
    count = min(MOST, len(data.frames)) // length
    places = random.choice(len(data.frames), count * length, replace=False)
    return replace(
        data,
        frames=data.frames[places],
        targets=data.targets[places],
        lengths=np.full(count, length),
        split=np.full(count, TEST),
        ids=np.arange(count),
    )


def measure(preset: str, group: int, seed: int) -> list[float]:
    """Train, and return the error on words, single letters and strings, and the minutes."""
    begun = time.monotonic()
    data = builtin.letters_unseen(group)
    settings = config.load(config.presets()[preset])
    settings = settings.update({"training": {"seed": seed}})
    trained = loop.fit(data, defaults.resolve(settings, data))
    test, scorer = data.part("test"), steps.scorer(trained.network)
    errors = []
    for part in (test, random_strings(test, 1), random_strings(test, STRING)):
        predictions = evaluation.predict(part, scorer)
        wrong = predictions.scores.argmax(1) != predictions.targets
        errors.append(100 * float(wrong.mean()))
    return [*errors, (time.monotonic() - begun) / 60]


def main() -> None:
    """Measure each group with each seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="letters")
    parser.add_argument("--groups", type=int, nargs="+", default=range(5))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    print(
        "| group | seed | unseen words, % | single letters, % | random strings, % | minutes |"
    )
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    rows = []
    for seed in arguments.seeds:
        for group in arguments.groups:
            rows.append(measure(arguments.preset, group, seed))
            print(_row(f"{group} | {seed}", rows[-1]), flush=True)
    print(_row("mean |", np.mean(rows, axis=0).tolist()))


def _row(name: str, values: list[float]) -> str:
    numbers = [f"{value:.2f}" for value in values[:-1]] + [f"{values[-1]:.1f}"]
    return f"| {name} | {' | '.join(numbers)} |"


if __name__ == "__main__":
    main()
