# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The one way from the event loop to the TPM.

One call at a time, each in a thread and under a deadline. A call that hangs is
abandoned with its thread (a stopped swtpm blocks an ESAPI call for ever, measured);
the device makes itself a new context before the next one.

Abandoned threads are counted, and apart from everybody else's: who asks a TPM that does not
answer again and again would soon hold all threads that there are for hashing files.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TypeVar

import trio

from imafs.errors import TpmError
from imafs.tpm import Device

T = TypeVar("T")

#: Seconds after which a TPM call is given up; hardware TPMs extend in tens of ms.
DEADLINE = 20.0
#: Calls that may hang at once, of each kind.
MOST = 16
#: Seconds until another connection is tried beside one that hangs, doubled with each: it may
#: hang for ever where a network has swallowed its peer, with the TPM there again.
PATIENCE = 60.0
#: Seconds between two looks of a patient caller at the threads that hang.
LOOK = 0.05


class TpmChannel:
    """Serialises calls on ``device``.

    ``answers`` is called when a connection that nobody waits for any more is made after all.
    """

    def __init__(self, device: Device, answers: Callable[[], None] | None = None) -> None:
        self.device = device
        self._answers = answers or _nothing
        self._lock = trio.Lock()
        self._broken = False
        # A token is held until its thread ends, abandoned or not.
        self._calls = trio.CapacityLimiter(MOST)
        self._reconnects = trio.CapacityLimiter(MOST)
        self._tried = -inf

    @property
    def broken(self) -> bool:
        """The last call hung or failed; the next one reconnects first."""
        return self._broken

    async def call(
        self, work: Callable[[], T], *, deadline: float = DEADLINE, patient: bool = False
    ) -> T:
        """Runs ``work`` in a thread. Raises :class:`TpmError` when it fails or hangs.

        At once where connecting hangs already; ``patient`` waits even then, up to the deadline,
        as a boot does: the TPM may be busy with its way out of a hang.
        """
        with trio.move_on_after(deadline):
            async with self._lock:
                try:
                    while patient and self._hopeless():
                        await trio.sleep(LOOK)
                    if self._broken:
                        await self._reconnect()
                        self._broken = False
                    if not self._calls.available_tokens:
                        raise _no_answer()
                    return await trio.to_thread.run_sync(
                        work, abandon_on_cancel=True, limiter=self._calls
                    )
                except TpmError:
                    self._broken = True
                    raise
                except trio.Cancelled:
                    self._broken = True
                    raise
        raise TpmError(f"the TPM did not answer within {deadline:g} s")

    def _hopeless(self) -> bool:
        """Whether a call would be refused without a try."""
        return not self._calls.available_tokens or (self._broken and self._too_early())

    def _too_early(self) -> bool:
        """Whether a connection hangs, and another one beside it is not due yet."""
        hung = self._reconnects.borrowed_tokens
        patience = PATIENCE * 2 ** (hung - 1) if hung else 0.0
        full = not self._reconnects.available_tokens
        return full or trio.current_time() < self._tried + patience

    async def _reconnect(self) -> None:
        if self._too_early():
            raise _no_answer()
        self._tried = trio.current_time()
        waiting = True
        token = trio.lowlevel.current_trio_token()

        def connected() -> None:
            if not waiting:
                self._tried = -inf  # its thread may be counted for a moment yet
                self._answers()

        def connect() -> None:
            self.device.reconnect()
            token.run_sync_soon(connected)

        try:
            await trio.to_thread.run_sync(connect, abandon_on_cancel=True, limiter=self._reconnects)
        finally:
            waiting = False


def _no_answer() -> TpmError:
    return TpmError("the TPM does not answer")


def _nothing() -> None:
    pass
