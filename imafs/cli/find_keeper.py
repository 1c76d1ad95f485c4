# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which keeper shows an IMA directory, and what it says of the list in it."""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imafs.errors import ControlError, FileError, GapError, Refused

if TYPE_CHECKING:
    from imafs.attest.gather import Kept
    from imafs.host.mounts import Mount


#: Of systemd/imafs-keeper.service.
_ACCOUNT = "imafs"


@dataclass(frozen=True, slots=True)
class Keeper:
    """The keeper that stores in ``store``. All methods raise :class:`ControlError`."""

    store: str
    uid: int

    def source(self) -> str:
        """The directory of the kernel, or of the emulator, that it keeps."""
        found = self._status().get("source")
        if not isinstance(found, str):
            raise self._strange()
        return found

    def kept(self) -> Kept:
        """The life that its view shows now, and what is wrong with it."""
        from imafs.attest.bundle import Gap
        from imafs.attest.gather import Kept

        status = self._status()
        try:
            boots = tuple(status["boots"])
            return Kept(
                life=f"{status['life']:06d}-{boots[0]}" if boots else None,
                boot_ids=boots,
                gaps=tuple(Gap(row["after"], row["records"]) for row in status["gaps"]),
                diverged=tuple(status["diverged"]),
                resets=tuple(status["resets"]),
            )
        except (KeyError, TypeError, ValueError):
            raise self._strange() from None

    def tell_if_refused(self) -> None:
        """Raises :class:`GapError`, or :class:`Refused` where records are not the reason: EIO alone
        says nothing to people."""
        status = self._status()
        if (refusal := status.get("refusal")) is not None:
            text = f"the keeper refuses its view: {refusal}"
            raise GapError(text) if status.get("gaps") else Refused(errno.EIO, text)

    def _status(self) -> Mapping[str, Any]:
        from imafs.keeper.status import ask

        return ask(self.store, "status", self.uid)

    def _strange(self) -> ControlError:
        return ControlError(f"the keeper of {self.store} is of another version: restart it")


def of_place(path: str) -> Keeper | None:
    """The keeper on whose view ``path`` lies; None where it lies on none.

    Raises :class:`ControlError` where it lies on one whose keeper this user cannot see.
    """
    view = _view_of(path)
    if view is None:
        return None
    keeper = _of_view(view)
    if keeper is None:
        raise ControlError(f"{path}: its keeper is dead, or another user's")
    return keeper


def _view_of(path: str) -> Mount | None:
    """The view of a keeper on which ``path`` lies: nothing else is mounted over it there."""
    from imafs.host import mounts

    mount = mounts.above(path)
    return mount if mount is not None and mount.kept else None


def tell_if_kept(path: str, error: OSError | FileError) -> None:
    """Raises what a keeper has to do with ``error`` of ``path``, a directory of lists or a file of
    one; the bare errno says nothing to people.

    EBUSY, where it has the lists open: :class:`Refused`, which names the view. On its view: EIO,
    where it refuses that, as :meth:`Keeper.tell_if_refused`, and ENOTCONN, where it is dead,
    :class:`ControlError`.
    """
    if error.errno == errno.EBUSY:
        _tell_of_view(path)
    elif error.errno == errno.ENOTCONN and _view_of(path) is not None:
        raise ControlError(f"{path}: the keeper that shows it has ended; start it again")
    elif error.errno == errno.EIO:
        view = _view_of(path)
        keeper = None if view is None else _of_view(view)
        if keeper is not None:
            keeper.tell_if_refused()


def _tell_of_view(path: str) -> None:
    from imafs.host import mounts

    real = mounts.resolve(path)
    for view in _views():
        keeper = _of_view(view)
        if keeper is None:
            continue
        try:
            source = mounts.resolve(keeper.source())
        except ControlError:
            continue  # it has ended, or is not ours to ask: the error stays as it is
        if source in (real, os.path.dirname(real)):
            raise Refused(
                errno.EBUSY,
                f"{path}: {os.strerror(errno.EBUSY)}: a keeper has it open and deletes from it; "
                f"the whole list is in {view.path}",
            )


def _views() -> list[Mount]:
    """The views of keepers, the innermost first."""
    from imafs.host import mounts

    views = [mount for mount in mounts.mounts() if mount.kept]
    return sorted(views, key=lambda mount: len(mount.path), reverse=True)


def _believed() -> set[int]:
    """Whose keepers are asked: root's and this user's; root's own question also goes to the account
    that the unit runs under."""
    found = {0, os.geteuid()}
    if os.geteuid() == 0:
        with suppress(KeyError):
            found.add(pwd.getpwnam(_ACCOUNT).pw_uid)
    return found


def _of_view(view: Mount) -> Keeper | None:
    """Its keeper, None for a dead one, and for one that this user cannot ask."""
    from imafs.control import paths
    from imafs.host import mounts
    from imafs.keeper.status import SOCKET

    # Only root and the keeper's own user can ask it.
    ours = view.owner in _believed()
    pid = mounts.holder(view) if ours else None
    sockets = [] if pid is None else paths.of_process(pid)
    stores = [str(socket.parent) for socket in sockets if socket.name == SOCKET]
    return Keeper(stores[0], view.owner or 0) if stores else None
