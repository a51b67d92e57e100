"""A queue with weighted fairness between callers, in two levels.

Owners (of API keys) get equal shares of the service, and so do the connections of each
owner. A share is measured in cost, for example in steps or bytes.

This is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each flow (an
owner, or a connection) has a start tag, which grows by the cost of its items that are
served. The flow with the smallest tag is next, and its tag is the virtual time. A flow
that becomes active starts at the virtual time, so no one saves up credit while idle.
An item's cost beyond a quantum is waited for in advance, as in deficit round robin
(Shreedhar and Varghese, SIGCOMM 1995). So a flow with nothing queued owes at most a
quantum, and can be forgotten.

While two flows wait, their service differs by at most twice the quantum or the largest
cost, whichever is greater. Items of at most a quantum, one from each caller, are first
in, first out. An operation takes O(log n) for n callers.
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


class _Flow:
    """An owner or a connection that has items queued."""

    __slots__ = ("entry", "key", "size", "start", "tag")

    def __init__(self, key: str | int) -> None:
        self.key = key
        self.size = 0  # number of items
        self.start = 0  # start tag, without its first item's cost beyond a quantum
        self.tag = -1  # start tag with it, which determines the order
        self.entry = -1  # number of its valid heap entry; -1: it has none

    @property
    def cost(self) -> int:
        """The cost of the first item."""
        raise NotImplementedError


F = TypeVar("F", bound=_Flow)


class _Flows(Generic[F]):
    """Flows in the order of their tags: a heap with lazy deletion."""

    __slots__ = ("_clock", "_entries", "_heap", "_quantum", "by_key")

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self._clock = 0  # virtual time
        self.by_key: dict[str | int, F] = {}
        self._entries = 0  # number of heap entries so far
        # (tag, number, flow); of equal tags the earlier entry is first. An entry is
        # stale if its flow has a newer one or none.
        self._heap: list[tuple[int, int, F]] = []

    def update(self, flow: F) -> None:
        """Add, move or remove a flow whose items or start have changed."""
        if not flow.size:
            flow.entry = -1
            del self.by_key[flow.key]
        else:
            if flow.entry < 0:
                self.by_key[flow.key] = flow
                flow.start = self._clock
            tag, excess = flow.start, flow.cost - self._quantum
            if excess > 0:
                tag += excess
            if flow.entry >= 0 and tag == flow.tag:
                return
            flow.tag, flow.entry = tag, self._entries
            self._entries += 1
            heapq.heappush(self._heap, (tag, flow.entry, flow))
        if len(self._heap) > 2 * len(self.by_key):  # most entries are stale
            self._heap = self._valid()
            heapq.heapify(self._heap)

    def serve(self, flow: F) -> None:
        """Set the virtual time to that of a flow that is served."""
        if flow.tag > self._clock:  # faster than `max`
            self._clock = flow.tag

    def first(self) -> F:
        """Return the next flow; there must be one."""
        heap = self._heap
        while heap[0][1] != heap[0][2].entry:
            heapq.heappop(heap)
        return heap[0][2]

    def in_order(self) -> Iterator[F]:
        """Yield all flows in order, each in O(log n)."""
        heap = self._heap
        front = [(entry, index) for index, entry in enumerate(heap[:1])]
        while front:
            entry, index = heapq.heappop(front)
            if entry[1] == entry[2].entry:
                yield entry[2]
            for child in range(2 * index + 1, min(2 * index + 3, len(heap))):
                heapq.heappush(front, (heap[child], child))

    def split(self, count: int) -> list[tuple[F, int]]:
        """Return the first flows in order, each with its share of `count` items."""
        self._heap = sorted(self._valid())  # a sorted list is a heap
        left, shares = len(self._heap), []
        for _, _, flow in self._heap[:count]:
            share = min(flow.size, -(-count // left))
            shares.append((flow, share))
            left, count = left - 1, count - share
        return shares

    def _valid(self) -> list[tuple[int, int, F]]:
        return [entry for entry in self._heap if entry[1] == entry[2].entry]


class _Connection(_Flow, Generic[T]):
    __slots__ = ("items",)

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.items: deque[tuple[T, int]] = deque()  # each with its cost

    @property
    def cost(self) -> int:
        return self.items[0][1]

    def remove(self, indices: set[int]) -> None:
        """Remove the items with these indices."""
        seen = [self.items.popleft() for _ in range(max(indices) + 1)]
        kept = [item for index, item in enumerate(seen) if index not in indices]
        self.items.extendleft(reversed(kept))


class _Owner(_Flow, Generic[T]):
    __slots__ = ("connections",)

    def __init__(self, name: str, quantum: int) -> None:
        super().__init__(name)
        self.connections: _Flows[_Connection[T]] = _Flows(quantum)

    @property
    def cost(self) -> int:
        return self.connections.first().cost


class FairQueue(Generic[T]):
    """Items of callers, each with its cost."""

    def __init__(self, quantum: int = QUANTUM):
        """
        Args:
            quantum: smaller costs count as equal.
        """
        self._quantum, self._size = quantum, 0
        self._owners: _Flows[_Owner[T]] = _Flows(quantum)

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        return self._size > 0

    def push(self, caller: CallerId, item: T, cost: int) -> None:
        """Add an item behind the others of its caller. It costs at least 1."""
        self._insert(caller, item, cost, front=False)

    def push_front(
        self, caller: CallerId, item: T, cost: int, *, charged: bool = True
    ) -> None:
        """Return an item that was popped, before the others of its caller.

        Args:
            cost: that is left of it, and refunded to the caller.
            charged: False if it was not popped from this queue: nothing is refunded.
        """
        if charged:
            self.refund(caller, cost)
        self._insert(caller, item, cost, front=True)

    def refund(self, caller: CallerId, cost: int) -> None:
        """Undo the charge for an item that was popped and is not served."""
        owner = self._owners.by_key.get(caller[0])
        if owner is None:
            return  # the caller is forgotten, and its debt with it
        connection = owner.connections.by_key.get(caller[1])
        if connection is not None:
            connection.start -= cost
            owner.connections.update(connection)
        owner.start -= cost
        self._owners.update(owner)

    def pop(self, skip: Container[str | CallerId] = ()) -> T:
        """Remove and return the next item.

        Args:
            skip: owners and callers whose items are passed over.

        Raises:
            IndexError: there is none.
        """
        if not self._size:
            raise IndexError("nothing is queued")
        owner, connection = self._first(skip)
        self._owners.serve(owner)
        owner.connections.serve(connection)
        item, cost = connection.items.popleft()
        self._charge(owner, connection, 1, cost)
        return item

    def select(self, count: int, choose: Callable[[list[T]], dict[int, int]]) -> None:
        """Let `choose` remove some of about the next `count` items.

        Args:
            choose: called with items, of which the first is the one that `pop` would
                return, with about as many of each caller; returns the indices of those
                to remove, each with the cost that its caller is charged.
        """
        if not self._size:
            return
        items: list[T] = []
        parts: list[tuple[_Owner[T], _Connection[T]]] = []
        starts: list[int] = []  # index of each part's first item
        for owner, owner_share in self._owners.split(count):
            for connection, share in owner.connections.split(owner_share):
                parts.append((owner, connection))
                starts.append(len(items))
                items += [item for item, _ in islice(connection.items, share)]
        owner, connection = parts[0]
        self._owners.serve(owner)
        owner.connections.serve(connection)
        chosen = choose(items)
        by_part = defaultdict(set)
        for index in chosen:
            by_part[bisect_right(starts, index) - 1].add(index)
        for part, indices in by_part.items():
            owner, connection = parts[part]
            connection.remove({index - starts[part] for index in indices})
            cost = sum(chosen[index] for index in indices)
            self._charge(owner, connection, len(indices), cost)

    def _insert(self, caller: CallerId, item: T, cost: int, *, front: bool) -> None:
        name, number = caller
        owner = self._owners.by_key.get(name) or _Owner(name, self._quantum)
        connection = owner.connections.by_key.get(number) or _Connection(number)
        add = connection.items.appendleft if front else connection.items.append
        add((item, max(1, cost)))
        connection.size += 1
        owner.size += 1
        self._size += 1
        if front or connection.size == 1:  # its first item is another one
            owner.connections.update(connection)
            self._owners.update(owner)

    def _first(
        self, skip: Container[str | CallerId]
    ) -> tuple[_Owner[T], _Connection[T]]:
        if not skip:
            owner = self._owners.first()
            return owner, owner.connections.first()
        for owner in self._owners.in_order():
            if owner.key not in skip:
                for connection in owner.connections.in_order():
                    if (owner.key, connection.key) not in skip:
                        return owner, connection
        raise IndexError("all callers are skipped")

    def _charge(
        self, owner: _Owner[T], connection: _Connection[T], count: int, cost: int
    ) -> None:
        """Charge for items that were removed, and forget a caller without any."""
        self._size -= count
        connection.size -= count
        connection.start += cost
        owner.connections.update(connection)
        owner.size -= count
        owner.start += cost
        self._owners.update(owner)
