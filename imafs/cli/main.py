# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The command line's frame: one parser, one place that turns errors into exit codes.

A command is a module with ``add_parser(subparsers)``, which sets ``run`` of its parser to
``run(args) -> int``; what is heavy is imported inside ``run``, so that ``imafs --help`` and
``imafs ctl`` start at once.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from importlib import import_module
from types import TracebackType
from typing import TypeGuard

from imafs import __version__
from imafs.cli.oom import MEMORY_ERRORS, is_out_of_memory
from imafs.cli.parser import Parser
from imafs.errors import ImafsError, UsageError
from imafs.text import lines_shown, shown

#: As a shell shows SIGINT.
INTERRUPTED = 128 + 2
_PIPE_CLOSED = 128 + 13  # and SIGPIPE


#: In the order of the manual; each is a module of this room.
COMMANDS = (
    *(
        "mount",
        "run",
        "umount",
        "ctl",
        "status",
        "keep",
        "list",
        "diff",
        "verify",
        "record",
        "attest",
    ),
    *("check", "profiles", "scenarios"),
)


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line (also what the manual pages are made from).

    Of one ``command`` alone where it is named: others' modules are not loaded for it.
    """
    parser = Parser(
        prog="imafs", description="The IMA directory of securityfs as a FUSE filesystem."
    )
    parser.add_argument("--version", action="version", version=f"imafs {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for name in COMMANDS if command is None else (command,):
        # Here, so that main() tells it in one line where it does not fit into memory.
        import_module(f"imafs.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run ``imafs`` with ``argv`` (default: the process's); the exit code.

    Any :class:`ImafsError` becomes one line on stderr and its own exit code, and so do
    too little memory and a full disk below stdout. Another exception is a bug and keeps its
    traceback.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # who started this has closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names are bytes: never fail to print one
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(argv)
    except ImafsError as error:
        print(f"imafs: {shown(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()  # nobody reads it any more
        return _PIPE_CLOSED
    except MEMORY_ERRORS as error:
        if is_out_of_memory(error):
            what = f"out of memory: {shown(error) or 'MemoryError'}"
        elif _is_of_output(error):
            what = f"standard output: {os.strerror(error.errno or 0)}"
            _discard_output()
        else:
            raise
        print(f"imafs: {what}", file=sys.stderr)
        return ImafsError.exit_code


def show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook: an exception's message may hold a name as well; see :mod:`imafs.text`."""
    import traceback

    text = "".join(traceback.format_exception(kind, error, trace))
    print(lines_shown(text.rstrip("\n"), "  "), file=sys.stderr)


def _is_of_output(error: BaseException) -> TypeGuard[OSError]:
    """Whether what was printed found no room: an error of any other file has its name."""
    no_room = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    return isinstance(error, OSError) and error.filename is None and error.errno in no_room


def _discard_output() -> None:
    """Sees to it that buffered output does not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: list[str] | None) -> int:
    try:
        words = sys.argv[1:] if argv is None else argv
        first = words[0] if words and words[0] in COMMANDS else None
        args = build_parser(first).parse_args(words)
        code: int = args.run(args)
    except SystemExit as exit_:  # argparse: --help, --version, usage
        code = exit_.code if isinstance(exit_.code, int) else UsageError.exit_code
    sys.stdout.flush()
    return code
