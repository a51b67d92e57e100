"""Training: it learns, repeats, stops early and resumes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from model.config import Config, ConfigError
from model.datasets import readers, spool
from model.training import checkpoints, loop
from model.training.runs import Epoch, Run
from tests.model.training.events import Interrupt, Recorder, Stop, assert_same_weights
from tests.support.networks import make_config, make_dataset


def files(folder):
    """Every file under a folder, with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
            marks=pytest.mark.slow,
        ),
    ],
)
def test_learns(task, settings, tmp_path):
    """A few epochs learn classes that are easy to separate."""
    data = make_dataset(task, counts=(64, 30, 1))
    tiny = make_config(training={"epochs": 4, "patience": 4, "batch": 4}).update(
        settings
    )
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
    count = len(validation.targets)
    np.testing.assert_allclose(100 * wrong / count, best, atol=1e-3)
    rates = [entry.learning_rate for entry in trained.history]
    if tiny.training.schedule == "constant":
        np.testing.assert_allclose(rates, 0.02, rtol=1e-6)
    else:
        np.testing.assert_allclose(rates[0], 0.02, rtol=1e-6)
        np.testing.assert_allclose(rates[2], 0.01, rtol=1e-5)
        assert sorted(rates, reverse=True) == rates


def test_repeats_same_seed(data, config, whole, tmp_path):
    """The same seed gives the same weights and history, to the bit."""
    again = loop.fit(data, config, Run(tmp_path))
    assert_same_weights(again.network, whole[0].network)
    assert again.history == whole[0].history
    assert not again.interrupted


@pytest.mark.slow
def test_repeats_mapped(data, config, whole, tmp_path, monkeypatch):
    """A file that is mapped into memory gives the same weights."""
    arrays = {"x": data.frames, "lengths": data.lengths, "y": data.targets}
    np.savez(tmp_path / "a.npz", **arrays, classes=data.classes, split=data.split)
    monkeypatch.setattr(spool, "LIMIT", 0)
    mapped = readers.read(tmp_path / "a.npz", task=data.task)
    assert not mapped.frames.flags.writeable
    trained = loop.fit(mapped, config, Run(tmp_path))
    assert_same_weights(trained.network, whole[0].network)


def test_repeats_other_seed(data, config):
    """The initial weights depend on the seed only."""
    first, again, other = (
        loop.build(data, config.update({"training": {"seed": seed}}))
        for seed in (3, 3, 4)
    )
    assert_same_weights(first, again)
    kernel = first.encoder[0][0].get_weights()[0]
    assert not np.array_equal(kernel, other.encoder[0][0].get_weights()[0])


@pytest.mark.slow
def test_repeats_resumed(data, config, whole, tmp_path, monkeypatch):
    """A crashed and resumed run ends with the same weights and history."""
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 0)
    with pytest.raises(Stop):
        loop.fit(data, config, Run(tmp_path), callback=Interrupt(Stop(), 2))
    recorder = Recorder()
    resumed = loop.fit(data, config, Run(tmp_path), resume=True, callback=recorder)
    assert [entry.epoch for entry in recorder.epochs] == [3]
    assert_same_weights(resumed.network, whole[0].network)
    assert resumed.history == whole[0].history
    assert Run(tmp_path).history() == whole[0].history


def test_repeats_resumed_when_done(data, config, whole):
    """A complete run is not trained further."""
    recorder = Recorder()
    again = loop.fit(data, config, whole[1], resume=True, callback=recorder)
    assert recorder.epochs == []
    assert again.finished_before
    assert_same_weights(again.network, whole[0].network)
    assert again.history == whole[0].history


def test_repeats_begun_anew(data, config, whole, tmp_path):
    """Without `resume` an older run in the folder is removed."""
    run = Run(tmp_path / "run")
    shutil.copytree(whole[1].folder, run.folder)
    run.begin(config, data.digest)
    assert run.history() == []
    with pytest.raises(ConfigError, match="no complete epoch"):
        checkpoints.restore_best(run, loop.build(data, config))


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
def test_refusals_other_settings(data, config, whole, changes, name):
    """A run is not resumed with other settings, and the setting is named."""
    before = files(whole[1].folder)
    with pytest.raises(ConfigError, match=rf"other settings \({name}\)"):
        loop.fit(data, config.update(changes), whole[1], resume=True)
    assert files(whole[1].folder) == before


def test_refusals_other_data(data, config, whole):
    """A run is not resumed with other data, not even one other value."""
    frames = data.frames.copy()
    frames[0, 0] += 1
    other = replace(data, frames=frames)
    with pytest.raises(ConfigError, match="other data"):
        loop.fit(other, config, whole[1], resume=True)


