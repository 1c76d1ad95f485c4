# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What goes wrong on purpose: faults of clients' calls, and who listens to these calls.

The one place between the FUSE shell and what a call does. Nothing is asked for in a
normal life: then :attr:`Trouble.active` is false and a call goes its way without this.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from imafs.interface.grammar import Operation
from imafs.scenarios.events import REQUESTS
from imafs.scenarios.faults import Faults

T = TypeVar("T")


class Listener(Protocol):
    """A scenario. The client's call waits while it does what is due."""

    async def happened(
        self, event: str, names: Sequence[str], *, writing: bool | None = None
    ) -> None:
        """An event of :data:`imafs.scenarios.events.EVENTS` on a file of these names.

        Returns without giving a turn away where nothing is due: opens and releases are
        then counted in the order in which they came.
        """

    def added(self, total: int) -> None:
        """So many records were added since the boot."""


class Trouble:
    """Faults and a listener around every call on an open file."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.listener: Listener | None = None

    @property
    def active(self) -> bool:
        """Whether calls must come through :meth:`around`."""
        return self.listener is not None or bool(self.faults)

    async def around(
        self,
        operation: str,
        names: Sequence[str],
        act: Callable[[], Awaitable[T]],
        *,
        writing: bool | None = None,
        request: Operation | None = None,
    ) -> T:
        """What ``await act()`` returns, in between what is due before it and after it.

        ``request`` is what a write asks for. Raises what ``act`` raises, and
        :class:`imafs.errors.Refused` where a fault is due.
        """
        whats = [operation]
        if request is not None:
            whats.append(REQUESTS[request])
        await self._tell("before", whats, names, writing)
        try:
            self.faults.check(operation, names, writing=writing)
            result = await act()
        except Exception:
            await self._tell("refused", whats, names, writing)
            raise
        if operation == "read" and not result:
            whats.append("end")
        await self._tell("after", whats, names, writing)
        return result

    async def closed(self, names: Sequence[str]) -> None:
        """The last reference of an open file is gone."""
        await self._tell("after", ["close"], names, None)

    async def _tell(
        self, phase: str, whats: Sequence[str], names: Sequence[str], writing: bool | None
    ) -> None:
        for what in whats:
            if self.listener is not None:
                await self.listener.happened(f"{phase} {what}", names, writing=writing)
