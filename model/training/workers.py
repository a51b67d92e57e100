"""Train folds at the same time, in processes with one core each.

An update of a small network hardly uses a second core, so processes are faster than
threads of one TensorFlow. They are started with `python -m`, since the processes of
`multiprocessing` would import the caller's script again. With a GPU, or one core, folds
are trained one after another in this process.
"""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Self

import tensorflow as tf

from model.datasets.dataset import Dataset
from model.training import fold as folds
from model.training.fold import Fold, FoldResult, Progress

MIN_STEPS = 200_000  # for fewer, about ten seconds, starting processes takes longer


def available(folds: int, steps: int) -> int:
    """Return how many processes to use; 0: this one.

    Args:
        folds: that are to be trained.
        steps: of all their updates, each as many as a sequence has.
    """
    if steps < MIN_STEPS or tf.config.list_physical_devices("GPU"):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    count = min(folds, cores or os.cpu_count() or 1)
    return count if count > 1 else 0


class Workers:
    """Processes that train folds of a data set; a context manager."""

    def __init__(self, dataset: Dataset, count: int, threads: int | None = None):
        """
        Args:
            dataset: the sequences for training.
            count: processes; 0 trains in this one.
            threads: of each process. Default: so that all cores are used.
        """
        cores = len(os.sched_getaffinity(0)) if count else 1
        self._dataset, self._count = dataset, count
        self._threads_each = threads or max(1, cores // max(1, count))
        self._threads = ThreadPoolExecutor(max(1, count), thread_name_prefix="fold")
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._have_data: set[int] = set()  # process ids

    def __enter__(self) -> Self:
        for _ in range(self._count):
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "model.training.worker"),
                    str(self._threads_each),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # Ctrl-C is for this process alone
            )
            self._processes.append(process)
            self._idle.put(process)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            assert process.stdin
            with contextlib.suppress(OSError):  # what it has not read
                process.stdin.close()
            with process:  # closes its other pipe, and waits
                pass

    def train(
        self, folds: dict[int, Fold], report: Callable[[int, int], None]
    ) -> Iterator[tuple[int, FoldResult]]:
        """Train folds, and yield each with its number as soon as it is finished.

        Args:
            report: called with a fold's number and its updates so far.

        Raises:
            ConfigError, ChildProcessError: see `submit`.
        """
        if not self._count:
            for number, fold in folds.items():
                yield number, self.submit(fold, partial(report, number)).result()
            return
        futures = {
            self.submit(fold, partial(report, number)): number
            for number, fold in folds.items()
        }
        for future in as_completed(futures):
            yield futures[future], future.result()

    def submit(
        self, fold: Fold, report: Progress = lambda _: None
    ) -> "Future[FoldResult]":
        """Train a fold as soon as a process is free.

        Args:
            report: called with the progress, in another thread.

        Raises (the future):
            ConfigError: see `loop.fit`.
            ChildProcessError: the process has ended.
        """
        if self._count:
            return self._threads.submit(self._train, fold, report)
        future: Future[FoldResult] = Future()
        future.set_result(folds.train_fold(self._dataset, fold, report))
        return future

    def _train(self, fold: Fold, report: Progress) -> FoldResult:
        process = self._idle.get()
        try:
            if process.pid not in self._have_data:
                _send(process, self._dataset)
                self._have_data.add(process.pid)
            return _ask(process, fold, report)
        finally:
            self._idle.put(process)


def _send(process: "subprocess.Popen[bytes]", value: object) -> None:
    assert process.stdin
    try:
        pickle.dump(value, process.stdin)
        process.stdin.flush()
    except (OSError, ValueError):
        pass  # it has ended, which `_ask` reports


def _ask(
    process: "subprocess.Popen[bytes]", fold: Fold, report: Progress
) -> FoldResult:
    _send(process, fold)
    assert process.stdout
    while True:
        try:
            kind, *values = pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError):
            code = process.wait()
            reason = " (out of memory?)" if code == -9 else ""
            raise ChildProcessError(
                f"a training process ended with exit code {code}{reason}"
            ) from None
        if kind == "progress":
            report(*values)
        elif kind == "error":
            raise values[0]
        else:
            return values[0]
