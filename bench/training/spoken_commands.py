"""Measure the answers of a bundle of `intents` to sentences that no template made.

    python -m bench.training.spoken_commands [--bundle bundles/intents/1] [--half choose]

`spoken_commands.jsonl` has 181 commands as people say them and 60 sentences of none of the
classes, written for this project (Apache-2.0) before any network had seen them. Settings are
chosen by the half `choose`; the half `report` is read once, for the figures in the docs.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import model
from model.evaluation import calibration

SENTENCES = Path(__file__).with_suffix(".jsonl")
OTHER = "Other"  # the class of sentences of no other class, if the network has it
SURE = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("bundles/intents/1"))
    parser.add_argument("--half", choices=("choose", "report"), default="choose")
    parser.add_argument(
        "--mistakes", action="store_true", help="list the wrong answers"
    )
    options = parser.parse_args()
    network = model.load(options.bundle)
    lines = [json.loads(line) for line in SENTENCES.read_text().splitlines()]
    lines = [line for line in lines if line["half"] == options.half]
    print("| sentences | right | ECE | sure when wrong | over 80 % | of those wrong |")
    print("| --- | --- | --- | --- | --- | --- |")
    for title, known in (("commands", True), ("of no class", False)):
        rows = [line for line in lines if (line["label"] is not None) == known]
        probabilities = _answers(network, [row["text"] for row in rows])
        names = [row["label"] or OTHER for row in rows]
        print(f"| {len(rows)} {title} | {_measures(network, probabilities, names)} |")
        if options.mistakes:
            for row, p in zip(rows, probabilities, strict=True):
                answer = network.classes[p.argmax()]
                if answer != (row["label"] or OTHER):
                    print(
                        f"    {row['text']!r}: {answer} {p.max():.0%}, {row['label']}"
                    )


def _answers(network: model.Network, texts: list[str]) -> np.ndarray:
    answers = network.classify(texts).predictions
    return np.array([answer.probabilities for answer in answers])


def _measures(
    network: model.Network, probabilities: np.ndarray, names: list[str]
) -> str:
    # A network without the class `Other` has no right answer to such sentences.
    places = {name: place for place, name in enumerate(network.classes)}
    targets = np.array([places.get(name, -1) for name in names])
    right = probabilities.argmax(1) == targets
    confidence = probabilities.max(1)
    sure = confidence > SURE
    values = (
        right.mean(),
        calibration.expected_calibration_error(probabilities, targets),
        confidence[~right].mean() if not right.all() else 0,
        sure.mean(),
        (~right[sure]).mean() if sure.any() else 0,
    )
    return " | ".join(f"{100 * value:.1f} %" for value in values)


if __name__ == "__main__":
    main()
