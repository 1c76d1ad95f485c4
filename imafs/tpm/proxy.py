# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A character device of the kernel for a TPM of ours: the vTPM proxy (tpm_vtpm_proxy).

The kernel makes ``/dev/tpmN`` and ``/dev/tpmrmN``, the latter with its resource manager, and
hands every command to us; it goes, by a connection of its own, to the swtpm that the daemon and all
other clients use. The devices go with the descriptor, whichever process is killed.

Source: Linux 7.3 include/uapi/linux/vtpm_proxy.h, drivers/char/tpm/tpm_vtpm_proxy.c.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import stat
import struct
import threading
import time
from collections.abc import Callable

from imafs.errors import TpmError
from imafs.host.ratelimit import Ratelimit
from imafs.tpm import commands
from imafs.tpm.link import Link

log = logging.getLogger(__name__)

VTPMX = "/dev/vtpmx"
#: _IOWR(0xa1, 0, struct vtpm_proxy_new_dev): flags, tpm_num, fd, major, minor.
_NEW_DEV = 0xC014A100
_NEW = struct.Struct("=IIIII")
_TPM2 = 1
#: The driver's own: which locality its next commands come from. There is one here.
_SET_LOCALITY = 0x20001000
#: TPM_BUFSIZE of the kernel.
_LARGEST = 4096
#: Seconds within which the kernel's driver has looked at the TPM and made its devices.
_READY = 60.0
#: How often a device is made that the driver gives up at once.
_ATTEMPTS = 3


class _GivenUp(TpmError):
    """The driver does not make devices of this TPM."""


class DeviceProxy:
    """``/dev/tpmN`` for the TPM behind ``link``, until :meth:`close`.

    Raises :class:`TpmError` where this kernel or this user has no vTPM proxy. Blocks until both
    devices are there.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._seldom = Ratelimit(log)
        for left in reversed(range(_ATTEMPTS)):
            self._make()
            try:
                _wait(self._is_there, f"{self.path} does not appear: is /dev a devtmpfs?")
                return
            except _GivenUp:
                self._end()
                if not left:
                    raise
            except TpmError:
                self.close()
                raise

    def _make(self) -> None:
        try:
            control = os.open(VTPMX, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise TpmError(_refusal(error)) from None
        try:
            answer = fcntl.ioctl(control, _NEW_DEV, _NEW.pack(_TPM2, 0, 0, 0, 0))
        except OSError as error:
            raise TpmError(f"{VTPMX}: no device is made: {error.strerror}") from None
        finally:
            os.close(control)
        _, self.number, self._descriptor, self._major, self._minor = _NEW.unpack(answer)
        os.set_inheritable(self._descriptor, False)
        self._wakes, self._wake = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, daemon=True, name="imafs vtpm proxy")
        self._thread.start()

    def _is_there(self) -> bool:
        # What the driver asks first has a deadline of its own, which a busy machine may miss.
        if not self._thread.is_alive():
            raise _GivenUp(f"the kernel gave {self.path} up: the TPM answered too late; see dmesg")
        return self._ready()

    @property
    def path(self) -> str:
        """The device without a resource manager; the other one is ``/dev/tpmrmN``."""
        return f"/dev/tpm{self.number}"

    @property
    def managed(self) -> str:
        """The device with the kernel's resource manager."""
        return f"/dev/tpmrm{self.number}"

    def _ready(self) -> bool:
        try:
            own, managed = os.stat(self.path), os.stat(self.managed)
        except FileNotFoundError:
            return False
        # Not those of another TPM, in a /dev that is no devtmpfs.
        wanted = os.makedev(self._major, self._minor)
        return own.st_rdev == wanted and stat.S_ISCHR(managed.st_mode)

    def close(self) -> None:
        """The devices go; who has them open gets EPIPE."""
        self._link.drop()
        self._end()

    def _end(self) -> None:
        os.close(self._wake)
        # A thread inside a command that hangs keeps the descriptor until it returns.
        self._thread.join(1.0)

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        poller.register(self._wakes, 0)  # POLLHUP comes unasked
        try:
            while not any(found != self._descriptor for found, _ in poller.poll()):
                command = os.read(self._descriptor, _LARGEST)
                if not command:
                    break
                os.write(self._descriptor, self._answer(command))
        except OSError as error:
            # The driver gave the command up, or the device is gone.
            if error.errno not in (errno.EPIPE, errno.EIO):
                log.error("%s: %s", self.path, error.strerror)
        finally:
            os.close(self._descriptor)
            os.close(self._wakes)

    def _answer(self, command: bytes) -> bytes:
        if command[6:10] == struct.pack(">I", _SET_LOCALITY):
            return _response(0)
        try:
            with self._link.hold():
                return self._link.transact(command)
        except TpmError as error:
            line = "%s: a command is answered with TPM_RC_FAILURE: %s"
            self._seldom.say("failed commands", logging.ERROR, line, self.path, error)
            return _response(commands.RC_FAILURE)


def _response(code: int) -> bytes:
    return struct.pack(">HII", commands.ST_NO_SESSIONS, commands.HEADER_SIZE, code)


def _refusal(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"--tpm-device: this kernel has no {VTPMX}: modprobe tpm_vtpm_proxy"
    return f"--tpm-device: {VTPMX}: {error.strerror}: it takes root, outside of a container"


def _wait(condition: Callable[[], bool], complaint: str) -> None:
    deadline = time.monotonic() + _READY
    while not condition():
        if time.monotonic() > deadline:
            raise TpmError(complaint)
        time.sleep(0.01)
