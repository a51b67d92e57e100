"""Compare the preset `addresses` with the CRF of usaddress, trained on the same addresses.

    python -m bench.training.addresses [--seeds 0 1 2] [--python PYTHON]

usaddress parses addresses with a conditional random field on features that its authors
designed: words, digits, lists of street types and directions, and the same of both
neighbours. The package trains it on all labelled addresses, so the model that it ships has
seen our test part. Here its features and the settings of its trainer, parserator, learn
from our part for training alone. That training has no randomness; the network's is
repeated with each seed.

A span is right if its type, its first and its last token are. The CRF labels the words
of the package; its labels become spans as those of the data set did
(`bench.training.addresses_data`), and both are scored by the same lines. Prints a Markdown
table for the validation part, on which the preset's settings were chosen, and for the
test part, with the difference in F1 and its 95 % interval (a bootstrap of addresses).

`--python` is an interpreter that has usaddress and python-crfsuite. Without it a temporary
virtual environment is made, which needs a package index. Takes some minutes.
"""

import gzip
import itertools
import json
import subprocess
import tempfile
import venv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.environment import parser, progress
from bench.training.addresses_data import to_bio, to_words
from model import config
from model.bundle import spans
from model.cli import arguments
from model.datasets import builtin
from model.evaluation import calibration, evaluation
from model.training import defaults, loop, steps

PARTS = ("validation", "test")
RESAMPLES = 10_000
PACKAGES = ("usaddress==0.5.16", "python-crfsuite")
# What `parserator train` of parserator 0.6.9 does, and the labels of other addresses.
CRF = """
import json, sys
import pycrfsuite, usaddress

folder = sys.argv[1]
with open(folder + "/request.json") as file:
    request = json.load(file)
settings = {"c1": 0.1, "c2": 0.01, "feature.minfreq": 0}
trainer = pycrfsuite.Trainer(verbose=False, params=settings)
for words, labels in request["train"]:
    trainer.append(usaddress.tokens2features(words), labels)
trainer.train(folder + "/model.crfsuite")
tagger = pycrfsuite.Tagger()
tagger.open(folder + "/model.crfsuite")
labels = [tagger.tag(usaddress.tokens2features(words)) for words in request["predict"]]
with open(folder + "/labels.json", "w") as file:
    json.dump(labels, file)
"""
# The BIO labels of each address of a part.
Labels = list[list[str]]


def main() -> None:
    command = parser("bench.training.addresses", __doc__)
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    command.add_argument("--python", metavar="PYTHON", help="has usaddress")
    options = command.parse_args()
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with gzip.open(builtin.DATA / "addresses.jsonl.gz", "rt", encoding="utf-8") as file:
        for content in file:
            line = json.loads(content)
            lines[line["split"]].append(line)
    answers = {"CRF": crf(lines, options.python)}
    for seed in options.seeds:
        answers[f"network, seed {seed}"] = network(seed)
    print("| model | part | precision | recall | F1 | token error |")
    print("| --- | --- | --- | --- | --- | --- |")
    for part in PARTS:
        truth = [line["labels"] for line in lines[part]]
        counts = {name: count(truth, labels[part]) for name, labels in answers.items()}
        for name, row in counts.items():
            print(f"| {name} | {part} | {_cells(row.sum(0))} |")
        networks = [row for name, row in counts.items() if name != "CRF"]
        mean, low, high = difference(counts["CRF"], networks)
        print(
            f"| network minus CRF, mean of seeds | {part} | | |"
            f" {mean:+.2f} ({low:+.2f} to {high:+.2f}) | |"
        )


def crf(
    lines: dict[str, list[dict[str, Any]]], python: str | None
) -> dict[str, Labels]:
    """Train the CRF, and return its labels."""
    with tempfile.TemporaryDirectory() as folder:
        if python is None:
            progress("a virtual environment with usaddress")
            venv.create(f"{folder}/venv", with_pip=True)
            python = f"{folder}/venv/bin/python"
            install = [python, "-m", "pip", "install", "--quiet", *PACKAGES]
            subprocess.run(install, check=True)
        words = {
            part: [to_words(x["text"], x["tokens"], x["labels"]) for x in lines[part]]
            for part in ("train", *PARTS)
        }
        held_out = [texts for part in PARTS for texts, _ in words[part]]
        request = {"train": words["train"], "predict": held_out}
        Path(folder, "request.json").write_text(json.dumps(request))
        progress("CRF")
        subprocess.run([python, "-c", CRF, folder], check=True)
        names = iter(json.loads(Path(folder, "labels.json").read_text()))
    return {
        part: [to_bio(texts, next(names))[1] for texts, _ in words[part]]
        for part in PARTS
    }


def network(seed: int) -> dict[str, Labels]:
    """Train the preset, and return its labels as the service makes them consistent."""
    settings = config.load(config.presets()["addresses"])
    settings = settings.update({"training": {"seed": seed}})
    dataset = arguments.load_dataset(settings)
    trained = loop.fit(dataset, defaults.resolve(settings, dataset))
    progress(f"network, seed {seed}: {len(trained.history)} epochs")
    scheme = spans.tagging_scheme(dataset.classes)
    results: dict[str, Labels] = {}
    for name in PARTS:
        part = dataset.part(name)
        scores = evaluation.predict(part, steps.scorer(trained.network)).scores
        probabilities = calibration.softmax(scores)
        results[name] = [
            [
                dataset.classes[code]
                for code in spans.most_probable(probabilities[start:end], scheme)
            ]
            for start, end in itertools.pairwise(part.offsets.tolist())
        ]
    return results


def count(truth: Labels, predicted: Labels) -> np.ndarray:
    """Return for each address the spans that are right, predicted and true, and the tokens
    with a wrong label and all, [N, 5]."""
    rows = []
    for actual, labels in zip(truth, predicted, strict=True):
        ours, theirs = _spans(labels), _spans(actual)
        wrong = sum(a != b for a, b in zip(actual, labels, strict=True))
        rows.append([len(ours & theirs), len(ours), len(theirs), wrong, len(labels)])
    return np.array(rows)


def _spans(labels: Sequence[str]) -> set[spans.Span]:
    """Return the spans of BIO labels."""
    classes = sorted({*labels})
    codes = [classes.index(label) for label in labels]
    scheme = {code: (name[0], name[2:]) for code, name in enumerate(classes)}
    return {*spans.of_codes(codes, classes, scheme)}


def difference(crf: np.ndarray, networks: Iterable[np.ndarray]) -> tuple[float, ...]:
    """Return by how much the F1 of networks is above that of the CRF, on average, and a
    95 % interval for other addresses."""
    random = np.random.default_rng(0)
    draws = random.multinomial(len(crf), np.full(len(crf), 1 / len(crf)), RESAMPLES)
    draws = np.vstack([np.ones(len(crf), int), draws])
    scores = np.mean([_f1(draws @ rows) for rows in networks], 0) - _f1(draws @ crf)
    return float(scores[0]), *np.quantile(scores[1:], (0.025, 0.975)).tolist()


def _f1(totals: np.ndarray) -> np.ndarray:
    return np.asarray(200 * totals[..., 0] / (totals[..., 1] + totals[..., 2]))


def _cells(total: np.ndarray) -> str:
    right, predicted, true, wrong, tokens = total.tolist()
    scores = 100 * right / predicted, 100 * right / true, float(_f1(total))
    return " | ".join(f"{x:.2f} %" for x in (*scores, 100 * wrong / tokens))


if __name__ == "__main__":
    main()
