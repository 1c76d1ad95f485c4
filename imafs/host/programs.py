# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Programs that imafs starts: found and started so that no file of others takes their place.

The working directory may be anybody's. ``python -m`` puts it before the standard library, an
empty or relative entry of $PATH searches it, and PYTHON* variables name files that every
interpreter executes. The helpers of root are started without all of these.
"""

from __future__ import annotations

import os
import resource
import shutil
import site
import sys

#: The directory that holds the package ``imafs``, as it was imported.
_HOME = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
#: $PYTHONPATH of this interpreter, absolute as in sys.path; its empty entries are left out.
_PYTHON_PATH = [
    os.path.abspath(entry)
    for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if entry and not sys.flags.ignore_environment
]


def find(name: str) -> str | None:
    """The absolute path of a program in $PATH; entries that are not absolute are passed over."""
    return shutil.which(name, path=_absolute_path())


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of imafs in an interpreter of its own.

    To be started with :func:`environment`.
    """
    return [sys.executable, *_flags(), "-m", module, *arguments]


def environment() -> dict[str, str]:
    """For :func:`python` and for other helpers: ours, of root without PYTHON* variables.

    $PYTHONPATH stays only as far as imafs itself was found by it, with absolute entries.
    """
    ours = dict(os.environ)
    lacking = _lacking()
    if os.geteuid() == 0:
        ours = {name: value for name, value in ours.items() if not name.startswith("PYTHON")}
    else:
        lacking = list(dict.fromkeys([*lacking, *_PYTHON_PATH]))
        ours.pop("PYTHONPATH", None)
    if lacking:
        ours["PYTHONPATH"] = os.pathsep.join(lacking)
    if "PATH" in ours:
        ours["PATH"] = _absolute_path()
    return ours


def leave_working_directory() -> None:
    """For a daemon: no file system is kept busy by it, and nothing found below it any more.

    Paths must be absolute by then. $PATH loses its relative entries for libraries that start
    programs (libfuse: fusermount3).
    """
    os.chdir("/")
    if "PATH" in os.environ:
        os.environ["PATH"] = _absolute_path()


#: (soft, hard) of RLIMIT_NOFILE as this process was started with it.
_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_descriptors() -> None:
    """For a daemon: as many descriptors as the hard limit allows.

    The usual soft limit of 1,024 is there for programs that use select(2).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def lower_descriptors(pid: int) -> None:
    """Gives a program that was just started the limit back that we were started with."""
    resource.prlimit(pid, resource.RLIMIT_NOFILE, _DESCRIPTORS)


def _flags() -> list[str]:
    if os.geteuid() != 0:
        return ["-P"]
    if not _lacking():
        return ["-I"]
    return ["-P"] if _is_users_site(_HOME) else ["-P", "-s"]


def _lacking() -> list[str]:
    """The paths that an isolated interpreter (``-I``) needs in addition to find imafs."""
    if _HOME in _PYTHON_PATH:
        return _PYTHON_PATH
    # One that was imported from the working directory, or where only a finder knows it.
    return [] if _HOME in sys.path and not _is_users_site(_HOME) else [_HOME]


def _is_users_site(directory: str) -> bool:
    return bool(site.ENABLE_USER_SITE) and directory == site.getusersitepackages()


def _absolute_path() -> str:
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(entry for entry in entries if os.path.isabs(entry))
