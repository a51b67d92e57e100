"""The compiled steps: measured by NumPy, and alike on several devices."""

import itertools
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from model.datasets.dataset import TASKS
from model.network.network import cost
from model.training import loop, steps
from model.training.runs import Run
from tests.support.bundles import ROOT
from tests.support.networks import make_config, make_dataset, make_network, weights


def test_measure():
    """Evaluation changes no weights, drops nothing, and matches NumPy."""
    data = make_dataset("label")
    config = make_config(network={"dropout": 0.3, "layers": 2})
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
    measured = trainer.eval_step(*batch)
    np.testing.assert_allclose(measured, [np.mean(costs), wrong, lengths.sum()], 1e-5)
    for ours, theirs in zip(weights(network), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("task", TASKS)
def test_class_weights(task):
    """Balanced weights give each class of the part the same total, and 1 on average; a
    class that the part lacks counts once."""
    data = make_dataset(task, counts=(40, 0, 0))
    targets = np.where(data.targets == 2, 1, data.targets)  # twice as many, and none
    data = replace(data, targets=targets)
    config = make_config(training={"class_weights": "balanced"}).training
    balanced = steps.class_weights(config, data)
    counts = np.bincount(targets, minlength=3)
    assert counts[0] < counts[1]
    np.testing.assert_allclose(balanced[:2] * counts[:2], len(targets) / 2)
    assert balanced[2] == 1
    assert steps.class_weights(make_config().training, data) is None


@pytest.mark.slow
def test_weights_and_smoothing():
    """Class weights are in the cost of training and evaluation, smoothing only in that
    of training: the same network has these costs."""
    network = make_network("label")
    settings = make_config(training={"label_smoothing": 0.2, "learning_rate": 1e-9})
    own = np.float32([1, 2, 3, 4])
    trainer = steps.Trainer(
        *(network, settings),
        updates=10,
        devices=steps.strategy(),
        class_weights=own,
    )
    frames = tf.random.stateless_normal((4, 6, 3), (1, 2))
    lengths = tf.constant([6, 1, 3, 4])
    targets = tf.random.stateless_uniform((4, 6), (1, 2), 0, 4, tf.int32)
    logits = network(frames, lengths)
    fourths = np.full(4, 0.25, np.float32)

    def expected(smoothing):
        return cost(
            *(logits, targets, lengths, fourths), class_weights=own, smoothing=smoothing
        )

    trained, *_ = trainer.train_step(frames, lengths, targets, seed=(1, 2, 3))
    np.testing.assert_allclose(trained, expected(0.2), rtol=1e-5)
    evaluated, *_ = trainer.eval_step(frames, lengths, targets)
    np.testing.assert_allclose(evaluated, expected(0.0), rtol=1e-5)
    assert abs(trained - evaluated) > 0.01


def test_clipped():
    """The gradient's global norm is at most `clip_norm`."""
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
        trainer.train_step(frames, lengths, tf.zeros((4, 6), tf.int32), seed=(1, 2, 3))
    finally:
        tf.config.run_functions_eagerly(False)
    length = np.sqrt(sum(np.square(gradient).sum() for gradient in seen))
    np.testing.assert_allclose(length, 1e-3, rtol=1e-4)


def test_split_rows():
    """Every row goes to one device; a device without rows counts nothing."""
    for size, replicas in itertools.product((1, 2, 3, 5, 8), (2, 3)):
        shares = [steps._split_rows(size, replicas, i) for i in range(replicas)]
        real = [row for rows, weight in shares for row in rows[weight > 0]]
        assert sorted(real) == list(range(size))
        assert all(len(rows) == len(weight) > 0 for rows, weight in shares)


@pytest.mark.slow
def test_static_trains_alike(tmp_path):
    """Static unrolling trains to about the same weights as the loop."""
    data = make_dataset("label", counts=(200, 20, 0))
    data = data.take((data.lengths > 2) & (data.lengths < 5))
    results = []
    for unroll in ("static", "dynamic"):
        config = make_config(network={"unroll": unroll}, training={"epochs": 1})
        results.append(loop.fit(data, config, Run(tmp_path / unroll)))
    pairs = zip(*(weights(trained.network) for trained in results), strict=True)
    for static, dynamic in pairs:
        np.testing.assert_allclose(static, dynamic, atol=1e-4)
    static, dynamic = (trained.history[0] for trained in results)
    np.testing.assert_allclose(static.cost, dynamic.cost, rtol=1e-5)
    np.testing.assert_allclose(
        static.validation_cost, dynamic.validation_cost, rtol=1e-4
    )


@pytest.mark.slow
def test_two_devices(tmp_path):
    """Two devices train to the weights of one. The last batch has one sequence, so one
    device has none."""
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
        config = make_config(training={{
            "epochs": 2, "clip_norm": 0.1, "class_weights": "balanced",
            "label_smoothing": 0.1,
        }})
        results = [loop.fit(data, config, Run(Path({str(tmp_path)!r}) / "one"))]
        both = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        steps.strategy = lambda: both
        results += [loop.fit(data, config, Run(Path({str(tmp_path)!r}) / "two"))]
        assert both.num_replicas_in_sync == 2
        for left, right in zip(*[r.network.weights for r in results], strict=True):
            np.testing.assert_allclose(left.numpy(), right.numpy(), atol=1e-5)
        for left, right in zip(*[r.history for r in results], strict=True):
            np.testing.assert_allclose(left.cost, right.cost, rtol=1e-4)
            np.testing.assert_allclose(left.error, right.error)
            np.testing.assert_allclose(left.validation_cost, right.validation_cost, rtol=1e-4)
            np.testing.assert_allclose(left.validation_error, right.validation_error)
        print("equal")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == ["equal"], done.stderr[-3000:]
