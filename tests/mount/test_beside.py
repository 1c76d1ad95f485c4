# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What the layout securityfs has beside the IMA directory."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from tests.mount.fixtures import Starter

pytestmark = [pytest.mark.mount, pytest.mark.swtpm]

CLASS = ".class-tpm"


def test_the_class_is_found_and_not_listed(start: Starter) -> None:
    daemon = start("--layout", "securityfs", "--banks", "sha1,sha256")
    assert sorted(os.listdir(daemon.dir)) == ["ima", "integrity"]
    assert daemon.dir.stat().st_nlink == 3
    chip = daemon.dir / CLASS / "tpm0"
    assert sorted(os.listdir(chip)) == ["pcr-sha1", "pcr-sha256", "tpm_version_major"]
    assert sorted(map(int, os.listdir(chip / "pcr-sha1"))) == list(range(24))
    for bank, index in (("sha1", 10), ("sha256", 10), ("sha256", 23)):
        text = (chip / f"pcr-{bank}" / str(index)).read_text()
        assert text == daemon.pcr(bank, index).hex().upper() + "\n"


def test_a_layout_without(start: Starter) -> None:
    daemon = start()
    assert not (daemon.dir / CLASS).exists()


def test_a_read_from_the_start_is_a_fresh_value(start: Starter) -> None:
    """One descriptor, as sysfs: pread at 0 asks the TPM anew, reads behind it go on."""
    daemon = start("--layout", "securityfs")
    descriptor = os.open(daemon.dir / CLASS / "tpm0/pcr-sha1/10", os.O_RDONLY)
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
    served = daemon.dir / "tpm0" / "binary_bios_measurements"
    assert served.read_bytes() == log.read_bytes()
    assert (served.stat().st_mode & 0o777, served.stat().st_size) == (0o440, 0)
    with served.open("rb", buffering=0) as reader, pytest.raises(OSError, match="Invalid argument"):
        reader.seek(0, os.SEEK_END)
    assert (daemon.dir / "tpm0").stat().st_mode & 0o777 == 0o755
    true = start("--layout", "securityfs", "--bios-log", log, "--st-size", "actual")
    assert (true.dir / "tpm0" / "binary_bios_measurements").stat().st_size == 25600


def test_a_boot_log_needs_securityfs(start: Starter, tmp_path: Path) -> None:
    status, text = start.refused("--bios-log", tmp_path / "x")
    assert status == 2
    assert "--layout securityfs" in text


def test_a_hanging_tpm_fails_the_read(start: Starter) -> None:
    """EIO within seconds, by each reader; the lists go on, and so does the file later."""
    daemon = start("--layout", "securityfs")
    file = daemon.dir / CLASS / "tpm0/pcr-sha256/10"
    before = file.read_text()
    os.kill(daemon.swtpm(), signal.SIGSTOP)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.read(descriptor, 100)
        assert (daemon.dir / "ima" / "runtime_measurements_count").read_text() == "1\n"
        os.kill(daemon.swtpm(), signal.SIGCONT)
        assert os.pread(descriptor, 100, 0).decode() == before
    finally:
        os.close(descriptor)
