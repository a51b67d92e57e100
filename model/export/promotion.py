"""Promotion: decide whether a new version takes over from the one in service.

Both networks answer those sequences of the same test part (or else validation part) of the
new data that neither was trained on. What is proven is said by `comparison`:

better     the new one takes over if its error is lower beyond chance; or if it is higher by
           at most a standard error, and the new one was trained on more
not-worse  it takes over unless its error is higher beyond chance
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from model.bundle import bundle, folders, labels
from model.bundle.bundle import Bundle, BundleError
from model.bundle.metadata import Metadata
from model.bundle.operators import allowlist
from model.datasets.dataset import TRAIN, Dataset
from model.evaluation import comparison, evaluation, membership
from model.evaluation.comparison import Difference
from model.evaluation.evaluation import Metrics
from model.report.markdown import count

Choice = Literal["better", "not-worse", "always", "never"]
ATTEMPTS = 5
FEW = 5  # sequences, or groups: answers of fewer decide nothing
UNITS = {"classify": "sequences", "label": "steps"}


@dataclass(frozen=True, slots=True)
class Promotion:
    """A new version beside the one in service, and which of them is served from now on."""

    name: str
    version: int  # the new one
    present: int  # the default version when they were compared
    promoted: bool
    reason: str
    part: str = ""  # of the data that both answered; empty if they were not compared
    left_out: int = 0  # sequences of it that the present one was trained on
    metrics: tuple[Metrics, Metrics] | None = None  # present, new
    difference: Difference | None = None


def check(name: str, output: Path) -> None:
    """Check that a new version of a name can be published, before it is trained.

    Raises:
        BundleError: the labels of the present versions are invalid.
    """
    labels.default(folders.of_name(name, output))


def decide(folder: Path, dataset: Dataset, choice: Choice) -> Promotion | None:
    """Compare a new bundle with the one in service, and promote the better one.

    Args:
        folder: of the new bundle, NAME/VERSION in a folder of bundles.
        choice: the rule, or promote it always or never, whatever the comparison says.

    Returns:
        None if there was no other version: the new one is served.

    Raises:
        BundleError: the new bundle is broken, or labels can't be read or written.
    """
    name, version = folder.parent.name, int(folder.name)
    paths = folders.of_name(name, folder.parent.parent)
    new = bundle.read(folder)
    for _ in range(ATTEMPTS):
        present = labels.default(paths)
        if present is None or present == version:
            return None
        result = _compare(new, _read(paths, present), dataset, version, present, choice)
        if not result.promoted:
            return result
        # Another training may have promoted its version meanwhile: compare with that.
        if labels.promote(paths, version, instead_of=present) == present:
            return result
    raise BundleError(f"{folder}: other versions are being promoted all the time")


def _read(paths: list[Path], version: int) -> Bundle | BundleError:
    for path in reversed(paths):
        if (path / str(version)).is_dir():
            try:
                present = bundle.read(path / str(version))
                allowlist.check(present)  # before TensorFlow loads it
            except BundleError as error:
                return error
            return present
    return BundleError(f"{paths[-1]}: there is no version {version}")


def _compare(
    new: Bundle,
    other: Bundle | BundleError,
    dataset: Dataset,
    version: int,
    present: int,
    choice: Choice,
) -> Promotion:
    undecided = partial(
        Promotion, new.metadata.name, version, present, choice == "always"
    )
    if isinstance(other, BundleError):
        return undecided(f"version {present} is broken ({other})")
    if obstacle := _other_interface(other.metadata, new.metadata, present):
        return undecided(obstacle)
    part = "test" if len(dataset.part("test")) else "validation"
    answered = dataset.part(part)
    if not len(answered):
        return undecided("there is no test part to compare it on")
    known = membership.parts_in_training(other, answered)
    if known is not None:
        answered = answered.take(known != TRAIN)
    left_out = len(dataset.part(part)) - len(answered)
    groups = evaluation.answer_groups(answered)
    if (units := len(np.unique(groups))) < FEW:
        few = count(units, "sequence" if dataset.groups is None else "group")
        unseen = f" that version {present} was not trained on" if left_out else ""
        return undecided(f"its {part} part has {few}{unseen}, too few to decide by")
    predictions = [evaluation.predict_bundle(b, answered) for b in (other, new)]
    old, fresh = (p.scores.argmax(1) != p.targets for p in predictions)
    change = comparison.difference(old, fresh, groups)
    promoted, reason = _judge(change, choice, other.metadata, new.metadata)
    classes = new.metadata.classes
    metrics = [evaluation.compute_metrics(p, classes) for p in predictions]
    return Promotion(
        new.metadata.name,
        version,
        present,
        promoted,
        reason,
        part=part,
        left_out=left_out,
        metrics=(metrics[0], metrics[1]),
        difference=change,
    )


def _judge(
    change: Difference, choice: Choice, present: Metadata, new: Metadata
) -> tuple[bool, str]:
    """Return whether a new version takes over by a rule, and why."""
    if change.better or change.worse:
        proven = "better" if change.better else "worse"
        promoted = choice == "always" or (choice != "never" and change.better)
        return promoted, f"provably {proven}: {change}"
    reason = f"not provably worse: {change}"
    if choice != "better":
        return choice != "never", reason
    before, after = (_learnt(metadata) for metadata in (present, new))
    size = f"trained on {after:,} {UNITS[new.task]}, version {present.version} on {before:,}"
    if after <= before:
        return False, f"{reason}; nor better, and {size}"
    if not change.as_good:
        return False, f"{reason}; but higher by more than a standard error"
    return True, f"{reason}; and {size}"


def _learnt(metadata: Metadata) -> int:
    """Return how many sequences, or steps, a network was trained on; 0: unknown."""
    train = metadata.training.parts.get("train")
    return 0 if train is None else train.count


def _other_interface(present: Metadata, new: Metadata, version: int) -> str:
    """Why callers of the present version would break; empty if they would not."""
    if new.task != present.task:
        return f"version {version} is to {present.task}, this one to {new.task}"
    if new.input.names != present.input.names:
        return f"version {version} has other features: {_list(present.input.names)}"
    if new.classes != present.classes:
        return f"version {version} has other classes: {_list(present.classes)}"
    return ""


def _list(names: tuple[str, ...], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
