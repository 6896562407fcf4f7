"""Log lines as JSON objects, with the job that they are about. Called once, by __main__.py."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_NOISY = {"kopf": logging.WARNING, "kopf.objects": logging.ERROR, "aiohttp.access": logging.WARNING}
"""kopf reports every event that a handler took; we report what was done about it."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields of `extra`, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {k: v for k, v in vars(record).items() if k not in _STANDARD and not k.startswith("_")}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str) -> None:
    """Send all logs to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name, least in _NOISY.items():
        logging.getLogger(name).setLevel(max(least, logging.getLogger().level))
