"""Log lines: JSON for machines, text for a terminal; never what a caller sent."""

import atexit
import collections
import datetime
import io
import json
import logging
import os
import sys
import threading
import time
from typing import Any, TextIO

import orjson

DELAY = 0.1  # seconds that a line may wait
LIMIT = 4 << 20  # bytes that may wait
BLOCK = 4096  # bytes a write: a pipe takes so many whole, unmixed with other processes'
DROPPED = "log lines were dropped"
RETRY_SECONDS, MOST_RETRY_SECONDS = 0.05, 0.5
FLUSH_SECONDS = 1.0
_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


def setup(log_format: str, level: str) -> None:
    """Send all records to stdout, in one format."""
    handler = Lines(sys.stdout)
    text = log_format == "text" or (log_format == "auto" and sys.stdout.isatty())
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # `logging` does so itself, but not in a process that `multiprocessing` forked.
    atexit.register(handler.close)
    # What no line of ours tells need not be found out for each: as the standard
    # library's documentation has it under "Optimization".
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # Its start-up lines say what ours say.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


class Lines(logging.Handler):
    """Writes lines in blocks, a moment later, in a thread of its own.

    A system call for each line would cost a request a tenth of its time, and whoever
    logs must not wait for whoever reads: while nothing can be written, lines are kept
    up to `limit` bytes, then dropped and counted. The handler's lock guards the buffer,
    and is held for no write. It is reentrant: a signal's handler may shut the log down.
    """

    def __init__(self, stream: TextIO, limit: int = LIMIT):
        super().__init__()
        self._stream, self._limit = stream, limit
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._lock = self.lock or threading.RLock()
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Begin with nothing; in a forked process, too: its parent has the thread, and
        writes what was logged before."""
        self._changed = threading.Condition(self._lock)
        self._lines: collections.deque[bytes] = collections.deque()
        self._block = memoryview(b"")  # what is left of the write under way
        self._accepted = self._written = 0  # bytes, of all time
        self._dropped = 0  # lines, since this was last told
        self._urgent = self._stalled = self._ending = False
        self._writer: threading.Thread | None = None

    def handle(self, record: logging.LogRecord) -> bool:
        """As the base class has it, without its lock around: formatting needs none."""
        passed = self.filter(record)
        if passed:
            self.emit(record if passed is True else passed)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line, serious = self._encode(record), record.levelno >= logging.WARNING
        except Exception:  # `handleError` would write to standard error, and wait
            failed = _failure("a log record could not be formatted")
            line, serious = self._encode(failed), True
        with self._lock:
            if not self._add(line):
                self._dropped += 1
            if serious or self._writer is None:
                self._wake()
            elif len(self._lines) == 1:
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait for what was logged before to be written, but not for long; not at all
        where that was in vain and nothing has been written since."""
        with self._changed:
            until = self._accepted
            if self._written < until and not self._stalled:
                self._wake()
                self._stalled = not self._changed.wait_for(
                    lambda: self._written >= until, FLUSH_SECONDS
                )

    def close(self) -> None:
        """Write what can be written, then end the thread."""
        self.flush()
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        super().close()

    def _encode(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")

    def _add(self, line: bytes) -> bool:
        """Have a line written; whether there is room for it."""
        if self._accepted - self._written + len(line) > self._limit:
            return False
        self._lines.append(line)
        self._accepted += len(line)
        return True

    def _wake(self) -> None:
        """Have the lines written at once."""
        self._urgent = True
        if self._writer is None:
            self._writer = threading.Thread(target=self._run, name="log", daemon=True)
            try:
                self._writer.start()
            except RuntimeError:  # no more threads: the next record tries again
                self._writer = None
        self._changed.notify_all()

    def _run(self) -> None:
        try:
            while (until := self._await()) and self._write(until):
                pass
        except BaseException:
            line = self._encode(_failure("the log's writer failed; another goes on"))
            with self._changed:
                self._add(line)
        finally:
            with self._changed:
                self._writer = None  # the next record starts another

    def _await(self) -> int:
        """Wait for lines, then a moment for more; up to where to write, 0 to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._block or self._ending)
            self._changed.wait_for(lambda: self._urgent or self._ending, DELAY)
            self._urgent = False
            return self._accepted if self._lines or self._block else 0

    def _write(self, until: int) -> bool:
        """Write up to there, however often that fails; False if closed meanwhile."""
        pause = RETRY_SECONDS
        while self._written < until:
            try:
                self._wrote(self._put(self._take()))
                pause = RETRY_SECONDS
            except (OSError, ValueError):  # ValueError: the stream was closed
                if self._ending:
                    return False
                time.sleep(pause)
                pause = min(2 * pause, MOST_RETRY_SECONDS)
        return True

    def _take(self) -> memoryview:
        """What to write next: whole lines, or the rest of a write that was partial."""
        with self._changed:
            if not self._block:
                taken = self._lines.popleft()
                while self._lines and len(taken) + len(self._lines[0]) <= BLOCK:
                    taken += self._lines.popleft()
                self._block = memoryview(taken)
            return self._block

    def _put(self, block: memoryview) -> int:
        try:  # each time: a closed stream's descriptor may be another file's
            descriptor = self._stream.fileno()
        except (AttributeError, io.UnsupportedOperation):  # in memory
            self._stream.write(str(block, self._encoding))
            self._stream.flush()
            return len(block)
        # Past the stream: the interpreter aborts when it ends while a daemon thread
        # has the lock of standard output.
        return os.write(descriptor, block)

    def _wrote(self, size: int) -> None:
        with self._changed:
            self._block = self._block[size:]
            self._written += size
            self._stalled = False
            if self._dropped:  # told where they are missing: before others have room
                told = _record(logging.WARNING, DROPPED, lines=self._dropped)
                if self._add(self._encode(told)):
                    self._dropped = 0
            self._changed.notify_all()


class JsonFormatter(logging.Formatter):
    """One JSON object a line; a record's extras are its members."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(entry, default=str).decode()
        except TypeError:  # a lone surrogate, or an integer of over 64 bits
            return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, message, and the extras as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        clock = _time(record).strftime("%H:%M:%S")
        extras = "".join(f"  {key}={value}" for key, value in _extras(record).items())
        # A line break would let a value pass for another record.
        message = f"{record.getMessage()}{extras}"
        message = "".join(c if c.isprintable() else " " for c in message)
        line = f"{clock} {record.levelname.lower():7} {message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _failure(message: str) -> logging.LogRecord:
    """A record of the exception that is being handled."""
    return _record(logging.ERROR, message, exc_info=sys.exc_info())


def _record(level: int, message: str, **more: Any) -> logging.LogRecord:
    told = {"levelno": level, "levelname": logging.getLevelName(level), "msg": message}
    return logging.makeLogRecord({"name": __name__, **told, **more})


def _time(record: logging.LogRecord) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {k: v for k, v in vars(record).items() if k not in _ORDINARY}
