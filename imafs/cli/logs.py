# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Logging of the daemon: one line per matter, to stderr, the journal or a file."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, TextIO

from imafs.errors import UsageError

#: syslog(3) priorities that journald takes from the front of a line.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


class _Journal(logging.Formatter):
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
        handler.setFormatter(logging.Formatter("%(asctime)s imafs: %(levelname)s: %(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        journal = "JOURNAL_STREAM" in os.environ
        handler.setFormatter(
            _Journal("%(message)s")
            if journal
            else logging.Formatter("imafs: %(levelname)s: %(message)s")
        )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    stream: TextIO = handler.stream
    return stream
