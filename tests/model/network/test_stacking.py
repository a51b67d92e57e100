"""Stacked frames: the same network on frames joined by hand, in whole sequences, batches,
chunks and streams, in each format."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from model.bundle.metadata import state_size
from model.config import ConfigError
from model.export import export, onnx_graph
from model.network import reload
from model.network.network import cost
from model.training import loop
from model.training.runs import Run
from tests.support.bundles import cached, make_metadata
from tests.support.networks import (
    CELLS,
    CLASSES,
    FEATURES,
    make_config,
    make_dataset,
    make_frames,
    make_network,
    weights,
)

CLOSE = {"rtol": 0, "atol": 1e-5}
STREAMED = {
    "gru": {**CELLS["gru"], "stack": 2, "hidden": 17},
    "gru-original": {**CELLS["gru-original"], "stack": 3, "read": "last+mean"},
    "lstm": {**CELLS["lstm"], "stack": 8, "read": "mean"},
}
WHOLE = {"lstm-both-ways": {**CELLS["lstm"], "stack": 4, "bidirectional": True}}
KINDS = STREAMED | WHOLE
FORMATS = ("SavedModel", "ONNX")
LENGTHS = (9, 1, 16, 3, 17, 8, 2)


def write(root):
    for kind, settings in KINDS.items():
        network = make_network(**settings).for_export()
        export.save(network, root / kind)
        onnx.save(onnx_graph.build(network), root / kind / "network.onnx")


@pytest.fixture(scope="module")
def formats():
    """Each kind of network in both formats, as functions."""
    root = cached("stacking", write, Path(__file__))
    return {
        kind: {
            "SavedModel": reload.saved_model(root / kind),
            "ONNX": reload.onnx(root / kind / "network.onnx"),
        }
        for kind in KINDS
    }


def joined(network, frames, lengths):
    """Normalised frames in stacks, zeros in the last one, and the numbers of stacks."""
    stacks = []
    for row, length in zip(frames, lengths, strict=True):
        x = (row[:length] - network.mean.numpy()) * network.scale.numpy()
        x = np.pad(x, [(0, -length % network.stack), (0, 0)])
        stacks.append(x.reshape(-1, network.stack * FEATURES))
    steps = np.array([len(x) for x in stacks], np.int32)
    return np.stack(
        [np.pad(x, [(0, max(steps) - len(x)), (0, 0)]) for x in stacks]
    ), steps


class TestWhole:
    @pytest.mark.parametrize("kind", KINDS)
    def test_joined_by_hand(self, formats, kind):
        """It computes what a network without stacks computes on joined frames."""
        network = make_network(**KINDS[kind])
        plain = make_network(
            **KINDS[kind] | {"stack": 1}, features=network.stack * FEATURES
        )
        plain.mean.assign(tf.zeros_like(plain.mean))
        plain.scale.assign(tf.ones_like(plain.scale))
        pairs = zip(plain.trainable_variables, network.trainable_variables, strict=True)
        for ours, theirs in pairs:
            ours.assign(theirs)
        frames, lengths = make_frames(LENGTHS, padding=np.nan, more=2)
        expected = plain.probabilities(plain(*joined(network, frames, lengths)))
        static = make_network(**KINDS[kind], unroll="static")
        for same in (network, static):
            actual = same.probabilities(same(frames, lengths))
            np.testing.assert_allclose(actual, expected, **CLOSE)
        state = np.zeros((len(lengths), network.state_size), np.float32)
        for step in formats[kind].values():
            np.testing.assert_allclose(
                step(frames, lengths, state)[0], expected, **CLOSE
            )

    @pytest.mark.slow
    def test_gradient(self):
        """Padding has no gradient and changes none, NaN or not."""
        for settings in KINDS.values():
            network = make_network(**settings)
            targets = np.arange(len(LENGTHS), dtype=np.int32) % CLASSES

            def gradients(frames, lengths, network=network, targets=targets):
                frames = tf.constant(frames)
                with tf.GradientTape() as tape:
                    tape.watch(frames)
                    logits = network(frames, lengths)
                    value = cost(logits, targets, lengths, tf.ones(len(lengths)))
                return tape.gradient(value, [frames, *network.trainable_variables])

            frames, lengths = make_frames(LENGTHS)
            of_frames, *of_weights = map(np.asarray, gradients(frames, lengths))
            valid = np.arange(max(LENGTHS)) < lengths[:, None]
            assert (of_frames[~valid] == 0).all()
            assert (np.abs(of_frames[valid]).max(-1) > 0).all()
            padded, _ = make_frames(LENGTHS, padding=np.nan, more=5)
            again, *weights_again = map(np.asarray, gradients(padded, lengths))
            np.testing.assert_allclose(again[:, :-5], of_frames, rtol=0, atol=1e-6)
            assert not again[:, -5:].any()
            for ours, theirs in zip(weights_again, of_weights, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", STREAMED)
class TestStream:
    @pytest.mark.slow
    def test_prefixes(self, formats, kind):
        """After each frame, the answer and the state of a stream are those of the
        sequence so far; with ONNX Runtime to the bit."""
        network = make_network(**KINDS[kind])
        frames, _ = make_frames([19])
        zeros = np.zeros((1, network.state_size), np.float32)
        for name, step in formats[kind].items():
            state = zeros
            for length in range(1, 20):
                piece = frames[:, length - 1 : length]
                answer, state = step(piece, np.array([1], np.int32), state)
                lengths = np.array([length], np.int32)
                whole, after = step(frames[:, :length], lengths, zeros)
                tolerance = {"rtol": 0, "atol": 0} if name == "ONNX" else CLOSE
                np.testing.assert_allclose(answer, whole, **tolerance)
                np.testing.assert_allclose(state, after, **tolerance)
                live = network.probabilities(network(frames[:, :length], lengths))
                np.testing.assert_allclose(answer, live, **CLOSE)

    @pytest.mark.slow
    @given(data=st.data())
    def test_chunks(self, formats, kind, data):
        """Chunks of any lengths, none among them, give the whole sequences' answers and
        states, in batches of any rows; the formats may take turns."""
        rows = data.draw(st.lists(st.lists(st.integers(0, 11), min_size=1), min_size=1))
        lengths = np.array([max(1, sum(row)) for row in rows], np.int32)
        frames, _ = make_frames(lengths, seed=len(rows))
        network = make_network(**KINDS[kind])
        zeros = np.zeros((len(rows), network.state_size), np.float32)
        expected, last = formats[kind]["ONNX"](frames, lengths, zeros)
        done, state, answers = np.zeros(len(rows), int), zeros, expected
        for index in range(max(map(len, rows)) + 1):
            name = data.draw(st.sampled_from(FORMATS))
            left = lengths - done
            counts = [row[index] if index < len(row) else 11 for row in rows]
            sizes = np.minimum(counts, left).astype(np.int32)
            shape = (len(rows), max(1, sizes.max()), FEATURES)
            piece = np.full(shape, np.nan, np.float32)
            for row, (start, size) in enumerate(zip(done, sizes, strict=True)):
                piece[row, :size] = frames[row, start : start + size]
            before = state
            answers, state = formats[kind][name](piece, sizes, before)
            np.testing.assert_array_equal(state[sizes == 0], before[sizes == 0])
            done = done + sizes
        np.testing.assert_allclose(answers, expected, **CLOSE)
        np.testing.assert_allclose(state, last, **CLOSE)

    def test_any_state(self, formats, kind):
        """A state with any number of frames in its rest is computed, not an error."""
        size = make_network(**KINDS[kind]).state_size
        numbers = [-1, 0, 2.5, 64, 2**31, 1e30, -np.inf, np.inf, np.nan]
        state = np.zeros((len(numbers), size), np.float32)
        state[:, -1] = numbers
        frames, lengths = make_frames(np.arange(len(numbers)) + 1)
        for step in formats[kind].values():
            answers, after = step(frames, lengths, state)
            assert np.isfinite(answers).all()
            assert np.isfinite(after).all()


@pytest.mark.slow
def test_training(tmp_path):
    """A run that is interrupted and resumed ends with the weights of an uncut one."""

    class Stop(loop.Callback):
        def on_epoch_end(self, epoch):
            if epoch.epoch == 1:
                raise RuntimeError("stopped")

    data = make_dataset(counts=(25, 12, 9))
    network = {"stack": 3, "read": "mean", "dropout": 0.3}
    config = make_config(network=network, training={"epochs": 2})
    uncut = loop.fit(data, config, Run(tmp_path / "uncut"))
    with pytest.raises(RuntimeError, match="stopped"):
        loop.fit(data, config, Run(tmp_path / "cut"), callback=Stop())
    resumed = loop.fit(data, config, Run(tmp_path / "cut"), resume=True)
    assert resumed.resumed == 1
    pairs = zip(weights(resumed.network), weights(uncut.network), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)


def test_state_size():
    """The state adds the last frames but one of a stack, and a number."""
    plain = state_size("lstm", 2, 5, False, "mean")
    assert state_size("lstm", 2, 5, False, "mean", 4, 7) == plain + 3 * 7 + 1
    assert state_size("lstm", 2, 5, False, "mean", 1, 7) == plain
    assert state_size("lstm", 2, 5, True, "mean", 4, 7) == 0


def test_label(tmp_path):
    """A network that labels each step can't stack steps; a run is left as it is."""
    config = make_config(network={"stack": 2})
    with pytest.raises(ConfigError, match=r"network\.stack"):
        loop.fit(make_dataset("label"), config, Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"network\.stack: .*one class"):
        make_network("label", stack=2)
    assert make_network("label", stack=1).stack == 1
    with pytest.raises(ValueError, match="can't stack steps"):
        make_metadata("label", stack=2, state_size=4)
