"""The sequences that a network gets most wrong, as a page for the folder of a run.

It holds texts and ids of the data, so it is not part of the bundle.
"""

import itertools
from pathlib import Path

import numpy as np

from model.bundle.metadata import Metadata
from model.datasets.dataset import Dataset
from model.evaluation import calibration
from model.evaluation.evaluation import Predictions
from model.report.markdown import escape
from model.training.runs import WORST

MOST = 25  # sequences
MOST_TOKENS = 60  # of a sequence


def write(
    folder: Path, metadata: Metadata, name: str, part: Dataset, answers: Predictions
) -> Path | None:
    """Write the page; return its path, or None if nothing is wrong.

    Args:
        name: of the part.
        answers: the network's to the part, logits.
    """
    path = folder / WORST
    path.unlink(missing_ok=True)
    scores = calibration.softmax(answers.scores / metadata.temperature)
    rows = np.arange(len(scores))
    costs = -np.log(np.maximum(scores[rows, answers.targets], 1e-12))
    wrong = scores.argmax(1) != answers.targets
    bounds = np.arange(len(part) + 1)
    if part.task == "label":
        bounds = part.offsets
    total = np.add.reduceat(np.where(wrong, costs, 0), bounds[:-1])
    order = [n for n in np.argsort(-total, kind="stable")[:MOST].tolist() if total[n]]
    if not order:
        return None
    unit = "sequence" if part.task == "classify" else "steps"
    lines = [
        f"# {escape(metadata.name)}, version {metadata.version}: the worst answers",
        "",
        f"The sequences of the {name} part whose wrong answers cost most: sure and wrong.",
        "",
        f"| Id | Wrong {unit}: true → predicted, its probability | Sequence |",
        "| --- | --- | --- |",
    ]
    for index in order:
        start, end = bounds[index : index + 2].tolist()
        mistakes = [
            f"{escape(metadata.classes[answers.targets[row]])} →"
            f" {escape(metadata.classes[scores[row].argmax()])}, {scores[row].max():.2f}"
            for row in range(start, end)
            if wrong[row]
        ]
        shown = "; ".join(mistakes[:5]) + ("; …" if len(mistakes) > 5 else "")
        text = _text(part, index, wrong[start:end])
        lines.append(f"| {escape(str(part.ids[index]))} | {shown} | {text} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _text(part: Dataset, index: int, wrong: np.ndarray) -> str:
    """Return a sequence's text, its wrongly labelled words bold; or how long it is."""
    length = int(part.lengths[index])
    if part.words_of is None or part.strings is None or part.vocabulary is None:
        return f"{length:,} steps"
    start = int(part.starts[index])
    words = part.words_of[start : start + min(length, MOST_TOKENS)].tolist()
    more = "…" if length > MOST_TOKENS else ""
    if part.vocabulary.kind == "characters":
        return escape("".join(part.strings[word] for word in words)) + more
    tokens = [escape(part.strings[word]) for word in words]
    if part.task == "label":
        pairs = itertools.zip_longest(tokens, wrong[: len(tokens)].tolist())
        tokens = [f"**{token}**" if mistake else token for token, mistake in pairs]
    return " ".join(tokens) + more
