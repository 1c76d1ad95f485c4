# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The journal's file and the ledger, which say the same at any time. Blocking."""

from __future__ import annotations

import logging

from imafs.keeper import files as files_
from imafs.keeper import journal
from imafs.keeper.facts import Anchor, Frame, Gap
from imafs.keeper.files import Files
from imafs.keeper.ledger import Ledger

log = logging.getLogger(__name__)

JOURNAL = "journal"


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
        text = ledger.written()
        files_.replace(self._files, self._directory, JOURNAL, text)
        descriptor = self._files.open(self._path)
        self.close()
        self._descriptor, self._size = descriptor, len(text)
        self.head = journal.chain(text).head
        self.ledger = ledger

    def close(self) -> None:
        """Lets go of the file."""
        if self._descriptor is not None:
            self._files.close(self._descriptor)
            self._descriptor = None
