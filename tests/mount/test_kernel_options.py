# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The options that say which kernel is played."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from imafs.errors import Refused
from imafs.formats.templates import TEMPLATES
from imafs.host import mounts
from tests.mount.daemon import ASCII, BINARY, COUNT, Daemon
from tests.mount.fixtures import Starter
from tests.mount.fixtures import booted as booted
from tests.property.reference import replay

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

BANKS = ("sha1", "sha256", "sha384", "sha512")
TAIL = [COUNT, "policy", "violations"]


def write(path: Path, request: bytes) -> str:
    """ok, or the errno of open or write."""
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except OSError as error:
        return f"open {errno.errorcode[error.errno or 0]}"
    try:
        assert os.write(descriptor, request) == len(request)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        os.close(descriptor)
    return "ok"


def fill(daemon: Daemon, tmp_path: Path) -> None:
    """One record of each kind."""
    file = tmp_path / "a file"
    file.write_text("content\n")
    daemon.call("measure", paths=[str(file)])
    # The field d has room for nothing longer than SHA-1.
    daemon.call("measure", digest="sha1:" + "ab" * 20, name="/by/digest")
    daemon.call("violation", name="/violated")
    daemon.call("critical_data", label="l", name="critical", data="00ff10")
    daemon.generate(3)


def assert_tpm(daemon: Daemon, index: int = 10, banks: tuple[str, ...] = BANKS) -> None:
    """Each bank's list replays to the PCR that another client reads."""
    for bank in banks:
        shown = daemon.read(f"{ASCII}_{bank}")
        assert replay(shown, bank, index) == daemon.pcr(bank, index), bank


def test_layout_ima_is_the_default(daemon: Daemon) -> None:
    assert sorted(os.listdir(daemon.dir))[-3:] == ["policy", COUNT, "violations"]


def test_layout_securityfs(start: Starter) -> None:
    daemon = start("--layout", "securityfs")
    assert os.listdir(daemon.mountpoint) == ["ima", "integrity"]
    assert os.readlink(daemon.mountpoint / "ima") == "integrity/ima"
    assert stat.S_IMODE(os.lstat(daemon.mountpoint / "ima").st_mode) == 0o444
    assert os.listdir(daemon.mountpoint / "integrity") == ["ima"]
    for directory, links in (("", 3), ("integrity", 3), ("integrity/ima", 2)):
        info = (daemon.mountpoint / directory).stat()
        assert (stat.S_IMODE(info.st_mode), info.st_nlink) == (0o755, links)
    mount = mounts.top(str(daemon.mountpoint))
    assert mount is not None
    assert mount.source == "securityfs"
    line = next(
        x for x in Path("/proc/mounts").read_text().splitlines() if str(daemon.mountpoint) in x
    )
    assert line.startswith(f"securityfs {daemon.mountpoint} fuse.imafs rw,nosuid,nodev")
    through_link = (daemon.mountpoint / "ima" / ASCII).read_bytes()
    assert through_link == (daemon.mountpoint / "integrity/ima" / ASCII).read_bytes() != b""
    assert write(daemon.mountpoint / "ima" / f"{ASCII}_staged", b"A\n") == "ok"
    # ".." of the IMA directory is integrity, by whichever way.
    assert os.path.samefile(daemon.mountpoint / "ima" / "..", daemon.mountpoint / "integrity")


@pytest.mark.parametrize("profile", ["legacy", "7.1"])
def test_profile_legacy(start: Starter, profile: str) -> None:
    """Before 7.2: 0440, no staged files, no counting of opens, no write method."""
    daemon = start("--profile", profile)
    names = [f"{form}_{bank}" for form in (ASCII, BINARY) for bank in BANKS]
    assert sorted(os.listdir(daemon.dir)) == sorted([*names, ASCII, BINARY, *TAIL])
    assert {stat.S_IMODE(daemon.path(n).stat().st_mode) for n in names} == {0o440}
    with daemon.path(BINARY).open("rb"):
        # Root opens for writing (CAP_DAC_OVERRIDE) and is refused by the missing method.
        assert write(daemon.path(BINARY), b"1\n") == "EINVAL"
    daemon.generate(5)
    assert daemon.count() == 6
    assert_tpm(daemon)


