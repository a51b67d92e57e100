"""Write a bundle, and publish it only if both formats answer as the network does.

The SavedModel has the signatures `serving_default` (whole sequences) and, for a
network that can be stepped, `step` (with the state in and out).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import tensorflow as tf

from model.bundle import allowlist, bundle
from model.bundle.bundle import Metadata
from model.bundle.golden import Golden, Step
from model.datasets.dataset import Dataset
from model.export import onnx_graph, quantize
from model.network import reload
from model.network.network import Network
from model.training import evaluation

GOLDEN_SEQUENCES = 8


class ExportError(ValueError):
    """An exported format that doesn't answer as the live network does."""


def export_bundle(
    network: Network,
    dataset: Dataset,
    root: Path,
    *,
    describe: Callable[[str], Metadata],
    report: Callable[[Path, Metadata], None],
    seed: int = 0,
    int8: str | None = None,
) -> Path:
    """Write the next version of a bundle under `root`; its folder.

    Args:
        dataset: gives the golden answers' inputs.
        describe: version -> what `bundle.json` is to say.
        report: writes the report into a folder.
        int8: writes an int8 network too, measured on `dataset`, which is this part
            of the data.

    Raises:
        ExportError: a format differs by more than `bundle.TOLERANCE`.
        BundleError: a format holds what no service would load.
        QuantisationError: int8 weights change too much.
    """
    name = describe("1").name
    if int8:
        quantize.check(network.config.cell)
    stepper = network.stepper()
    with bundle.writing(root, name) as (folder, version):
        save(stepper, folder)
        (folder / bundle.EXTRA).mkdir(exist_ok=True)
        onnx.save(onnx_graph.build(stepper), str(folder / bundle.NETWORK))
        live = _live(stepper)
        golden = _golden(live, stepper, dataset, seed)
        compare(folder, live, stepper, golden, seed)
        golden.save(folder / bundle.GOLDEN)
        metadata = describe(version)
        if int8:
            quantize.write(folder)
            change = quantize.measure(folder, metadata, golden, int8, dataset)
            metadata = metadata.model_copy(update={"int8": change})
        (folder / bundle.REPORT).mkdir()
        report(folder / bundle.REPORT, metadata)
        bundle.seal(folder, metadata)
        allowlist.check(bundle.read(folder))
    return root / name / version


def save(stepper: Network, folder: Path) -> None:
    """The SavedModel of a network made by `Network.stepper`."""
    frames = tf.TensorSpec((None, None, stepper.features), tf.float32, "frames")
    lengths = tf.TensorSpec((None,), tf.int32, "lengths")
    size = stepper.config.state_size

    def whole(frames, lengths):
        if size:
            state = tf.zeros((tf.shape(frames)[0], size))
            logits, _ = stepper.step(frames, lengths, state)
        else:
            logits = stepper(frames, lengths)
        return {"probabilities": stepper.probabilities(logits)}

    def step(frames, lengths, state):
        logits, state = stepper.step(frames, lengths, state)
        return {"probabilities": stepper.probabilities(logits), "state": state}

    signatures = {"serving_default": tf.function(whole, [frames, lengths])}
    if size:
        state = tf.TensorSpec((None, size), tf.float32, "state")
        signatures["step"] = tf.function(step, [frames, lengths, state])
    module = tf.Module()
    # Keras' own export would write each weight twice.
    module.weights = [variable.value for variable in stepper.variables]
    tf.saved_model.save(module, str(folder), signatures)


def compare(
    folder: Path, live: Step, stepper: Network, golden: Golden, seed: int
) -> None:
    """Reload both formats and compare them with the live network: on the golden
    inputs, and on random frames of random lengths and batch sizes.

    Raises:
        ExportError: names the format and the difference.
    """
    random = np.random.default_rng(seed)
    deviation = 1 / stepper.scale.numpy()
    checks = [golden]
    for batch in (1, 3, 17):
        lengths = random.integers(1, 40, batch).astype(np.int32)
        frames = random.normal(size=(batch, lengths.max(), stepper.features))
        frames = frames * deviation + stepper.mean.numpy()
        checks.append(_answers(live, stepper, frames.astype(np.float32), lengths))
    formats = {
        "SavedModel": reload.saved_model(folder),
        "ONNX": reload.onnx(folder / bundle.NETWORK),
    }
    for name, step in formats.items():
        difference = max(check.difference(step) for check in checks)
        if difference > bundle.TOLERANCE:
            raise ExportError(
                f"{name} differs from the network by {difference:.1e}"
                f" (at most {bundle.TOLERANCE:.0e} is allowed); nothing was published"
            )


def _live(stepper: Network) -> Step:
    def step(frames, lengths, state):
        if stepper.config.state_size:
            logits, state = stepper.step(
                tf.constant(frames), tf.constant(lengths), tf.constant(state)
            )
            return stepper.probabilities(logits).numpy(), state.numpy()
        logits = stepper(tf.constant(frames), tf.constant(lengths))
        return stepper.probabilities(logits).numpy(), state

    return step


def _golden(live: Step, stepper: Network, dataset: Dataset, seed: int) -> Golden:
    """Sequences of the data from the shortest to the longest, and their answers."""
    order = np.argsort(dataset.lengths, kind="stable")
    places = np.linspace(0, len(order) - 1, GOLDEN_SEQUENCES).astype(int)
    chosen = [dataset.sequence(row) for row in order[np.unique(places)]]
    return _answers(live, stepper, *evaluation.pad(chosen))


def _answers(
    live: Step, stepper: Network, frames: np.ndarray, lengths: np.ndarray
) -> Golden:
    begin = np.zeros((len(lengths), stepper.config.state_size), np.float32)
    return Golden(frames, lengths, *live(frames, lengths, begin))
