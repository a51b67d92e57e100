"""Log lines: JSON for machines, text for a terminal; never what a caller sent."""

import datetime
import json
import logging
import sys
import threading
import time
from typing import Any, TextIO

import orjson

DELAY = 0.1  # seconds that a line may wait
_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


def setup(log_format: str, level: str) -> None:
    """Send all records to stdout, in one format."""
    handler = Lines(sys.stdout)
    text = log_format == "text" or (log_format == "auto" and sys.stdout.isatty())
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # What no line of ours tells need not be found out for each: as the standard
    # library's documentation has it under "Optimization".
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # Its start-up lines say what ours say.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


class Lines(logging.Handler):
    """Writes lines in blocks, a moment later: a system call for each line would
    cost a request a tenth of its time. What is serious is written at once."""

    def __init__(self, stream: TextIO):
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []
        self._some = threading.Event()
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record))
        except Exception:
            self.handleError(record)
            return
        if record.levelno >= logging.WARNING:
            self.flush()
        elif not self._some.is_set():
            if not self._writer.is_alive():
                self._writer.start()
            self._some.set()

    def flush(self) -> None:
        with self.lock or threading.RLock():
            self._some.clear()
            lines, self._lines = self._lines, []
            if lines:
                self._stream.write("\n".join([*lines, ""]))
            self._stream.flush()

    def _write(self) -> None:
        while self._some.wait():
            time.sleep(DELAY)
            self.flush()


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


def _time(record: logging.LogRecord) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {k: v for k, v in vars(record).items() if k not in _ORDINARY}
