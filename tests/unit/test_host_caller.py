# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Who can mount without a helper: root, and who was given CAP_SYS_ADMIN."""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from imafs.cli import find_keeper
from imafs.host import caller

_CAP_SYS_ADMIN = 21
_VERSION = 0x20080522
_PR_SET_KEEPCAPS = 8
_PR_SET_DUMPABLE = 4
_CLONE_NEWUSER = 0x10000000
_NOBODY = 65534


def _in_child(work: Callable[[], bool]) -> bool:
    """What ``work`` says in a process that ends with it."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = int(work())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 1)
    return bool(code)


def _become(capabilities: int) -> None:
    """Another user, with these capabilities and no others."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    data = (ctypes.c_uint32 * 6)(capabilities, capabilities)
    assert libc.capset(header, data) == 0


@pytest.mark.root
@pytest.mark.parametrize(
    ("capabilities", "can"), [(1 << _CAP_SYS_ADMIN, True), (1 << 1, False), (0, False)]
)
def test_who_can_mount(capabilities: int, can: bool) -> None:
    def work() -> bool:
        _become(capabilities)
        return caller.can_mount()

    assert _in_child(work) is can


@pytest.mark.root
@pytest.mark.parametrize(("inside", "can"), [(_NOBODY, False), (0, True)])
def test_who_can_mount_in_a_user_namespace_of_his_own(inside: int, can: bool) -> None:
    """All capabilities are his there; root only where somebody is."""

    def work() -> bool:
        _become(0)
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0) == 0
        assert libc.unshare(_CLONE_NEWUSER) == 0, os.strerror(ctypes.get_errno())
        Path("/proc/self/uid_map").write_text(f"{inside} {_NOBODY} 1\n")
        return caller.can_mount()

    assert _in_child(work) is can


@pytest.mark.root
def test_root_can_mount() -> None:
    assert caller.can_mount()


def test_root_asks_the_units_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other users' nobody is believed; and only root asks the unit's."""
    entry = pwd.struct_passwd(("imafs", "x", 995, 995, "", "/", "/usr/sbin/nologin"))
    monkeypatch.setattr(pwd, "getpwnam", {"imafs": entry}.__getitem__)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert find_keeper._believed() == {0, 995}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert find_keeper._believed() == {0, 1000}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", dict[str, pwd.struct_passwd]().__getitem__)
    assert find_keeper._believed() == {0}
