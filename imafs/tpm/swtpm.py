# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A swtpm of our own as a device."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from imafs.errors import TpmError, UsageError
from imafs.formats.algorithms import HashAlgorithm, by_name
from imafs.host import ownership
from imafs.tpm import commands
from imafs.tpm.environment import client_environment
from imafs.tpm.link import Link, SocketLink
from imafs.tpm.real import LinkedDevice, allocation, ensure_started, read_banks, transact
from imafs.tpm.swtpm_process import SwtpmProcess

DEFAULT_BANKS = ("sha1", "sha256", "sha384", "sha512")
"""Banks of a new TPM: those of the kernel which served as reference, and of swtpm 0.7.1."""

_ADMIN_TIMEOUT = 10.0
_LOCK_DEADLINE = 3.0
_STATE_FILE = "tpm2-00.permall"
_LOCK_FILE = "imafs.lock"


def _lock_state(state: Path, stack: ExitStack) -> int:
    """A lock that lasts as long as we *or* the swtpm that inherits it; its descriptor.

    The kernel frees it with the last holder, so a swtpm left behind (should that ever
    happen) is noticed even when its process id has been given to somebody else.
    """
    descriptor = os.open(
        state / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    stack.callback(os.close, descriptor)
    deadline = time.monotonic() + _LOCK_DEADLINE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            # The swtpm of a daemon that was killed this moment may still be dying.
            if time.monotonic() > deadline:
                pid = ""
                with suppress(FileNotFoundError):
                    pid = (state / "swtpm.pid").read_text(encoding="ascii").strip()
                owner = f" by swtpm process {pid}" if pid else ""
                raise TpmError(f"the TPM state directory {state} is in use{owner}") from None
            time.sleep(0.02)


def _temporary_state() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="imafs-tpm-", dir=ownership.temporary())


class SwtpmDevice(LinkedDevice):
    """Our own swtpm (TPM 2.0) on 127.0.0.1.

    ``state_dir`` is created (0700, in a directory that is there) and kept: keys and NV
    indices survive. PCRs do not: a new swtpm is a reboot, and all of IMA's start at zero, as
    on a machine. Without one, a temporary directory that goes with :meth:`close`.

    ``banks``: exactly these are allocated; None: :data:`DEFAULT_BANKS` for a new TPM, what
    the state says for a kept one. Their order is the TPM's, whatever order is asked for.

    ``port``: that of commands, the control channel's is the next; None: ``preferred`` where
    that pair is free, else any that is.
    """

    kind = "swtpm"

    def __init__(
        self,
        *,
        state_dir: Path | None,
        banks: Sequence[HashAlgorithm] | None,
        port: int | None = None,
        preferred: int | None = None,
    ) -> None:
        if banks is not None and not banks:
            raise UsageError("a TPM needs at least one PCR bank")
        for bank in banks or ():
            if bank.tpm_id is None:
                raise UsageError(f"{bank.name} has no TPM algorithm id, so it cannot be a PCR bank")
        with ExitStack() as stack:
            try:
                state = self._prepare(state_dir, stack)
                new = not (state / _STATE_FILE).exists()
                lock = _lock_state(state, stack)
                self.process = SwtpmProcess(state, keep_fds=(lock,), port=port, preferred=preferred)
            except OSError as error:
                raise TpmError(f"the TPM state directory: {error}") from error
            stack.callback(self.process.stop)
            super().__init__(f"swtpm:host=127.0.0.1,port={self.process.port}")
            stack.callback(self._drop_link)
            admin = SocketLink(self.process.port, self.process.verify, timeout=_ADMIN_TIMEOUT)
            wanted = banks if banks is not None else [by_name(n) for n in DEFAULT_BANKS]
            if banks is not None or new:
                self._allocate(admin, [b.tpm_id for b in wanted if b.tpm_id is not None])
            self._set_banks(read_banks(admin))
            self._replace_link()
            if state_dir is not None:
                stack.callback(self._shut_down)
            self._stack = stack.pop_all()

    @staticmethod
    def _prepare(state_dir: Path | None, stack: ExitStack) -> Path:
        if state_dir is None:
            return Path(stack.enter_context(_temporary_state()))
        # Absolute, and swtpm's options are separated by commas.
        state = Path(os.path.abspath(state_dir))
        if "," in str(state):
            raise UsageError(f"swtpm takes no state directory with a comma: {state}")
        if not state.parent.exists():
            # Not made as well: a path that leads nowhere is a slip of the pen.
            raise UsageError(
                f"--tpm-state {state}: there is no directory {state.parent}; make it first"
            )
        ownership.check(os.fspath(state), "--tpm-state")
        state.mkdir(mode=0o700, exist_ok=True)
        # swtpm opens its files by their names.
        ownership.check_own(os.fspath(state), "--tpm-state")
        return state

    def link(self) -> Link:
        """Another connection to this TPM, for somebody else than the daemon's own work."""
        return SocketLink(self.process.port, self.process.verify)

    def _make_link(self) -> Link:
        self.process.verify()
        return SocketLink(self.process.port, self.process.verify)

    def _shut_down(self) -> None:
        # swtpm 0.7.1 does not do it on SIGTERM (measured: TPMA_STARTUP_CLEAR.orderly is clear
        # at the next start), and a TPM may take a disorderly end for an attack on passwords.
        link = SocketLink(self.process.port, self.process.verify, timeout=0.5)
        with suppress(TpmError):  # a dead, stopped or busy swtpm is ended all the same
            link.transact(commands.build_shutdown())

    def _allocate(self, link: Link, wanted: Sequence[int]) -> None:
        present = allocation(link)
        if {i for i, pcrs in present if pcrs} == set(wanted):
            return
        known = {i for i, _ in present}
        for tpm_id in wanted:
            if tpm_id not in known:
                raise TpmError(f"swtpm has no PCR bank for the algorithm {tpm_id:#x}")
        every = range(commands.PCR_COUNT)
        selection = {i: every if i in wanted else () for i in sorted(known)}
        response = transact(link, commands.build_pcr_allocate(selection))
        commands.check(response, "TPM2_PCR_Allocate")
        # The response's parameters: allocationSuccess first.
        if not response[commands.HEADER_SIZE + 4]:
            raise TpmError("swtpm refused the PCR banks")
        self._reboot(link)
        if {i for i, pcrs in allocation(link) if pcrs} != set(wanted):
            raise TpmError("swtpm did not take the PCR banks asked for")

    def _reboot(self, link: Link) -> None:
        # An orderly shutdown, lest the TPM counts this as an attack on its clock and locks.
        commands.check(transact(link, commands.build_shutdown()), "TPM2_Shutdown")
        self.process.power_cycle()
        # Newer swtpm start the TPM by themselves when told so at their own start.
        ensure_started(link)

    def reset(self) -> None:
        """Reboot the TPM through swtpm's control channel; waits 10 s for other clients."""
        self._reboot(SocketLink(self.process.port, self.process.verify, timeout=_ADMIN_TIMEOUT))

    def hang(self) -> None:
        """Stop the process: connections are made and commands taken, but nothing answers."""
        self.process.pause()

    def go_on(self) -> None:
        """Let the process go on."""
        self.process.go_on()

    def close(self) -> None:
        """End swtpm (three seconds at most, when it is stopped) and free the state."""
        self._stack.close()

    def environment(self) -> dict[str, str]:
        """See :class:`imafs.tpm.device.Device`."""
        return client_environment(f"swtpm:host=127.0.0.1,port={self.process.port}")
