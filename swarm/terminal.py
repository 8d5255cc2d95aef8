"""What a command says while it runs: for people on stderr, or for programs as one JSON object a line on stdout."""

import json
import logging
import os
import sys
import unicodedata
from collections.abc import MutableMapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

__all__ = ["LogFormat", "emit", "plain", "quiet_libraries", "setup_logging"]

_HANDLER = "swarm.terminal"  # the name of our handler on the root logger, so that a second set-up replaces it
_LEVELS = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}  # hivemind renames levels globally
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories: controls, formats, line separators


class LogFormat(StrEnum):
    """For `--log-format`."""

    PRETTY = "pretty"
    JSON = "json"


def setup_logging(
    format: LogFormat = LogFormat.PRETTY,  # noqa: A002 (the option's name)
    *,
    debug: bool = False,
    console: Console | None = None,
) -> None:
    """Send the log of this process to the terminal. Call it once, at the edge, before heavy imports. `console`: where
    the pretty log goes, for commands that draw there as well; stderr otherwise."""
    quiet_libraries(os.environ)
    handler = _json_handler() if format is LogFormat.JSON else _pretty_handler(console or Console(stderr=True))
    handler.set_name(_HANDLER)
    root = logging.getLogger()
    for old in [h for h in root.handlers if h.get_name() == _HANDLER]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    for name in ("asyncio", "httpcore2", "httpx2", "filelock", "urllib3", "huggingface_hub", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


def quiet_libraries(environ: MutableMapping[str, str]) -> None:
    """Ask the libraries that set up logging of their own for errors only, in this process and those it starts. They
    read these variables when they are imported; whoever has set one keeps it."""
    environ.setdefault("HIVEMIND_LOGLEVEL", "ERROR")
    environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def emit(event: str, **fields: Any) -> None:
    """Say that something happened which programs wait for. `fields` hold what JSON can hold; the names `time`, `level`
    and `logger` are taken."""
    logging.getLogger("swarm").info(event, extra={"fields": fields})


def plain(text: str, limit: int = 2000) -> str:
    """`text` from a stranger, safe to print on one line: nothing that moves the cursor, changes colours or reorders."""
    spaced = " ".join(text.split())
    shown = "".join("\ufffd" if unicodedata.category(char) in _UNPRINTABLE else char for char in spaced[:limit])
    return shown + "…" if len(spaced) > limit else shown


def _pretty_handler(console: Console) -> logging.Handler:
    if not console.is_terminal:  # a file, a journal: each has its own width, so lines stay whole
        lines = logging.StreamHandler(console.file)
        lines.setFormatter(_LineFormatter(datefmt="%X"))
        return lines
    handler = RichHandler(
        console=console, show_path=False, omit_repeated_times=False, markup=False, log_time_format="%X"
    )
    handler.setFormatter(_PrettyFormatter())
    return handler


class _PrettyFormatter(logging.Formatter):
    """Messages quote what strangers sent: they are made plain here, once, for every logger. Tracebacks keep lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        fields = getattr(record, "fields", {})
        parts = [record.getMessage(), *(f"{key}={_short(value)}" for key, value in fields.items())]
        return plain(" ".join(parts))


def _short(value: Any) -> str:
    return value if isinstance(value, str) and value and " " not in value else json.dumps(value, default=str)


class _LineFormatter(_PrettyFormatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        level = _LEVELS.get(record.levelno, str(record.levelno)).upper()
        return f"{self.formatTime(record, self.datefmt)} {level:<8} {super().formatMessage(record)}"


class _JsonHandler(logging.StreamHandler[Any]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """A reader that went away must not fill stderr with tracebacks: the rest goes nowhere, as it wished."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            logging.getLogger().removeHandler(self)
        else:
            super().handleError(record)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": _LEVELS.get(record.levelno, str(record.levelno)),
            "logger": record.name,
            "message" if fields is None else "event": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({**line, **{k: v for k, v in (fields or {}).items() if k not in line}}, default=str)


def _json_handler() -> logging.Handler:
    handler = _JsonHandler(sys.stdout)
    handler.setFormatter(_JsonFormatter())
    return handler
