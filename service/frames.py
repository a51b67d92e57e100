"""A sequence as nested lists: made an array, or found to be at fault."""

from collections.abc import Iterator

import numpy as np


def array(frames: list[list[float]], features: int) -> np.ndarray | None:
    """[T, F] float32, or None where something is wrong with it."""
    try:
        with np.errstate(over="ignore"):  # infinite then, and refused below
            made = np.array(frames, np.float32)
    except ValueError:
        return None  # ragged
    if made.ndim != 2 or made.shape[1] != features or not np.isfinite(made).all():
        return None
    return made


def faults(frames: list[list[float]], features: int) -> Iterator[tuple[str, str]]:
    """What is wrong with it: the place within it, as in `[3][1]`, and why."""
    if not frames:
        yield "", "must have at least one step"
    for step, frame in enumerate(frames):
        if len(frame) != features:
            told = f"has {len(frame)} features, the model takes {features}"
            yield f"[{step}]", told
            continue
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.array(frame, np.float32))
        if not finite.all():
            for place in np.flatnonzero(~finite).tolist():
                yield f"[{step}][{place}]", "must be finite in float32"
