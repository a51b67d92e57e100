"""Training: it learns, it repeats, it stops and it goes on."""

import json
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from model.config import Config, ConfigError
from model.training import loop, runs, steps
from model.training.runs import Epoch, Run
from tests.support.networks import make_config, make_dataset, make_network

ROOT = Path(__file__).parents[3]

# Everything that draws random numbers is on: order, dropout and noise.
RANDOM = {
    "network": {"dropout": 0.3, "layers": 2, "hidden": 6},
    "augmentation": {"noise": 0.1},
    "training": {"epochs": 3, "seed": 3},
}


class Stop(RuntimeError):
    """A machine that goes down, as far as `fit` can tell."""


class Cut(loop.Callback):
    """Raises `error` in an epoch: after one of its batches, or at its end."""

    def __init__(self, error, epoch, *, batch=None):
        self.error, self.epoch, self.batch = error, epoch, batch

    def on_epoch_begin(self, epoch, batches):
        self.now, self.done = epoch, 0

    def on_batch_end(self, cost, error):
        self.done += 1
        if (self.now, self.done) == (self.epoch, self.batch):
            raise self.error

    def on_epoch_end(self, epoch):
        if self.batch is None and epoch.epoch == self.epoch:
            raise self.error


class Told(loop.Callback):
    """Keeps what it is told."""

    def __init__(self):
        self.epochs, self.batches = [], []

    def on_epoch_begin(self, epoch, batches):
        self.expected = batches
        self.batches.append([])

    def on_batch_end(self, cost, error):
        self.batches[-1].append((cost, error))

    def on_epoch_end(self, epoch):
        self.epochs.append(epoch)


def weights(network):
    return [weight.numpy() for weight in network.weights]


