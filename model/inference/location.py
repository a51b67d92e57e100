"""Find a bundle by its folder or its name, in the version that is served by default."""

from pathlib import Path

from model.bundle import folders, labels
from model.bundle.bundle import BundleError
from model.datasets.readers.table_layout import nearest


def find_folder(
    path: Path, version: str | None = None, *, newest: bool = False
) -> Path:
    """Return the folder of one bundle.

    Args:
        path: folder of a bundle, or of its versions; or the name of a bundle in the
            folders that are served by default.
        version: a version or a label; None: the version that is served by default.
        newest: if that version lies in another folder, take the newest one here.

    Raises:
        BundleError: there is no such bundle, or there are several.
    """
    if path.exists():
        entries = folders.scan(path)
    else:
        entries = folders.scan(*folders.DEFAULTS)
        names = [entry.name for entry in entries]
        entries = [entry for entry in entries if entry.name == str(path)]
        if not entries:
            near = nearest(str(path), names)
            hint = f"; did you mean {near!r}?" if near else ""
            raise BundleError(f"{path}: no such folder, and no bundle's name{hint}")
    if not entries:
        raise BundleError(f"{path}: no bundle")
    if len(entries) > 1:
        known = ", ".join(entry.name for entry in entries)
        raise BundleError(f"{path}: several bundles: {known}")
    versions = entries[0].versions
    if 0 in versions:  # it has no folder of versions
        return versions[0]
    # Another folder that is served may have the version that a label names.
    last = entries[0].folders[-1]
    known_labels = labels.read(*folders.of_name(last.name, last.parent))
    number = labels.find(version, known_labels, versions)
    if number is None and version is None and newest:
        number = max(versions)
    if number is None:
        known = ", ".join(map(str, versions))
        reason = f"no version {version}"
        if version is None:
            reason = f"its default version {known_labels[labels.DEFAULT]} is not here"
        hint = "" if version else ": choose one (version=...)"
        raise BundleError(f"{last}: {reason}; there are {known}{hint}")
    return versions[number]
