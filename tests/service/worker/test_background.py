"""Loading that gives way: who waits for whom, and for how long at most."""

import numpy as np

from service.worker import background
from service.worker.background import BackgroundEngine
from tests.support.scheduler import FakeEngine, assert_belongs, frames, state_of

SEQUENCE = frames(3, 7)[None], np.array([3], np.int32), state_of(0, 7)[None]


def test_waits_for_an_idle_moment():
    moments = iter([False, False, True])
    answer, _ = BackgroundEngine(FakeEngine(), lambda: next(moments)).step(*SEQUENCE)
    assert_belongs(answer[0], 3, 7)
    assert next(moments, None) is None


def test_goes_on_when_no_moment_comes(monkeypatch):
    monkeypatch.setattr(background, "MAX_WAIT_SECONDS", 0.002)
    engine = FakeEngine()
    answer, state = BackgroundEngine(engine, lambda: False).step(*SEQUENCE)
    assert_belongs(answer[0], 3, 7)
    np.testing.assert_array_equal(state[0], state_of(3, 7))
    assert not engine.faults
