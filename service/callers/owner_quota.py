"""A limit that the owners of API keys share, for example of open streams."""

from service.errors import TooManyStreams


class OwnerQuota:
    """Places of which an owner may have as many as are left free. One owner alone gets
    half of them, two get a third each, and there is always room for another (dynamic
    thresholds, as in `memory_budget`). Without API keys, there is one owner, "", who
    may have all places."""

    def __init__(self, limit: int, what: str):
        """
        Args:
            what: completes the error "at most `limit` ... at a time".
        """
        self._limit, self._what = limit, what
        self._taken = 0
        self._by_owner: dict[str, int] = {}

    def acquire(self, owner: str) -> None:
        """Take a place.

        Raises:
            TooManyStreams: none is free for this owner.
        """
        own = self._by_owner.get(owner, 0)
        free = self._limit - self._taken
        if free <= (own if owner else 0):
            detail = f"at most {self._limit} {self._what} at a time"
            if free:
                detail += ", half of those that others leave with one API key"
            raise TooManyStreams(detail, headers={"Retry-After": "10"})
        self._taken += 1
        self._by_owner[owner] = own + 1

    def release(self, owner: str) -> None:
        """Free a place."""
        self._taken -= 1
        self._by_owner[owner] -= 1
        if not self._by_owner[owner]:
            del self._by_owner[owner]
