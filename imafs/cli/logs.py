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

from imafs.errors import UsageError
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


def configure(log_file: str | None) -> TextIO:
    """Sets up the root logger once, before anything else starts; where its lines go.

    Raises :class:`imafs.errors.UsageError` where the file cannot be written.
    """
    if log_file is not None:
        try:
            handler: logging.StreamHandler[Any] = logging.FileHandler(
                log_file, encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            raise UsageError(f"--log-file {log_file}: {error.strerror}") from None
        handler.setFormatter(OneLine("%(asctime)s imafs: %(levelname)s: %(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        journal = "JOURNAL_STREAM" in os.environ
        handler.setFormatter(
            _Journal("%(message)s") if journal else OneLine("imafs: %(levelname)s: %(message)s")
        )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    stream: TextIO = handler.stream
    return stream
