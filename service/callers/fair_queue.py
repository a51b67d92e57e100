"""A queue that is fair between callers, in two levels.

Owners get equal shares of what is served, and so do the connections of each owner.

This is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each caller has
a start tag, which grows by the cost of what it is served; the caller with the least
tag is next, and its tag is the time of the virtual clock. One who has waited for
nothing begins at that time, so nobody saves up credit while idle. What an item costs
beyond a quantum is waited for beforehand, as in deficit round robin (Shreedhar and
Varghese, SIGCOMM 1995): so a caller that has nothing queued owes at most a quantum,
and can be forgotten.

While two callers wait, what they are served differs by at most twice the quantum or
the largest cost, whichever is more. Items of a quantum at most, one from each caller,
are first in, first out. An operation takes O(log n) of n callers.
"""

import heapq
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterator
from itertools import islice
from typing import Generic, TypeVar

QUANTUM = 512

CallerId = tuple[str, int]  # an owner (the name of an API key) and a connection
ANONYMOUS: CallerId = ("", 0)

T = TypeVar("T")


class _Turn:
    """A place among others that wait."""

    __slots__ = ("start", "tag", "turn")

    def __init__(self) -> None:
        self.start = (
            0  # virtual time, without what its first item costs beyond a quantum
        )
        self.tag = -1  # with it
        self.turn = -1  # of equal tags the earlier one is first; -1: it doesn't wait

    def __len__(self) -> int:
        """Items."""
        raise NotImplementedError

    @property
    def cost(self) -> int:
        """Of the first item."""
        raise NotImplementedError


class _Connection(_Turn, Generic[T]):
    __slots__ = ("items", "number")

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.items: deque[tuple[T, int]] = deque()  # each with its cost

    def __len__(self) -> int:
        return len(self.items)

    @property
    def cost(self) -> int:
        return self.items[0][1]

    def remove(self, places: set[int]) -> None:
        """Take out the items in these places."""
        seen = [self.items.popleft() for _ in range(max(places) + 1)]
        kept = [item for place, item in enumerate(seen) if place not in places]
        self.items.extendleft(reversed(kept))


E = TypeVar("E", bound=_Turn)


