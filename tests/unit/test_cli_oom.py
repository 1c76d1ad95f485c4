# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Errors that a memory limit brings about, told from bugs."""

from __future__ import annotations

import argparse
import errno
import resource

import pytest

from imafs.cli import ctl
from imafs.cli.main import main
from imafs.cli.oom import is_out_of_memory

FEW = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("can't start new thread"),
    ImportError("libssl.so.3: failed to map segment from shared object"),
    ImportError("x.so: cannot allocate memory in static TLS block"),
    ValueError("[digital envelope routines] not able to copy ctx"),
    BaseExceptionGroup("", [ValueError(), ExceptionGroup("", [MemoryError()])]),
]
BUGS = [
    RuntimeError("a bug"),
    ImportError("no module named x"),
    OSError(errno.EIO, "error"),
    SystemError("error return without exception set"),
    SyntaxError("expected ':'"),
    ValueError("failed to map"),
    ExceptionGroup("", [ValueError()]),
]


@pytest.mark.parametrize("error", FEW, ids=repr)
def test_too_little_memory(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", BUGS, ids=repr)
def test_bugs(error: BaseException) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "MemoryError"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
    ],
)
def test_a_command_without_memory_says_so(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    said: str,
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(ctl, "run", run)
    assert main(["ctl", "status"]) == 1
    assert capsys.readouterr().err == f"imafs: out of memory: {said}\n"


def test_code_that_could_not_be_compiled_for_want_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only a limit explains it (test_bugs has the same errors without one)."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (36 << 20, resource.RLIM_INFINITY))
    assert is_out_of_memory(SystemError("error return without exception set"))
    assert is_out_of_memory(SyntaxError("expected ':'"))
