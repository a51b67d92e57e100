"""Log lines: JSON for machines, text for a terminal; never what a caller sent."""

import datetime
import json
import logging
import sys
from typing import Any

import orjson

_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


def setup(log_format: str, level: str) -> None:
    """Send all records to stdout, in one format."""
    handler = logging.StreamHandler(sys.stdout)
    text = log_format == "text" or (log_format == "auto" and sys.stdout.isatty())
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Its start-up lines say what ours say.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


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
        time = _time(record).strftime("%H:%M:%S")
        extras = "".join(f"  {key}={value}" for key, value in _extras(record).items())
        # A line break would let a value pass for another record.
        message = f"{record.getMessage()}{extras}"
        message = "".join(c if c.isprintable() else " " for c in message)
        line = f"{time} {record.levelname.lower():7} {message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _time(record: logging.LogRecord) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(record.created, datetime.UTC)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {k: v for k, v in vars(record).items() if k not in _ORDINARY}
