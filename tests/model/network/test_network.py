"""The network: compared with NumPy, and invariant to padding, order and batch."""

import numpy as np
import pytest
import tensorflow as tf

from model.network.network import cost
from tests.support.networks import CELLS, CLASSES, FEATURES, make_frames, make_network

TASKS = ("classify", "label")
CLOSE = {"rtol": 0, "atol": 1e-5}
LENGTHS = (5, 1, 7, 3)
CELLS = {**CELLS, "gru-mean": {"cell": "gru", "read": "mean"}}
CELLS["lstm-last-mean"] = {"cell": "lstm", "read": "last+mean"}
cells = pytest.mark.parametrize("cell", CELLS)
tasks = pytest.mark.parametrize("task", TASKS)
ways = pytest.mark.parametrize(
    "bidirectional", [False, True], ids=["forward", "both-ways"]
)


# The reference: one sequence at a time, float64, nothing padded.
def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, weights, state):
    """Outputs [T, H] and the final (hidden, cell) vectors."""
    kernel, recurrent, bias = weights
    hidden, cell = state
    outputs = []
    for frame in x:
        i, f, c, o = np.split(frame @ kernel + hidden @ recurrent + bias, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(c)
        hidden = sigmoid(o) * np.tanh(cell)
        outputs.append(hidden)
    return np.array(outputs), (hidden, cell)


def gru(x, weights, state, *, reset_after):
    """Outputs [T, H] and the final (hidden,) vector; h is a mean of old and new."""
    kernel, recurrent, bias = weights
    (hidden,) = state
    outer, inner = bias if reset_after else (bias, np.zeros_like(bias))
    outputs = []
    for frame in x:
        xz, xr, xh = np.split(frame @ kernel + outer, 3)
        rz, rr, rh = np.split(recurrent, 3, axis=1)
        bz, br, bh = np.split(inner, 3)
        z = sigmoid(xz + hidden @ rz + bz)
        r = sigmoid(xr + hidden @ rr + br)
        if reset_after:
            new = np.tanh(xh + r * (hidden @ rh + bh))
        else:
            new = np.tanh(xh + (r * hidden) @ rh)
        hidden = z * hidden + (1 - z) * new
        outputs.append(hidden)
    return np.array(outputs), (hidden,)


def reference(network, sequence, state=None):
    """Logits [C] or [T, C] of one sequence, and its state [S] after the last step."""
    config = network.config
    vectors = 2 if config.cell == "lstm" else 1
    x = (sequence.astype(np.float64) - network.mean.numpy()) * network.scale.numpy()
    size = config.layers * vectors * config.hidden
    state = np.zeros(size + config.hidden + 1) if state is None else state
    before = np.split(state[:size], config.layers * vectors)
    after = []
    for index, directions in enumerate(network.encoder):
        outputs, last = [], []
        for backward, layer in enumerate(directions):
            weights = [w.astype(np.float64) for w in layer.get_weights()]
            begin = before[index * vectors : (index + 1) * vectors]
            inputs = x[::-1] if backward else x
            if config.cell == "lstm":
                y, final = lstm(inputs, weights, begin)
            else:
                y, final = gru(inputs, weights, begin, reset_after=config.reset_after)
            after += final
            last.append(final[0])
            outputs.append(y[::-1] if backward else y)
        x = np.concatenate(outputs, 1)
    kernel, bias = network.head.get_weights()
    if network.task == "label":
        return x @ kernel + bias, np.concatenate(after)
    total, steps = x.sum(0), len(x)
    if network.read != "last" and not config.bidirectional:
        total, steps = total + state[size:-1], steps + state[-1]
        after += [total, [steps]]
    parts = {"last": np.concatenate(last), "mean": total / max(steps, 1)}
    read = np.concatenate([parts[name] for name in network.read.split("+")])
    return read @ kernel + bias, np.concatenate(after)


def rows(values, lengths, task):
    """The values of all rows (classify), or of the valid steps, joined (label)."""
    values = np.asarray(values)
    if task == "classify":
        return values
    return np.concatenate([v[:n] for v, n in zip(values, lengths, strict=True)])


def expected(network, frames, lengths):
    """The reference's logits, joined like `rows`."""
    predicted = [
        reference(network, row[:length])[0]
        for row, length in zip(frames, lengths, strict=True)
    ]
    join = np.stack if network.task == "classify" else np.concatenate
    return join(predicted)


def zeros(network, count):
    return np.zeros((count, network.state_size), np.float32)


class TestNumPy:
    @cells
    @pytest.mark.parametrize(
        ("task", "bidirectional", "layers"),
        [("classify", False, 2), ("label", False, 1), ("classify", True, 3)]
        + [("label", True, 2)],
    )
    def test_whole_sequences(self, cell, task, bidirectional, layers):
        """The network computes the formulas of its cells on normalised frames."""
        network = make_network(
            task, **CELLS[cell], layers=layers, bidirectional=bidirectional
        )
        for counts in (LENGTHS, [1], [1, 1, 1]):
            frames, lengths = make_frames(counts)
            logits = network(frames, lengths)
            steps = [] if task == "classify" else [max(counts)]
            assert logits.shape == [len(counts), *steps, CLASSES]
            np.testing.assert_allclose(
                rows(logits, lengths, task), expected(network, frames, lengths), **CLOSE
            )

    @cells
    @tasks
    def test_step(self, cell, task):
        """A step from any state computes the formulas' logits and packed state."""
        network = make_network(task, **CELLS[cell]).for_export()
        frames, lengths = make_frames(LENGTHS)
        size = (4, network.state_size)
        state = np.random.default_rng(1).uniform(size=size).astype(np.float32)
        logits, after = network.step(frames, lengths, state)
        pairs = [
            reference(network, row[:length], before)
            for row, length, before in zip(frames, lengths, state, strict=True)
        ]
        join = np.stack if task == "classify" else np.concatenate
        np.testing.assert_allclose(
            rows(logits, lengths, task), join([pair[0] for pair in pairs]), **CLOSE
        )
        np.testing.assert_allclose(after, [pair[1] for pair in pairs], **CLOSE)

    @cells
    @ways
    def test_static_unrolling(self, cell, bidirectional):
        """Static unrolling computes what the loop computes."""
        settings = {**CELLS[cell], "bidirectional": bidirectional}
        loop = make_network("label", **settings)
        copies = make_network("label", **settings, unroll="static")
        frames, lengths = make_frames([4, 1, 5], padding=9.0, more=1)
        np.testing.assert_allclose(
            rows(copies(frames, lengths), lengths, "label"),
            rows(loop(frames, lengths), lengths, "label"),
            **CLOSE,
        )

    @ways
    @tasks
    def test_for_export(self, task, bidirectional):
        """The copy for export computes what the network computes."""
        network = make_network(
            task, cell="lstm", bidirectional=bidirectional, unroll="static"
        )
        network.temperature.assign(1.7)
        copy = network.for_export()
        frames, lengths = make_frames(LENGTHS)
        if bidirectional:
            logits = copy(frames, lengths)
        else:
            logits, _ = copy.step(frames, lengths, zeros(network, 4))
        np.testing.assert_allclose(
            rows(copy.probabilities(logits), lengths, task),
            rows(network.probabilities(network(frames, lengths)), lengths, task),
            **CLOSE,
        )

    def test_probabilities(self):
        """Probabilities are the softmax of the logits divided by the temperature."""
        network = make_network()
        network.temperature.assign(2.5)
        logits = np.random.default_rng(0).normal(size=(6, CLASSES))
        powers = np.exp(logits / 2.5)
        np.testing.assert_allclose(
            network.probabilities(logits.astype(np.float32)),
            powers / powers.sum(1, keepdims=True),
            **CLOSE,
        )


@pytest.mark.parametrize(
    ("cell", "task", "bidirectional"),
    [("gru", "classify", False), ("gru", "label", True), ("lstm", "label", False)]
    + [("lstm", "classify", True), ("gru-mean", "classify", True)]
    + [("lstm-last-mean", "classify", False)],
)
class TestInvariance:
    def test_padding(self, cell, task, bidirectional):
        """Padding of any value and length changes no logits."""
        network = make_network(task, **CELLS[cell], bidirectional=bidirectional)
        frames, lengths = make_frames(LENGTHS)
        reference_logits = rows(network(frames, lengths), lengths, task)
        fillings = (-7.0, np.nan, np.inf, 3e38)
        padded = [make_frames(LENGTHS, padding=value, more=3)[0] for value in fillings]
        lengths = np.tile(lengths, len(fillings))
        predicted = rows(network(np.concatenate(padded), lengths), lengths, task)
        for part in np.split(predicted, len(fillings)):
            np.testing.assert_allclose(part, reference_logits, **CLOSE)

    def test_order_and_batch(self, cell, task, bidirectional):
        """A sequence alone, or in any order among others, has the same logits."""
        network = make_network(task, **CELLS[cell], bidirectional=bidirectional)
        frames, lengths = make_frames(LENGTHS)
        reference_logits, order = np.asarray(network(frames, lengths)), [2, 0, 3, 1]
        shuffled = np.asarray(network(frames[order], lengths[order]))
        for place, row in enumerate(order):
            steps = slice(None) if task == "classify" else slice(lengths[row])
            np.testing.assert_allclose(
                shuffled[place][steps], reference_logits[row][steps], **CLOSE
            )
        for row in (0, 1, 3):
            length = lengths[row]
            single = network(frames[row : row + 1, :length], lengths[row : row + 1])
            steps = slice(None) if task == "classify" else slice(length)
            np.testing.assert_allclose(single[0], reference_logits[row][steps], **CLOSE)

    def test_zero_frames(self, cell, task, bidirectional):
        """Frames of zeros within a length are steps like any others."""
        network = make_network(task, **CELLS[cell], bidirectional=bidirectional)
        frames, lengths = make_frames([6, 6, 8])
        frames[0, 2:4] = 0  # in the middle
        frames[1, 3:] = 0  # at the end
        frames[2] = 0  # nothing else
        predicted = rows(network(frames, lengths), lengths, task)
        right = expected(network, frames, lengths)
        np.testing.assert_allclose(predicted, right, **CLOSE)
        if task == "classify":
            shorter = np.asarray(network(frames[1:2], lengths[1:2] - 3))
            assert np.abs(predicted[1] - shorter[0]).max() > 1e-3


def cuts(lengths, pieces, random):
    """For each sequence `pieces` lengths, some of them 0, that add up to its own."""
    inner = [np.sort(random.integers(0, n + 1, pieces - 1)) for n in lengths]
    return np.array(
        [np.diff(c, prepend=0, append=n) for c, n in zip(inner, lengths, strict=True)]
    )


@tasks
@cells
class TestStep:
    def test_chunks(self, cell, task):
        """Chunks of any lengths give the logits and the state of the whole sequence."""
        network = make_network(task, **CELLS[cell]).for_export()
        random = np.random.default_rng(3)
        frames, lengths = make_frames([9, 1, 6, 13])
        whole, last = network.step(frames, lengths, zeros(network, 4))
        for pieces in (2, 4):
            sizes = cuts(lengths, pieces, random)
            state, done = zeros(network, 4), np.zeros(4, int)
            predicted = [[] for _ in lengths]
            for chunk in sizes.T.astype(np.int32):
                piece = np.full((4, max(chunk.max(), 1), FEATURES), np.nan, np.float32)
                for row, (start, size) in enumerate(zip(done, chunk, strict=True)):
                    piece[row, :size] = frames[row, start : start + size]
                logits, state = network.step(piece, chunk, state)
                done = done + chunk
                for row, size in enumerate(chunk):
                    values = np.asarray(logits[row])
                    predicted[row].append(values[:size] if task == "label" else values)
            np.testing.assert_allclose(state, last, **CLOSE)
            got = [np.concatenate(a) if task == "label" else a[-1] for a in predicted]
            np.testing.assert_allclose(
                np.concatenate(got) if task == "label" else np.stack(got),
                rows(whole, lengths, task),
                **CLOSE,
            )

    def test_nothing_new(self, cell, task):
        """A row of length 0 keeps its state to the bit, and its last logits."""
        network = make_network(task, **CELLS[cell]).for_export()
        frames, lengths = make_frames([4, 4, 4])
        logits, state = network.step(frames, lengths, zeros(network, 3))
        more = np.array([0, 2, 0], np.int32)
        again, after = network.step(np.full_like(frames, 7), more, state)
        np.testing.assert_array_equal(after[0], state[0])
        np.testing.assert_array_equal(after[2], state[2])
        assert np.abs(after[1] - state[1]).max() > 1e-3
        if task == "classify":
            np.testing.assert_allclose(again[0], logits[0], **CLOSE)


def gradients(network, frames, lengths, targets):
    """Of the mean cost, with respect to the frames and to the weights."""
    frames = tf.constant(frames)
    with tf.GradientTape() as tape:
        tape.watch(frames)
        logits = network(frames, lengths)
        share = np.full(len(lengths), 1 / len(lengths), np.float32)
        value = cost(logits, targets, lengths, share)
    return tape.gradient(value, [frames, *network.trainable_variables])


@tasks
@pytest.mark.parametrize(
    ("cell", "bidirectional", "unroll"),
    [("gru", False, "dynamic"), ("lstm", True, "dynamic"), ("lstm", False, "static")]
    + [("gru-mean", True, "static")],
)
class TestGradient:
    def test_padding(self, cell, bidirectional, unroll, task):
        """Padding has no gradient and changes none, NaN or not."""
        settings = {"bidirectional": bidirectional, "unroll": unroll}
        network = make_network(task, **CELLS[cell], **settings)
        shape = (3,) if task == "classify" else (3, 5)
        targets = np.random.default_rng(0).integers(0, CLASSES, shape).astype(np.int32)
        frames, lengths = make_frames([5, 1, 3])
        of_frames, *of_weights = gradients(network, frames, lengths, targets)
        valid = np.arange(5) < lengths[:, None]
        assert (np.asarray(of_frames)[~valid] == 0).all()
        assert (np.abs(np.asarray(of_frames)[valid]).max(-1) > 0).all()
        padded, _ = make_frames([5, 1, 3], padding=np.nan, more=3)
        if task == "label":
            targets = np.pad(targets, ((0, 0), (0, 3)), constant_values=CLASSES - 1)
        again, *weights_again = gradients(network, padded, lengths, targets)
        np.testing.assert_allclose(again[:, :5], of_frames, rtol=0, atol=1e-6)
        assert not np.asarray(again)[:, 5:].any()
        for ours, theirs in zip(weights_again, of_weights, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_gradient_is_the_slope(cell):
    """The gradient is the numerical slope."""
    network = make_network("label", **CELLS[cell], bidirectional=True)
    frames, lengths = make_frames([4, 2])
    targets = np.array([[0, 1, 2, 3], [3, 2, 0, 0]], np.int32)

    def reference_cost():
        logits = np.split(expected(network, frames, lengths), np.cumsum(lengths)[:-1])
        costs = [
            np.mean(np.log(np.exp(x).sum(1)) - x[np.arange(n), y[:n]])
            for x, y, n in zip(logits, targets, lengths, strict=True)
        ]
        return np.mean(costs)

    _, *slopes = gradients(network, frames, lengths, targets)
    random = np.random.default_rng(0)
    for weight, slope in zip(network.trainable_variables, slopes, strict=True):
        before = weight.numpy()
        direction = random.choice([-1.0, 1.0], before.shape).astype(np.float32)
        costs = []
        for sign in (1, -1):
            weight.assign(before + sign * 1e-3 * direction)
            costs.append(reference_cost())
        weight.assign(before)
        slope = (np.asarray(slope) * direction).sum()
        np.testing.assert_allclose(
            (costs[0] - costs[1]) / 2e-3, slope, rtol=1e-2, atol=1e-4
        )


@tasks
class TestDropout:
    def test_seed(self, task):
        """A seed turns dropout on and determines it; without one nothing is dropped."""
        frames, lengths = make_frames(LENGTHS)
        network = make_network(task, dropout=0.5)
        off, first, again, other = (
            np.asarray(network(frames, lengths, seed))
            for seed in (None, *map(tf.constant, ([1, 2], [1, 2], [1, 3])))
        )
        np.testing.assert_array_equal(off, make_network(task)(frames, lengths))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - off).max() > 1e-3
        assert np.abs(first - other).max() > 1e-3

    def test_keeps_the_mean(self, task):
        """Outputs that stay are scaled up: logits of one layer are right on average."""
        network = make_network(task, dropout=0.4, layers=1)
        frames, lengths = make_frames([3] * 2, seed=1)
        many = np.repeat(frames, 2000, 0), np.repeat(lengths, 2000)
        logits = np.asarray(network(*many, tf.constant([4, 5])))
        mean = logits.reshape(2, 2000, *logits.shape[1:]).mean(1)
        np.testing.assert_allclose(mean, network(frames, lengths), atol=0.06)
