"""Make an LSTM's int8 answers independent of its batch: activations of a fixed range.

ONNX Runtime's `DynamicQuantizeLSTM` rounds the activations of a call to 8 bits by their
range over the whole batch: those of the input once a call, those of the hidden vectors at
each step. So that each range is constant,

- each layer gets two hidden units more, whose outputs are always +1 and -1. A hidden value
  is `o * tanh(c)`, so no other one is beyond them. The layer above reads them, too.
- the normalised frames are clipped to `clip`, and get two features more, `clip` and `-clip`.

All weights from these units and features are 0, and the state holds none of them. An answer
then depends on its own sequence alone, bit for bit: the sums of integers are exact.
"""

from typing import NamedTuple

import numpy as np

from model.export.onnx_builder import Graph

UNITS = 2
# The units' gates in ONNX's order (input, output, forget, cell): closed, open, open. ONNX
# Runtime's sigmoid and tanh are exactly 1 there, so the values below stay for ever.
GATES = (-30.0, 30.0, 30.0, 0.0)
HIDDEN, CELL = (1.0, -1.0), (20.0, -20.0)


class FixedRange(NamedTuple):
    """The range of the first layer's input."""

    clip: float

    def frames(self, graph: Graph, x: str) -> str:
        """Return normalised frames [T, B, F] clipped, with two features more."""
        limits = [graph.constant(value) for value in (-self.clip, self.clip)]
        x = graph.add("Clip", [x, *limits])
        return _append(graph, x, np.array([[[self.clip, -self.clip]]]))

    def vectors(self, graph: Graph, vectors: str, count: int) -> str:
        """Return each layer's hidden and cell vectors [2 * L, B, H] with two units more."""
        values = np.array([HIDDEN, CELL] * (count // 2))[:, None]
        return _append(graph, vectors, values)

    def zeros(self, graph: Graph, x: str, ways: int, hidden: int) -> list[str]:
        """Return a layer's vectors [D, B, H + 2] before the first of the steps x [T, B, F]."""
        batch = graph.add("Shape", [x], start=1, end=2)
        sizes = [graph.integer([ways]), batch, graph.integer([hidden + UNITS])]
        shape = graph.add("Concat", sizes, axis=0)
        return [
            graph.add("Expand", [graph.constant([*np.zeros(hidden), *units]), shape])
            for units in (HIDDEN, CELL)
        ]

    def weights(self, ways: int, kernel, recurrent, bias):
        """Return weights [4 * H, F], [4 * H, H], [8 * H] with those of the units.

        Args:
            ways: directions that the input joins, each with two units; 1 for frames.
        """
        hidden = recurrent.shape[1]
        more = (0, UNITS)
        kernel = kernel.reshape(4, hidden, ways, -1)
        kernel = np.pad(kernel, ((0, 0), more, (0, 0), more))
        recurrent = np.pad(recurrent.reshape(4, hidden, -1), ((0, 0), more, more))
        bias = np.pad(bias.reshape(2, 4, hidden), ((0, 0), (0, 0), more))
        bias[0, :, hidden:] = np.array(GATES)[:, None]
        size = 4 * (hidden + UNITS)
        return kernel.reshape(size, -1), recurrent.reshape(size, -1), bias.reshape(-1)


def cut(graph: Graph, x: str, axis: int) -> str:
    """Return values without the two units at the end of an axis."""
    ends = (graph.integer([value]) for value in (0, -UNITS, axis))
    return graph.add("Slice", [x, *ends])


def _append(graph: Graph, x: str, values: np.ndarray) -> str:
    """Append values [1 or A, 1, 2] to the rows of x [A, B, W]."""
    shape = graph.add("Shape", [x], start=0, end=2)
    shape = graph.add("Concat", [shape, graph.integer([UNITS])], axis=0)
    more = graph.add("Expand", [graph.constant(values), shape])
    return graph.add("Concat", [x, more], axis=2)
