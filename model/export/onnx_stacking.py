"""Join frames to stacks in an ONNX graph, as `model.network.stacking` does."""

from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from model.export.onnx_builder import Graph


class Pieces(NamedTuple):
    """Names of the full stacks and of the rest; see `model.network.stacking.Pieces`."""

    full: str  # [B, N * K, F]
    steps: str  # [B, 1] int64
    rest: str  # [B, K, F]
    left: str  # [B, 1] int64
    window: str  # [B, (K - 1) * F]
    number: str  # [B, 1]


def cut(graph: Graph, window: str, count: str, size: int, features: int) -> Pieces:
    """Put the input `frames` behind the rest of earlier ones, and cut them into stacks.

    Args:
        window, count: of the state.
        size: K, the frames in a stack.
    """
    shape = graph.integer([0, size - 1, features])
    window = graph.add("Reshape", [window, shape])
    joined = graph.add("Concat", [window, "frames"], axis=1)
    # A caller may have changed the state: an index never leaves the frames.
    left = graph.cast(count, TensorProto.INT64)
    left = graph.add("Max", [left, graph.integer(0)])
    left = graph.add("Min", [left, graph.integer(size - 1)])
    first = graph.add("Sub", [graph.integer(size - 1), left])
    lengths = input_lengths(graph)
    total = graph.add("Add", [left, lengths])
    steps = graph.add("Div", [total, graph.integer(size)])
    full = graph.add("Mul", [steps, graph.integer(size)])
    left = graph.add("Sub", [total, full])
    rest = graph.add("Add", [first, full])
    stack, others = (graph.integer(np.arange(number)) for number in (size, size - 1))
    window = _take(graph, joined, lengths, others)
    return Pieces(
        full=_take(graph, joined, first, _places(graph, size)),
        steps=steps,
        rest=_take(graph, joined, rest, stack),
        left=left,
        window=graph.add(
            "Reshape", [window, graph.integer([0, (size - 1) * features])]
        ),
        number=graph.cast(left, TensorProto.FLOAT),
    )


def pad(graph: Graph, size: int) -> tuple[str, str]:
    """Return the input `frames` in full stacks [B, N * K, F], undefined past each length,
    and the number of stacks [B, 1] int64 that hold a valid frame."""
    lengths = input_lengths(graph)
    start = graph.add("Sub", [lengths, lengths])  # zeros
    steps = graph.add("Add", [lengths, graph.integer(size - 1)])
    steps = graph.add("Div", [steps, graph.integer(size)])
    return _take(graph, "frames", start, _places(graph, size)), steps


def mask(graph: Graph, x: str, lengths: str) -> str:
    """Return x [B, T, F] with zeros past each length, [B, 1] int64."""
    places = graph.add("Range", [graph.integer(0), _time(graph, x), graph.integer(1)])
    valid = graph.add("Less", [places, lengths])  # [B, T]
    valid = graph.add("Unsqueeze", [valid, graph.integer([2])])
    return graph.add("Where", [valid, x, graph.constant(0.0)])


def join(graph: Graph, x: str, size: int, features: int) -> str:
    """Return frames [B, N * K, F] as steps [N, B, K * F]."""
    x = graph.add("Reshape", [x, graph.integer([0, -1, size * features])])
    return graph.add("Transpose", [x], perm=[1, 0, 2])


def input_lengths(graph: Graph) -> str:
    """Return the input `lengths` as [B, 1] int64."""
    lengths = graph.cast("lengths", TensorProto.INT64)
    return graph.add("Unsqueeze", [lengths, graph.integer([1])])


def _take(graph: Graph, frames: str, start: str, places: str) -> str:
    """Return the frames at `places` [P], counted from each row's `start` [B, 1]."""
    last = graph.add("Sub", [_time(graph, frames), graph.integer(1)])
    places = graph.add("Add", [start, places])
    places = graph.add("Min", [places, last])
    places = graph.add("Unsqueeze", [places, graph.integer([2])])
    return graph.add("GatherND", [frames, places], batch_dims=1)


def _places(graph: Graph, size: int) -> str:
    """Return 0, 1, ... for the input `frames`, up to a multiple of `size`."""
    time = graph.add("Add", [_time(graph, "frames"), graph.integer(size - 1)])
    time = graph.add("Div", [time, graph.integer(size)])
    stop = graph.add("Mul", [time, graph.integer(size)])
    return graph.add("Range", [graph.integer(0), stop, graph.integer(1)])


def _time(graph: Graph, x: str) -> str:
    """Return the number of steps of x [B, T, F]."""
    return graph.squeeze(graph.add("Shape", [x], start=1, end=2), 0)
