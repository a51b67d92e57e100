"""The caller of a request: its API key's owner, its connection and its buffered bytes."""

import itertools
from dataclasses import dataclass
from typing import Protocol

from starlette.types import Scope

from service.callers.fair_queue import CallerId
from service.callers.memory_budget import ACCOUNT, Account, MemoryBudget, Reservation
from service.telemetry.traces import InferenceSummary

# Numbers of connections of another server than ours; ours counts from 1.
_foreign_numbers = itertools.count(-1, -1)


class ApiKey(Protocol):
    """An API key, as far as modules other than `http.auth` need it."""

    @property
    def name(self) -> str: ...

    @property
    def shares(self) -> bool:
        """True if there are other keys too."""
        ...

    def take(self) -> None:
        """Count a request, or a message of a stream.

        Raises:
            RateLimited: there are too many.
        """
        ...


@dataclass(slots=True, eq=False)
class Caller:
    """The caller of one request, or of one stream."""

    account: Account
    reservation: Reservation  # of the request; streams have more on the same account
    owner: str = ""  # name of the API key; "" without keys
    connection: int = 0
    key: ApiKey | None = None  # whose rate limit applies
    quota_owner: str = ""  # the owner if there are several keys, else ""
    inference: InferenceSummary | None = None

    @property
    def id(self) -> CallerId:
        """The identity that gets a fair share; see `FairQueue`."""
        return self.quota_owner, self.connection


def caller_of(scope: Scope) -> Caller:
    """Return a request's caller, which `RequestMiddleware` has identified."""
    caller: Caller = scope["state"]["caller"]
    return caller


def identify(scope: Scope, budget: MemoryBudget) -> Caller:
    """Return the caller of a request whose API key was checked."""
    state = scope["state"]
    key = state.get("key")
    owner = key.name if key is not None else ""
    quota_owner = owner if key is not None and key.shares else ""
    account = scope.get("extensions", {}).get(ACCOUNT)
    if account is None:  # another server than ours
        account, number = budget.account(), next(_foreign_numbers)
        return Caller(account, Reservation(account), owner, number, key, quota_owner)
    reservation = state.get("reservation") or Reservation(account)
    account.set_owner(quota_owner)
    return Caller(account, reservation, owner, account.number, key, quota_owner)
