"""A sequence as nested lists: made an array, or found to be at fault."""

from itertools import chain

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


def faults(
    frames: list[list[float]], features: int, most: int
) -> tuple[int, list[tuple[str, str]]]:
    """How much is wrong with it, and the first of it: the place within it, as in
    `[3][1]`, and why."""
    if not frames:
        return 1, [("", "must have at least one step")]
    widths = np.fromiter(map(len, frames), np.int64, len(frames))
    odd = widths != features
    flat = np.fromiter(chain.from_iterable(frames), np.float64, int(widths.sum()))
    with np.errstate(over="ignore"):
        wrong = ~np.isfinite(flat.astype(np.float32))
    wrong &= ~np.repeat(odd, widths)  # of another width: that is told, once
    ends = np.cumsum(widths)
    told = [
        (step, -1, f"has {widths[step]} features, the model takes {features}")
        for step in np.flatnonzero(odd)[:most].tolist()
    ]
    for at in np.flatnonzero(wrong)[:most].tolist():
        step = int(np.searchsorted(ends, at, "right"))
        place = at - int(ends[step] - widths[step])
        told.append((step, place, "must be finite in float32"))
    first = [
        (f"[{step}]" if place < 0 else f"[{step}][{place}]", message)
        for step, place, message in sorted(told)[:most]
    ]
    return int(odd.sum() + wrong.sum()), first
