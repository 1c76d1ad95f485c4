# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The vTPM proxy without a kernel that has one: what it answers, and where it is refused."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from imafs.errors import TpmError
from imafs.tpm import proxy
from imafs.tpm.proxy import DeviceProxy
from tests.support import ExpectedLogs

COMMAND = bytes.fromhex("8001000000160000017a000000060000010500000001")


class Echo:
    """A link whose TPM answers every command with its own bytes."""

    def __init__(self) -> None:
        self.commands: list[bytes] = []
        self.held = self.dropped = False

    def transact(self, command: bytes | bytearray) -> bytes:
        if self.dropped:
            raise TpmError("the connection was given up")
        self.commands.append(bytes(command))
        assert self.held
        return b"answer to " + command

    @contextmanager
    def hold(self) -> Iterator[None]:
        self.held = True
        yield
        self.held = False

    def drop(self) -> None:
        self.dropped = True


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The kernel's end: instead of /dev/vtpmx, whose ioctl gives this end away."""
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.settimeout(60)
    monkeypatch.setattr(proxy, "VTPMX", "/dev/null")
    packed = struct.pack("=IIIII", 1, 7, ours.detach(), 10, 224)
    asked: list[tuple[int, bytes]] = []

    def ioctl(descriptor: int, request: int, data: bytes) -> bytes:
        asked.append((request, data))
        return packed

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    monkeypatch.setattr(DeviceProxy, "_ready", lambda self: True)
    yield kernel
    assert asked == [(0xC014A100, struct.pack("=IIIII", 1, 0, 0, 0, 0))]
    kernel.close()


def test_commands_go_to_the_tpm_and_its_answers_back(driver: socket.socket) -> None:
    link = Echo()
    device = DeviceProxy(link)
    assert (device.path, device.managed) == ("/dev/tpm7", "/dev/tpmrm7")
    driver.send(COMMAND)
    assert driver.recv(4096) == b"answer to " + COMMAND
    # The driver's own, which no TPM knows.
    driver.send(bytes.fromhex("80010000000b2000100000"))
    assert driver.recv(4096) == bytes.fromhex("80010000000a00000000")
    assert link.commands == [COMMAND]
    device.close()
    assert driver.recv(4096) == b"", "the device is gone"
    assert link.dropped


def test_a_tpm_that_fails_is_one_in_failure_mode(
    driver: socket.socket, expected_logs: ExpectedLogs
) -> None:
    """The driver's clients get an answer, and not silence for two minutes."""
    expected_logs.expect("TPM_RC_FAILURE: the connection was given up")
    link = Echo()
    device = DeviceProxy(link)
    link.dropped = True
    driver.send(COMMAND)
    assert driver.recv(4096) == bytes.fromhex("80010000000a00000101")
    device.close()


def test_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "VTPMX", "/dev/no-such-vtpmx")
    with pytest.raises(TpmError, match=r"--tpm-device: .*modprobe tpm_vtpm_proxy"):
        DeviceProxy(Echo())
    assert not os.path.exists("/dev/tpm7")


class Driver:
    """A kernel that gives a number of devices up before one of them is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, given_up: int) -> None:
        self.ends: list[socket.socket] = []
        self._left = given_up
        monkeypatch.setattr(proxy, "VTPMX", "/dev/null")
        monkeypatch.setattr(fcntl, "ioctl", self._make)
        monkeypatch.setattr(DeviceProxy, "_ready", lambda device: not self._gives_up)

    def _make(self, descriptor: int, request: int, data: bytes) -> bytes:
        kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ends.append(kernel)
        self._gives_up, self._left = self._left > 0, self._left - 1
        if self._gives_up:
            kernel.close()
        return struct.pack("=IIIII", 1, len(self.ends), ours.detach(), 10, 224)


def test_a_device_that_the_driver_gives_up_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the TPM may answer too late, to what the driver asks first."""
    driver = Driver(monkeypatch, 2)
    link = Echo()
    device = DeviceProxy(link)
    assert device.path == "/dev/tpm3"
    driver.ends[2].settimeout(60)
    driver.ends[2].send(COMMAND)
    assert driver.ends[2].recv(4096) == b"answer to " + COMMAND
    assert not link.dropped
    device.close()
    driver.ends[2].close()


def test_a_device_that_the_driver_always_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver(monkeypatch, 99)
    with pytest.raises(TpmError, match=r"the kernel gave /dev/tpm3 up: .* too late; see dmesg"):
        DeviceProxy(Echo())
