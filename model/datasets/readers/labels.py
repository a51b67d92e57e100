"""Collect the class names of a file, and put them in order."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from model.datasets.dataset import join_names

INTEGER = re.compile(r"-?[0-9]{1,18}")


class Labels:
    """Number the classes as they occur, and sort them at the end.

    With `classes` the order is fixed, and any other name is refused.
    """

    def __init__(self, classes: Sequence[str] | None = None):
        self._fixed = classes is not None
        self._codes = {name: code for code, name in enumerate(classes or ())}

    def encode(self, name: str) -> int:
        """Return the number of a class; raise ValueError if there can't be such a class."""
        if not name:
            raise ValueError("the label is empty")
        code = self._codes.get(name)
        if code is not None:
            return code
        if self._fixed:
            known = join_names(self._codes)
            raise ValueError(f"label {name!r:.80} is not among the classes {known}")
        return self._codes.setdefault(name, len(self._codes))

    @property
    def classes(self) -> tuple[str, ...]:
        """All names: in the given order, or whole numbers by value and text by alphabet."""
        if self._fixed:
            return tuple(self._codes)
        if all(INTEGER.fullmatch(name) for name in self._codes):
            return tuple(sorted(self._codes, key=lambda name: (int(name), name)))
        return tuple(sorted(self._codes))

    def targets(self, codes: Iterable[int] | np.ndarray) -> np.ndarray:
        """Turn numbers from encode() into indices in `classes`, int32."""
        place = {name: index for index, name in enumerate(self.classes)}
        table = np.array([place[name] for name in self._codes], np.int32)
        return table[np.asarray(codes, np.int64)]


def to_text(value: object) -> str:
    """Return a label or an id as text: true as "true" (like JSON), 7 as "7"."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    raise ValueError(f"expected text, a whole number or a boolean, not {value!r:.40}")