def test_refusals_no_run(data, config, tmp_path):
    """Without a run nothing is resumed, and nothing is written."""
    with pytest.raises(ConfigError, match="no training run"):
        loop.fit(data, config, Run(tmp_path / "none"), resume=True)
    assert not (tmp_path / "none").exists()


def test_refusals_empty_part(config, tmp_path):
    """An empty training part is refused."""
    data = make_dataset(counts=(0, 5, 5))
    with pytest.raises(ConfigError, match="too few sequences for a train part"):
        loop.fit(data, config, Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_refusals_augmentation(data, config, tmp_path):
    """An augmentation that doesn't fit the data is refused before training."""
    wrong = config.update({"augmentation": {"image": (9, 9)}})
    with pytest.raises(ConfigError, match=r"augmentation\.image"):
        loop.fit(data, wrong, Run(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": 1, "data": 2}'])
def test_refusals_broken_run(data, config, tmp_path, text):
    """A folder with a broken `config.json` is refused by name."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        loop.fit(data, config, Run(tmp_path), resume=True)


def test_one_at_a_time(data, config, whole, tmp_path):
    """A second training in the same folder is refused at once and changes nothing."""
    run = Run(tmp_path / "run")
    shutil.copytree(whole[1].folder, run.folder)
    with run.locked(), pytest.raises(ConfigError, match="another training is writing"):
        loop.fit(data, config, Run(run.folder))
    network = loop.build(data, config)
    checkpoints.restore_best(run, network)
    assert_same_weights(network, whole[0].network)


@pytest.mark.slow
def test_interrupt_keeps_the_best(data, config, whole, tmp_path):
    """Ctrl-C ends the run with the best weights so far, which can be restored."""
    run = Run(tmp_path / "run")
    interrupt = Interrupt(KeyboardInterrupt(), 3, batch=2)
    stopped = loop.fit(data, config, run, callback=interrupt)
    assert stopped.interrupted
    assert stopped.history == whole[0].history[:2]
    assert run.history() == stopped.history
    anew = loop.build(data, config)
    checkpoints.restore_best(run, anew)
    assert_same_weights(anew, stopped.network)
    interrupt = Interrupt(KeyboardInterrupt(), 3, batch=1)
    again = loop.fit(data, config, run, resume=True, callback=interrupt)
    assert (again.interrupted, again.finished_before) == (True, False)
    resumed = loop.fit(data, config, run, resume=True)
    assert_same_weights(resumed.network, whole[0].network)
    assert not resumed.finished_before


def test_interrupt_before_the_first_epoch(data, config, tmp_path, monkeypatch):
    """Ctrl-C before the first epoch is complete saves nothing."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Loop, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(data, config, Run(tmp_path))
    with pytest.raises(ConfigError, match="no complete epoch"):
        checkpoints.restore_best(Run(tmp_path), loop.build(data, config))


def test_records_progress(data, whole):
    """The callback gets every batch and epoch; the last batch has the epoch's metrics."""
    trained, _, recorder = whole
    assert recorder.epochs == trained.history
    assert recorder.expected == 4
    assert [len(batches) for batches in recorder.batches] == [4, 4, 4]
    ends = [batches[-1] for batches in recorder.batches]
    assert ends == [(entry.cost, entry.error) for entry in trained.history]


@pytest.mark.slow
def test_records_fetched_together(data, config, whole, monkeypatch):
    """Results are fetched from the device now and then, and at the end of an epoch."""
    fetches = []
    fetch = loop._RunningAverage.fetch
    monkeypatch.setattr(
        loop._RunningAverage, "fetch", lambda s: (fetches.append(s), fetch(s))
    )
    monkeypatch.setattr(loop, "FETCH_SECONDS", 1e9)
    trained = loop.fit(data, config)
    assert len(fetches) == 3 * len(trained.history)  # first, last, validation
    assert trained.history == whole[0].history


def test_records_tensorboard(whole):
    """TensorBoard's files hold the metrics of every epoch."""
    logs = list((whole[1].folder / "logs").glob("events.out.tfevents.*"))
    assert logs
    values = {}
    for path in logs:
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                number = float(tf.make_ndarray(value.tensor))
                values[value.tag, event.step] = number
    for entry in whole[0].history:
        for name in ("cost", "error", "validation_cost", "validation_error"):
            np.testing.assert_allclose(
                values[name, entry.epoch], getattr(entry, name), rtol=1e-5
            )


def test_records_folder(data, config, whole):
    """The run's folder records the settings and the data's digest."""
    folder = whole[1].folder
    record = json.loads((folder / "config.json").read_text())
    assert record["data"] == data.digest
    assert Config.model_validate(record["config"]) == config
    assert [Epoch(**e) for e in json.loads((folder / "history.json").read_text())]
    assert not list(folder.glob(".*"))
