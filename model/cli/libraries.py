"""Import the libraries of training, and say how to install those that are missing."""

import contextlib
import importlib.metadata
import logging
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from model.bundle import quiet

# Extras of libraries that not all training needs: their names and purposes.
EXTRAS = {"optuna": ("search", "what a search for settings needs")}


class MissingLibraryError(ModuleNotFoundError):
    """A library that training needs; the message has the command that installs it."""


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Import what needs TensorFlow; without the lines that it writes meanwhile.

    Raises:
        MissingLibraryError: a library is not installed.
    """
    try:
        with quiet.imports():
            yield
    except ModuleNotFoundError as error:
        if str(error.name).startswith("model."):
            raise
        extra, purpose = EXTRAS.get(
            str(error.name), ("train", "TensorFlow and what else training needs")
        )
        reason = (
            f"{error.name} is not installed. To install {purpose}:"
            f" {_install_command(extra)}"
        )
        raise MissingLibraryError(reason, name=error.name) from None
    # It would warn that each fold has a graph, and in a notebook where it writes a file.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def _install_command(extra: str) -> str:
    """Return the command that adds the libraries of an extra to this environment."""
    root = Path(__file__).parents[2]
    if (root / "Makefile").is_file():
        folder = "" if Path.cwd() == root else f"-C {shlex.quote(str(root))} "
        return f"make {folder}install-training"
    try:
        importlib.metadata.version("unrolled")
    except importlib.metadata.PackageNotFoundError:
        # In an image. pip would look for a package of this name in the index.
        return f"pip install 'WHEEL[{extra}]', with the file that `make wheel` builds"
    return f"{shlex.quote(sys.executable)} -m pip install 'unrolled[{extra}]'"
