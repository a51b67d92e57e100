"""Small real bundles for tests, exported once and cached on disk."""

import csv
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import random
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.bundle import bundle
from model.bundle.bundle import Bundle, BundleError
from model.bundle.metadata import Frames, Metadata, Normalisation, TrainingRecord
from model.bundle.operators import allowlist
from service.settings import Settings
from service.worker import onnx_engine

ROOT = Path(__file__).parents[2]
VOWELS = ROOT / "bundles" / "vowels" / "1"
CARD = "assets.extra/report/card.md"
CACHE = ROOT / ".pytest_cache" / "bundles"
NAMES, VERBS = ("Anna", "Bob", "Carla", "Dora"), ("sees", "likes", "hears")
NOUNS = ("dog", "cat", "house", "tree", "naïve café")
KINDS = ("switch-on", "switch-off")
EVENTS = ("login", "view", "search", "pay")
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360f8ffff3f0005fe02fea735818d"
    "0000000049454e44ae426082"
)


def cached(name: str, write: Callable[[Path], None], *sources: Path) -> Path:
    """Return a folder that `write` fills, now or in an earlier run; don't change it.

    Its name holds a digest of the code that fills it: `model`, this file, `sources`,
    and the versions of the libraries. Of several processes one writes it and the
    others wait.
    """
    digest = hashlib.sha256(_code_digest().encode())
    for path in sources:
        digest.update(path.read_bytes())
    folder = CACHE / f"{name}-{digest.hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            for outdated in CACHE.glob(f"{name}-*"):
                shutil.rmtree(outdated)
            temporary = CACHE / f".{name}"  # left behind by a process that was killed
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            write(temporary)
            temporary.rename(folder)
    return folder


@functools.cache
def _code_digest() -> str:
    files = [*sorted((ROOT / "model").rglob("*.py")), Path(__file__)]
    files.append(Path(__file__).with_name("networks.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    for library in ("tensorflow", "keras", "onnx", "onnxruntime", "numpy"):
        digest.update(importlib.metadata.version(library).encode())
    return digest.hexdigest()


def write_shared_bundles(root: Path) -> None:
    """`walks` (classify), `tags` (label) and `both` (label, in both directions)."""
    kinds = ("run", "sit", "stand", "wälk")
    long = {"read": "last+mean", "stack": 3}
    write_bundle(root, "walks", "classify", kinds, cell="gru", hidden=6, **long)
    kinds = ("noun", "verb", "other")
    write_bundle(root, "tags", "label", kinds, cell="lstm", hidden=5)
    kinds, both = ("down", "flat", "up"), {"bidirectional": True}
    write_bundle(root, "both", "label", kinds, cell="lstm", hidden=4, **both)


def write_quantized_bundle(root: Path) -> None:
    """`small` (label), which has int8 weights too."""
    kinds = ("noun", "verb", "other")
    write_bundle(root, "small", "label", kinds, int8=True, cell="lstm", hidden=8)


def sentences(count: int, seed: int = 0) -> list[list[tuple[str, str]]]:
    """Sentences of words with their tags, in BIO for names; some names are new."""
    draw = random.Random(seed)
    results = []
    for index in range(count):
        name = draw.choice(NAMES) + (str(index) if draw.random() < 0.2 else "")
        sentence = [(name, "B-PER")]
        if draw.random() < 0.5:
            sentence.append(("Smith", "I-PER"))
        sentence += [(draw.choice(VERBS), "O"), ("the", "O")]
        sentence.append((draw.choice(NOUNS).partition(" ")[0], "O"))
        results.append(sentence)
    return results


def write_conll(path: Path, count: int = 300) -> Path:
    """A file of a word and its tag a line."""
    blocks = ("\n".join(map(" ".join, s)) for s in sentences(count))
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return path


def write_csv(path: Path, count: int = 300) -> Path:
    """A table with the columns `body` and `kind`."""
    draw = random.Random(1)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["body", "kind"])
        for _ in range(count):
            kind = draw.choice(KINDS)
            polite = draw.choice(["", ", please", " now"])
            text = f"turn {kind.removeprefix('switch-')} the {draw.choice(NOUNS)}"
            table.writerow([text + polite, kind])
    return path


def write_events(path: Path, count: int = 120) -> Path:
    """A table with a record a row: `visit`, `at`, `event`, `host`, `bytes` and `label`."""
    draw = random.Random(2)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["visit", "at", "event", "host", "bytes", "label"])
        for visit in range(count):
            fast, second = visit % 2, 1_700_000_000 + 3600 * visit
            for _ in range(draw.randint(2, 9)):
                second += draw.randint(0, 3) if fast else draw.randint(20, 90)
                event, host = draw.choice(EVENTS), f"host{draw.randint(1, 4)}"
                number = round(draw.expovariate(0.01), 1)
                row = [f"v{visit}", second, event, host, number]
                table.writerow([*row, "robot" if fast else "person"])
    return path


