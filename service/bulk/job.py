"""What a run over a file is to compute, and the folder that its answers go to.

FOLDER/job.json          what is computed of what
FOLDER/00000000.jsonl    the answers of the first shard, a JSON object a line
FOLDER/00000001.jsonl    ...

A shard's answers come into being at once, when all of them are there. So whatever ends a
run, the next computes what is missing, and nothing twice.
"""

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from pyarrow.fs import FileSelector, FileType, LocalFileSystem

from service.bulk import claims, object_store, shards

JOB = "job.json"
DRAFT_SECONDS = 3600.0  # after which nobody writes a file any more


class BulkError(ValueError):
    """A job that can't be begun, or gone on with; the text says why."""


@dataclass(frozen=True)
class Job:
    """What is asked for; two that are equal give the same answers."""

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


class Folder:
    """Where the answers go."""

    def __init__(self, where: str):
        self.where = object_store.shown(where)
        self._system, self._path = shards.place(where)

    def begin(self, job: Job) -> list[int]:
        """The shards that are still to be computed.

        Raises:
            BulkError: it holds the answers of another job.
        """
        self._system.create_dir(self._path, recursive=True)
        found = {info.base_name: info for info in self._files()}
        if JOB not in found:
            if any(not name.startswith(".") for name in found):
                raise BulkError(f"{self.where}: is not empty, and of no job")
            self._describe(json.dumps(asdict(job), indent=1).encode() + b"\n")
        self._check(job)
        long_ago = time.time() - DRAFT_SECONDS
        for name, info in found.items():
            # Of a run that was cut off; a younger one may be of a run that goes on.
            if name.startswith(".") and info.mtime.timestamp() < long_ago:
                with suppress(OSError):  # another run was faster
                    self._system.delete_file(info.path)
        infos = ((n, found.get(name_of(n))) for n in range(job.shards))
        return [n for n, info in infos if info is None or not self._whole(info)]

    def _describe(self, text: bytes) -> None:
        """Write the job, unless another run was faster."""
        if isinstance(self._system, LocalFileSystem):
            with suppress(FileExistsError):
                self.write(JOB, text, replace=False)
            return
        try:
            with claims.alone(self._system, self._path, text, DRAFT_SECONDS):
                if all(info.base_name != JOB for info in self._files()):
                    self.write(JOB, text)
        except TimeoutError:
            raise BulkError(
                f"{self.where}: another job is about to begin here; if it was killed,"
                f" try again in an hour, or remove {claims.PREFIX}*"
            ) from None

    def _whole(self, info: Any) -> bool:
        """Returns whether a file is complete: after a power cut it may be there
        without its bytes. One without lines is computed again, which takes no time."""
        if not info.size:
            return False
        with self._system.open_input_file(info.path) as file:
            file.seek(info.size - 1)
            return bool(file.read(1) == b"\n")

    def _check(self, job: Job) -> None:
        with self._system.open_input_file(f"{self._path}/{JOB}") as file:
            text = file.read()
        try:
            before = json.loads(text)
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise BulkError(f"{self.where}/{JOB}: is no description of a job")
        now = asdict(job)
        other = [k for k in now if before.get(k) != now[k]]
        if other:
            told = "; ".join(f"{k} {before.get(k)}, not {now[k]}" for k in other)
            raise BulkError(f"{self.where}: is of another job: {told}")

    def write(self, name: str, text: bytes, *, replace: bool = True) -> None:
        """A file, all at once.

        Raises:
            FileExistsError: it is there, and not to be replaced.
        """
        to = f"{self._path}/{name}"
        local = isinstance(self._system, LocalFileSystem)
        # An object is there when it has been written to its end, and not before.
        draft = f"{self._path}/.{name}.{uuid.uuid4().hex}" if local else to
        with self._system.open_output_stream(draft) as file:
            file.write(text)
        if local:
            _sync(draft)  # else a power cut may leave its name without its bytes
        if local and replace:
            os.replace(draft, to)
        elif local:
            try:
                os.link(draft, to)
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                os.replace(draft, to)
            finally:
                with suppress(FileNotFoundError):
                    os.remove(draft)

        if local:
            _sync(self._path)

    def _files(self) -> Iterator[Any]:
        for info in self._system.get_file_info(FileSelector(self._path)):
            if info.type == FileType.File:
                yield info


def _sync(path: str) -> None:
    """Have a file, or the names in a folder, be on the disk."""
    with suppress(OSError):  # a file system that can't
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def name_of(number: int) -> str:
    """Of a shard's file."""
    return f"{number:08}.jsonl"
