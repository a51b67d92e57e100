"""Logging: JSON lines for machines, text for a terminal; never what a client sent."""

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

DELAY = 0.1  # seconds until a line is written, so that others join it
MAX_BUFFERED = 4 << 20  # bytes
BLOCK = 4096  # bytes a write: so many are atomic in a pipe that processes share
DROPPED = "log lines were dropped"
RETRY_SECONDS, MAX_RETRY_SECONDS = 0.05, 0.5
FLUSH_SECONDS = 1.0
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


def setup(log_format: str, level: str) -> None:
    """Send all records to standard output, in one format."""
    handler = BufferedHandler(sys.stdout)
    text = log_format == "text" or (log_format == "auto" and sys.stdout.isatty())
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # `logging` does this too, but not in a process that `multiprocessing` forked.
    atexit.register(handler.close)
    # Don't collect what no line shows; see "Optimization" in the documentation of
    # `logging`.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # Its messages at startup repeat ours.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


class BufferedHandler(logging.Handler):
    """Writes lines in blocks, a moment later, in its own thread.

    A system call for each line would take a tenth of a request's time, and logging must
    not wait for the reader of the log: while nothing can be written, lines are buffered
    up to `limit` bytes, then dropped and counted. The handler's lock guards the buffer,
    and is not held while writing. It is reentrant, since a signal handler may shut the
    log down.
    """

    def __init__(self, stream: TextIO, limit: int = MAX_BUFFERED):
        super().__init__()
        self._stream, self._limit = stream, limit
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._lock = self.lock or threading.RLock()
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """Start empty. Also in a forked process, whose parent has the thread and writes
        what was logged before the fork."""
        self._changed = threading.Condition(self._lock)
        self._lines: collections.deque[bytes] = collections.deque()
        self._block = memoryview(b"")  # the rest of the current write
        self._accepted = self._written = 0  # bytes since the start
        self._dropped = 0  # lines since the last line about them
        self._urgent = self._stalled = self._closing = False
        self._writer: threading.Thread | None = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Like the base class, but without a lock around `emit`: formatting needs none."""
        filtered = self.filter(record)
        if filtered:
            self.emit(record if filtered is True else filtered)
        return bool(filtered)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line, urgent = self._encode(record), record.levelno >= logging.WARNING
        except Exception:  # `handleError` would write to standard error, and may block
            error = _error_record("a log record could not be formatted")
            line, urgent = self._encode(error), True
        with self._lock:
            if not self._add(line):
                self._dropped += 1
            if urgent or self._writer is None:
                self._write_now()
            elif len(self._lines) == 1:
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait up to `FLUSH_SECONDS` until all lines are written; not at all if the last
        flush failed and nothing has been written since."""
        with self._changed:
            target = self._accepted
            if self._written < target and not self._stalled:
                self._write_now()
                self._stalled = not self._changed.wait_for(
                    lambda: self._written >= target, FLUSH_SECONDS
                )

    def close(self) -> None:
        """Write what can be written, then end the thread."""
        self.flush()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        super().close()

    def _encode(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")

    def _add(self, line: bytes) -> bool:
        """Buffer a line, and return True, if there is room for it."""
        if self._accepted - self._written + len(line) > self._limit:
            return False
        self._lines.append(line)
        self._accepted += len(line)
        return True

    def _write_now(self) -> None:
        """Have the thread write at once; start it if it isn't running."""
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
            while (target := self._wait()) and self._write(target):
                pass
        except BaseException:
            error = _error_record(
                "the log's writer thread failed; a new one will start"
            )
            with self._changed:
                self._add(self._encode(error))
        finally:
            with self._changed:
                self._writer = None  # the next record starts a new one

    def _wait(self) -> int:
        """Wait for lines, then a moment for more. Returns how far to write, in bytes
        since the start; 0: end the thread."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._block or self._closing)
            self._changed.wait_for(lambda: self._urgent or self._closing, DELAY)
            self._urgent = False
            return self._accepted if self._lines or self._block else 0

    def _write(self, target: int) -> bool:
        """Write so far, and retry until it succeeds; False if closed meanwhile."""
        pause = RETRY_SECONDS
        while self._written < target:
            try:
                self._advance(self._write_block(self._next_block()))
                pause = RETRY_SECONDS
            except (OSError, ValueError):  # ValueError: the stream was closed
                if self._closing:
                    return False
                time.sleep(pause)
                pause = min(2 * pause, MAX_RETRY_SECONDS)
        return True

    def _next_block(self) -> memoryview:
        """The next whole lines, or the rest of a partial write."""
        with self._changed:
            if not self._block:
                lines = self._lines.popleft()
                while self._lines and len(lines) + len(self._lines[0]) <= BLOCK:
                    lines += self._lines.popleft()
                self._block = memoryview(lines)
            return self._block

    def _write_block(self, block: memoryview) -> int:
        try:  # each time, since a closed stream's descriptor may belong to another file
            descriptor = self._stream.fileno()
        except (AttributeError, io.UnsupportedOperation):  # in memory
            self._stream.write(str(block, self._encoding))
            self._stream.flush()
            return len(block)
        # Not with the stream's methods: the interpreter aborts if it ends while a daemon
        # thread holds the lock of standard output.
        return os.write(descriptor, block)

    def _advance(self, size: int) -> None:
        with self._changed:
            self._block = self._block[size:]
            self._written += size
            self._stalled = False
            if self._dropped:  # say so where they are missing, before the next lines
                record = _record(logging.WARNING, DROPPED, lines=self._dropped)
                if self._add(self._encode(record)):
                    self._dropped = 0
            self._changed.notify_all()


class JsonFormatter(logging.Formatter):
    """One JSON object for each record, with its `extra` as further fields."""

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
    """Time, level, message, and the `extra` as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        clock = _time(record).strftime("%H:%M:%S")
        extras = "".join(f"  {key}={value}" for key, value in _extras(record).items())
        # A value with a line break must not look like another record.
        message = f"{record.getMessage()}{extras}"
        message = "".join(c if c.isprintable() else " " for c in message)
        line = f"{clock} {record.levelname.lower():7} {message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _error_record(message: str) -> logging.LogRecord:
    """A record of the exception that is being handled."""
    return _record(logging.ERROR, message, exc_info=sys.exc_info())


def _record(level: int, message: str, **more: Any) -> logging.LogRecord:
    return logging.makeLogRecord(
        {
            "name": __name__,
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "msg": message,
            **more,
        }
    )


def _time(record: logging.LogRecord) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {k: v for k, v in vars(record).items() if k not in _STANDARD_FIELDS}
