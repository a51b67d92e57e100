"""The queue that is fair between callers, in any order of pushes and pops."""

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
    st.sampled_from(["pop", "put back", "drop", "pass over", "select"]),
    CALLERS,
    st.integers(1, 9),
)


def filled(*pushes, quantum=QUANTUM):
    """A queue with items, each a tuple of its caller, a number and its cost."""
    queue = FairQueue(quantum)
    for number, (caller, cost) in enumerate(pushes):
        queue.push(caller, (caller, number, cost), cost)
    return queue


def popped(queue):
    """All that it holds."""
    return [queue.pop() for _ in range(len(queue))]


@settings(max_examples=400)
@given(st.lists(st.one_of(PUSHES, PUSHES, OTHERS), max_size=60))
def test_nothing_is_lost(steps):
    """Whatever is done, each item comes out once, those of a caller in the order in
    which they were pushed, and the length is the number of items."""
    queue = FairQueue()
    there = defaultdict(deque)  # what each caller has queued
    for number, (act, caller, value) in enumerate(steps):
        if act == "push":
            queue.push(caller, (caller, number, value), value)
            there[caller].append((caller, number, value))
        elif not queue:
            with pytest.raises(IndexError):
                queue.pop()
        elif act == "select":
            seen = []

            def choose(items, value=value, seen=seen):
                seen += items
                return dict.fromkeys(range(0, len(items), value), 1)

            queue.select(value * 3, choose)
            for place in range(0, len(seen), value):
                there[seen[place][0]].remove(seen[place])
        elif act == "pass over":
            passed = {caller, "b"}
            if all(one in passed or one[0] == "b" for one in there if there[one]):
                with pytest.raises(IndexError):
                    queue.pop(passed)
            else:
                item = queue.pop(passed)
                assert item[0] != caller
                assert item[0][0] != "b"
                assert there[item[0]].popleft() == item
        else:
            item = queue.pop()
            assert there[item[0]].popleft() == item
            if act == "put back":
                queue.push_front(item[0], item, max(1, item[2] - value))
                there[item[0]].appendleft(item)
            elif act == "drop":
                queue.refund(item[0], item[2])
        assert len(queue) == sum(map(len, there.values()))
        assert bool(queue) == (len(queue) > 0)
    for item in popped(queue):
        assert there[item[0]].popleft() == item
    assert not any(there.values())


@settings(max_examples=200)
@given(st.data(), st.integers(1, 2 * QUANTUM))
def test_equal_shares(data, quantum):
    """In any time in which two owners wait, what they are served differs by at most
    twice the quantum or the largest cost; and so for two connections of an owner,
    however many others come and go meanwhile."""
    queue = FairQueue(quantum)
    waiting, served = Counter(), Counter()
    lasting = [("a", 1), ("a", 2), ("b", 1)]  # those that always wait
    most = data.draw(st.sampled_from([10, 10 * QUANTUM]))
    costs = st.integers(1, most)

    def push(caller):
        cost = data.draw(costs)
        queue.push(caller, (caller, cost), cost)
        waiting[caller] += 1

    for caller in lasting:
        push(caller)
    before = []
    for _ in range(40):
        if data.draw(st.booleans()):
            push(data.draw(CALLERS))
        before.append(served.copy())
        for caller in lasting:
            if waiting[caller] < 2:
                push(caller)
        caller, cost = queue.pop()
        waiting[caller] -= 1
        served[caller] += cost
        served[caller[0]] += cost
    bound = 2 * max(quantum, most)
    for begun in before:
        for one, other in (("a", "b"), lasting[:2]):
            shares = [served[who] - begun[who] for who in (one, other)]
            assert abs(shares[0] - shares[1]) <= bound


@given(st.lists(COSTS, min_size=1, max_size=30))
def test_one_caller(costs):
    """A caller alone is served first in, first out, whatever its items cost."""
    queue = filled(*((("a", 1), cost) for cost in costs))
    assert [number for _, number, _ in popped(queue)] == list(range(len(costs)))