def test_profile_6_1(start: Starter) -> None:
    """Before 6.10: one SHA-1 file per form, no links; padded banks as Debian's kernel."""
    daemon = start("--profile", "6.1", "--padded-banks", "sha384,sha512")
    assert sorted(os.listdir(daemon.dir)) == sorted([ASCII, BINARY, *TAIL])
    assert not daemon.path(ASCII).is_symlink()
    assert stat.S_IMODE(daemon.path(ASCII).stat().st_mode) == 0o440
    assert stat.S_IMODE(daemon.path("policy").stat().st_mode) == 0o200
    assert write(daemon.path(BINARY), b"A\n") == "EINVAL"
    daemon.generate(3)
    sha1 = daemon.read(ASCII)
    assert replay(sha1, "sha1") == daemon.pcr("sha1")
    value = bytes(48)
    for line in sha1.splitlines():
        padded = bytes.fromhex(line.split()[1].decode()) + bytes(28)
        value = hashlib.sha384(value + padded).digest()
    assert daemon.pcr("sha384") == value


def test_padded_banks(start: Starter) -> None:
    daemon = start("--padded-banks", "sha384,sha512")
    daemon.generate(5)
    sha1 = [line.split() for line in daemon.read(f"{ASCII}_sha1").splitlines()]
    for bank, size in (("sha384", 48), ("sha512", 64)):
        for one, padded in zip(sha1, daemon.read(f"{ASCII}_{bank}").splitlines(), strict=True):
            digest = padded.split()[1]
            assert digest == one[1] + b"00" * (size - 20)
    assert_tpm(daemon)


def test_no_staging(start: Starter) -> None:
    """CONFIG_IMA_STAGING=n: no staged files, N on the originals all the same."""
    daemon = start("--no-staging")
    daemon.generate(9)
    assert not [name for name in os.listdir(daemon.dir) if "staged" in name]
    assert write(daemon.path(BINARY), b"A\n") == "EINVAL"
    assert write(daemon.path(BINARY), b"4\n") == "ok"
    assert daemon.count() == 6


def test_duplicates_by_default(daemon: Daemon) -> None:
    """The table outlives A, D and N: what was measured once never comes back."""
    daemon.generate(3)
    assert daemon.call("repeat")["duplicate"] is True
    assert write(daemon.path(f"{BINARY}_staged"), b"A\n") == "ok"
    assert daemon.call("repeat")["duplicate"] is True
    daemon.call("measure", digest="sha256:" + "01" * 32, name="/x")
    assert write(daemon.path(f"{BINARY}_staged"), b"D\n") == "ok"
    assert write(daemon.path(BINARY), b"1\n") == "ok"
    again = daemon.call("measure", digest="sha256:" + "01" * 32, name="/x")
    assert again["measured"][0]["duplicate"] is True  # type: ignore[index]
    assert daemon.count() == 0


def test_flush_htable(start: Starter) -> None:
    """ima_flush_htable: N is EINVAL, D forgets what was measured."""
    daemon = start("--flush-htable")
    daemon.generate(3)
    assert write(daemon.path(BINARY), b"1\n") == "EINVAL"
    assert daemon.call("repeat")["duplicate"] is True
    daemon.call("measure", digest="sha256:" + "01" * 32, name="/x")
    for request in (b"A\n", b"D\n"):
        assert write(daemon.path(f"{BINARY}_staged"), request) == "ok"
    again = daemon.call("measure", digest="sha256:" + "01" * 32, name="/x")
    assert again["measured"][0]["duplicate"] is False  # type: ignore[index]
    assert daemon.count() == 1
    daemon.assert_replays()


def test_disable_htable(start: Starter) -> None:
    """CONFIG_IMA_DISABLE_HTABLE: every measurement is a record; flushing is ignored."""
    daemon = start("--disable-htable", "--flush-htable")
    assert daemon.call("repeat")["duplicate"] is False
    assert daemon.call("repeat")["duplicate"] is False
    assert daemon.count() == 3
    assert write(daemon.path(BINARY), b"1\n") == "ok"
    daemon.assert_replays()


