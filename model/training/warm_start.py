"""Start a training from the weights of a bundle, in place of random ones.

The network is that of the bundle; the classes may be others. Weights of classes that both
have are matched by name.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf

from model.bundle import bundle
from model.bundle.bundle import Bundle
from model.bundle.metadata import Metadata
from model.bundle.operators import allowlist
from model.config import Config, ConfigError
from model.datasets.dataset import TRAIN, VALIDATION, Dataset
from model.evaluation import membership
from model.inference.location import find_folder
from model.network.network import Network

SETTINGS = (
    "cell",
    "layers",
    "hidden",
    "bidirectional",
    "read",
    "stack",
    "reset_after",
)


def load(config: Config) -> Bundle | None:
    """Return the bundle that a training starts from, verified; None if there is none.

    Raises:
        BundleError: there is no bundle, several, or an invalid one.
    """
    if config.training.warm_start is None:
        return None
    folder = find_folder(Path(config.training.warm_start), newest=True)
    verified = bundle.read(folder)
    allowlist.check(verified)
    return verified


def settings(config: Config, metadata: Metadata) -> Config:
    """Return the config with the network of a bundle.

    Raises:
        ConfigError: a setting that was chosen differs from the bundle's.
    """
    network = {name: getattr(metadata, name) for name in SETTINGS}
    for name in config.network.model_fields_set.intersection(SETTINGS):
        chosen = getattr(config.network, name)
        if chosen not in (None, network[name]):
            raise ConfigError(
                f"network.{name} is {chosen}, but {network[name]} in the bundle that the"
                " training starts from: leave it out"
            )
    return config.update({"network": network})


def apply(network: Network, dataset: Dataset, start: Bundle) -> None:
    """Give a new network the weights and the normalisation of a bundle.

    The weights of classes that the bundle does not have stay as they were drawn.

    Raises:
        ConfigError: the bundle is for another task, or has other features.
    """
    metadata = start.metadata
    if metadata.task != dataset.task:
        raise ConfigError(
            f"the data is to {dataset.task}, and the bundle that the training starts"
            f" from to {metadata.task}"
        )
    if metadata.input.names != dataset.features:
        raise ConfigError(
            f"the data has the features {', '.join(dataset.features)}, and the bundle"
            f" that the training starts from {', '.join(metadata.input.names)}"
        )
    source = _load(network, start)
    network.mean.assign(source.mean)
    network.scale.assign(source.scale)
    for ours, theirs in zip(network.encoder, source.encoder, strict=True):
        for layer, other in zip(ours, theirs, strict=True):
            layer.set_weights(other.get_weights())
    places = {name: place for place, name in enumerate(metadata.classes)}
    known = [place for place, name in enumerate(dataset.classes) if name in places]
    theirs = [places[dataset.classes[place]] for place in known]
    kernel, bias = network.head.get_weights()
    source_kernel, source_bias = source.head.get_weights()
    kernel[:, known], bias[known] = source_kernel[:, theirs], source_bias[theirs]
    network.head.set_weights([kernel, bias])


def warnings(dataset: Dataset, start: Bundle) -> list[str]:
    """Return a line if the bundle has seen sequences that will measure the new network."""
    parts = membership.parts_in_training(start, dataset)
    if parts is None:
        return []
    measured = dataset.split > TRAIN
    if not (dataset.split == VALIDATION).any():
        measured[:] = True  # out of fold, in the cross-validation
    seen = int((np.isin(parts, (TRAIN, VALIDATION)) & measured).sum())
    if not seen:
        return []
    return [
        f"the bundle that the training starts from was trained on {seen:,} of the"
        f" {measured.sum():,} sequences that will measure the network, whose errors will"
        " look too low: name other ones for validation and test (column split)"
    ]


def _load(network: Network, start: Bundle) -> Network:
    """Return the network of a bundle, whose settings are those of `network`."""
    metadata = start.metadata
    source = Network(
        network.config,
        task=metadata.task,
        features=metadata.input.features,
        classes=len(metadata.classes),
    )
    with start.saved_model() as folder:
        saved = tf.saved_model.load(str(folder)).weights
        values = [
            v.numpy() for v in saved if v.dtype.is_floating
        ]  # no seeds of dropout
    shapes = [tuple(weight.shape) for weight in source.weights]
    if shapes != [value.shape for value in values]:
        raise ConfigError(f"{start.folder}: has weights of another network")
    source.set_weights(values)
    return source
