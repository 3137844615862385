"""How log lines are written: text for people, JSON for programs; a line cannot be forged by what it tells."""

import json
import logging
import sys
import time
from typing import Any

from service.settings import Settings

# Line breaks and whatever else moves a terminal's cursor (C0, DEL, C1, the Unicode separators).
ESCAPED = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
ESCAPED |= {code: f"\\u{code:04x}" for code in (0x2028, 0x2029)}


def set_up(settings: Settings, worker: int | None = None) -> None:
    """Write this process's log to standard error; a worker's lines name it."""
    # Where a line comes from is not told, and not found out: https://docs.python.org/3/howto/logging.html#optimization
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(worker) if settings.log_format == "json" else TextLines(worker))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    # Pillow tells what files hold, names among it, and calls errors what clients send.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


class TextLines(logging.Formatter):
    """One line a record; a traceback follows it, each of its lines indented."""

    def __init__(self, worker: int | None) -> None:
        named = "" if worker is None else f"worker {worker} "
        super().__init__(f"%(levelname)s {named}%(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line itself."""
        return super().formatMessage(record).translate(ESCAPED)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """What follows it."""
        lines = super().formatException(ei).splitlines()
        return "\n".join(f"    {line.translate(ESCAPED)}" for line in lines)


class JsonLines(logging.Formatter):
    """One object a record: time, level, logger, message, and what the record's `fields` give."""

    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """ASCII throughout, so that no reader of lines sees more of them than were written."""
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told = {
            "time": f"{second}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._worker,
        }
        fields = getattr(record, "fields", None)
        told |= fields() if fields is not None else {"message": record.getMessage()}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)
