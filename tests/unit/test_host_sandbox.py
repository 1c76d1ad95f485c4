# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a refused namespace is told as, and wait statuses."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from imafs.cli import kernel_options
from imafs.cli.kernel_options import BOOT_WORDS
from imafs.cli.main import build_parser
from imafs.host.sandbox import command, namespaces, proc_cmdline


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


@pytest.mark.parametrize(
    ("machine", "words", "line"),
    [
        ("root=/dev/vda quiet\n", ["ima_policy=tcb"], "root=/dev/vda quiet ima_policy=tcb"),
        ("ima_policy=tcb a ima_hash=sha1\n", ["ima_hash=sha512"], "a ima_hash=sha512"),
        ("ima_tcb ima_tcbx a", [], "ima_tcbx a"),
        ('a="b c" ima_policy="tcb critical_data" d', [], 'a="b c" d'),
        ('"ima_policy=tcb fail_securely" d', ["ima_tcb"], "d ima_tcb"),
        ("a -- ima_tcb -x", ["ima_policy=tcb"], "a ima_policy=tcb -- -x"),
        ("", ["ima_flush_htable"], "ima_flush_htable"),
    ],
)
def test_the_command_line_says_what_was_asked_for(
    machine: str, words: list[str], line: str
) -> None:
    assert proc_cmdline.told(machine, BOOT_WORDS, words) == line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--policy tcb,critical_data", "ima_policy=tcb|critical_data"),
        ("--policy ima_tcb,critical_data", "ima_tcb ima_policy=critical_data"),
        ("--policy none", ""),
        ("--policy ./tcb", ""),
        (
            "--template ima --hash md5 --flush-htable",
            "ima_template=ima ima_hash=md5 ima_flush_htable",
        ),
        ("--template-fmt d|n", "ima_template_fmt=d|n"),
        ("", ""),
    ],
)
def test_options_as_words_of_a_command_line(options: str, words: str) -> None:
    args = build_parser().parse_args(["run", *options.split(), "--", "true"])
    assert kernel_options.boot_words(args) == words.split()
