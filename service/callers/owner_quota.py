"""A number of places that the owners of API keys share."""

from service.errors import TooManyStreams


class OwnerQuota:
    """Places of which an owner may have as many as are left free: one alone gets half
    of them, two a third each, and there is always room for another (dynamic thresholds,
    as in `memory_budget`). Without API keys there is one owner, who may have all."""

    def __init__(self, limit: int, what: str):
        """
        Args:
            what: the rest of "at most N ... at a time".
        """
        self._limit, self._what = limit, what
        self._taken = 0
        self._owners: dict[str, int] = {}

    def acquire(self, owner: str) -> None:
        """Takes a place.

        Raises:
            TooManyStreams: none is free for this owner.
        """
        held = self._owners.get(owner, 0)
        free = self._limit - self._taken
        if free <= (held if owner else 0):
            told = f"at most {self._limit} {self._what} at a time"
            if free:
                told += ", half of those that others leave with one API key"
            raise TooManyStreams(told, headers={"Retry-After": "10"})
        self._taken += 1
        self._owners[owner] = held + 1

    def release(self, owner: str) -> None:
        """A place is free again."""
        self._taken -= 1
        self._owners[owner] -= 1
        if not self._owners[owner]:
            del self._owners[owner]