def assert_same_weights(left, right):
    for ours, theirs in zip(weights(left), weights(right), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def files(folder):
    """Every file under a folder, with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def data():
    return make_dataset("label", counts=(25, 12, 9))


@pytest.fixture(scope="module")
def config():
    return make_config(**RANDOM)


@pytest.fixture(scope="module")
def whole(data, config, tmp_path_factory):
    """A run that nothing cut off: what it came to, its folder, what it told."""
    run, told = Run(tmp_path_factory.mktemp("whole")), Told()
    return loop.fit(data, config, run, callback=told), run, told


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        pytest.param("classify", {"network": {"cell": "gru"}}, id="classify-gru"),
        pytest.param(
            "label",
            {
                "network": {"cell": "lstm", "bidirectional": True, "dropout": 0.2},
                "training": {"optimizer": "rmsprop", "schedule": "constant"},
            },
            id="label-lstm-both-ways-rmsprop-constant",
        ),
    ],
)
def test_learns(task, settings, tmp_path):
    """Classes that lie apart are told apart after a few epochs."""
    data = make_dataset(task, counts=(64, 30, 1))
    tiny = make_config(training={"epochs": 8, "patience": 8}).update(settings)
    trained = loop.fit(data, tiny, Run(tmp_path))
    best = min(entry.validation_error for entry in trained.history)
    assert best < 5  # chance: 67 %
    assert trained.history[-1].cost < trained.history[0].cost / 2
    validation = data.part("validation")
    wrong = 0
    for row in range(len(validation)):
        length = validation.lengths[row : row + 1]
        logits = trained.network(validation.sequence(row)[None], length)
        wrong += int((np.argmax(logits[0], -1) != validation.target(row)).sum())
    judged = len(validation.targets)
    np.testing.assert_allclose(100 * wrong / judged, best, atol=1e-3)
    rates = [entry.learning_rate for entry in trained.history]
    if tiny.training.schedule == "constant":
        np.testing.assert_allclose(rates, 0.02, rtol=1e-6)
    else:
        np.testing.assert_allclose(rates[0], 0.02, rtol=1e-6)
        np.testing.assert_allclose(rates[4], 0.01, rtol=1e-5)
        assert sorted(rates, reverse=True) == rates


class TestRepeats:
    def test_same_seed(self, data, config, whole, tmp_path):
        """The same seed gives the same weights and history, to the bit."""
        again = loop.fit(data, config, Run(tmp_path))
        assert_same_weights(again.network, whole[0].network)
        assert again.history == whole[0].history
        assert not again.interrupted

    def test_other_seed(self, data, config):
        """Another seed begins with other weights, the same one with the same."""
        first, again, other = (
            loop.build(data, config.update({"training": {"seed": seed}}))
            for seed in (3, 3, 4)
        )
        assert_same_weights(first, again)
        kernel = first.encoder[0][0].get_weights()[0]
        assert not np.array_equal(kernel, other.encoder[0][0].get_weights()[0])

    def test_resumed(self, data, config, whole, tmp_path):
        """A run that was cut off and resumed ends as if nothing had been."""
        with pytest.raises(Stop):
            loop.fit(data, config, Run(tmp_path), callback=Cut(Stop(), 2))
        told = Told()
        resumed = loop.fit(data, config, Run(tmp_path), resume=True, callback=told)
        assert [entry.epoch for entry in told.epochs] == [3]
        assert_same_weights(resumed.network, whole[0].network)
        assert resumed.history == whole[0].history
        assert Run(tmp_path).history() == whole[0].history

    def test_resumed_when_done(self, data, config, whole):
        """A run that was done is not trained any further."""
        told = Told()
        again = loop.fit(data, config, whole[1], resume=True, callback=told)
        assert told.epochs == []
        assert again.finished_before
        assert_same_weights(again.network, whole[0].network)
        assert again.history == whole[0].history

    def test_begun_anew(self, data, config, whole, tmp_path):
        """Without `resume` nothing of an older run in the folder is used."""
        run = Run(tmp_path / "run")
        shutil.copytree(whole[1].folder, run.folder)
        run.begin(config, data.digest)
        assert run.history() == []
        with pytest.raises(ConfigError, match="no complete epoch"):
            run.restore_best(loop.build(data, config))


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            pytest.param({"network": {"hidden": 7}}, "network.hidden", id="network"),
            pytest.param({"training": {"seed": 4}}, "training.seed", id="training"),
            pytest.param(
                {"augmentation": {"noise": 0.2}}, "augmentation.noise", id="noise"
            ),
            pytest.param({"data": {"normalise": "whole"}}, "data.normalise", id="data"),
        ],
    )
    def test_other_settings(self, data, config, whole, changes, name):
        """A run is not resumed with other settings; the setting is named."""
        before = files(whole[1].folder)
        with pytest.raises(ConfigError, match=rf"other settings \({name}\)"):
            loop.fit(data, config.update(changes), whole[1], resume=True)
        assert files(whole[1].folder) == before

    def test_other_data(self, data, config, whole):
        """A run is not resumed with other data, be it one value."""
        frames = data.frames.copy()
        frames[0, 0] += 1
        other = replace(data, frames=frames)
        with pytest.raises(ConfigError, match="other data"):
            loop.fit(other, config, whole[1], resume=True)

    def test_no_run(self, data, config, tmp_path):
        """Where no run is, none is resumed and nothing is written."""
        with pytest.raises(ConfigError, match="no training run"):
            loop.fit(data, config, Run(tmp_path / "none"), resume=True)
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize(
        ("counts", "part"), [((0, 5, 5), "train"), ((5, 0, 5), "validation")]
    )
    def test_empty_part(self, config, tmp_path, counts, part):
        """A part that training needs and that is empty is named."""
        data = make_dataset(counts=counts)
        with pytest.raises(ConfigError, match=f"too few sequences for a {part} part"):
            loop.fit(data, config, Run(tmp_path / "run"))
        assert not (tmp_path / "run").exists()

    def test_augmentation(self, data, config, tmp_path):
        """An augmentation that doesn't fit is refused before anything begins."""
        wrong = config.update({"augmentation": {"image": (9, 9)}})
        with pytest.raises(ConfigError, match=r"augmentation\.image"):
            loop.fit(data, wrong, Run(tmp_path / "run"))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": 1, "data": 2}'])
    def test_broken_run(self, data, config, tmp_path, text):
        """A folder whose `config.json` is no run's is refused by name."""
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=str(tmp_path)):
            loop.fit(data, config, Run(tmp_path), resume=True)


def test_one_at_a_time(data, config, whole, tmp_path):
    """A second training in the folder of one that is under way is refused at once, and
    changes nothing there: it would give the first one its weights."""
    run = Run(tmp_path / "run")
    shutil.copytree(whole[1].folder, run.folder)
    with run.locked(), pytest.raises(ConfigError, match="another training is writing"):
        loop.fit(data, config, Run(run.folder))
    network = loop.build(data, config)
    run.restore_best(network)
    assert_same_weights(network, whole[0].network)


