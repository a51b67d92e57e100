"""Run a job on a Ray cluster with Ray Data: one actor per core computes and writes shards."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from service.bulk import bundle_choice, json_lines, object_store, shards
from service.bulk.job import BulkError, Job, OutputFolder, shard_name
from service.bulk.scorer import Scorer, ShardResult
from service.settings import Settings
from service.worker import engine

RETRIES = 3  # of a shard whose actor died


class ShardActor:
    """An actor on one core that computes shards and writes their lines."""

    def __init__(
        self, file: str, to: str, job: Job, bundles: list[str], settings: Settings
    ):
        self._output = OutputFolder(to)
        with bundle_choice.BundleFolders(bundles) as roots:
            name = f"{job.model}@{job.version}"
            folder = bundle_choice.choose(roots, job.task, name, settings).folder
            self._scorer = Scorer(folder, settings, job.top_k, job.digest)
        self._file, self._stamp = file, (job.size, job.modified)
        self._shards = shards.open_file(
            file, self._scorer.metadata, self._scorer.encoding
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["shard"])
        rows = [self._shards.parse(item) for item in self._shards.read(number)]
        result = self._scorer.score(rows)
        if shards.stamp(self._file) != self._stamp:
            file = object_store.without_credentials(self._file)
            raise BulkError(f"{file}: has changed since the job began")
        self._output.write(shard_name(number), result.text)
        counts = result._asdict()
        del counts["text"]
        return {"shard": number} | counts


def prepare(
    file: str,
    to: str,
    task: str,
    *,
    model: str | None,
    top_k: int | None,
    bundles: list[str],
    settings: Settings,
) -> tuple[Job, list[int]]:
    """Begin or resume a job; returns it with the numbers of its missing shards.

    Raises:
        BulkError, BundleError, ValueError, OSError: the job can't begin.
    """
    with bundle_choice.BundleFolders(bundles) as roots:
        bundle = bundle_choice.choose(roots, task, model, settings)
    size, modified = shards.stamp(file)
    job = Job(
        file=Path(shards.filesystem(file)[1]).name,
        size=size,
        modified=modified,
        bytes=json_lines.SHARD_BYTES,
        shards=shards.open_file(file, bundle.metadata, bundle.encoding()).count,
        task=task,
        model=bundle.metadata.name,
        version=bundle.metadata.version,
        digest=bundle.digest,
        engine=settings.engine,
        precision=engine.fixed_precision(settings, bundle.metadata).precision,
        top_k=top_k,
    )
    return job, OutputFolder(to).begin(job)


def run(
    missing: list[int],
    arguments: tuple[Any, ...],
    on_result: Callable[[ShardResult], None],
) -> None:
    """Compute shards on the running Ray cluster, or on one started on this machine.

    Args:
        missing: numbers of the shards.
        arguments: of `ShardActor`.
        on_result: called for each finished shard, without its text.

    Raises:
        BulkError: a shard failed after all retries.
    """
    # Ray ships our packages to the nodes, which need only the dependencies.
    package = Path(__file__).parents[1]
    code = {"py_modules": [str(package), str(package.parent / "model")]}
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", runtime_env=code)
        logging.getLogger("ray.data").setLevel("ERROR")
        DataContext.get_current().enable_progress_bars = False
        cores = int(ray.cluster_resources().get("CPU", 1))
        rows = ray.data.from_items(
            [{"shard": number} for number in missing], override_num_blocks=len(missing)
        )
        results = rows.map(
            ShardActor,
            fn_constructor_args=arguments,
            compute=ActorPoolStrategy(size=max(1, min(cores, len(missing)))),
            num_cpus=1,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )
        for row in results.iter_rows():
            on_result(ShardResult(b"", row["sequences"], row["steps"], row["refused"]))
    except (ray.exceptions.RayError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        raise BulkError(lines[-1] if lines else type(error).__name__) from None
    finally:
        ray.shutdown()
