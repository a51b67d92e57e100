"""Turn command-line arguments into settings, data sets and bundle."""

import dataclasses
import hashlib
import shlex
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from model import config as config_module
from model.bundle import bundle, signature
from model.bundle.bundle import Bundle, BundleError
from model.bundle.metadata import Metadata
from model.bundle.operators import allowlist
from model.bundle.records import RecordSchema
from model.bundle.vocabulary import Vocabulary
from model.cli.flags import options
from model.config import Config, ConfigError
from model.datasets import builtin, checks, readers
from model.datasets import text as texts
from model.datasets.dataset import PARTS, Dataset
from model.datasets.encoding import encode
from model.datasets.readers import Columns, files
from model.datasets.readers import records as record_reader
from model.datasets.readers.table_layout import RecordOptions
from model.datasets.text import TextOptions
from model.inference.location import find_folder

RUNS = Path("runs")  # checkpoints and logs
RECORDS = ("categories", "numbers", "time")
WORDS = ("min_count", "buckets")
# The settings that are not used for what a source is read as.
UNUSED = {
    "numbers": (
        *("text", "column", "characters", *WORDS, "max_words", "embedding"),
        *("embedding_dropout", *RECORDS),
    ),
    "records": ("text", "column", "characters", "buckets"),
    "text": ("column", "step_column", "normalise", *RECORDS),
    "characters": ("column", "step_column", "normalise", *RECORDS, *WORDS),
    "words": ("text", "characters", "column", "step_column", "normalise", *RECORDS),
}
SUFFIXES = {
    "text": texts.SUFFIXES,
    "characters": texts.SUFFIXES,
    "records": record_reader.SUFFIXES,
}
BUILTIN = (  # settings that are not used for a built-in set
    *("sequence_column", "label_column", "step_column", "group_column", "ignore"),
    *("text", "column", *RECORDS, "validation_fraction", "test_fraction", "encoding"),
)


def build_config(
    source: str,
    preset: str | None,
    settings: Path | None,
    name: str | None,
    flags: dict[str, Any],
) -> Config:
    """Build the config: defaults, then the preset or file, then options.

    Raises:
        ConfigError: there is no such preset, or a setting is invalid.
    """
    presets = config_module.presets()
    if preset is not None and settings is not None:
        raise ConfigError("use --preset or --settings, not both")
    if preset is not None and preset not in presets:
        known = ", ".join(presets)
        raise ConfigError(f"no preset {preset!r}; there are {known}")
    base = Config(name=_bundle_name(source))
    path = settings or presets.get(preset or source)
    if path is not None:
        base = config_module.load(path)
    if "name" not in base.model_fields_set:
        base = base.update({"name": _bundle_name(source)})
    if source in presets and source not in builtin.BUILTIN and base.data.source:
        source = base.data.source  # a preset's name also selects its data
    data = {**flags.get("data", {}), "source": source}
    changes = {**flags, "data": data, **({"name": name} if name else {})}
    return base.update(changes)


def fixed_settings(
    config: Config, source: str, named: bool, flags: dict[str, Any]
) -> set[str]:
    """Return the names of the settings that a search must not change.

    Args:
        config: of `build_config`.
        named: a preset or file with settings was named. That of a built-in data set,
            which nobody named, fixes nothing.
        flags: the options.
    """
    if not named and source in config_module.presets():
        return {name for section in flags.values() for name in section}
    sections = (config.data, config.network, config.training, config.augmentation)
    return {name for section in sections for name in section.model_fields_set}


def train_command(source: str, config: Config, others: list[str]) -> str:
    """Return the command line that trains with these settings, and other options."""
    base = build_config(source, None, None, None, {})
    words = ["unrolled", "train", source, *options(config, base), *others]
    return shlex.join(words)


def _bundle_name(source: str) -> str:
    """Derive a bundle's name from a file's."""
    stem = Path(source).stem.lower().removesuffix("_train")
    name = "".join(
        c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem
    )
    return name.strip("._-")[:64] or "model"


def load_dataset(
    config: Config, source: object = None, test: object = None, *, checked: bool = False
) -> Dataset:
    """Load the data of a run; all its sequences have a part.

    Args:
        source, test: a DataFrame or a path in place of the one in `config`.
        checked: the settings are those of an earlier run, which were checked.

    Raises:
        ConfigError: a setting is not used for such data, or labels are measurements.
        ValueError: the data can't be read.
    """
    with encoded(config):
        return _load_dataset(config, source, test, checked)