def write_text_bundles(root: Path) -> None:
    """`names` (label, words, int8 too), `commands` (classify, characters), and `visits`
    (classify) and `calls` (label, int8 too) of records, with random weights."""
    from model.datasets import builtin
    from model.datasets.readers import Columns
    from model.datasets.readers.table_layout import RecordOptions
    from model.datasets.text import TextOptions

    size = {"buckets": 64, "embedding": 6}
    names = builtin.load_source(
        write_conll(root / "names.conll"), text=TextOptions(**size)
    )
    options = TextOptions(text="body", label="kind", kind="characters", **size)
    commands = builtin.load_source(write_csv(root / "commands.csv"), text=options)
    _write_text_bundle(root, "names", names, int8=True, cell="lstm", hidden=8)
    _write_text_bundle(root, "commands", commands, cell="gru", hidden=8)
    source, columns = write_events(root / "visits.csv"), Columns("visit")
    timed = RecordOptions(("event", "host"), ("bytes",), "at")
    visits = builtin.load_source(source, records=timed, columns=columns)
    plain = RecordOptions(("event",), ("bytes",))
    calls = builtin.load_source(source, task="label", records=plain, columns=columns)
    _write_text_bundle(root, "visits", visits, cell="gru", hidden=8)
    _write_text_bundle(root, "calls", calls, int8=True, cell="lstm", hidden=8)


def _write_text_bundle(
    root: Path, name: str, dataset: Any, *, int8: bool = False, **network: Any
) -> None:
    from model.bundle import vocabulary
    from model.config import Config
    from model.evaluation import membership
    from model.export import export, publish, quantize
    from model.training import loop

    encoding = dataset.vocabulary or dataset.schema
    settings = {"network": {"layers": 1, **network}, "training": {"seed": len(name)}}
    model = loop.build(dataset, Config().update(settings))

    def describe(version: str) -> Metadata:
        return make_metadata(
            dataset.task,
            name=name,
            version=version,
            features=len(dataset.features),
            input=publish.input_of(dataset),
            normalisation=Normalisation(
                mean=model.mean.numpy().tolist(), scale=model.scale.numpy().tolist()
            ),
            classes=dataset.classes,
            cell=network["cell"],
            hidden=network["hidden"],
            state_size=model.state_size,
        )

    def report(folder: Path, metadata: Metadata) -> None:
        (folder / vocabulary.FILE).write_bytes(encoding.to_json())
        (folder / bundle.REPORT / "card.md").write_text("# a\n", encoding="utf-8")
        membership.save(folder / bundle.SEQUENCES, dataset)

    train = dataset.part("train")
    plan = quantize.Plan(train, {"train": train}, required=True) if int8 else None
    export.export_bundle(
        model, train, root, describe=describe, report=report, int8=plan
    )


def train_text_bundles(root: Path) -> None:
    """The same, trained."""
    import model

    options = {"output": root, "runs": root / ".runs", "progress": False}
    options |= {"learning_rate": 0.02, "hidden": 12, "validation_fraction": 0.15}
    path = write_conll(root / "names.conll")
    model.train(path, cell="lstm", epochs=4, buckets=64, embedding=6, **options)
    text = {"text": "body", "label": "kind", "characters": True, "embedding": 6}
    model.train(write_csv(root / "commands.csv"), epochs=6, **text, **options)
    events = {"categories": ("event", "host"), "numbers": ("bytes",), "time": "at"}
    path = write_events(root / "visits.csv")
    model.train(path, by="visit", epochs=4, **events, **options)


