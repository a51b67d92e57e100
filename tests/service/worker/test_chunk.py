"""How many steps a tick takes of its lanes: the best of all numbers there are."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.worker.cost import (
    CALL_SECONDS,
    LONE_LIMITS,
    MAX_CALL_SECONDS,
    MIN_CALLS,
    ROWS_TO_DOUBLE,
    Cost,
    choose_steps,
)

LEFT = st.lists(st.integers(1, 1500), min_size=1, max_size=24)
SECONDS = st.floats(-7, -2).map(lambda power: 10**power)
COSTS = st.builds(Cost, call=SECONDS, step=SECONDS, row=SECONDS)


def price(steps, left, cost):
    """Seconds for each useful step of a tick that takes so many of each lane."""
    useful = sum(min(steps, one) for one in left)
    return (cost.call + steps * cost.seconds_per_step(len(left))) / useful


def longest_tick(left, cost):
    """The most steps that a tick may take, by their time; more where the longest lane
    ends then: half of it on top, of a lane alone three times as many."""
    rows = len(left)
    seconds = min(CALL_SECONDS * (1 + rows / ROWS_TO_DOUBLE), MAX_CALL_SECONDS)
    budget = max(seconds, MIN_CALLS * cost.call)
    steps = max(1, int(budget / cost.seconds_per_step(rows)))
    more = LONE_LIMITS * steps if rows == 1 else steps + steps // 2
    return max(left) if max(left) <= more else steps


@settings(max_examples=500)
@given(LEFT, COSTS)
def test_least_time_for_a_useful_step(left, cost):
    """No other number within a tick's time has a lower price, of all that there
    are; and it is never less than a step, or more than the longest lane has left."""
    taken = choose_steps(left, cost)
    longest = longest_tick(left, cost)
    assert 1 <= taken <= min(longest, max(left))
    best = min(price(steps, left, cost) for steps in range(1, longest + 1))
    assert price(taken, left, cost) == pytest.approx(best, rel=1e-9)


@given(LEFT, COSTS, st.randoms())
def test_order_does_not_matter(left, cost, random):
    """The same lanes in another order are stepped as far."""
    taken = choose_steps(left, cost)
    random.shuffle(left)
    assert choose_steps(left, cost) == taken


@given(st.integers(1, 100_000), COSTS)
def test_alone(length, cost):
    """A lane alone takes a tick's whole time, or all that it has left."""
    assert choose_steps([length], cost) == min(longest_tick([length], cost), length)


@given(st.integers(1, 1500), st.integers(1, 24), COSTS)
def test_all_alike(length, rows, cost):
    """So do lanes that have as much left as each other: nothing is padded."""
    left = [length] * rows
    assert choose_steps(left, cost) == min(longest_tick(left, cost), length)


@given(LEFT)
def test_calls_that_cost_nothing(left):
    """Where a call costs next to nothing, no lane is padded."""
    assert choose_steps(left, Cost(call=0, step=1e-6, row=1e-6)) <= min(left)


@given(LEFT)
def test_calls_that_cost_everything(left):
    """Where only a call costs, all lanes are stepped to their ends."""
    assert choose_steps(left, Cost(call=1, step=1e-9, row=1e-9)) == max(left)


def test_nothing():
    """Of no lanes none is taken."""
    assert choose_steps([], Cost()) == 0