def encoded(config: Config) -> AbstractContextManager[None]:
    """Read text files in the encoding of the settings while the block runs."""
    return files.encoded(config.data.encoding)


def _load_dataset(
    config: Config, source: object, test: object, checked: bool
) -> Dataset:
    data, validation = config.data, config.data.validation_fraction
    if validation is None and "folds" in config.training.model_fields_set:
        validation = 0
    source = data.source if source is None else source
    fixed = isinstance(source, str) and source in builtin.BUILTIN
    missing = isinstance(source, str) and not Path(source).exists()
    if not (checked or fixed or missing):
        refuse_unused(config, source)
    names, recorded = None, Columns()
    if config.training.warm_start is not None:
        metadata = load_bundle(Path(config.training.warm_start)).metadata
        names = metadata.input.names
        recorded = readers.from_names(metadata.training.columns)
    dataset = builtin.load_source(
        source,
        task=data.task,
        test=data.test if test is None else test,
        validation=validation,
        test_fraction=data.test_fraction,
        seed=config.training.seed,
        columns=file_columns(config),
        features=names,
        recorded=recorded,
        text=text_options(config),
        records=record_options(config),
    )
    if dataset.columns and config.training.warm_start is not None:
        raise ConfigError("training.warm_start: not for text and records")
    if fixed and not checked:
        refuse_unused(config, source, dataset.vocabulary or dataset.schema)
    if not data.labels_are_classes:
        try:
            checks.refuse_measurements(dataset)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return dataset


def refuse_unused(
    config: Config, source: object, encoding: Vocabulary | RecordSchema | None = None
) -> None:
    """Refuse settings of the data that are not used for a source.

    Args:
        encoding: of the network or the built-in set, if it reads text or records.

    Raises:
        ConfigError: names the option.
    """
    kind = _kind(config, source, encoding)
    unused = dict.fromkeys(UNUSED[kind], f"is read as {kind}")
    title = source if isinstance(source, str) else "the DataFrame"
    suffix = Path(title).suffix.lower()
    if kind == "words" and suffix in texts.CONLL:
        del unused["column"]
    if kind == "numbers":
        hint = "--text names a column of texts, --categories those of records"
        unused = dict.fromkeys(unused, f"is read as numbers; {hint}")
    if not isinstance(source, str) or suffix in (".npz", ".parquet"):
        unused["encoding"] = "is no text file"
    if title in builtin.BUILTIN:
        reason = "is a built-in set, whose columns and parts are fixed"
        unused |= dict.fromkeys(BUILTIN, reason)
        if kind != "characters":
            unused["characters"] = f"is read as {kind}"
    elif isinstance(source, str) and suffix not in SUFFIXES.get(kind, (suffix,)):
        reason = f"has no {kind}; files with {kind} are {', '.join(SUFFIXES[kind])}"
        unused |= dict.fromkeys(("text", *RECORDS), reason)
    chosen = {**dict(config.network), **dict(config.data)}
    for name in config.network.model_fields_set | config.data.model_fields_set:
        if name in unused and chosen[name] not in (None, False, ()):
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is not used: {title} {unused[name]}")


def _kind(
    config: Config, source: object, encoding: Vocabulary | RecordSchema | None
) -> str:
    """Return what a source is read as, a key of `UNUSED`."""
    if isinstance(encoding, RecordSchema):
        return "records"
    kind = texts.kind_of(source, text_options(config))
    characters = config.data.characters
    if isinstance(encoding, Vocabulary):
        characters = encoding.kind == "characters"
    elif kind is None:
        return "records" if record_options(config).kinds else "numbers"
    if kind == "tokens":
        return "words"
    return "characters" if characters else "text"


def record_options(config: Config) -> RecordOptions:
    """Return the columns of records."""
    data = config.data
    return RecordOptions(
        categories=data.categories,
        numbers=data.numbers,
        time=data.time,
        min_count=data.min_count,
        max_words=data.max_words,
        embedding=data.embedding,
    )


