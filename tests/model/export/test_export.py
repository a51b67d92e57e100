"""Both formats compute like the network, and call things as the bundle promises."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest
import tensorflow as tf

from model.bundle import bundle
from model.export import export, onnx_graph, publish
from model.network import reload
from tests.support import exports
from tests.support.exports import HISTORY, KINDS, make_network_and_data, valid

CLOSE = {"rtol": 0, "atol": 1e-5}


class TestFormats:
    def test_whole(self, exported):
        """Both formats answer as the live network, in batches of any size."""
        random = np.random.default_rng(1)
        for name, step in exported.steps.items():
            for batch in (1, 7, 33):
                frames, lengths = exported.frames(random.integers(1, 20, batch))
                probabilities, _ = step(frames, lengths, exported.zeros(batch))
                np.testing.assert_allclose(
                    valid(probabilities, lengths),
                    valid(exported.expected(frames, lengths), lengths),
                    **CLOSE,
                    err_msg=name,
                )

    def test_probabilities(self, exported):
        """Each answer is a distribution over the classes."""
        frames, lengths = exported.frames([4, 9, 1])
        for step in exported.steps.values():
            rows = valid(step(frames, lengths, exported.zeros(3))[0], lengths)
            assert rows.shape[1] == 4
            assert (rows >= 0).all()
            np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-5)

    def test_batch_neighbours(self, exported):
        """A sequence's probabilities depend neither on its batch nor on the padding."""
        frames, lengths = exported.frames([5, 12, 1, 8])
        padded_with_nan = np.where(
            np.arange(12)[:, None] < lengths[:, None, None], frames, np.float32(np.nan)
        )
        for step in exported.steps.values():
            together = step(padded_with_nan, lengths, exported.zeros(4))[0]
            for row, length in enumerate(lengths):
                single, _ = step(
                    frames[row : row + 1, :length],
                    lengths[row : row + 1],
                    exported.zeros(1),
                )
                ours = together[row] if together.ndim == 2 else together[row, :length]
                np.testing.assert_allclose(ours, single[0], **CLOSE)

    @pytest.mark.parametrize("kind", [k for k in KINDS if "both-ways" not in k])
    def test_chunks(self, kind):
        """With the state handed on, chunks of any lengths give the whole's answers."""
        exported = exports.load()[kind]
        frames, lengths = exported.frames([9, 14, 6])
        want = exported.expected(frames, lengths)
        for name, step in exported.steps.items():
            state, done = exported.zeros(3), np.zeros(3, int)
            answers = [[] for _ in lengths]
            for sizes in ([2, 1, 3], [4, 8, 1], [3, 5, 2]):
                piece = np.full((3, max(sizes), 3), 5, np.float32)
                for row, size in enumerate(sizes):
                    piece[row, :size] = frames[row, done[row] : done[row] + size]
                chunk, state = step(piece, np.array(sizes, np.int32), state)
                done += sizes
                for row, size in enumerate(sizes):
                    answers[row] += [
                        chunk[row][:size] if chunk.ndim == 3 else chunk[row]
                    ]
            for row, length in enumerate(lengths):
                if want.ndim == 2:
                    ours, theirs = answers[row][-1], want[row]
                else:
                    ours, theirs = np.concatenate(answers[row]), want[row, :length]
                np.testing.assert_allclose(ours, theirs, **CLOSE, err_msg=name)

    def test_states_are_interchangeable(self, exported):
        """Both formats can continue from each other's state."""
        frames, lengths = exported.frames([6, 3])
        states = [
            step(frames, lengths, exported.zeros(2))[1]
            for step in exported.steps.values()
        ]
        assert states[0].shape == (2, exported.source[0].state_size)
        np.testing.assert_allclose(*states, **CLOSE)


