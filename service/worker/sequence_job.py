"""A sequence while the engine works on it."""

import math

import numpy as np

from service.callers.fair_queue import CallerId

NOBODY: CallerId = ("", 0)


class SequenceJob:
    """One sequence, and how far it is."""

    __slots__ = (
        "at",
        "begun",
        "caller",
        "charged",
        "frames",
        "keep",
        "number",
        "probabilities",
        "sound",
        "state",
        "steps",
        "until",
        "unwanted",
    )

    def __init__(
        self,
        number: int,
        frames: np.ndarray,
        state: np.ndarray,
        *,
        until: float = math.inf,
        keep: bool = False,
        caller: CallerId = NOBODY,
    ):
        self.number = number
        self.frames = frames  # [T, F]
        self.state = state  # [S] after the first `at` steps
        self.until = until  # of `time.perf_counter`
        self.keep = keep  # its last state is wanted
        self.caller = caller  # with whose other works it shares
        self.charged = False  # its caller was, for all its steps that were left
        self.steps = len(frames)
        self.at = 0
        self.begun = 0.0  # its first step
        self.probabilities: np.ndarray | None = None  # the last, or [T, C] so far
        self.sound = True  # every number that came of it is finite
        self.unwanted = False  # its caller has gone

    @property
    def left(self) -> int:
        return self.steps - self.at

    def in_vain(self, now: float) -> bool:
        """Nobody would hear of its answer."""
        return self.unwanted or self.until < now
