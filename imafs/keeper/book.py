# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The journal's file and the ledger, which say the same at any time. Blocking."""

from __future__ import annotations

import errno
import logging

from imafs.errors import StoreBrokenError
from imafs.keeper import files as files_
from imafs.keeper import journal
from imafs.keeper.facts import Anchor, Frame, Gap
from imafs.keeper.files import Files
from imafs.keeper.ledger import Ledger

log = logging.getLogger(__name__)

JOURNAL = "journal"


def told(files: Files, path: str) -> tuple[Ledger, int]:
    """What a journal's file says, and how many bytes at its end do not count.

    A line at a time: whatever its length, no more of the file than that is in memory. Raises
    OSError and :class:`StoreBrokenError`.
    """
    ledger, lines, size = Ledger(), journal.Lines(), 0
    for piece in files.pieces(path):
        size += len(piece)
        if size > journal.JOURNAL_MAX:
            raise StoreBrokenError(
                f"journal: more than {journal.JOURNAL_MAX >> 20} MiB, which no keeper writes"
            )
        ledger.read(lines.feed(piece))
    lines.end()
    return ledger, size - lines.good


def _fits(size: int) -> None:
    """Raises OSError (EFBIG) for a journal that would be read by no keeper again."""
    if size > journal.JOURNAL_MAX:
        raise OSError(errno.EFBIG, f"the journal of this life has {size >> 20} MiB: no more fits")


class Book:
    """``head`` is the hash of the last line. The file is ours from :meth:`rewrite` on."""

    def __init__(self, files: Files, directory: str, ledger: Ledger) -> None:
        self._files = files
        self._directory = directory
        self._path = f"{directory}/{JOURNAL}"
        self.ledger = ledger
        self.head = journal.GENESIS
        self._descriptor: int | None = None
        self._size = 0

    def tell(self, item: Frame | Anchor | Gap | int, *, sync: bool = True) -> None:
        """A line more, in the file and in the ledger. Raises OSError: in neither.

        A file whose write or sync failed is never written to again: a whole new one takes its
        place, or what was to be told is not.
        """
        if self._descriptor is not None:
            text = journal.line(journal.body_of(item), self.head)
            _fits(self._size + len(text))
            try:
                self._files.write(self._descriptor, self._size, text)
                if sync:
                    self._files.sync(self._descriptor)
            except OSError as error:
                log.error("%s: %s: written anew", self._path, error.strerror)
                self.close()
            else:
                self.ledger.add(item)
                self._size += len(text)
                self.head = journal.hashed(text)
                return
        ledger = self.ledger.copy()
        ledger.add(item)
        self.rewrite(ledger)

    def rewrite(self, ledger: Ledger) -> None:
        """A file of ``ledger`` in place of the old one. Raises OSError."""
        text, head = ledger.written()
        _fits(len(text))
        files_.replace(self._files, self._directory, JOURNAL, text)
        descriptor = self._files.open(self._path)
        self.close()
        self._descriptor, self._size = descriptor, len(text)
        self.head = head
        self.ledger = ledger

    def close(self) -> None:
        """Lets go of the file."""
        if self._descriptor is not None:
            self._files.close(self._descriptor)
            self._descriptor = None
