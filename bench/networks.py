"""The networks that all servers of a comparison serve, with random weights.

    FOLDER/
      bundles/NAME/1/   a bundle of this project
      keras/NAME/       the same weights as an ordinary `keras.Sequential`, exported

Speed does not depend on the weights, so nothing is trained. The head is scaled so that
responses to different sequences differ clearly. Networks are made once: the folder's
name is a digest of the code that makes them. `python -m bench.networks FOLDER` makes it
in a process of its own, so that a benchmark never loads TensorFlow.
"""

import hashlib
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from bench.environment import ROOT

FEATURES, CLASSES = 28, 10
LONGEST = 100
CACHE = Path.home() / ".cache" / "unrolled" / "bench"
SOURCES = ["bundle", "export", "network"]  # folders of `model`
LOGIT_DEVIATION = 2.0  # over sequences


@dataclass(frozen=True, slots=True)
class Spec:
    """A network's architecture."""

    cell: str
    layers: int
    hidden: int
    task: str = "classify"

    @property
    def state_size(self) -> int:
        return self.layers * self.hidden * (2 if self.cell == "lstm" else 1)


NETWORKS = {
    "lstm": Spec("lstm", 3, 200),
    "gru": Spec("gru", 3, 200),
    "small": Spec("lstm", 1, 64),
    "lstm-label": Spec("lstm", 3, 200, "label"),
    "gru-label": Spec("gru", 3, 200, "label"),
}


def folder(cache: Path) -> Path:
    """The folder of all networks, made if it does not exist."""
    digest = hashlib.sha256()
    for name in SOURCES:
        for path in sorted((ROOT / "model" / name).glob("*.py")):
            digest.update(path.read_bytes())
    for path in (ROOT / "model" / "config.py", Path(__file__)):
        digest.update(path.read_bytes())
    folder = cache / digest.hexdigest()[:16]
    if not folder.exists():
        command = [sys.executable, "-m", "bench.networks", str(folder)]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if result.returncode:
            sys.exit(result.stderr[-2000:])
    return folder


def onnx(folder: Path, name: str) -> Path:
    """The file that servers with ONNX Runtime load."""
    return folder / "bundles" / name / "1" / "assets.extra" / "network.onnx"


def write(folder: Path) -> None:
    """Write every network in both formats, atomically."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        partial = Path(temporary) / "networks"
        for seed, (name, spec) in enumerate(NETWORKS.items()):
            network = _network(spec, seed)
            _bundle(network, partial / "bundles", name, spec, seed)
            _keras(network, partial / "keras" / name, spec)
        partial.rename(folder)


def _network(spec: Spec, seed: int):
    import keras

    from model.config import NetworkConfig
    from model.network.network import Network

    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    network = Network(
        NetworkConfig(cell=spec.cell, layers=spec.layers, hidden=spec.hidden),
        task=spec.task,
        features=FEATURES,
        classes=CLASSES,
        mean=rng.normal(size=FEATURES) / 10,
        scale=rng.uniform(0.8, 1.25, FEATURES),
    )
    lengths = rng.integers(1, LONGEST + 1, 64).astype(np.int32)
    frames = rng.normal(size=(64, LONGEST, FEATURES)).astype(np.float32)
    logits = network(frames, lengths).numpy()
    kernel, bias = network.head.get_weights()
    network.head.set_weights([kernel * LOGIT_DEVIATION / logits.std(0).mean(), bias])
    return network


def _bundle(network, root: Path, name: str, spec: Spec, seed: int) -> None:
    """Export a bundle; an LSTM's has an int8 network too.

    int8 weights that change much are left out, which means nothing for random weights:
    the targets are classes that neither network predicts, and probabilities may change.
    """
    from model.datasets.dataset import Dataset, default_features
    from model.export import export, quantize

    rng = np.random.default_rng(seed)
    lengths = np.linspace(1, LONGEST, 16).astype(np.int64)
    frames = rng.normal(size=(lengths.sum(), FEATURES))
    sequences = np.split(frames.astype(np.float32), lengths.cumsum()[:-1])
    scores = [network(x[None], np.array([len(x)])).numpy()[0] for x in sequences]
    scores = np.vstack(scores)
    dataset = Dataset(
        name="random",
        task=spec.task,
        frames=frames,
        lengths=lengths,
        targets=scores.argmin(1).astype(np.int32),
        classes=tuple(map(str, range(CLASSES))),
        features=default_features(FEATURES),
        split=np.zeros(len(lengths), np.int8),
    )
    plan = quantize.Plan(dataset, {"random": dataset}, required=True)
    with mock.patch.object(quantize, "MAX_CHANGE", 1.0):
        export.export_bundle(
            network,
            dataset,
            root,
            describe=lambda version: _metadata(network, name, version, spec),
            report=lambda folder, metadata: None,
            int8=plan if spec.cell == "lstm" else None,
        )


def _metadata(network, name: str, version: str, spec: Spec):
    from model.bundle import metadata

    return metadata.Metadata(
        name=name,
        version=version,
        task=spec.task,
        input=metadata.Frames(
            features=FEATURES, names=tuple(f"x{i}" for i in range(FEATURES))
        ),
        classes=tuple(map(str, range(CLASSES))),
        cell=spec.cell,
        layers=spec.layers,
        hidden=spec.hidden,
        bidirectional=False,
        reset_after=True,
        dropout=0.5,
        state_size=spec.state_size,
        normalisation=metadata.Normalisation(
            mean=tuple(network.mean.numpy().tolist()),
            scale=tuple(network.scale.numpy().tolist()),
        ),
        temperature=1.0,
        training=metadata.TrainingRecord(
            source="random weights",
            data="0" * 64,
            seed=0,
            validation_fraction=0.15,
            test_fraction=0.15,
            epochs=1,
            best_epoch=1,
            longest=LONGEST,
            created="2026-01-01",
            parts={},
            calibration_error_before=0.0,
        ),
    )


def _keras(network, folder: Path, spec: Spec) -> None:
    """Export an ordinary Keras model: no lengths and no mask, since each request is
    computed alone."""
    import keras
    import tensorflow as tf

    variance = 1 / network.scale.numpy() ** 2
    kind = keras.layers.LSTM if spec.cell == "lstm" else keras.layers.GRU
    sequences = [True] * (spec.layers - 1) + [spec.task == "label"]
    layers = [kind(spec.hidden, return_sequences=each) for each in sequences]
    model = keras.Sequential(
        [
            keras.Input((None, FEATURES)),
            keras.layers.Normalization(mean=network.mean.numpy(), variance=variance),
            *layers,
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    for layer, (original,) in zip(layers, network.encoder, strict=True):
        layer.set_weights(original.get_weights())
    model.layers[-1].set_weights(network.head.get_weights())
    model.export(str(folder), verbose=False)
    loaded = tf.saved_model.load(str(folder))
    frames = np.random.default_rng(0).normal(size=(3, 40, FEATURES)).astype(np.float32)
    expected = network.probabilities(network(frames, np.full(3, 40, np.int32)))
    difference = np.abs(loaded.serve(frames).numpy() - expected.numpy()).max()
    if difference > 1e-5:
        sys.exit(f"Keras' export differs from the bundle by {difference:.1e}")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
