"""What computes: one method, whatever the library behind it."""

import math
import os
from pathlib import Path
from typing import Protocol

import numpy as np

from model.bundle import Bundle


class Engine(Protocol):
    """A loaded network. Not thread-safe: one scheduler owns it."""

    name: str

    def step(
        self, frames: np.ndarray, lengths: np.ndarray, state: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Advance each row by its frames.

        Args:
            frames: [B, T, F] float32, zero past each length.
            lengths: [B] int32, 1 to T.
            state: [B, S] float32; zeros begin a sequence. S is 0 for a network
                that needs its sequences whole.

        Returns:
            probabilities [B, C] after the last valid step (classify) or
            [B, T, C] (label), and the new state [B, S].
        """
        ...


def load(bundle: Bundle, threads: int) -> Engine:
    """The engine of a bundle; `threads` = 0 takes the cores it may use."""
    # Imported here so that nothing else of the service needs TensorFlow.
    from .tensorflow_engine import TensorFlowEngine

    return TensorFlowEngine(bundle, threads or available_cores())


def available_cores() -> int:
    """Whole cores that this process may use: affinity and cgroup quota, not the
    host's count."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        pass
    return max(cores, 1)
