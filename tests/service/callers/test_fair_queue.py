"""The fair queue, in any order of operations."""

import pickle
from collections import Counter, defaultdict, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.callers.fair_queue import QUANTUM, FairQueue

CALLERS = st.tuples(st.sampled_from(["", "a", "b"]), st.integers(0, 3))
COSTS = st.one_of(st.integers(1, QUANTUM), st.integers(1, 20 * QUANTUM))
PUSHES = st.tuples(st.just("push"), CALLERS, COSTS)
OTHERS = st.tuples(
    st.sampled_from(["pop", "push_front", "refund", "skip", "select"]),
    CALLERS,
    st.integers(1, 9),
)


def filled(*pushes):
    """A queue with items, each a tuple of its caller, a number and its cost."""
    queue = FairQueue()
    for number, (caller, cost) in enumerate(pushes):
        queue.push(caller, (caller, number, cost), cost)
    return queue


def pop_all(queue):
    return [queue.pop() for _ in range(len(queue))]


@settings(max_examples=300)
@given(st.lists(st.one_of(PUSHES, PUSHES, OTHERS), max_size=60))
def test_nothing_is_lost(operations):
    """Whatever is done, each item is popped once, those of a caller in order, and the
    length is the number of items."""
    queue = FairQueue()
    expected = defaultdict(deque)  # the items of each caller
    for number, (operation, caller, argument) in enumerate(operations):
        if operation == "push":
            item = (caller, number, argument)
            queue.push(caller, item, argument)
            expected[caller].append(item)
        elif not queue:
            with pytest.raises(IndexError):
                queue.pop()
        elif operation == "select":
            seen = []

            def choose(items, step=argument, seen=seen):
                seen += items
                return dict.fromkeys(range(0, len(items), step), 1)

            queue.select(argument * 3, choose)
            for item in seen[::argument]:
                expected[item[0]].remove(item)
        elif operation == "skip":
            skip = {caller, "b"}
            if all(c in skip or c[0] == "b" for c in expected if expected[c]):
                with pytest.raises(IndexError):
                    queue.pop(skip)
            else:
                item = queue.pop(skip)
                assert item[0] != caller
                assert item[0][0] != "b"
                assert expected[item[0]].popleft() == item
        else:
            item = queue.pop()
            assert expected[item[0]].popleft() == item
            if operation == "push_front":
                queue.push_front(item[0], item, max(1, item[2] - argument))
                expected[item[0]].appendleft(item)
            elif operation == "refund":
                queue.refund(item[0], item[2])
        assert len(queue) == sum(map(len, expected.values()))
        assert bool(queue) == (len(queue) > 0)
    for item in pop_all(queue):
        assert expected[item[0]].popleft() == item
    assert not any(expected.values())


@settings(max_examples=100)
@given(st.data(), st.integers(1, 2 * QUANTUM))
def test_equal_shares(data, quantum):
    """In any time in which two owners wait, their service differs by at most twice the
    quantum or the largest cost; so does that of two connections of an owner, however
    many others come and go."""
    queue = FairQueue(quantum)
    waiting, served = Counter(), Counter()
    permanent = [("a", 1), ("a", 2), ("b", 1)]  # callers that always wait
    max_cost = data.draw(st.sampled_from([10, 10 * QUANTUM]))
    costs = st.integers(1, max_cost)

    def push(caller):
        cost = data.draw(costs)
        queue.push(caller, (caller, cost), cost)
        waiting[caller] += 1

    for caller in permanent:
        push(caller)
    history = []
    for _ in range(40):
        if data.draw(st.booleans()):
            push(data.draw(CALLERS))
        history.append(served.copy())
        for caller in permanent:
            if waiting[caller] < 2:
                push(caller)
        caller, cost = queue.pop()
        waiting[caller] -= 1
        served[caller] += cost
        served[caller[0]] += cost
    bound = 2 * max(quantum, max_cost)
    for before in history:
        for pair in (("a", "b"), permanent[:2]):
            shares = [served[flow] - before[flow] for flow in pair]
            assert abs(shares[0] - shares[1]) <= bound


