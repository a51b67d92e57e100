"""Sequences as jobs of a worker, and the engine call that advances a batch of them."""

import math
from dataclasses import dataclass, field

import numpy as np

from model.bundle.metadata import Metadata
from service.callers.fair_queue import ANONYMOUS, CallerId
from service.worker.engine import Engine


@dataclass(slots=True, eq=False)
class SequenceJob:
    """One sequence, and how far it has been computed."""

    number: int
    frames: np.ndarray  # [T, F]
    state: np.ndarray  # [S] after the first `position` steps
    deadline: float = math.inf  # `time.perf_counter`
    return_state: bool = False
    caller: CallerId = ANONYMOUS
    steps: int = field(init=False)
    position: int = 0  # steps that have been computed
    started: float = 0.0  # its first engine call
    charged: bool = False  # its caller was charged for the remaining steps
    cancelled: bool = False
    finite: bool = True  # no NaN and no infinity has come out of the engine for it
    # [C] after the last step (classify), or [T, C], filled up to `position` (label).
    probabilities: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.steps = len(self.frames)

    @property
    def remaining(self) -> int:
        """Steps that have not been computed."""
        return self.steps - self.position

    def is_abandoned(self, now: float) -> bool:
        """Return whether no one waits for the answer any more."""
        return self.cancelled or self.deadline < now


@dataclass(slots=True)
class Batch:
    """Jobs for the next engine call."""

    jobs: list[SequenceJob]
    steps: int  # for each job; rows with fewer steps left are padded
    dropped: list[SequenceJob] = field(default_factory=list)  # abandoned by callers


def advance(engine: Engine, metadata: Metadata, batch: Batch) -> int:
    """Advance the jobs of a batch by one engine call, and return the number of steps
    without padding. If the engine fails, no job is changed.

    Raises:
        Exception: any exception of the engine.
        ValueError: the engine returned arrays of another shape.
    """
    jobs, steps = batch.jobs, batch.steps
    counts = [min(job.steps - job.position, steps) for job in jobs]
    frames = _stack_frames(jobs, counts, steps)
    lengths = np.array(counts, np.int32)
    state = np.concatenate([job.state for job in jobs])
    state = state.reshape(len(jobs), metadata.state_size)
    probabilities, state = engine.step(frames, lengths, state)
    label = metadata.task == "label"
    shape = (len(jobs), steps) if label else (len(jobs),)
    if probabilities.shape[:-1] != shape or len(state) != len(jobs):
        raise ValueError(f"the engine returned an array of shape {probabilities.shape}")
    # One check for all rows: a check of each row would be the largest cost here.
    all_finite = bool(np.isfinite(probabilities).all() and np.isfinite(state).all())
    for row, (job, count) in enumerate(zip(jobs, counts, strict=True)):
        job.state = state[row]
        if not all_finite:
            valid = probabilities[row, :count] if label else probabilities[row]
            job.finite &= bool(np.isfinite(valid).all())
            job.finite &= bool(np.isfinite(state[row]).all())
        if not label:
            job.probabilities = probabilities[row]
        elif count == job.steps:
            job.probabilities = probabilities[row, :count]
        else:
            if job.probabilities is None:
                classes = probabilities.shape[-1]
                job.probabilities = np.empty((job.steps, classes), np.float32)
            stop = job.position + count
            job.probabilities[job.position : stop] = probabilities[row, :count]
        job.position += count
    return sum(counts)


def _stack_frames(jobs: list[SequenceJob], counts: list[int], steps: int) -> np.ndarray:
    """Return the jobs' next frames as [B, steps, F], zero past each row's count."""
    features = jobs[0].frames.shape[1]
    if min(counts) == steps:  # one copy in C
        rows = [job.frames[job.position : job.position + steps] for job in jobs]
        return np.concatenate(rows).reshape(len(jobs), steps, features)
    frames = np.zeros((len(jobs), steps, features), np.float32)
    for row, job, count in zip(frames, jobs, counts, strict=True):
        row[:count] = job.frames[job.position : job.position + count]
    return frames