def text_options(config: Config) -> TextOptions:
    """Return how text is read."""
    data = config.data
    return TextOptions(
        text=data.text,
        label=data.label_column,
        column=data.column,
        kind="characters" if data.characters else "tokens",
        min_count=data.min_count,
        max_words=data.max_words,
        buckets=data.buckets,
        embedding=data.embedding,
    )


def file_columns(config: Config) -> Columns:
    """Return the names of a file's special columns."""
    data = config.data
    return Columns(
        data.sequence_column,
        data.label_column,
        data.step_column,
        data.ignore,
        data.group_column,
    )


def evaluation_data(
    source: str,
    part: str,
    test: Path | None,
    metadata: Metadata,
    columns: Columns = Columns(),
    encoding: Vocabulary | RecordSchema | None = None,
    text: TextOptions = TextOptions(),
) -> Dataset:
    """Load the sequences to evaluate a bundle on.

    Args:
        encoding: of the bundle, if it reads text or records.
        text: how text is read, where the bundle's settings don't say it.
        columns: names of a file's special columns, where the bundle's don't fit.

    Raises:
        ValueError: the file names no such part and differs from the training data. A
            new split could put training sequences into the test part.
    """
    record, task = metadata.training, metadata.task
    if isinstance(encoding, Vocabulary):
        text = _recorded_text(metadata, encoding, text)
    recorded = readers.from_names(record.columns)
    if part == "all" and source not in builtin.BUILTIN and test is None:
        if isinstance(encoding, Vocabulary):
            texts_read = texts.read(source, text, columns, recorded=recorded)
            return encode(texts_read.dataset(task), encoding)
        if isinstance(encoding, RecordSchema):
            table = record_reader.read(
                source,
                RecordOptions.of(encoding.kinds),
                columns,
                task=task,
                training=True,
                recorded=recorded,
            )
            return encode(table.dataset(task), encoding)
        return _read_labelled(source, metadata, columns)
    dataset = builtin.load_source(
        source,
        task=task,
        test=test,
        validation=record.validation_fraction,
        test_fraction=record.test_fraction,
        seed=record.seed,
        columns=columns,
        features=metadata.input.names,
        recorded=recorded,
        text=text,
        encoding=encoding,
    )
    if part == "all":
        return dataset
    fixed = source in builtin.BUILTIN or test is not None
    if not fixed and dataset.digest != record.data and encoding is not None:
        raise ValueError(
            f"{source} is not the data that the bundle was trained on: use --part all, or"
            " --test FILE as in training"
        )
    if not fixed and dataset.digest != record.data:
        split = _read_labelled(source, metadata, columns).split
        if PARTS.index(part) not in split:
            raise ValueError(
                f"{source} names no {part} part, and is not the data that the bundle was"
                " trained on: use --part all, or --test FILE as in training"
            )
    return dataset.part(part)


def _recorded_text(
    metadata: Metadata, vocabulary: Vocabulary, text: TextOptions
) -> TextOptions:
    """Return how a bundle's text is read: as in training, unless options say otherwise."""
    before = TextOptions.recorded(metadata.training.settings, vocabulary.kind)
    return dataclasses.replace(
        before,
        text=text.text or before.text,
        column=text.column or before.column,
    )


def _read_labelled(source: str, metadata: Metadata, columns: Columns) -> Dataset:
    """Read a file with the columns and features that a bundle was trained with."""
    recorded = readers.from_names(metadata.training.columns)
    names, task = metadata.input.names, metadata.task
    sequences = readers.read_sequences(
        Path(source), columns, names, task=task, training=True, recorded=recorded
    )
    return sequences.dataset(task)


def load_bundle(path: Path) -> Bundle:
    """Read and check the bundle at a path.

    Raises:
        BundleError: there is no bundle, several, or an invalid one.
    """
    verified = bundle.read(find_folder(path, newest=True))
    allowlist.check(verified)
    return verified


def sign_bundle(path: Path, key: Path) -> Path:
    """Check and sign the bundle at a path; return the signature's file.

    Raises:
        BundleError: as `load_bundle`.
        SignatureError: the file holds no private key.
    """
    verified = load_bundle(path)
    text = (verified.folder / bundle.MARKER).read_bytes()
    if hashlib.sha256(text).hexdigest() != verified.digest:
        raise BundleError(f"{verified.folder}: was replaced meanwhile")
    file = verified.folder / bundle.SIGNATURE
    file.write_bytes(signature.sign(text, key))
    return file
