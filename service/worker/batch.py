"""One engine call: lanes gathered into arrays, stepped, and scattered again."""

import numpy as np

from model.bundle.bundle import Metadata
from service.worker.engine import Engine
from service.worker.lanes import Batch
from service.worker.sequence_job import SequenceJob


def step(engine: Engine, metadata: Metadata, batch: Batch) -> int:
    """Advance every work of a batch by its chunk; the useful steps among those
    computed. Nothing is changed when the engine fails.

    Raises:
        Exception: whatever the engine raises.
        ValueError: the engine answers in another shape.
    """
    works, steps = batch.works, batch.steps
    counts = [min(work.steps - work.at, steps) for work in works]
    frames = _frames(works, counts, steps)
    lengths = np.array(counts, np.int32)
    state = np.concatenate([work.state for work in works])
    state = state.reshape(len(works), metadata.state_size)
    probabilities, state = engine.step(frames, lengths, state)
    label = metadata.task == "label"
    shape = (len(works), steps) if label else (len(works),)
    if probabilities.shape[:-1] != shape or len(state) != len(works):
        raise ValueError(f"the engine answered {probabilities.shape}")
    # Of all rows at once, since of each it would cost more than all else here.
    sound = bool(np.isfinite(probabilities).all() and np.isfinite(state).all())
    for row, (work, count) in enumerate(zip(works, counts, strict=True)):
        work.state = state[row]
        if not sound:
            given = probabilities[row, :count] if label else probabilities[row]
            work.sound &= bool(np.isfinite(given).all())
            work.sound &= bool(np.isfinite(state[row]).all())
        if not label:
            work.probabilities = probabilities[row]
        elif count == work.steps:
            work.probabilities = probabilities[row, :count]
        else:
            if work.probabilities is None:
                width = probabilities.shape[-1]
                work.probabilities = np.empty((work.steps, width), np.float32)
            work.probabilities[work.at : work.at + count] = probabilities[row, :count]
        work.at += count
    return sum(counts)


def _frames(works: list[SequenceJob], counts: list[int], steps: int) -> np.ndarray:
    """[B, steps, F], zero past each row's count."""
    features = works[0].frames.shape[1]
    if min(counts) == steps:  # one copy in C
        rows = [work.frames[work.at : work.at + steps] for work in works]
        return np.concatenate(rows).reshape(len(works), steps, features)
    frames = np.zeros((len(works), steps, features), np.float32)
    for row, work, count in zip(frames, works, counts, strict=True):
        row[:count] = work.frames[work.at : work.at + count]
    return frames