class TestInterrupt:
    def test_keeps_the_best(self, data, config, whole, tmp_path):
        """Ctrl-C ends the run with the best weights so far, and they can be had."""
        run = Run(tmp_path / "run")
        cut = Cut(KeyboardInterrupt(), 3, batch=2)
        stopped = loop.fit(data, config, run, callback=cut)
        assert stopped.interrupted
        assert stopped.history == whole[0].history[:2]
        assert run.history() == stopped.history
        anew = loop.build(data, config)
        run.restore_best(anew)
        assert_same_weights(anew, stopped.network)
        cut = Cut(KeyboardInterrupt(), 3, batch=1)
        again = loop.fit(data, config, run, resume=True, callback=cut)
        assert (again.interrupted, again.finished_before) == (True, False)
        resumed = loop.fit(data, config, run, resume=True)
        assert_same_weights(resumed.network, whole[0].network)
        assert not resumed.finished_before

    def test_before_the_first_epoch(self, data, config, tmp_path, monkeypatch):
        """Ctrl-C before an epoch is done has nothing to keep, and says so."""

        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(loop._Loop, "_train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.fit(data, config, Run(tmp_path))
        with pytest.raises(ConfigError, match="no complete epoch"):
            Run(tmp_path).restore_best(loop.build(data, config))


class TestEpochs:
    """What decides on the best epoch and the end, with scores that are made up."""

    def fit(self, monkeypatch, tmp_path, scores, **settings):
        data = make_dataset(counts=(8, 4, 0))
        marks = []

        def train(epochs, number):
            for weight in epochs.network.trainable_variables:
                weight.assign(np.full(weight.shape, number))
            marks.append(number)
            return 1.0, 50.0

        found = iter(scores)
        monkeypatch.setattr(loop._Loop, "_train", train)
        monkeypatch.setattr(loop._Loop, "measure", lambda *_: next(found))
        config = make_config(training=settings)
        trained = loop.fit(data, config, Run(tmp_path))
        kept = {v for w in trained.network.trainable_variables for v in w.numpy().flat}
        return kept, [e.epoch for e in trained.history if e.best], marks

    @pytest.mark.parametrize(
        ("scores", "best", "last"),
        [
            pytest.param([(1, 9), (1, 8), (1, 7), (1, 6)], [1, 2, 3, 4], 4, id="falls"),
            pytest.param([(1, 5), (1, 6), (1, 7)], [1], 3, id="patience"),
            pytest.param(
                [(1, 5), (1, 6), (1, 4), (1, 4), (1, 9)], [1, 3], 5, id="patience-anew"
            ),
            pytest.param(
                [(3, 5), (2, 5), (2, 5), (2, 5)], [1, 2], 4, id="cost-decides"
            ),
            pytest.param([(1, 5), (0, 6), (0, 7)], [1], 3, id="error-before-cost"),
        ],
    )
    def test_best(self, monkeypatch, tmp_path, scores, best, last):
        """The best epoch is that of the least validation error, then cost; training
        stops `patience` epochs after it, and its weights are those returned."""
        kept, found, run = self.fit(
            monkeypatch, tmp_path, scores, epochs=len(scores) + (last < 4), patience=2
        )
        assert found == best
        assert kept == {best[-1]}
        assert run == list(range(1, last + 1))

    def test_no_number(self, monkeypatch, tmp_path):
        """A run whose cost is no number ends by patience, like any other."""
        nan = float("nan")
        _, best, run = self.fit(
            monkeypatch, tmp_path, [(nan, 60)] * 4, epochs=4, patience=2
        )
        assert best == [1]
        assert run == [1, 2, 3]


class TestWhatIsTold:
    def test_progress(self, data, whole):
        """Every batch and every epoch is told, the last batch with the epoch's sum."""
        trained, _, told = whole
        assert told.epochs == trained.history
        assert told.expected == 4
        assert [len(batches) for batches in told.batches] == [4, 4, 4]
        ends = [batches[-1] for batches in told.batches]
        assert ends == [(entry.cost, entry.error) for entry in trained.history]

    def test_tensorboard(self, whole):
        """Every figure of every epoch is in the files that TensorBoard reads."""
        logs = list((whole[1].folder / "logs").glob("events.out.tfevents.*"))
        assert logs
        found = {}
        for path in logs:
            for record in tf.data.TFRecordDataset(str(path)):
                event = tf.compat.v1.Event.FromString(record.numpy())
                for value in event.summary.value:
                    number = float(tf.make_ndarray(value.tensor))
                    found[value.tag, event.step] = number
        for entry in whole[0].history:
            for name in ("cost", "error", "validation_cost", "validation_error"):
                np.testing.assert_allclose(
                    found[name, entry.epoch], getattr(entry, name), rtol=1e-5
                )

    def test_folder(self, data, config, whole):
        """The run's folder says what was trained, and on what."""
        folder = whole[1].folder
        record = json.loads((folder / "config.json").read_text())
        assert record["data"] == data.digest
        assert Config.model_validate(record["config"]) == config
        assert [Epoch(**e) for e in json.loads((folder / "history.json").read_text())]
        assert not list(folder.glob(".*"))


def test_static_trains_alike(tmp_path):
    """Static unrolling trains to about the weights of the loop."""
    data = make_dataset("label", counts=(200, 20, 0))
    data = data.take((data.lengths > 2) & (data.lengths < 5))
    found = []
    for unroll in ("static", "dynamic"):
        config = make_config(network={"unroll": unroll}, training={"epochs": 1})
        found.append(loop.fit(data, config, Run(tmp_path / unroll)))
    pairs = zip(*(weights(trained.network) for trained in found), strict=True)
    for static, dynamic in pairs:
        np.testing.assert_allclose(static, dynamic, atol=1e-4)
    static, dynamic = (trained.history[0] for trained in found)
    np.testing.assert_allclose(static.cost, dynamic.cost, rtol=1e-5)
    np.testing.assert_allclose(
        static.validation_cost, dynamic.validation_cost, rtol=1e-4
    )


class TestTrainer:
    def test_measure(self, data, config):
        """Measuring changes no weight, drops nothing, and counts as one would."""
        network = loop.build(data, config)
        before = weights(network)
        trainer = steps.Trainer(network, config, updates=1, devices=steps.strategy())
        sequences = [data.sequence(row) for row in range(3)]
        lengths = data.lengths[:3]
        frames = np.zeros((3, lengths.max(), 3), np.float32)
        targets = np.zeros((3, lengths.max()), np.int32)
        costs, wrong = [], 0
        for row, x in enumerate(sequences):
            frames[row, : len(x)], targets[row, : len(x)] = x, data.target(row)
            logits = np.asarray(network(x[None], lengths[row : row + 1]))[0]
            wrong += (logits.argmax(1) != data.target(row)).sum()
            powers = np.exp(logits)
            scores = powers / powers.sum(1, keepdims=True)
            costs.append(-np.log(scores[np.arange(len(x)), data.target(row)]).mean())
        batch = map(tf.constant, (frames, lengths, targets))
        found = trainer.eval_step(*batch)
        np.testing.assert_allclose(found, [np.mean(costs), wrong, lengths.sum()], 1e-5)
        for ours, theirs in zip(weights(network), before, strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_clipped(self, data):
        """The gradient of all weights together is no longer than `clip_norm`."""
        settings = make_config(training={"clip_norm": 1e-3, "optimizer": "rmsprop"})
        network = make_network("label")
        trainer = steps.Trainer(network, settings, updates=10, devices=steps.strategy())
        seen = []
        trainer.optimizer.apply_gradients = lambda pairs: seen.extend(
            gradient for gradient, _ in pairs
        )
        tf.config.run_functions_eagerly(True)
        try:
            frames = tf.random.stateless_normal((4, 6, 3), (1, 2))
            lengths = tf.constant([6, 1, 3, 4])
            trainer.train_step(
                frames, lengths, tf.zeros((4, 6), tf.int32), seed=(1, 2, 3)
            )
        finally:
            tf.config.run_functions_eagerly(False)
        length = np.sqrt(sum(np.square(gradient).sum() for gradient in seen))
        np.testing.assert_allclose(length, 1e-3, rtol=1e-4)

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
    @pytest.mark.parametrize("replicas", [2, 3])
    def test_deal(self, size, replicas):
        """Every row goes to one device, and a device without any counts nothing."""
        hands = [steps._split_rows(size, replicas, index) for index in range(replicas)]
        real = [row for rows, weight in hands for row in rows[weight > 0]]
        assert sorted(real) == list(range(size))
        assert all(len(rows) == len(weight) > 0 for rows, weight in hands)


def test_two_devices(tmp_path):
    """Two devices find the weights that one finds; the last batch is one sequence,
    so that a device has none."""
    script = f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        import numpy as np
        import tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
        from model.training import loop, steps
        from model.training.runs import Run
        from tests.support.networks import make_config, make_dataset
        data = make_dataset("label", counts=(9, 4, 0))
        config = make_config(training={{"epochs": 2, "clip_norm": 0.1}})
        found = [loop.fit(data, config, Run(Path({str(tmp_path)!r}) / "one"))]
        both = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        steps.strategy = lambda: both
        found += [loop.fit(data, config, Run(Path({str(tmp_path)!r}) / "two"))]
        assert both.num_replicas_in_sync == 2
        for one, two in zip(*[f.network.weights for f in found], strict=True):
            np.testing.assert_allclose(one.numpy(), two.numpy(), atol=1e-5)
        for one, two in zip(*[f.history for f in found], strict=True):
            np.testing.assert_allclose(one.cost, two.cost, rtol=1e-4)
            np.testing.assert_allclose(one.error, two.error)
            np.testing.assert_allclose(one.validation_cost, two.validation_cost, rtol=1e-4)
            np.testing.assert_allclose(one.validation_error, two.validation_error)
        print("as one")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == ["as one"], done.stderr[-3000:]


def test_best_is_found_by_runs(tmp_path):
    """A folder without a checkpoint is no run to take weights from."""
    with pytest.raises(ConfigError, match="no complete epoch"):
        runs.Run(tmp_path).restore_best(make_network())
