"""From the words of a command line to settings, data, and bundles."""

from pathlib import Path
from typing import Any

from . import bundle as bundles
from . import config, datasets
from .bundle import Bundle, BundleError
from .config import Config, ConfigError
from .dataset import Dataset


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
    if source in presets and source not in datasets.BUILTIN:
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
    return datasets.resolve(
        data.source,
        task=data.task,
        test=None if data.test is None else Path(data.test),
        validation=data.validation_fraction,
        test_fraction=data.test_fraction,
        seed=chosen.training.seed,
    )


def bundle(path: Path) -> Bundle:
    """The one bundle at a path, verified.

    Raises:
        BundleError: none there, several, or a broken one.
    """
    found = bundles.find(path)
    if len(found) != 1:
        names = ", ".join(str(folder.parent) for folder in found)
        raise BundleError(
            f"{path}: {'several bundles: ' + names if found else 'no bundle'}"
        )
    return bundles.read(found[0])