class _Turns(Generic[E]):
    """Those that wait, by their tags."""

    __slots__ = ("_clock", "_count", "_heap", "_live", "_quantum")

    def __init__(self, quantum: int) -> None:
        self._quantum, self._clock, self._count, self._live = quantum, 0, 0, 0
        # Some entries are stale: whose turn is another one now.
        self._heap: list[tuple[int, int, E]] = []

    def enter(self, entry: E) -> None:
        """Let an entry wait that didn't."""
        entry.start = self._clock
        self._live += 1
        self.place(entry)

    def place(self, entry: E) -> None:
        """Its start or its first item is another one now."""
        tag = entry.start + max(0, entry.cost - self._quantum)
        if entry.turn >= 0 and tag == entry.tag:
            return
        entry.tag, entry.turn = tag, self._count
        self._count += 1
        heapq.heappush(self._heap, (tag, entry.turn, entry))
        self._trim()

    def leave(self, entry: E) -> None:
        """It has nothing left."""
        entry.turn = -1
        self._live -= 1
        self._trim()

    def served(self, entry: E) -> None:
        """What it waited for is served: that is the time."""
        self._clock = max(self._clock, entry.tag)

    def first(self) -> E:
        """The one whose turn it is; there must be one."""
        heap = self._heap
        while heap[0][1] != heap[0][2].turn:
            heapq.heappop(heap)
        return heap[0][2]

    def in_order(self) -> Iterator[E]:
        """All by their turns; each costs little more than the one before."""
        heap = self._heap
        front = [(entry, place) for place, entry in enumerate(heap[:1])]
        while front:
            entry, place = heapq.heappop(front)
            if entry[1] == entry[2].turn:
                yield entry[2]
            for below in range(2 * place + 1, min(2 * place + 3, len(heap))):
                heapq.heappush(front, (heap[below], below))

    def shared(self, count: int) -> list[tuple[E, int]]:
        """The first entries, in order, each with its share of so many items."""
        # Sorted it is still a heap.
        self._heap = sorted([one for one in self._heap if one[1] == one[2].turn])
        left, shares = len(self._heap), []
        for _, _, entry in self._heap[:count]:
            share = min(len(entry), -(-count // left))
            shares.append((entry, share))
            left, count = left - 1, count - share
        return shares

    def _trim(self) -> None:
        """Have no more stale entries than others."""
        if len(self._heap) > 2 * self._live:
            self._heap = [one for one in self._heap if one[1] == one[2].turn]
            heapq.heapify(self._heap)


class _Owner(_Turn, Generic[T]):
    __slots__ = ("connections", "name", "size", "turns")

    def __init__(self, name: str, quantum: int) -> None:
        super().__init__()
        self.name, self.size = name, 0
        self.connections: dict[int, _Connection[T]] = {}
        self.turns: _Turns[_Connection[T]] = _Turns(quantum)

    def __len__(self) -> int:
        return self.size

    @property
    def cost(self) -> int:
        return self.turns.first().cost


class FairQueue(Generic[T]):
    """Items of callers, each with its cost."""

    def __init__(self, quantum: int = QUANTUM):
        """
        Args:
            quantum: up to which costs count as alike: steps, bytes or whatever.
        """
        self._quantum, self._size = quantum, 0
        self._owners: dict[str, _Owner[T]] = {}
        self._turns: _Turns[_Owner[T]] = _Turns(quantum)

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        return self._size > 0

    def push(self, caller: CallerId, item: T, cost: int) -> None:
        """Put an item behind the others of its caller; it costs 1 at least."""
        self._put(caller, (item, max(1, cost)), first=False)

    def push_front(
        self, caller: CallerId, item: T, cost: int, *, charged: bool = True
    ) -> None:
        """Put an item that was popped before the others of its caller.

        Args:
            cost: that is left of it, and given back to the caller.
            charged: it was popped from here; else nothing is given back.
        """
        if charged:
            self.refund(caller, cost)
        self._put(caller, (item, max(1, cost)), first=True)

    def refund(self, caller: CallerId, cost: int) -> None:
        """Give back what an item cost that was popped and is not served."""
        owner = self._owners.get(caller[0])
        if owner is None:
            return  # nothing is known of its caller
        owner.start -= cost
        connection = owner.connections.get(caller[1])
        if connection is not None:
            connection.start -= cost
            owner.turns.place(connection)
        self._turns.place(owner)

    def pop(self, passed: Container[str | CallerId] = ()) -> T:
        """The next item.

        Args:
            passed: owners and callers whose items are passed over.

        Raises:
            IndexError: there is none.
        """
        found = self._first(passed) if self._size else None
        if found is None:
            raise IndexError("nothing is queued")
        owner, connection = found
        self._turns.served(owner)
        owner.turns.served(connection)
        item, cost = connection.items.popleft()
        self._remove(owner, connection, 1, cost)
        return item

    def select(self, count: int, choose: Callable[[list[T]], dict[int, int]]) -> None:
        """Let `choose` take some of about the next `count` items.

        Args:
            choose: is given items, first the one that `pop` would give, of each
                caller about as many as of others; gives the places of those that are
                taken, with what each costs its caller.
        """
        if not self._size:
            return
        items: list[T] = []
        parts: list[tuple[_Owner[T], _Connection[T]]] = []
        starts: list[int] = []  # of each part among the items
        for owner, part in self._turns.shared(count):
            for connection, share in owner.turns.shared(part):
                parts.append((owner, connection))
                starts.append(len(items))
                items += [item for item, _ in islice(connection.items, share)]
        self._turns.served(parts[0][0])
        parts[0][0].turns.served(parts[0][1])
        taken = choose(items)
        of_part = defaultdict(set)
        for place in taken:
            of_part[bisect_right(starts, place) - 1].add(place)
        for number, places in of_part.items():
            owner, connection = parts[number]
            connection.remove({place - starts[number] for place in places})
            cost = sum(taken[place] for place in places)
            self._remove(owner, connection, len(places), cost)

    def _put(self, caller: CallerId, entry: tuple[T, int], *, first: bool) -> None:
        name, number = caller
        owner = self._owners.get(name)
        new = owner is None
        if owner is None:
            owner = self._owners[name] = _Owner(name, self._quantum)
        connection = owner.connections.get(number)
        if connection is None:
            connection = owner.connections[number] = _Connection(number)
            connection.items.append(entry)
            owner.turns.enter(connection)
            first = True
        elif first:
            connection.items.appendleft(entry)
            owner.turns.place(connection)
        else:
            connection.items.append(entry)
        owner.size += 1
        self._size += 1
        if new:
            self._turns.enter(owner)
        elif first:
            self._turns.place(owner)

    def _first(
        self, passed: Container[str | CallerId]
    ) -> tuple[_Owner[T], _Connection[T]] | None:
        if not passed:
            owner = self._turns.first()
            return owner, owner.turns.first()
        for owner in self._turns.in_order():
            if owner.name not in passed:
                for connection in owner.turns.in_order():
                    if (owner.name, connection.number) not in passed:
                        return owner, connection
        return None

    def _remove(
        self, owner: _Owner[T], connection: _Connection[T], count: int, cost: int
    ) -> None:
        """So many items have gone, and are charged."""
        self._size -= count
        owner.size -= count
        owner.start += cost
        connection.start += cost
        if connection.items:
            owner.turns.place(connection)
        else:
            owner.turns.leave(connection)
            del owner.connections[connection.number]
        if owner.size:
            self._turns.place(owner)
        else:
            self._turns.leave(owner)
            del self._owners[owner.name]