class TestSavedModel:
    def test_signatures(self, exported):
        """Names, shapes and types are those that the bundle promises."""
        size = exported.source[0].state_size
        signatures = tf.saved_model.load(str(exported.folder)).signatures
        assert set(signatures) == {"serving_default", *(["step"] if size else [])}
        frames = tf.TensorSpec((None, None, 3), tf.float32, "frames")
        lengths = tf.TensorSpec((None,), tf.int32, "lengths")
        inputs = {"frames": frames, "lengths": lengths}
        whole = signatures["serving_default"]
        assert whole.structured_input_signature[1] == inputs
        label = exported.dataset.task == "label"
        shape = [None, None, 4] if label else [None, 4]
        assert set(whole.structured_outputs) == {"probabilities"}
        assert whole.structured_outputs["probabilities"].shape.as_list() == shape
        if size:
            state = tf.TensorSpec((None, size), tf.float32, "state")
            step = signatures["step"]
            assert step.structured_input_signature[1] == {**inputs, "state": state}
            outputs = step.structured_outputs
            assert set(outputs) == {"probabilities", "state"}
            assert outputs["probabilities"].shape.as_list() == shape
            assert outputs["state"].shape.as_list() == [None, size]

    @pytest.mark.slow
    def test_ten_lines(self, tmp_path):
        """TensorFlow loads and calls a bundle without the project's code."""
        script = """
            import sys
            import numpy as np
            import tensorflow as tf

            data = np.load("inputs.npz")
            answers = {}
            for name in data["folders"]:
                network = tf.saved_model.load(str(name)).signatures["serving_default"]
                answers[str(name)] = network(
                    frames=tf.constant(data["frames"]), lengths=tf.constant(data["lengths"])
                )["probabilities"].numpy()
            np.savez("answers.npz", **{str(i): a for i, a in enumerate(answers.values())})
            assert not [m for m in sys.modules if m.split(".")[0] in ("model", "service")]
        """
        two = [
            exports.load()[kind] for kind in ("classify-gru", "label-lstm-both-ways")
        ]
        frames, lengths = two[0].frames([3, 7, 1])
        folders = [str(exported.folder) for exported in two]
        np.savez(
            tmp_path / "inputs.npz", frames=frames, lengths=lengths, folders=folders
        )
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        with np.load(tmp_path / "answers.npz") as answers:
            for index, exported in enumerate(two):
                np.testing.assert_allclose(
                    valid(answers[str(index)], lengths),
                    valid(exported.expected(frames, lengths), lengths),
                    **CLOSE,
                )


class TestOnnx:
    def model(self, exported):
        return onnx.load(str(exported.folder / bundle.NETWORK))

    def test_valid(self, exported):
        """The graph is what ONNX says that a graph is, its shapes included."""
        onnx.checker.check_model(self.model(exported), full_check=True)

    def test_names(self, exported):
        """Inputs and outputs are named as the contract says. (Names of a graph are
        unique, so the state that comes out is `next_state`.)"""
        graph = self.model(exported).graph
        state = ["state"] if exported.source[0].state_size else []
        assert [value.name for value in graph.input] == ["frames", "lengths", *state]
        outputs = ["probabilities", *(f"next_{name}" for name in state)]
        assert [value.name for value in graph.output] == outputs

    def test_fused(self, exported):
        """One fused operator a layer, two with stacks, and no general loop."""
        network = exported.config.network
        kinds = [node.op_type for node in self.model(exported).graph.node]
        passes = 2 if network.stack > 1 else 1  # the full stacks, and the rest
        assert kinds.count(network.cell.upper()) == passes * network.layers
        assert not {"Loop", "Scan", "If"} & set(kinds)
        ways = {
            attribute.s.decode()
            for node in self.model(exported).graph.node
            for attribute in node.attribute
            if attribute.name == "direction"
        }
        assert ways == {"bidirectional" if network.bidirectional else "forward"}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["ONNX", "SavedModel"])
def test_wrong_export(tmp_path, monkeypatch, wrong):
    """A format that answers otherwise than the network is never published."""
    if wrong == "ONNX":
        build = onnx_graph.build

        def broken(network):
            network.head.bias.assign_add([0.5, 0, 0, 0])
            model = build(network)
            network.head.bias.assign_sub([0.5, 0, 0, 0])
            return model

        monkeypatch.setattr(onnx_graph, "build", broken)
    else:
        saved = reload.saved_model

        def forgetful(folder):
            step = saved(folder)
            return lambda f, n, s: step(f, n, np.zeros_like(s))

        monkeypatch.setattr(reload, "saved_model", forgetful)
    network, dataset, config = make_network_and_data("classify-gru")
    with pytest.raises(export.ExportError, match=f"{wrong} differs"):
        publish.publish(network, HISTORY, dataset, config, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert bundle.names(tmp_path) == {}
