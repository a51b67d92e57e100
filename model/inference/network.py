"""Load a bundle, and predict with it.

>>> network = load("bundles/vowels")
>>> network
<Network vowels@1: classify, 12 features, 9 classes, gru 1 x 128, both directions>
>>> network.classify([[[0.0] * 12] * 20]).predictions[0].label
'1'
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from numpy.typing import ArrayLike

from model.bundle import bundle
from model.bundle.bundle import Bundle, BundleError
from model.bundle.metadata import Metadata
from model.bundle.operators import allowlist
from model.datasets.readers import Columns, Sequences
from model.inference import inputs, predictions
from model.inference.engine import Engine
from model.inference.location import find_folder
from model.inference.predictions import Classifications, Labellings

if TYPE_CHECKING:
    from narwhals.typing import IntoDataFrame

Data: TypeAlias = "ArrayLike | Sequence[ArrayLike] | PathLike[str] | IntoDataFrame"


class Network:
    """The network of a bundle, in this process. Safe to share between threads.

    Attributes:
        metadata: `bundle.json`: the network and its training.
        digest: SHA-256 of the bundle.
    """

    def __init__(self, bundle: Bundle, engine: Engine):
        self.metadata: Metadata = bundle.metadata
        self.digest: str = bundle.digest
        self._engine = engine
        self._vocabulary, self._schema = bundle.vocabulary(), bundle.schema()

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.metadata.name

    @property
    def version(self) -> str:
        """The bundle's version."""
        return self.metadata.version

    @property
    def task(self) -> Literal["classify", "label"]:
        """The method to call: `classify` or `label`."""
        return self.metadata.task

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of `probabilities`."""
        return self.metadata.classes

    @property
    def features(self) -> list[str]:
        """The names of the features, in the order of an array's columns."""
        return list(self.metadata.input.names)

    def classify(
        self,
        data: Data,
        *,
        by: str | None = None,
        step: str | None = None,
        label: str | None = None,
        ignore: Sequence[str] = (),
    ) -> Classifications:
        """Predict one class for each sequence.

        Args:
            data: one sequence [T, F]; several of any lengths, in a list or an array
                [N, T, F]; a DataFrame of pandas or polars with a row for each step; or
                the path of a file. Columns are matched by the names of `features`, in
                any order, and others are left out. For a network that reads text a
                text, a list of texts or of lists of words, a DataFrame with a row for
                each text, or a file as a `Path`: a string is a text, and one that may be
                a file's name is refused. For one that reads records a list of sequences,
                each a list of objects, a DataFrame, or a file.
            by: column of the sequences' ids. Default: as in training, or `sequence`;
                without such a column all rows are one sequence.
            step: column that orders the rows of a sequence. Default: as in training, or
                `step`; without such a column the rows stay in their order.
            label: column of the true labels, for `accuracy`. Default: as in training,
                or `label`; it may be missing.
            ignore: columns that are no features, if features have no names.

        Raises:
            ValueError: the network is to label; or the data has another shape, lacks a
                column, or holds other values than finite numbers.
        """
        sequences = self._read(
            data, "classify", Columns(by, label, step, tuple(ignore))
        )
        scores = self._engine.run(sequences)
        return predictions.classifications(self.metadata, sequences, scores)

    def label(
        self,
        data: Data,
        *,
        by: str | None = None,
        step: str | None = None,
        label: str | None = None,
        ignore: Sequence[str] = (),
    ) -> Labellings:
        """Predict one class for each step of each sequence; see `classify`."""
        sequences = self._read(data, "label", Columns(by, label, step, tuple(ignore)))
        scores = self._engine.run(sequences)
        return predictions.labellings(self.metadata, sequences, scores)

    def _read(self, data: object, task: str, columns: Columns) -> Sequences:
        if self.task != task:
            unit = "sequence" if self.task == "classify" else "step"
            raise ValueError(
                f"{self.name} predicts one class for each {unit}: call {self.task}()"
            )
        if self._vocabulary is not None:
            return inputs.read_text(data, columns, self._vocabulary, self.metadata)
        if self._schema is not None:
            return inputs.read_records(data, columns, self._schema, self.metadata)
        return inputs.read(data, columns, self.metadata)

    def __repr__(self) -> str:
        metadata = self.metadata
        direction = "both directions" if metadata.bidirectional else "forward"
        return (
            f"<Network {self.name}@{self.version}: {self.task},"
            f" {len(self.features)} features, {len(self.classes)} classes,"
            f" {metadata.cell} {metadata.layers} x {metadata.hidden}, {direction}>"
        )


def load(
    path: str | PathLike[str],
    *,
    version: int | str | None = None,
    threads: int | None = None,
    keys: str | PathLike[str] | None = None,
) -> Network:
    """Load a bundle's network with ONNX Runtime, after the checks that the service does.

    Args:
        path: folder of a bundle, or of its versions; or the name of a bundle in the
            folders that are served by default: the shipped ones, and `trained`.
        version: a version or a label. Default: the version that is served by default.
        threads: batches computed at once. Default: one for each core.
        keys: PEM file of public keys, one of which must have signed the bundle.

    Raises:
        BundleError: there is no such bundle, a file of it is missing or changed, none of
            the keys signed it, or the network computes other answers than when it was
            exported.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; expected 1 or more")
    reference = None if version is None else str(version)
    folder = find_folder(Path(path), reference)
    verified = bundle.read(folder, None if keys is None else Path(keys))
    allowlist.check(verified)
    if str(reference).isdecimal() and reference != verified.metadata.version:
        raise BundleError(f"{folder}: holds version {verified.metadata.version}")
    return Network(verified, Engine(verified, threads))