@given(
    st.lists(COSTS, min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(1, QUANTUM), st.booleans()), max_size=30),
)
def test_first_in_first_out(costs, arrivals):
    """A single caller's items keep their order, whatever they cost. So do callers with
    an item each, of a quantum at most, whenever they come."""
    queue = filled(*((("a", 1), cost) for cost in costs))
    assert [number for _, number, _ in pop_all(queue)] == list(range(len(costs)))
    queue, popped = FairQueue(), []
    for number, (cost, pop) in enumerate(arrivals):
        queue.push(("", number), number, cost)
        if pop:
            popped.append(queue.pop())
    assert popped + pop_all(queue) == list(range(len(arrivals)))


def test_new_caller():
    """A new caller is served soon, however much others have queued."""
    queue = filled(*((("", caller), 278) for caller in (1, 2) for _ in range(256)))
    for _ in range(20):
        queue.pop()
    queue.push(("", 3), "new", 1)
    assert "new" in [queue.pop() for _ in range(3)]


def test_no_credit():
    """A caller that was idle for long gets no more than its share afterwards."""
    queue = filled(*[(("", 1), 100)] * 1000)
    for _ in range(900):
        queue.pop()
    for number in range(100):
        queue.push(("", 2), (("", 2), number, 100), 100)
    callers = [queue.pop()[0] for _ in range(100)]
    assert abs(callers.count(("", 1)) - 50) <= 2 * QUANTUM // 100


def test_owners():
    """An owner with many connections gets no more than one with a single one."""
    many = [(("a", number), 10) for number in range(50) for _ in range(9)]
    queue = filled(*many, *[(("b", 1), 10)] * 400)
    owners = [queue.pop()[0][0] for _ in range(400)]
    assert owners.count("a") == owners.count("b")


def test_expensive_items():
    """An item that costs as much as thousands of others waits until each other caller
    has had as much, and no longer."""
    queue = filled((("", 0), 10 * QUANTUM), *((("", n), 1) for n in range(1, 9)))
    assert [item[0][1] for item in pop_all(queue)] == [*range(1, 9), 0]
    queue = filled((("", 0), 10 * QUANTUM), *[(("", 1), QUANTUM)] * 100)
    place = [item[0][1] for item in pop_all(queue)].index(0)
    assert 9 <= place <= 10


def test_push_front():
    """A returned item costs what is left of it: it goes before others of equal share,
    and its caller gets no more than they do."""
    queue = filled(*[(("", caller), 100) for caller in (1, 2) for _ in range(50)])
    item = queue.pop()
    queue.push_front(item[0], item, 100)
    for caller, number, cost in (queue.pop() for _ in range(20)):
        queue.push_front(caller, (caller, number, cost - 10), cost - 10)
    left = Counter()
    for caller, _, cost in pop_all(queue):
        left[caller] += cost
    assert abs(left["", 1] - left["", 2]) <= 100


class TestSelect:
    def test_shares(self):
        """The choice has as many items of each caller, the next item first. Chosen
        items are charged, and the others keep their order."""
        queue = filled(*((("", n), 10) for n in (1, 2, 3) for _ in range(90)))
        seen = []

        def choose(items):
            seen.append(items)
            return dict.fromkeys(range(1, 20), 10)

        queue.select(60, choose)
        callers = Counter(caller for caller, *_ in seen[0])
        assert callers == {("", n): 20 for n in (1, 2, 3)}
        assert len(queue) == 270 - 19
        first = queue.pop()
        assert first[0] == ("", 2)  # the first caller was served 19 items
        numbers = [number for caller, number, _ in pop_all(queue) if caller == ("", 1)]
        assert numbers == [0, *range(20, 90)]

    def test_count(self):
        """If one caller has many items and others have one, the choice is still about
        as large as requested."""
        queue = filled((("", 1), 1), *[(("", 2), 1)] * 500, (("", 3), 1))
        sizes = []
        queue.select(200, lambda items: sizes.append(len(items)) or {})
        assert sizes[0] >= 100
        assert len(queue) == 502
        FairQueue().select(1, lambda items: pytest.fail("there is nothing to choose"))


def test_callers_are_forgotten():
    """Nothing is kept of callers that have nothing queued, while another waits."""
    queue = filled((("", 0), 9))
    size = len(pickle.dumps(queue))
    for number in range(1000):
        queue.push((f"key {number % 7}", number), number, 1 + number)
    for _ in range(499):
        queue.pop({""})
        queue.pop({"", "key 1"} if len(queue) > 400 else {""})
    while len(queue) > 1:
        queue.pop({""})
    assert len(pickle.dumps(queue)) < 2 * size