@pytest.mark.parametrize("name", ["sha1", "sha256", "sha512", "md5"])
def test_hash(start: Starter, tmp_path: Path, name: str) -> None:
    daemon = start("--hash", name)
    file = tmp_path / "file"
    file.write_bytes(b"content")
    daemon.call("measure", paths=[str(file)])
    line = daemon.read(ASCII).splitlines()[-1].decode().split()
    assert line[2:] == ["ima-ng", f"{name}:{hashlib.new(name, b'content').hexdigest()}", str(file)]
    files = {n.rpartition("_")[2] for n in os.listdir(daemon.dir) if n.startswith(f"{ASCII}_sha")}
    assert files == {*BANKS, "staged"}
    assert not daemon.path(f"{ASCII}_md5").exists(), "the extra slot has no file"
    assert_tpm(daemon)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_template(start: Starter, tmp_path: Path, name: str) -> None:
    daemon = start("--template", name)
    fill(daemon, tmp_path)
    lines = daemon.read(ASCII).splitlines()
    assert len(lines) == 8
    names = [line.split()[2].decode() for line in lines]
    assert set(names) <= {name, "ima-buf"}
    assert names[4] == "ima-buf"
    assert b"00ff10" in lines[4]
    assert daemon.read("violations") == b"1\n"
    assert_tpm(daemon)


def test_template_ima_has_no_room_for_a_sha256_digest(start: Starter) -> None:
    """Refused with a reason; nothing is added."""
    daemon = start("--template", "ima")
    with pytest.raises(Refused, match="SHA-1"):
        daemon.call("measure", digest="sha256:" + "ab" * 32, name="/by/digest")
    assert daemon.count() == 1


@pytest.mark.parametrize("fmt", ["d-ng|n-ng", "n", "d|n-ng|sig", "d-ngv2|n-ng|buf"])
def test_template_fmt(start: Starter, tmp_path: Path, fmt: str) -> None:
    daemon = start("--template-fmt", fmt)
    fill(daemon, tmp_path)
    names = {line.split()[2].decode() for line in daemon.read(ASCII).splitlines()}
    # A format that is a built-in template's is shown by its format too.
    assert names == {fmt, "ima-buf"}
    assert_tpm(daemon)


def test_pcr_11(start: Starter) -> None:
    daemon = start("--pcr", "11")
    daemon.generate(5)
    assert {line[:2] for line in daemon.read(ASCII).splitlines()} == {b"11"}
    assert_tpm(daemon, 11)
    assert daemon.pcr("sha256", 10) == bytes(32)


def test_no_boot_aggregate(start: Starter) -> None:
    daemon = start("--no-boot-aggregate")
    assert daemon.count() == 0
    assert daemon.read(BINARY) == b""
    assert write(daemon.path(f"{BINARY}_staged"), b"A\n") == "ENOENT"
    assert daemon.pcr("sha1") == bytes(20)


def test_boot_aggregate_is_the_first_record(daemon: Daemon) -> None:
    """All of PCR 0 to 9 are zero on a TPM of our own."""
    line = daemon.read(ASCII).decode().split()
    expected = hashlib.sha256(bytes(320)).hexdigest()
    assert line[3:] == [f"sha256:{expected}", "boot_aggregate"]


def test_kexec_extra_memory(start: Starter) -> None:
    """CONFIG_IMA_KEXEC_EXTRA_MEMORY_KB: room for what is added between load and execute."""
    daemon = start("--kexec-extra-memory", "40")
    assert daemon.call("kexec_load") == {"segment_size": 45056}
    daemon.generate(200)
    assert daemon.call("kexec_execute")["lost"] == 0
    for wrong in ("41", "-1", "x"):
        status, log = start.refused("--kexec-extra-memory", wrong)
        assert status == 2
        assert "--kexec-extra-memory" in log