def make_metadata(task="classify", **changes) -> Metadata:
    """`bundle.json` of a small network that was never trained."""
    features = changes.pop("features", 1)
    values = {
        "name": "made",
        "version": "1",
        "task": task,
        "input": Frames(
            features=features, names=tuple(f"x{i}" for i in range(features))
        ),
        "classes": ("length", "value"),
        "cell": "gru",
        "layers": 1,
        "hidden": 2,
        "bidirectional": False,
        "reset_after": True,
        "dropout": 0.5,
        "state_size": 2,
        "normalisation": Normalisation(mean=(0.0,) * features, scale=(1.0,) * features),
        "temperature": 1.0,
        "training": TrainingRecord(
            source="made",
            data="0" * 64,
            seed=0,
            validation_fraction=0.15,
            test_fraction=0.15,
            epochs=1,
            best_epoch=1,
            longest=16,
            created="2026-01-01",
            parts={},
            calibration_error_before=1.0,
        ),
    }
    return Metadata(**values | changes)


def random_frames(rng: np.random.Generator, length: int, features: int = 3):
    """A sequence [T, F] that a client can write in JSON without loss."""
    return rng.normal(size=(length, features)).round(3).astype(np.float32)


def write_bundle(
    root: Path,
    name: str,
    task: str,
    classes: tuple[str, ...],
    *,
    int8: bool = False,
    **network,
) -> Path:
    """Export a network with random weights.

    Args:
        int8: write int8 weights too.
    """
    # Imported here: most tests need no TensorFlow.
    import keras

    from model.config import NetworkConfig
    from model.datasets.dataset import Dataset, default_features
    from model.export import export, quantize
    from model.network.network import Network

    keras.utils.set_random_seed(len(name))
    rng = np.random.default_rng(len(name))
    config, features = NetworkConfig(layers=1, **network), 3
    mean, scale = rng.normal(size=features), rng.uniform(0.5, 2, features)
    model = Network(
        config,
        task=task,
        features=features,
        classes=len(classes),
        mean=mean,
        scale=scale,
    )
    kernel, bias = model.head.get_weights()
    # Far apart: one sequence's answer can't pass for another's.
    model.head.set_weights([4 * kernel, bias])
    lengths = np.arange(1, 17)
    frames = rng.normal(size=(lengths.sum(), features))
    targets = np.zeros(len(lengths if task == "classify" else frames), np.int32)
    dataset = Dataset(
        name="made",
        task=task,
        frames=frames,
        lengths=lengths,
        targets=targets,
        classes=classes,
        features=default_features(features),
        split=np.zeros(len(lengths), np.int8),
    )

    def describe(version: str) -> Metadata:
        return make_metadata(
            task,
            name=name,
            version=version,
            features=features,
            classes=classes,
            cell=config.cell,
            hidden=config.hidden,
            bidirectional=config.bidirectional,
            read=model.read,
            stack=model.stack,
            state_size=model.state_size,
            normalisation=Normalisation(
                mean=tuple(model.mean.numpy().tolist()),
                scale=tuple(model.scale.numpy().tolist()),
            ),
        )

    def report(folder: Path, metadata: Metadata) -> None:
        folder /= bundle.REPORT
        (folder / "card.md").write_text(f"# {metadata.name}\n", encoding="utf-8")
        (folder / "metrics.json").write_text("{}\n", encoding="utf-8")
        (folder / "history.png").write_bytes(PNG)

    plan = quantize.Plan(dataset, {"train": dataset}, required=True) if int8 else None
    return export.export_bundle(
        model, dataset, root, describe=describe, report=report, int8=plan
    )


def copy_bundle(folder: Path, to: Path, **changes) -> Path:
    """Copy a bundle and change keys of its `bundle.json`, which no digest covers."""
    shutil.copytree(folder, to)
    marker = to / bundle.MARKER
    text = json.loads(marker.read_text()) | changes
    marker.write_text(json.dumps(text))
    return to


def within(work: Callable[[], Any], seconds: float = 20) -> Any:
    """Call `work` in a thread, and fail if it takes longer."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


def seal(folder: Path) -> Bundle:
    """Seal a changed bundle with correct digests, as an attacker would."""
    metadata = Metadata.model_validate_json((folder / bundle.MARKER).read_text())
    bundle.seal(folder, metadata)
    return bundle.read(folder)


def refusal(target: Bundle) -> str:
    """The reason why the allowlist refuses a bundle."""
    with pytest.raises(BundleError) as caught:
        allowlist.check(target)
    return str(caught.value)


class OnnxEngine(onnx_engine.OnnxEngine):
    """The service's engine, built as the registry builds it, for tests to subclass."""

    def __init__(self, bundle: Bundle, settings: Settings):
        super().__init__(bundle, settings.precision)
