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

from service.bulk import bundle_choice, object_store, shards
from service.bulk.job import BulkError, Folder, Job, name_of
from service.bulk.scorer import Scored, Scorer
from service.settings import Settings

RETRIES = 3  # of a shard whose actor dies of it


class Scoring:
    """Computes shards, as one of many: an actor on one core."""

    def __init__(self, file: str, to: str, job: Job, bundles: str, settings: Settings):
        self._shards, self._folder = shards.of(file), Folder(to)
        with bundle_choice.Bundles(bundles) as root:
            name = f"{job.model}@{job.version}"
            folder = bundle_choice.choose(root, job.task, name, settings).folder
            self._scorer = Scorer(folder, settings, job.top_k, job.digest)
        self._file, self._stamp = file, (job.size, job.modified)
        self._features = self._scorer.metadata.input.features

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["shard"])
        given = self._shards.read(number)
        rows = [self._shards.row(one, self._features) for one in given]
        scored: Scored = self._scorer.score(rows)
        if shards.stamp(self._file) != self._stamp:
            raise BulkError(f"{object_store.shown(self._file)}: has changed since")
        self._folder.write(name_of(number), scored.text)
        done = scored._asdict()
        del done["text"]
        return {"shard": number} | done


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
    with bundle_choice.Bundles(bundles) as root:
        chosen = bundle_choice.choose(root, task, model, settings)
    about, count = shards.stamp(file), shards.of(file).count
    job = Job(
        Path(shards.place(file)[1]).name,
        *about,
        shards.BYTES,
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
    here = Path(__file__).parent.parent
    code = {"py_modules": [str(here), str(here.parent / "model")]}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", runtime_env=code)
        logging.getLogger("ray.data").setLevel("ERROR")
        DataContext.get_current().enable_progress_bars = False
        cores = int(ray.cluster_resources().get("CPU", 1))
        rows = ray.data.from_items(
            [{"shard": n} for n in todo], override_num_blocks=len(todo)
        )
        done = rows.map(
            Scoring,
            fn_constructor_args=given,
            compute=ActorPoolStrategy(size=max(1, min(cores, len(todo)))),
            num_cpus=1,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )
        for row in done.iter_rows():
            told(Scored(b"", row["sequences"], row["steps"], row["refused"]))
    except (ray.exceptions.RayError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        raise BulkError(lines[-1] if lines else type(error).__name__) from None
    finally:
        ray.shutdown()
