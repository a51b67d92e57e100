"""Export a network as a bundle, if both formats compute what the network computes.

The SavedModel has the signatures `serving_default` (whole sequences) and, unless the
network is bidirectional, `step` (with the state in and out).
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import tensorflow as tf

from model.bundle import bundle, folders, labels
from model.bundle.golden import Golden, Step
from model.bundle.metadata import Metadata
from model.bundle.operators import allowlist
from model.datasets.dataset import Dataset
from model.evaluation import evaluation
from model.export import onnx_graph, quantize
from model.network import reload
from model.network.network import Network

GOLDEN_SEQUENCES = 8


class ExportError(ValueError):
    """An exported format computes other probabilities than the live network."""


def export_bundle(
    network: Network,
    dataset: Dataset,
    root: Path,
    *,
    describe: Callable[[str], Metadata],
    report: Callable[[Path, Metadata], None],
    seed: int = 0,
    int8: quantize.Plan | None = None,
) -> Path:
    """Write the next version of a bundle under `root`, and return its folder.

    The version that is the default stays it: see `promotion`.

    Args:
        dataset: the golden answers' inputs are taken from it.
        describe: returns the metadata of a version.
        report: writes the report, and the hashes of sequences, into the bundle's folder.
        int8: data to add a network with int8 weights.

    Raises:
        ExportError: a format differs by more than `bundle.TOLERANCE`.
        BundleError: a format holds an operator that the service refuses, or the labels
            of the bundle's other versions are invalid.
        QuantizationError: int8 weights are required, and change the results too much.
    """
    name = describe("1").name
    if int8:
        quantize.check(network.config.cell)
    exported = network.for_export()
    after = folders.highest_version(name, root)
    rename = partial(labels.publish, folders=folders.of_name(name, root))
    with bundle.writing(root, name, after=after, rename=rename) as (folder, version):
        save(exported, folder)
        (folder / bundle.EXTRA).mkdir(exist_ok=True)
        onnx.save(onnx_graph.build(exported), str(folder / bundle.NETWORK))
        live = _live_step(exported)
        golden = _golden_answers(live, exported, dataset, seed)
        verify_formats(folder, live, exported, golden, seed)
        golden.save(folder / bundle.GOLDEN)
        metadata = describe(version)
        if int8:
            metadata = quantize.add(folder, exported, metadata, golden, int8)
        (folder / bundle.REPORT).mkdir()
        report(folder, metadata)
        bundle.seal(folder, metadata)
        allowlist.check(bundle.read(folder))
    return root / name / version


def save(exported: Network, folder: Path) -> None:
    """Write the SavedModel of a network made by `Network.for_export`."""
    frames = tf.TensorSpec((None, None, exported.features), tf.float32, "frames")
    lengths = tf.TensorSpec((None,), tf.int32, "lengths")
    size = exported.state_size

    def serve(frames, lengths):
        if size:
            state = tf.zeros((tf.shape(frames)[0], size))
            logits, _ = exported.step(frames, lengths, state)
        else:
            logits = exported(frames, lengths)
        return {"probabilities": exported.probabilities(logits)}

    def step(frames, lengths, state):
        logits, state = exported.step(frames, lengths, state)
        return {"probabilities": exported.probabilities(logits), "state": state}

    signatures = {"serving_default": tf.function(serve, [frames, lengths])}
    if size:
        state = tf.TensorSpec((None, size), tf.float32, "state")
        signatures["step"] = tf.function(step, [frames, lengths, state])
    module = tf.Module()
    # Keras' export would write each weight twice.
    module.weights = [variable.value for variable in exported.variables]
    tf.saved_model.save(module, str(folder), signatures)


def verify_formats(
    folder: Path, live: Step, exported: Network, golden: Golden, seed: int
) -> None:
    """Load both formats and compare them with the live network.

    Inputs are the golden ones, and random frames of random lengths and batch sizes.

    Raises:
        ExportError: names the format and the difference.
    """
    random = np.random.default_rng(seed)
    deviation = 1 / exported.scale.numpy()
    checks = [golden]
    for batch in (1, 3, 17):
        lengths = random.integers(1, 40, batch).astype(np.int32)
        shape = (batch, lengths.max(), exported.features)
        frames = random.normal(size=shape) * deviation + exported.mean.numpy()
        if exported.columns:  # some ids are out of range
            sizes = np.array([column.size for column in exported.columns])
            ids = random.integers(-2, sizes + 2, shape).astype(np.float64)
            frames = np.where(sizes > 0, ids, frames)
        checks.append(_answers(live, exported, frames.astype(np.float32), lengths))
    formats = {
        "SavedModel": reload.saved_model(folder),
        "ONNX": reload.onnx(folder / bundle.NETWORK),
    }
    for name, step in formats.items():
        difference = max(check.difference(step, exported.sums) for check in checks)
        if difference > bundle.TOLERANCE:
            raise ExportError(
                f"{name} differs from the network by {difference:.1e}"
                f" (at most {bundle.TOLERANCE:.0e} is allowed); nothing was published"
            )


def _live_step(exported: Network) -> Step:
    def step(frames, lengths, state):
        if exported.state_size:
            logits, state = exported.step(
                tf.constant(frames), tf.constant(lengths), tf.constant(state)
            )
            return exported.probabilities(logits).numpy(), state.numpy()
        logits = exported(tf.constant(frames), tf.constant(lengths))
        return exported.probabilities(logits).numpy(), state

    return step


def _golden_answers(
    live: Step, exported: Network, dataset: Dataset, seed: int
) -> Golden:
    """Choose sequences from the shortest to the longest, and compute their answers."""
    order = np.argsort(dataset.lengths, kind="stable")
    places = np.linspace(0, len(order) - 1, GOLDEN_SEQUENCES).astype(int)
    chosen = [dataset.sequence(row) for row in order[np.unique(places)]]
    return _answers(live, exported, *evaluation.pad(chosen))


def _answers(
    live: Step, exported: Network, frames: np.ndarray, lengths: np.ndarray
) -> Golden:
    state = np.zeros((len(lengths), exported.state_size), np.float32)
    return Golden(frames, lengths, *live(frames, lengths, state))
