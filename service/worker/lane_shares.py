"""Who has more lanes than others: by owner first, then by connection."""

from typing import TypeVar

from service.callers.fair_queue import CallerId

LESS = 2  # times fewer than another has: who has so few gets one of its lanes

T = TypeVar("T")


class Shares:
    """The lanes that are taken, by their callers."""

    def __init__(self) -> None:
        self._owners: dict[str, int] = {}
        self._connections: dict[str, dict[int, int]] = {}  # of each owner

    def add(self, caller: CallerId, lanes: int = 1) -> None:
        """It has so many more."""
        owner, connection = caller
        _add(self._owners, owner, lanes)
        connections = self._connections.setdefault(owner, {})
        _add(connections, connection, lanes)
        if not connections:
            del self._connections[owner]

    def __contains__(self, one: object) -> bool:
        """Whether an owner, or a caller, gets no lane of another: none has much more."""
        owner, connection = one if isinstance(one, tuple) else (one, None)
        if not self._full(owner):
            return False
        connections = self._connections.get(owner, {})
        most = max(connections.values(), default=0)
        lanes = 0 if connection is None else connections.get(connection, 0)
        return _enough(lanes, most)

    def giver(self, taker: CallerId) -> CallerId:
        """Who is to give a lane to one that has not enough: the connection with the
        most, of the owner with the most or, where no owner has much more, its own."""
        owner = taker[0]
        if not self._full(owner):
            owner = max(self._owners, key=self._owners.__getitem__)
        connections = self._connections[owner]
        return owner, max(connections, key=connections.__getitem__)

    def _full(self, owner: str) -> bool:
        return _enough(self._owners.get(owner, 0), max(self._owners.values()))


def _add(counts: dict[T, int], key: T, count: int) -> None:
    counts[key] = counts.get(key, 0) + count
    if not counts[key]:
        del counts[key]


def _enough(lanes: int, most: int) -> bool:
    return LESS * (lanes + 1) > most
