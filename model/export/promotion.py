"""Promotion: decide whether a new version takes over from the one in service.

Both networks answer the same test part (or else validation part) of the new data, and
the new one takes over unless its error is higher beyond chance, see `comparison`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.bundle import bundle, folders, labels
from model.bundle.bundle import Bundle, BundleError
from model.bundle.metadata import Metadata
from model.bundle.operators import allowlist
from model.datasets.dataset import Dataset
from model.evaluation import comparison, evaluation
from model.evaluation.comparison import Difference
from model.evaluation.evaluation import Metrics

Choice = Literal["better", "always", "never"]
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Promotion:
    """A new version beside the one in service, and which of them is served from now on."""

    name: str
    version: int  # the new one
    present: int  # the default version when they were compared
    promoted: bool
    reason: str
    part: str = ""  # of the data that both answered; empty if they were not compared
    metrics: tuple[Metrics, Metrics] | None = None  # present, new
    difference: Difference | None = None


def check(name: str, output: Path) -> None:
    """Check that a new version of a name can be published, before it is trained.

    Raises:
        BundleError: the labels of the present versions are invalid.
    """
    labels.default(folders.of_name(name, output))


def decide(folder: Path, dataset: Dataset, choice: Choice) -> Promotion | None:
    """Compare a new bundle with the one in service, and promote it if it isn't worse.

    Args:
        folder: of the new bundle, NAME/VERSION in a folder of bundles.
        choice: promote it always or never, whatever the comparison says.

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
    name = new.metadata.name
    obstacle = (
        f"version {present} is broken ({other})"
        if isinstance(other, BundleError)
        else _other_interface(other.metadata, new.metadata, present)
    )
    if isinstance(other, BundleError) or obstacle:
        promoted = choice == "always"
        return Promotion(name, version, present, promoted, obstacle)
    part = "test" if len(dataset.part("test")) else "validation"
    answered = dataset.part(part)
    if not len(answered):
        reason = "there is no test part to compare it on"
        return Promotion(name, version, present, choice == "always", reason)
    predictions = [evaluation.predict_bundle(b, answered) for b in (other, new)]
    old, fresh = (p.scores.argmax(1) != p.targets for p in predictions)
    change = comparison.difference(old, fresh, evaluation.answer_groups(answered))
    classes = new.metadata.classes
    metrics = [evaluation.compute_metrics(p, classes) for p in predictions]
    return Promotion(
        name,
        version,
        present,
        promoted=choice == "always" or (choice == "better" and not change.worse),
        reason="its error is higher" if change.worse else "its error is not higher",
        part=part,
        metrics=(metrics[0], metrics[1]),
        difference=change,
    )


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
