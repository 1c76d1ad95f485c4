# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What the layout securityfs has beside the IMA directory."""

from __future__ import annotations

import errno
import os
import uuid
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from imafs.emulator import sysfs
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.directory import ImaDirectory
from imafs.emulator.emulator import Emulator
from imafs.errors import Refused
from imafs.fuse import session
from imafs.tpm import open_device
from tests.mount.fixtures import Starter
from tests.support import stopped, wait_for
from tests.unit.emulator_fake import FakeDevice

pytestmark = [pytest.mark.mount, pytest.mark.swtpm]

CLASS = ".class-tpm"


def test_the_class_is_found_and_not_listed(start: Starter) -> None:
    daemon = start("--layout", "securityfs", "--banks", "sha1,sha256")
    assert sorted(os.listdir(daemon.mountpoint)) == ["ima", "integrity"]
    assert daemon.mountpoint.stat().st_nlink == 3
    chip = daemon.mountpoint / CLASS / "tpm0"
    assert sorted(os.listdir(chip)) == ["pcr-sha1", "pcr-sha256", "tpm_version_major"]
    assert sorted(map(int, os.listdir(chip / "pcr-sha1"))) == list(range(24))
    for bank, index in (("sha1", 10), ("sha256", 10), ("sha256", 23)):
        text = (chip / f"pcr-{bank}" / str(index)).read_text()
        assert text == daemon.pcr(bank, index).hex().upper() + "\n"


def test_the_ima_directory_alone_has_it_unlisted_too(start: Starter) -> None:
    daemon = start("--banks", "sha256")
    assert not [name for name in os.listdir(daemon.mountpoint) if name.startswith((".", "tpm"))]
    value = (daemon.mountpoint / CLASS / "tpm0/pcr-sha256/10").read_text()
    assert bytes.fromhex(value) == daemon.pcr("sha256")


def test_every_kernel_has_a_boot_id_of_its_own(start: Starter) -> None:
    daemon = start()
    seen = [(daemon.mountpoint / ".boot_id").read_text()]
    for op in ("kexec_execute", "reboot", "reset"):
        daemon.call(op)
        assert (daemon.mountpoint / ".boot_id").read_text() == (
            daemon.mountpoint / ".boot_id"
        ).read_text()
        seen.append((daemon.mountpoint / ".boot_id").read_text())
    assert len(set(seen)) == 4
    assert all(f"{uuid.UUID(text.strip())}\n" == text for text in seen)


def test_a_read_from_the_start_is_a_fresh_value(start: Starter) -> None:
    """One descriptor, as sysfs: pread at 0 asks the TPM anew, reads behind it go on."""
    daemon = start("--layout", "securityfs")
    descriptor = os.open(daemon.mountpoint / CLASS / "tpm0/pcr-sha1/10", os.O_RDONLY)
    try:
        first = os.read(descriptor, 10)
        daemon.generate(1)
        rest = os.read(descriptor, 100)
        second = os.pread(descriptor, 100, 0)
        assert len(first + rest) == len(second) == 41
        assert first + rest != second
        assert bytes.fromhex(second.decode()) == daemon.pcr("sha1")
        assert os.read(descriptor, 100) == b""
    finally:
        os.close(descriptor)


