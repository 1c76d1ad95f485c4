# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The one way from the event loop to the TPM.

One call at a time, each in a thread and under a deadline. A call that hangs is
abandoned with its thread (a stopped swtpm blocks an ESAPI call for ever, measured);
the device makes itself a new context before the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from imafs.errors import TpmError
from imafs.tpm import Device

T = TypeVar("T")

#: Seconds after which a TPM call is given up; hardware TPMs extend in tens of ms.
DEADLINE = 20.0


class TpmChannel:
    """Serialises calls on ``device``."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._lock = trio.Lock()
        self._broken = False

    @property
    def broken(self) -> bool:
        """The last call hung or failed; the next one reconnects first."""
        return self._broken

    async def call(self, work: Callable[[], T], *, deadline: float = DEADLINE) -> T:
        """Runs ``work`` in a thread. Raises :class:`TpmError` when it fails or hangs."""
        with trio.move_on_after(deadline):
            async with self._lock:
                try:
                    if self._broken:
                        await trio.to_thread.run_sync(self.device.reconnect, abandon_on_cancel=True)
                        self._broken = False
                    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)
                except TpmError:
                    self._broken = True
                    raise
                except trio.Cancelled:
                    self._broken = True
                    raise
        raise TpmError(f"the TPM did not answer within {deadline:g} s")
