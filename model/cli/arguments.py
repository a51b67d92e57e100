"""From the words of a command line to settings, data, and bundles."""

import hashlib
from pathlib import Path
from typing import Any

from model import config
from model.bundle import allowlist, signature
from model.bundle import bundle as bundles
from model.bundle.bundle import Bundle, BundleError
from model.config import Config, ConfigError
from model.datasets import builtin, readers
from model.datasets.dataset import PARTS, Dataset


def config_of(
    source: str,
    preset: str | None,
    settings: Path | None,
    name: str | None,
    flags: dict[str, Any],
) -> Config:
    """Defaults, then the preset or file, then flags.

    Raises:
        ConfigError: no such preset, or a setting at fault; it is named.
    """
    presets = config.presets()
    if preset is not None and settings is not None:
        raise ConfigError("take --preset or --settings, not both")
    if preset is not None and preset not in presets:
        known = ", ".join(presets)
        raise ConfigError(f"no preset {preset!r}; there are {known}")
    base = Config(name=_slug(source))
    path = settings or presets.get(preset or source)
    if path is not None:
        base = config.load(path)
    if source in presets and source not in builtin.BUILTIN:
        source = base.data.source  # a preset's name stands for its data too
    data = {**flags.get("data", {}), "source": source}
    changes = {**flags, "data": data, **({"name": name} if name else {})}
    return base.update(changes)


def _slug(source: str) -> str:
    """A bundle's name from a file's."""
    stem = Path(source).stem.lower().removesuffix("_train")
    kept = "".join(
        c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem
    )
    return kept.strip("._-")[:64] or "model"


def dataset(chosen: Config) -> Dataset:
    """The data of a run, with all its parts."""
    data = chosen.data
    return builtin.load_source(
        data.source,
        task=data.task,
        test=None if data.test is None else Path(data.test),
        validation=data.validation_fraction,
        test_fraction=data.test_fraction,
        seed=chosen.training.seed,
    )


def judged(
    source: str, part: str, test: Path | None, metadata: bundles.Metadata
) -> Dataset:
    """The sequences that a bundle is to be measured on.

    Raises:
        ValueError: a part that would have to be cut from other data than that of
            the training, or anew: what a network was trained on is no test.
    """
    record, task = metadata.training, metadata.task
    if part == "all" and source not in builtin.BUILTIN:
        return readers.read(Path(source), task=task)
    dataset = builtin.load_source(
        source,
        task=task,
        test=test,
        validation=record.validation_fraction,
        test_fraction=record.test_fraction,
        seed=record.seed,
    )
    if part == "all":
        return dataset
    given = source in builtin.BUILTIN or test is not None
    if not given and dataset.digest != record.data:
        split = readers.read(Path(source), task=task).split
        if PARTS.index(part) not in split:
            raise ValueError(
                f"{source} names no {part} part, and is not what the bundle was trained"
                " on: take --part all, or --test FILE as in the training"
            )
    return dataset.part(part)


def bundle(path: Path) -> Bundle:
    """The one bundle at a path, verified, with a network that can only compute.

    Raises:
        BundleError: none there, several, or a broken one.
    """
    found = bundles.find(path)
    if len(found) != 1:
        names = ", ".join(str(folder.parent) for folder in found)
        raise BundleError(
            f"{path}: {'several bundles: ' + names if found else 'no bundle'}"
        )
    verified = bundles.read(found[0])
    allowlist.check(verified)
    return verified


def sign(path: Path, key: Path) -> Path:
    """Sign the one bundle at a path; the file of its signature.

    Raises:
        BundleError: as `bundle` does.
        SignatureError: the file holds no private key.
    """
    found = bundle(path)
    text = (found.folder / bundles.MARKER).read_bytes()
    if hashlib.sha256(text).hexdigest() != found.digest:
        raise BundleError(f"{found.folder}: has been replaced")
    file = found.folder / bundles.SIGNATURE
    file.write_bytes(signature.sign(text, key))
    return file
