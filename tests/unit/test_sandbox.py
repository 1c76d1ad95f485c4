# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a refused namespace is told as, and wait statuses."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from imafs.sandbox import command, namespaces


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "unshare")


@pytest.mark.parametrize(
    ("number", "values", "root", "text"),
    [
        (
            errno.EPERM,
            {"kernel.unprivileged_userns_clone": "0"},
            False,
            "as root, sysctl kernel.unprivileged_userns_clone=1",
        ),
        (
            errno.EACCES,
            {
                "kernel.apparmor_restrict_unprivileged_userns": "1",
                "user.max_user_namespaces": "100",
            },
            False,
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (errno.ENOSPC, {"user.max_user_namespaces": "0"}, False, "sysctl user.max_user_namespaces"),
        (errno.ENOSPC, {"user.max_user_namespaces": "9"}, False, "too many user namespaces"),
        (errno.EINVAL, {}, False, "CONFIG_USER_NS"),
        (errno.EPERM, {"user.max_user_namespaces": "0"}, True, "CAP_SYS_ADMIN is missing"),
        (errno.EPERM, {}, False, "this user may not make a user namespace"),
    ],
)
def test_refusal(number: int, values: dict[str, str], root: bool, text: str) -> None:
    assert text in namespaces.refusal(error(number), values, root=root)


def test_settings(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "max_user_namespaces").write_text("7\n")
    assert namespaces.settings(str(tmp_path)) == {"user.max_user_namespaces": "7"}


@pytest.mark.parametrize(
    ("status", "code"), [(0, 0), (3 << 8, 3), (signal.SIGTERM, 143), (signal.SIGSEGV | 128, 139)]
)
def test_status(status: int, code: int) -> None:
    assert command.status_of(status) == code
