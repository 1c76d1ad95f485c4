# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Logging of the daemon: one line per matter, to stderr, the journal or a file.

Who logs a name shows it (:mod:`imafs.text`); here whole messages are, so that a place which
forgot cannot forge a line.
"""

from __future__ import annotations

import logging
import os
import sys
from types import TracebackType
from typing import Any, TextIO

from imafs import disk
from imafs.host import ownership
from imafs.text import lines_shown, shown

#: Characters of a message; a journal cuts a line at some 48,000 bytes, and not in its middle.
_LONGEST = 8192
#: Before each line of a traceback: none of them begins as a line of the log does.
_INDENT = "  "

#: syslog(3) priorities that journald takes from the front of a line.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


class OneLine(logging.Formatter):
    """A message is one line, whatever is in it; a traceback behind it is indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = shown(record.message, _LONGEST)
        return super().formatMessage(record)

    def formatException(
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None]
        | tuple[None, None, None],
    ) -> str:
        return lines_shown(super().formatException(ei), _INDENT)

    def formatStack(self, stack_info: str) -> str:
        return lines_shown(super().formatStack(stack_info), _INDENT)


class _Journal(OneLine):
    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITIES.get(record.levelno, 3)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


class LogFile(logging.StreamHandler[TextIO]):
    """Lines into an open file. What a full disk takes no room for is counted, and told in the
    file when there is room again; stderr may be nobody's."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(os.fdopen(descriptor, "w"))
        self._lines = disk.Lines(self.stream.fileno())
        self._missing = 0

    def close(self) -> None:
        """Closes the file, too."""
        super().close()
        self.stream.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record, after what is to be said of earlier ones."""
        if self._missing:
            lines = "1 line is" if self._missing == 1 else f"{self._missing} lines are"
            text = f"{lines} missing here: there was no room for more"
            told = logging.makeLogRecord(record.__dict__ | {"msg": text, "args": None})
            told.levelno, told.levelname = logging.WARNING, "WARNING"
            told.exc_info = told.exc_text = told.stack_info = None
            if not self._write(told):
                self._missing += 1
                return
        self._missing = 0 if self._write(record) else 1

    def _write(self, record: logging.LogRecord) -> bool:
        data = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        _, code = self._lines.append(data)
        return not code


#: Least severe lines that are logged, by the words of --log-level.
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(log_file: str | None, level: str = "info") -> TextIO:
    """Sets up the root logger once, before anything else starts; where its lines go.

    ``level``: the least severe ones, of :data:`LEVELS`. Raises
    :class:`imafs.errors.UsageError` where the file cannot be written.
    """
    if log_file is not None:
        descriptor = ownership.log_file(log_file, "--log-file")
        handler: logging.StreamHandler[Any] = LogFile(descriptor)
        handler.setFormatter(OneLine("%(asctime)s imafs: %(levelname)s: %(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        journal = "JOURNAL_STREAM" in os.environ
        handler.setFormatter(
            _Journal("%(message)s") if journal else OneLine("imafs: %(levelname)s: %(message)s")
        )
    logging.basicConfig(level=LEVELS[level], handlers=[handler], force=True)
    stream: TextIO = handler.stream
    return stream
