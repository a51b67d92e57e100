"""Files of millions of sequences on a Ray cluster, over Ray Data: each shard is computed
by an actor on a core of its own, and written by it (`job`)."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from model import bundle
from model.bundle import Bundle, BundleError

from . import mirror, shards
from .job import BulkError, Folder, Job, name_of
from .mirror import Mirror
from .scorer import Scored, Scorer
from .settings import Settings


class Scoring:
    """Computes shards, as one of many: an actor on one core."""

    def __init__(self, file: str, to: str, job: Job, bundles: str, settings: Settings):
        self._shards, self._folder = shards.of(file), Folder(to)
        with _Bundles(bundles) as root:
            folder = choose(root, job.task, f"{job.model}@{job.version}").folder
            self._scorer = Scorer(folder, settings, job.top_k, job.digest)
        self._features = self._scorer.metadata.input.features

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["shard"])
        given = self._shards.read(number)
        rows = [self._shards.row(one, self._features) for one in given]
        scored: Scored = self._scorer.score(rows)
        self._folder.write(name_of(number), scored.text)
        done = scored._asdict()
        del done["text"]
        return {"shard": number} | done


class _Bundles:
    """The folder of bundles, or a copy of what is elsewhere."""

    def __init__(self, where: str):
        self._mirror = Mirror(where) if mirror.elsewhere(where) else None
        self._folder = Path(where)

    def __enter__(self) -> Path:
        if self._mirror is None:
            return self._folder
        try:
            self._mirror.start(0)
        except BaseException:
            self._mirror.close()
            raise
        return self._mirror.folder

    def __exit__(self, *_: object) -> None:
        if self._mirror is not None:
            self._mirror.close()


def choose(root: Path, task: str, name: str | None) -> Bundle:
    """The bundle of that name, or `NAME@VERSION`; else the first of the task.

    Raises:
        BundleError: there is none, or it is broken or of the other task.
    """
    wanted, _, version = (name or "").partition("@")
    known = []
    for newest in bundle.find(root):
        found = bundle.read(newest)
        if version and found.metadata.version != version:
            other = newest.with_name(version)
            if not (other / bundle.MARKER).exists():
                continue
            found = bundle.read(other)
        metadata = found.metadata
        known.append(f"{metadata.name} ({metadata.task})")
        if metadata.task == task and wanted in ("", metadata.name):
            return found
    there = ", ".join(known) or "none"
    raise BundleError(f"{root}: no bundle {name or ''} for {task}; there are: {there}")


def prepare(
    file: str,
    to: str,
    task: str,
    *,
    model: str | None,
    top_k: int | None,
    bundles: str,
    settings: Settings,
) -> tuple[Job, list[int]]:
    """The job, and which of its shards are to be computed.

    Raises:
        BulkError, BundleError, ValueError, OSError: it can't be begun.
    """
    with _Bundles(bundles) as root:
        chosen = choose(root, task, model)
    count = shards.of(file).count
    system, path = shards.place(file)
    about = system.get_file_info(path)
    job = Job(
        Path(path).name,
        about.size,
        about.mtime_ns or 0,
        count,
        task,
        chosen.metadata.name,
        chosen.metadata.version,
        chosen.digest,
        settings.engine,
        settings.precision,
        top_k,
    )
    return job, Folder(to).begin(job)


def run(
    todo: list[int], given: tuple[Any, ...], told: Callable[[Scored], None]
) -> None:
    """Compute shards on the cluster that there is, or on one of this machine alone.

    Args:
        given: what `Scoring` takes.
        told: called with each shard, without its text.

    Raises:
        BulkError: one of them failed for good.
    """
    # Our code goes along: the nodes need only have what it stands on.
    here = Path(__file__).parent
    code = {"py_modules": [str(here), str(here.parent / "model")]}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(log_to_driver=False, logging_level="ERROR", runtime_env=code)
    logging.getLogger("ray.data").setLevel("ERROR")
    DataContext.get_current().enable_progress_bars = False
    cores = int(ray.cluster_resources().get("CPU", 1))
    size = max(1, min(cores, len(todo)))
    rows = ray.data.from_items(
        [{"shard": n} for n in todo], override_num_blocks=len(todo)
    )
    done = rows.map(
        Scoring,
        fn_constructor_args=given,
        compute=ActorPoolStrategy(size=size),
        num_cpus=1,
    )
    try:
        for row in done.iter_rows():
            told(Scored(b"", row["sequences"], row["steps"], row["refused"]))
    except ray.exceptions.RayError as error:
        raise BulkError(str(error).strip().splitlines()[-1]) from None
    finally:
        ray.shutdown()