@given(st.lists(st.tuples(st.integers(1, QUANTUM), st.booleans()), max_size=30))
def test_one_item_each(arrivals):
    """So are callers with an item each, of a quantum at most, whenever they come."""
    queue, out = FairQueue(), []
    for number, (cost, pop) in enumerate(arrivals):
        queue.push(("", number), number, cost)
        if pop:
            out.append(queue.pop())
    assert out + popped(queue) == list(range(len(arrivals)))


def test_newcomer():
    """One that comes is next, however much others have queued: they wait for the
    first of their items at most."""
    queue = filled(*((("", caller), 278) for caller in (1, 2) for _ in range(256)))
    for _ in range(20):
        queue.pop()
    queue.push(("", 3), "new", 1)
    assert "new" in [queue.pop() for _ in range(3)]


def test_no_credit():
    """One that was idle for long gets no more than its share afterwards."""
    queue = filled(*[(("", 1), 100)] * 1000)
    for _ in range(900):
        queue.pop()
    for number in range(100):
        queue.push(("", 2), (("", 2), number, 100), 100)
    callers = [queue.pop()[0] for _ in range(100)]
    assert abs(callers.count(("", 1)) - 50) <= 2 * QUANTUM // 100


def test_owners_first():
    """An owner with many connections gets no more than one with a single one."""
    many = [(("a", number), 10) for number in range(50) for _ in range(9)]
    queue = filled(*many, *[(("b", 1), 10)] * 400)
    owners = [queue.pop()[0][0] for _ in range(400)]
    assert owners.count("a") == owners.count("b")


def test_dear_items_wait():
    """Where one item costs as much as thousands of others do, it waits until each
    other caller has had as much, and no longer."""
    queue = filled((("", 0), 10 * QUANTUM), *((("", n), 1) for n in range(1, 9)))
    assert [item[0][1] for item in popped(queue)] == [*range(1, 9), 0]
    queue = filled((("", 0), 10 * QUANTUM), *[(("", 1), QUANTUM)] * 100)
    place = [item[0][1] for item in popped(queue)].index(0)
    assert 9 <= place <= 10


def test_put_back():
    """What is put back costs what is left of it: it is served before others of equal
    share, and its caller gets no more than them."""
    queue = filled(*[(("", caller), 100) for caller in (1, 2) for _ in range(50)])
    item = queue.pop()
    queue.push_front(item[0], item, 100)
    for caller, number, cost in (queue.pop() for _ in range(20)):
        queue.push_front(caller, (caller, number, cost - 10), cost - 10)
    left = Counter()
    for caller, _, cost in popped(queue):
        left[caller] += cost
    assert abs(left["", 1] - left["", 2]) <= 100


def test_select():
    """Those to choose from are of all callers alike, the next item first; what is
    chosen is charged, and the others stay in order."""
    queue = filled(*((("", caller), 10) for caller in (1, 2, 3) for _ in range(90)))
    seen = []

    def choose(items):
        seen.append(items)
        return dict.fromkeys(range(1, 20), 10)

    queue.select(60, choose)
    assert Counter(caller for caller, *_ in seen[0]) == {("", n): 20 for n in (1, 2, 3)}
    assert len(queue) == 270 - 19
    first = queue.pop()
    assert first[0] == ("", 2)  # the other was served by 19 items
    numbers = [number for caller, number, _ in popped(queue) if caller == ("", 1)]
    assert numbers == [0, *range(20, 90)]


def test_select_is_to_choose_from_all():
    """Where one caller has many items and others have one, there are as many to
    choose from as are asked for."""
    queue = filled((("", 1), 1), *[(("", 2), 1)] * 500, (("", 3), 1))
    sizes = []
    queue.select(200, lambda items: sizes.append(len(items)) or {})
    assert sizes[0] >= 100
    assert len(queue) == 502


def test_nothing_is_kept():
    """Of callers that have nothing queued nothing is left, while one waits on."""
    queue = filled((("", 0), 9))
    one = len(pickle.dumps(queue))
    for number in range(1000):
        queue.push((f"key {number % 7}", number), number, 1 + number)
    for _ in range(499):
        queue.pop({""})
        queue.pop({"", "key 1"} if len(queue) > 400 else {""})
    while len(queue) > 1:
        queue.pop({""})
    assert len(pickle.dumps(queue)) < 2 * one
