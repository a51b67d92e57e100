"""A file as a bulk job reads it: shards, and the rows in them."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from model.datasets.readers import table_layout


class Row(NamedTuple):
    """A sequence, or the reason why a line or row holds none."""

    id: str | int | None
    frames: np.ndarray | None  # [T, F] float32
    reason: str = ""
    extra: Mapping[str, Any] = MappingProxyType(
        {}
    )  # members of its answer besides the prediction


class ShardedFile(Protocol):
    """A file of which each shard can be read alone."""

    count: int

    def read(self, number: int) -> Iterator[Any]:
        """The items of a shard, one per sequence, as `parse` takes them."""
        ...

    def parse(self, item: Any) -> Row:
        """The sequence in an item."""
        ...


def match_features(
    members: tuple[str, ...], features: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the members of a step that are the features, in their order.

    Raises:
        ValueError: a feature is missing; names the nearest member.
    """
    expected = table_layout.Expected(features=features)
    return table_layout.assign(members, expected).features
