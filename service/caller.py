"""The caller of a request: its API key's owner, its connection, and the bytes held for it."""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from starlette.types import Scope

from model.bundle import Metadata

from .memory_budget import ACCOUNT, Account, Hold, MemoryBudget

if TYPE_CHECKING:
    from .gate import Key
    from .link import Request

_numbers = itertools.count(-1, -1)  # of connections of another server than ours


class Served(NamedTuple):
    """What was computed for a request, and the seconds around it."""

    metadata: Metadata
    request: "Request"
    read: float  # until it was given to the queue
    write: float  # until its answer was written


@dataclass(slots=True, eq=False)
class Caller:
    """The caller of one request, or of one stream."""

    account: Account
    hold: Hold  # of the request; a stream has others of the same account
    owner: str = ""  # name of the API key; empty where there are none
    connection: int = 0
    key: "Key | None" = None  # whose rate counts
    share: str = ""  # the owner, where there are several that share what there is
    served: Served | None = None

    @property
    def turn(self) -> tuple[str, int]:
        """Between whom turns are fair; see `FairQueue`."""
        return self.share, self.connection


def of(scope: Scope) -> Caller:
    """Returns the caller of a request, which `Requests` has found."""
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
        return Caller(account, Hold(account), owner, next(_numbers), key, share)
    hold = state.get("hold") or Hold(account)
    caller = Caller(account, hold, owner, account.number, key, share)
    account.belongs_to(share)
    return caller
