"""The caller of a request: its API key's owner, its connection, and the bytes held for it."""

import itertools
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from starlette.types import Scope

from model.bundle.bundle import Metadata
from service.callers.memory_budget import ACCOUNT, Account, MemoryBudget, Reservation

_numbers = itertools.count(-1, -1)  # of connections of another server than ours


class ApiKey(Protocol):
    """An API key, as far as others than `http.auth` need it."""

    @property
    def name(self) -> str: ...

    @property
    def shares(self) -> bool:
        """Whether there are other keys."""
        ...

    def take(self) -> None:
        """Use up a request, or a message of a stream.

        Raises:
            RateLimited: none is left.
        """
        ...


class InferenceSummary(NamedTuple):
    """What was computed for a request, and where its time went (seconds; stamps of
    `time.perf_counter`)."""

    metadata: Metadata
    sequences: int
    steps: int
    rows: int  # of an engine call with one of the sequences
    read: float  # until it was given to the queue
    submitted: float  # when that was
    started: float  # its first step
    ended: float  # its last one
    write: float  # until its answer was written


@dataclass(slots=True, eq=False)
class Caller:
    """The caller of one request, or of one stream."""

    account: Account
    reservation: Reservation  # of the request; a stream has others of the same account
    owner: str = ""  # name of the API key; empty where there are none
    connection: int = 0
    key: ApiKey | None = None  # whose rate counts
    quota_owner: str = ""  # the owner, where there are several that share what there is
    inference: InferenceSummary | None = None

    @property
    def id(self) -> tuple[str, int]:
        """Between whom turns are fair; see `FairQueue`."""
        return self.quota_owner, self.connection


def caller_of(scope: Scope) -> Caller:
    """Returns the caller of a request, which `RequestMiddleware` has found."""
    caller: Caller = scope["state"]["caller"]
    return caller


def identify(scope: Scope, budget: MemoryBudget) -> Caller:
    """Returns the caller of a request whose key was checked."""
    state = scope["state"]
    key = state.get("key")
    owner = key.name if key is not None else ""
    share = owner if key is not None and key.shares else ""
    account = scope.get("extensions", {}).get(ACCOUNT)
    if account is None:  # of another server than ours
        account = budget.account()
        return Caller(account, Reservation(account), owner, next(_numbers), key, share)
    reservation = state.get("reservation") or Reservation(account)
    caller = Caller(account, reservation, owner, account.number, key, share)
    account.set_owner(share)
    return caller
