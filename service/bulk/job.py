"""A job, and the output folder that makes it resumable.

FOLDER/job.json             the job: file, bundle, task, options
FOLDER/00000000.jsonl       the lines of the first shard
FOLDER/00000001.jsonl       ...
FOLDER/.claim.DIGEST.ID     in object stores: a run is about to write job.json

A shard's file appears when it is complete. So an interrupted job computes only what is
missing, and nothing twice.

Two jobs must not begin in one folder. An object store can't create a file only if there
is none, so each run writes a claim with the digest of its job, then looks for claims of
other jobs. Of two runs at least one sees the other's claim. The lower digest goes first,
the other run takes its claim back and waits.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from pyarrow.fs import FileSelector, FileType, LocalFileSystem

from service.bulk import object_store, shards

JOB = "job.json"
CLAIM = ".claim."
STALE_SECONDS = 3600.0  # a temporary file or a claim of this age is of a killed run
CLAIM_SECONDS = 30.0  # how long a run waits for another job's claim
POLL_SECONDS = 0.2


class BulkError(ValueError):
    """A job can't begin or continue; the message says why."""


@dataclass(frozen=True)
class Job:
    """Everything that determines the output: equal jobs give equal lines."""

    file: str
    size: int
    modified: int  # nanoseconds
    bytes: int  # of a shard of lines
    shards: int
    task: str
    model: str
    version: str
    digest: str
    engine: str
    precision: str
    top_k: int | None


class OutputFolder:
    """The folder of a job's output, on disk or in an object store."""

    def __init__(self, location: str):
        self._name = object_store.without_credentials(location)
        self._system, self._path = shards.filesystem(location)

    def begin(self, job: Job) -> list[int]:
        """Write or check job.json; returns the numbers of the missing shards.

        Raises:
            BulkError: the folder holds something else, or another job.
        """
        self._system.create_dir(self._path, recursive=True)
        files = {info.base_name: info for info in self._files()}
        if JOB not in files:
            if any(not name.startswith(".") for name in files):
                raise BulkError(f"{self._name}: is not empty, and holds no job")
            self._write_job(json.dumps(asdict(job), indent=1).encode() + b"\n")
        self._check(job)
        stale = time.time() - STALE_SECONDS
        for name, info in files.items():
            # Left by a killed run; a younger file may be of a run that goes on.
            if name.startswith(".") and info.mtime.timestamp() < stale:
                with suppress(OSError):  # another run has removed it
                    self._system.delete_file(info.path)
        infos = ((n, files.get(shard_name(n))) for n in range(job.shards))
        return [n for n, info in infos if info is None or not self._is_complete(info)]

    def write(self, name: str, text: bytes, *, replace: bool = True) -> None:
        """Write a file, which appears complete or not at all.

        Raises:
            FileExistsError: the file exists, and `replace` is false.
        """
        path = f"{self._path}/{name}"
        if not isinstance(self._system, LocalFileSystem):
            # An object appears when it is complete.
            with self._system.open_output_stream(path) as file:
                file.write(text)
            return
        draft = f"{self._path}/.{name}.{uuid.uuid4().hex}"
        with self._system.open_output_stream(draft) as file:
            file.write(text)
        _sync(draft)  # else a power cut may leave the name without the bytes
        if replace:
            os.replace(draft, path)
        else:
            try:
                os.link(draft, path)
            except FileExistsError:
                raise
            except OSError:  # the file system has no links
                os.replace(draft, path)
            finally:
                with suppress(FileNotFoundError):
                    os.remove(draft)
        _sync(self._path)

    def _write_job(self, text: bytes) -> None:
        """Write job.json, unless another run has written it."""
        if isinstance(self._system, LocalFileSystem):
            with suppress(FileExistsError):
                self.write(JOB, text, replace=False)
            return
        try:
            with self._claim(text):
                if all(info.base_name != JOB for info in self._files()):
                    self.write(JOB, text)
        except TimeoutError:
            raise BulkError(
                f"{self._name}: another job is about to begin here; if it was killed,"
                f" try again in an hour, or remove {CLAIM}*"
            ) from None

    @contextmanager
    def _claim(self, text: bytes) -> Iterator[None]:
        """Wait until no run of another job is about to begin; none does in the block.

        Raises:
            TimeoutError: another run was about to begin for all of `CLAIM_SECONDS`.
        """
        digest = hashlib.sha256(text).hexdigest()
        deadline = time.monotonic() + CLAIM_SECONDS
        while True:
            claim = f"{self._path}/{CLAIM}{digest}.{uuid.uuid4().hex}"
            with self._system.open_output_stream(claim) as file:
                file.write(text)
            try:
                rivals = self._rivals(digest)
                while rivals and digest < min(rivals):
                    _poll(deadline)
                    rivals = self._rivals(digest)
                if not rivals:
                    yield
                    return
            finally:
                with suppress(OSError):  # then it becomes stale
                    self._system.delete_file(claim)
            while self._rivals(digest):
                _poll(deadline)

    def _rivals(self, digest: str) -> set[str]:
        """The digests in the claims of other jobs."""
        stale = time.time() - STALE_SECONDS
        claims = (
            info.base_name.split(".")[2]
            for info in self._system.get_file_info(FileSelector(self._path))
            if info.base_name.startswith(CLAIM) and info.mtime.timestamp() >= stale
        )
        return set(claims) - {digest}

    def _is_complete(self, info: Any) -> bool:
        """Returns whether a shard's file ends with a line break: after a power cut it
        may not. A shard without lines is computed again, which takes no time."""
        if not info.size:
            return False
        with self._system.open_input_file(info.path) as file:
            file.seek(info.size - 1)
            return bool(file.read(1) == b"\n")

    def _check(self, job: Job) -> None:
        with self._system.open_input_file(f"{self._path}/{JOB}") as file:
            text = file.read()
        try:
            existing = json.loads(text)
        except ValueError:
            existing = None
        if not isinstance(existing, dict):
            raise BulkError(f"{self._name}/{JOB}: does not describe a job")
        changed = "; ".join(
            f"{name} {existing.get(name)}, not {value}"
            for name, value in asdict(job).items()
            if existing.get(name) != value
        )
        if changed:
            raise BulkError(f"{self._name}: holds another job: {changed}")

    def _files(self) -> Iterator[Any]:
        for info in self._system.get_file_info(FileSelector(self._path)):
            if info.type == FileType.File:
                yield info


def shard_name(number: int) -> str:
    """The file name of a shard's lines."""
    return f"{number:08}.jsonl"


def _poll(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError
    time.sleep(POLL_SECONDS)


def _sync(path: str) -> None:
    """Flush a file, or the names in a folder, to disk."""
    with suppress(OSError):  # the file system can't
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
