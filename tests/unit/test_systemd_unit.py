# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The units of systemd/: systemd takes them, and their mounts stay visible to the host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT, require, run

UNIT = ROOT / "systemd" / "imafs@.service"
KEEPER = ROOT / "systemd" / "imafs-keeper.service"
UNITS = [UNIT, KEEPER]

#: Directives that give a service a mount namespace of its own (systemd.exec(5), systemd
#: 252 and newer): a mount made there never reaches the host, and readers find an empty directory.
FORBIDDEN = re.compile(
    r"""
    Protect(System|Home|Proc|Control\w+|Kernel\w+)
    | Private(Tmp|Devices|Network|Users|Mounts|IPC)
    | (ReadWrite|ReadOnly|Inaccessible|Exec|NoExec)(Paths|Directories)
    | Bind(ReadOnly)?Paths | TemporaryFileSystem | MountImages | Extension(Images|Directories)
    | Root(Directory|Image|Hash|Verity) | MountFlags | MountAPIVFS
    | (Network|IPC)NamespacePath | LogNamespace | ProcSubset
    | DynamicUser
    """,
    re.VERBOSE,
)


def directives(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            yield name.strip(), value.strip()


def forbidden(text: str) -> list[str]:
    return [name for name, _ in directives(text) if FORBIDDEN.fullmatch(name)]


def verify(text: str, directory: Path, of: Path = UNIT) -> str:
    """What systemd-analyze says of ``text``, of a template as its instance for /run/ima; "" is
    good."""
    require("systemd-analyze")
    unit = directory / of.name.replace("@.", "@run-ima.")
    unit.write_text(text)
    done = run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit], check=False
    )
    return (done.stdout + done.stderr).strip() or ("" if done.returncode == 0 else "no reason")


def substituted(command: str, unit: Path = UNIT) -> str:
    """The unit with ``command`` in the place of imafs, wherever it is called."""
    text, calls = re.subn(r"(?m)^(Exec\w+=-?)imafs ", rf"\1{command} ", unit.read_text())
    assert calls == {UNIT: 1, KEEPER: 2}[unit]
    return text


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_accepts_it(unit: Path, tmp_path: Path) -> None:
    command = tmp_path / "imafs"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    assert verify(substituted(str(command), unit), tmp_path, unit) == ""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("KillMode=mixed", "KillMood=mixed", "Unknown key"),
        ("Type=notify", "Type=notified", "Failed to parse"),
        ("@mount", "@mounting", "Unknown system call group"),
        ("/bin/true mount", "/no/such/imafs mount", "not executable"),
    ],
)
def test_verify_finds_mistakes(old: str, new: str, complaint: str, tmp_path: Path) -> None:
    text = substituted("/bin/true")
    assert old in text
    said = verify(text.replace(old, new), tmp_path)
    assert complaint.lower() in said.lower(), said


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_no_mount_namespace(unit: Path) -> None:
    assert forbidden(unit.read_text()) == []


@pytest.mark.parametrize(
    "name",
    [
        *("ProtectSystem", "ProtectHome", "ProtectControlGroups", "PrivateTmp", "PrivateDevices"),
        *("ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "DynamicUser"),
        *("ReadOnlyPaths", "InaccessibleDirectories", "BindPaths", "BindReadOnlyPaths"),
        *("RootDirectory", "TemporaryFileSystem", "MountFlags", "PrivateMounts", "ProtectProc"),
    ],
)
def test_forbidden_is_found(name: str) -> None:
    assert forbidden(f"[Service]\n{name}=yes\n") == [name]
    assert forbidden(f"# {name}=yes\n") == []


def test_what_it_promises() -> None:
    found = dict(directives(UNIT.read_text()))
    assert found["Type"] == "notify"
    assert found["NoNewPrivileges"] == "yes"
    assert found["DeviceAllow"] == "/dev/fuse rw"
    # %f is the instance's path; an unset IMAFS_OPTIONS is no argument at all.
    assert found["ExecStart"] == "imafs mount %f $IMAFS_OPTIONS"
    assert "ExecStopPost" not in found
    # swtpm must outlive SIGTERM until the daemon has made its last extend.
    assert found["KillMode"] == "mixed"


def test_what_the_keepers_promises() -> None:
    found = dict(directives(KEEPER.read_text()))
    assert found["Type"] == "notify"
    assert found["NoNewPrivileges"] == "yes"
    assert found["Restart"] == "always"
    # A keeper that does not answer holds its readers.
    assert found["WatchdogSec"] == "10"
    # The kernel's lists are root's group's, the TPM tss's.
    assert found["User"] == found["Group"] == "imafs"
    assert found["SupplementaryGroups"] == "root tss"
    assert found["AmbientCapabilities"] == found["CapabilityBoundingSet"] == "CAP_SYS_ADMIN"
    # systemd gives a store of root's to the user, unless somebody has done so with its top alone.
    assert found["StateDirectory"] == "imafs/keeper"
    places = (ROOT / "systemd" / "tmpfiles.d" / "imafs-keeper.conf").read_text()
    assert not [
        line for line in places.splitlines() if line.split()[1:2] == ["/var/lib/imafs/keeper"]
    ]
    # Of what the machine kills for memory it is the last, and it waits for the disk of the store.
    assert found["OOMScoreAdjust"] == "-900"
    assert found["RequiresMountsFor"] == "/var/lib/imafs"
    assert found["ExecStart"] == "imafs keep --mount /run/imafs/ima $IMAFS_KEEP_OPTIONS"
    assert found["ExecStop"] == "-imafs keep flush"
    # Nothing that a cover lies over is looked at: it answers ENOTCONN once the keeper was killed.
    looked = [value for name, value in directives(KEEPER.read_text()) if "Path" in name]
    assert "/sys/kernel/security/integrity" in looked
    assert not [path for path in looked if path.startswith("/sys/kernel/security/integrity/")]
    # It is started again however often it ended, but where that is of no use.
    assert found["StartLimitIntervalSec"] == "0"
    assert found["RestartPreventExitStatus"] == "2 10 12"
    # A dead view answers ENOTCONN until the next start, never the trimmed list.
    assert "ExecStopPost" not in found