def test_the_boot_log(start: Starter, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(bytes(range(256)) * 100)
    daemon = start("--layout", "securityfs", "--bios-log", log)
    served = daemon.mountpoint / "tpm0" / "binary_bios_measurements"
    assert served.read_bytes() == log.read_bytes()
    assert (served.stat().st_mode & 0o777, served.stat().st_size) == (0o440, 0)
    with served.open("rb", buffering=0) as reader, pytest.raises(OSError, match="Invalid argument"):
        reader.seek(0, os.SEEK_END)
    assert (daemon.mountpoint / "tpm0").stat().st_mode & 0o777 == 0o755
    true = start("--layout", "securityfs", "--bios-log", log, "--st-size", "actual")
    assert (true.mountpoint / "tpm0" / "binary_bios_measurements").stat().st_size == 25600


def test_a_boot_log_needs_securityfs(start: Starter, tmp_path: Path) -> None:
    status, text = start.refused("--bios-log", tmp_path / "x")
    assert status == 2
    assert "--layout securityfs" in text


def test_a_hanging_tpm_fails_the_read(start: Starter) -> None:
    """EIO within seconds, by each reader; the lists go on, and so does the file later."""
    daemon = start("--layout", "securityfs")
    file = daemon.mountpoint / CLASS / "tpm0/pcr-sha256/10"
    before = file.read_text()
    descriptor = os.open(file, os.O_RDONLY)

    def value() -> str:
        try:
            return os.pread(descriptor, 100, 0).decode()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return ""

    try:
        with stopped(daemon.swtpm()):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.read(descriptor, 100)
            assert (daemon.mountpoint / "ima" / "runtime_measurements_count").read_text() == "1\n"
        assert wait_for(value, 60, "the TPM answers again") == before
    finally:
        os.close(descriptor)


def test_splice_of_a_pcr_is_refused(start: Starter) -> None:
    """Not its page with NULs to the end, nor the value of an hour ago (both were seen)."""
    daemon = start("--layout", "securityfs")
    out, into = os.pipe()
    with (daemon.mountpoint / CLASS / "tpm0/pcr-sha256/10").open("rb", buffering=0) as reader:
        with pytest.raises(OSError, match=r"Invalid argument|Input/output error"):
            os.splice(reader.fileno(), into, 1 << 16, offset_src=0)
        assert len(reader.read(4096)) == 65
    os.close(out)
    os.close(into)


class Busy(Emulator):
    """Its TPM answers when it is told to."""

    def __init__(self) -> None:
        super().__init__(EmulatorConfig(), FakeDevice())
        self.answer = trio.Event()

    async def read_pcr(self, bank: str, pcr: int) -> bytes:
        await self.answer.wait()
        return bytes(32)


async def test_one_reader_too_many_waits_for_the_tpm() -> None:
    """Everybody may read PCRs: there is an end before nobody else is served."""
    emulator = Busy()
    read = next(e.read for e in sysfs.extras(emulator, None) if e.path.endswith("sha256/10"))
    assert read is not None
    async with trio.open_nursery() as nursery:
        for _ in range(sysfs.WAITING):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Refused, match="128 readers wait for the TPM"):
            await read()
        emulator.answer.set()
    assert await read() == b"0" * 64 + b"\n"


async def test_calls_that_wait_keep_nobody_else_waiting(tmp_path: Path) -> None:
    """As many as readers of PCRs may wait: more than pyfuse3 serves at once by itself."""
    answer, waiting = trio.Event(), 0

    async def content() -> bytes:
        nonlocal waiting
        waiting += 1
        await answer.wait()
        return b"x"

    def read() -> None:
        with (tmp_path / "waits").open("rb") as file:
            assert file.read() == b"x"

    def look() -> None:
        assert (tmp_path / "runtime_measurements_count").read_text() == "1\n"

    emulator = Emulator(EmulatorConfig(), open_device("none"))
    await emulator.start()
    extra = sysfs.Extra("waits", 0o444, read=content, length=1)
    limiter = trio.CapacityLimiter(sysfs.WAITING)
    end = session.End(lambda: None)
    async with (
        session.mounted(ImaDirectory(emulator, "ima", [extra]), str(tmp_path), end),
        trio.open_nursery() as nursery,
    ):
        for _ in range(sysfs.WAITING):
            nursery.start_soon(partial(trio.to_thread.run_sync, read, limiter=limiter))
        try:
            with trio.fail_after(60):
                while waiting < sysfs.WAITING:
                    await trio.sleep(0.01)
            await trio.to_thread.run_sync(look)
        finally:
            answer.set()
