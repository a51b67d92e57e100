"""A published bundle: its metadata are true, and its golden answers notice changes."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model.bundle import bundle
from model.bundle.golden import Golden
from model.evaluation import evaluation
from model.network import reload
from tests.support import exports
from tests.support.exports import KINDS, valid


class TestGolden:
    def test_both_formats(self, exported):
        """Both formats reproduce the golden answers, far within the tolerance."""
        golden = exported.bundle.golden()
        for name, step in exported.steps.items():
            assert golden.difference(step) < bundle.TOLERANCE / 10, name

    def test_from_the_data(self, exported):
        """Golden inputs are validation sequences, the shortest and the longest too."""
        golden, part = exported.bundle.golden(), exported.dataset.part("validation")
        assert golden.lengths.min() == part.lengths.min()
        assert golden.lengths.max() == part.lengths.max()
        known = {part.sequence(row).tobytes() for row in range(len(part))}
        for frames, length in zip(golden.frames, golden.lengths, strict=True):
            assert frames[:length].tobytes() in known

    @pytest.mark.parametrize(
        "place",
        [
            pytest.param(1, id="kernel"),
            pytest.param(2, id="recurrent"),
            pytest.param(3, id="bias"),
        ],
    )
    def test_swapped_gates(self, exported, tmp_path, place):
        """Two gates in each other's place, or one weight off, are noticed."""
        golden = exported.bundle.golden()
        hidden = exported.config.network.hidden
        gates = 4 if exported.config.network.cell == "lstm" else 3

        def swapped(values):
            axis = -1 if place == 3 else 1
            parts = np.split(values, values.shape[axis] // hidden, axis)
            parts[0], parts[gates - 1] = parts[gates - 1], parts[0]
            return np.concatenate(parts, axis)

        def one_off(values):
            values = values.copy()
            values.flat[0] += 0.1
            return values

        for change in (swapped, one_off):
            model = onnx.load(str(exported.folder / bundle.NETWORK))
            node = next(
                node for node in model.graph.node if node.op_type in ("GRU", "LSTM")
            )
            tensor = next(
                t for t in model.graph.initializer if t.name == node.input[place]
            )
            values = change(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            onnx.save(model, str(tmp_path / "other.onnx"))
            difference = golden.difference(reload.onnx(tmp_path / "other.onnx"))
            assert difference > bundle.TOLERANCE, change.__name__

    def test_wrong_answers(self, shared):
        """Wrong probabilities or states are noticed, and so is NaN."""
        step = reload.onnx(shared.folder / bundle.NETWORK)
        golden = shared.bundle.golden()
        for change in (
            lambda p, s: (p + 1e-3, s),
            lambda p, s: (p * np.nan, s),
            lambda p, s: (p, s + 1e-2),
            lambda p, s: (p, s * 0),
        ):

            def changed(*inputs, change=change):
                return change(*step(*inputs))

            assert golden.difference(changed) > bundle.TOLERANCE

    def test_state_is_needed(self, shared):
        """An engine that ignores the state that it is given is noticed."""
        step = reload.onnx(shared.folder / bundle.NETWORK)
        golden = shared.bundle.golden()
        difference = golden.difference(lambda f, n, s: step(f, n, np.zeros_like(s)))
        assert difference > bundle.TOLERANCE

    def test_rows_depend_on_company(self, shared):
        """An engine whose answers depend on the batch is noticed."""
        step = reload.onnx(shared.folder / bundle.NETWORK)

        def leaking(frames, lengths, state):
            probabilities, state = step(frames, lengths, state)
            return probabilities + 1e-3 * (len(lengths) == 1), state

        assert shared.bundle.golden().difference(leaking) > bundle.TOLERANCE

    def test_sequences_of_one_step(self, shared):
        """Golden sequences that are all of one step can be compared too."""
        step = reload.onnx(shared.folder / bundle.NETWORK)
        frames, lengths = shared.frames([1, 1, 1])
        golden = Golden(frames, lengths, *step(frames, lengths, shared.zeros(3)))
        assert golden.difference(step) < bundle.TOLERANCE


class TestMetadata:
    def test_what_was_trained(self, exported):
        """`bundle.json` says what the network is and where it comes from."""
        said = exported.bundle.metadata
        network, data = exported.config.network, exported.dataset
        assert (said.format, said.version) == (1, "1")
        assert (said.name, said.task) == (exported.config.name, data.task)
        assert said.classes == data.classes
        assert said.input.names == data.features
        for key in ("cell", "layers", "hidden", "bidirectional", "dropout"):
            assert getattr(said, key) == getattr(network, key)
        assert said.reset_after == network.reset_after
        assert said.state_size == exported.source[0].state_size
        train = data.part("train")
        np.testing.assert_allclose(
            said.normalisation.mean, train.frames.mean(0), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            said.normalisation.scale, 1 / train.frames.std(0), rtol=1e-4
        )
        np.testing.assert_allclose(
            said.temperature, exported.source[0].temperature.numpy()
        )
        record = said.training
        assert (record.source, record.data) == ("made", data.digest)
        assert (record.epochs, record.best_epoch) == (3, 2)
        assert record.longest == train.lengths.max()
        assert set(record.parts) == {"train", "validation", "test"}

    def test_errors(self, exported):
        """The errors that it tells are those of the network, part by part."""
        for part, figures in exported.bundle.metadata.training.parts.items():
            data = exported.dataset.part(part)
            frames, lengths = evaluation.pad(
                [data.sequence(r) for r in range(len(data))]
            )
            predicted = valid(exported.expected(frames, lengths), lengths).argmax(1)
            assert figures.count == len(data.targets)
            error = 100 * (predicted != data.targets).mean()
            np.testing.assert_allclose(figures.error, error, atol=1e-4)

    def test_layout(self, exported):
        """The folder holds the files that the contract names, and only those."""
        names = {
            path.relative_to(exported.folder).as_posix()
            for path in exported.folder.rglob("*")
            if path.is_file()
        }
        plots = ("history", "confusion", "reliability", "length")
        report = [*(f"{plot}.png" for plot in plots), "metrics.json", "card.md"]
        int8 = {"assets.extra/network.int8.onnx", "assets.extra/golden.int8.npz"}
        assert int8 & names == (int8 if exported.bundle.metadata.int8 else set())
        assert names - int8 == {
            "saved_model.pb",
            "fingerprint.pb",
            "variables/variables.index",
            "variables/variables.data-00000-of-00001",
            "assets.extra/network.onnx",
            "assets.extra/golden.npz",
            "assets.extra/sequences.npy",
            *(f"assets.extra/report/{name}" for name in report),
            "assets.extra/bundle.json",
        }
        assert set(exported.bundle.metadata.files) == names - {
            "assets.extra/bundle.json"
        }
        assert exported.folder.stat().st_mode & 0o777 == 0o755

    def test_digest(self):
        """Bundles differ in their digest."""
        digests = {exported.bundle.digest for exported in exports.load().values()}
        assert len(digests) == len(KINDS)
