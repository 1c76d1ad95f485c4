# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs mount --background``: the same command in a session of its own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from imafs.errors import ControlError, MountError
from imafs.host import programs
from imafs.text import lines_shown

#: Tells the daemon that its stderr is read until its mount answers, and which log it removes
#: when it ends in order and has nothing to tell.
VARIABLE = "IMAFS_BACKGROUND_LOG"


def start(directory: str, arguments: Sequence[str]) -> int:
    """Starts the daemon and returns once its mount answers, or with its exit code.

    Its line on stdout is repeated here. Log lines go to --log-file; without one to a
    file beside the default control socket (``/run/imafs/mnt-ima.log``), made anew.
    """
    command = programs.python("imafs", *(a for a in arguments if a != "--background"))
    log_file = None
    if not any(a == "--log-file" or a.startswith("--log-file=") for a in arguments):
        log_file = _default_log(directory)
        if log_file is not None:
            command += ["--log-file", str(log_file)]
    # In memory: a disk may be full, and nobody else can look.
    with os.fdopen(os.memfd_create("imafs-errors"), "w+") as errors:
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**programs.environment(), VARIABLE: str(log_file or "")},
                start_new_session=True,
            )
        except OSError as error:
            raise MountError(f"the daemon cannot be started: {error}") from None
        assert child.stdout is not None
        line = child.stdout.readline()
        if line:
            sys.stdout.write(lines_shown(line))
            # The child lives on; this process ends now and must not wait for it.
            child.returncode = 0
            return 0
        code = child.wait()
        errors.seek(0)
        sys.stderr.write(lines_shown(errors.read()))
        remove_log(log_file)  # the error is told here
        return code


def remove_log(log_file: Path | None) -> None:
    """Removes a log that was chosen here, where no error stands in it."""
    try:
        if log_file is not None and not _has_errors(log_file):
            log_file.unlink()
    except FileNotFoundError:
        pass  # an `imafs umount` was first


def _has_errors(log_file: Path) -> bool:
    with log_file.open("rb") as lines:
        return any(b" ERROR: " in line for line in lines)


class Background:
    """A daemon's side of being started so; also of one that was not."""

    def __init__(self) -> None:
        told = os.environ.pop(VARIABLE, None)
        self._is = told is not None
        self._log = Path(told) if told else None
        #: Whether stderr has no reader any more.
        self.alone = False

    def leave(self) -> None:
        """Its mount answers: nobody reads stderr from now on."""
        if self._is:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, sys.stderr.fileno())
            os.close(null)
            self.alone = True

    def remove_log(self) -> None:
        """It has ended in order."""
        remove_log(self._log)


def _default_log(directory: str) -> Path | None:
    from imafs.control import paths

    try:
        socket = paths.default_socket(directory)
        paths.prepare_directory(socket.parent)
        if paths.listener(socket) is not None or _is_served(directory):
            return None  # its log is in use, and a second daemon will be refused
        path = socket.with_suffix(".log")
        path.unlink(missing_ok=True)
        path.touch(0o600, exist_ok=False)  # root's directory can be passed by others
    except (ControlError, OSError):
        return None  # nowhere to log: the daemon has stderr
    return path


def _is_served(directory: str) -> bool:
    """Whether a mount of ours there lives; it may listen at any socket (--control)."""
    from imafs.host import mounts

    path = mounts.resolve(directory)
    here = [mount for mount in mounts.mounts() if mount.path == path]
    if not any(mount.ours for mount in here):
        return False
    # Covered by another file system: nobody can tell.
    return not here[-1].ours or mounts.probe(path) != errno.ENOTCONN
