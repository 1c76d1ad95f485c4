# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs run -- COMMAND``: a command whose /sys/kernel/security is the emulator's.

The process that was called stays outside of the new pid namespace and has three children in
it: the namespace's first process, the daemon (the same code as ``imafs mount``) and the
command. Nothing needs to be cleaned up that does not go with the namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from imafs.cli.mount import add_shared_options
from imafs.errors import ImafsError, MountError, UsageError
from imafs.host import ownership
from imafs.host.sandbox.command import Command, Ended, Signals, status_of
from imafs.text import lines_shown, shown

SECURITY = "/sys/kernel/security"
CLASS = "/sys/class/tpm"
CHIP = "tpm0"
#: The session's own files: a tmpfs that only the session sees.
HOME = "/sys/fs/imafs"
SOCKETS = f"{HOME}/control"
CONTROL = f"{SOCKETS}/sys-kernel-security.sock"
LOG = f"{HOME}/log"
AUDIT = f"{HOME}/audit.log"
#: Where programs look for audit records: auditd's file, and syslog's where no auditd runs.
AUDIT_LOGS = ("/var/log/messages", "/var/log/audit/audit.log")
#: Where tpm2-tss and IBM's TSS look for a software TPM by default.
TPM_PORT = 2321
#: Seconds that the daemon gets to unmount and to end swtpm in order.
_PARTING = 6.0
#: Lines of its log that are shown when it dies.
_LAST_LINES = 5


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "run",
        help="run a command that sees the emulator at /sys/kernel/security",
        description="Starts the emulator with a software TPM in namespaces of its own, at "
        f"{SECURITY} and {CLASS}, and runs COMMAND there with TPM2TOOLS_TCTI, TCTI, IBM's TPM_* "
        "and IMAFS_CONTROL set. Its terminal, files and exit code are COMMAND's; nothing is left "
        "behind. Without root COMMAND is root in a user namespace.",
    )
    add_shared_options(parser)
    parser.add_argument(
        "words",
        metavar="-- COMMAND",
        nargs=argparse.REMAINDER,
        help="the command and its arguments",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    from imafs.cli import kernel_options, mount

    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words:
        raise UsageError("what is to be run? imafs run [options] -- COMMAND...")
    args.dir, args.layout, args.control = SECURITY, "securityfs", CONTROL
    # Log lines are not for the command's stderr.
    args.log_file = LOG if args.log_file is None else _kept(args.log_file)
    args.audit_log = AUDIT if args.audit_log is None else _kept(args.audit_log)
    plan = replace(mount.plan(args), tpm_port_preferred=TPM_PORT)
    kernel_options.tell(args)  # the log is the session's own
    signals = Signals()
    first = _enter()
    ready, say = os.pipe()
    daemon = os.fork()
    if daemon == 0:
        from imafs.cli.daemon import run as run_daemon

        _become_daemon(signals, say)
        return run_daemon(plan)
    os.close(say)
    session = Session(first, daemon, args.log_file)
    try:
        if not _is_ready(ready, signals):
            return session.end()
        _furnish(args)
        environment = _environment(args)
        if args.tpm == "swtpm" and args.tpm_port is None:
            _tell_port(environment)
        command = Command(words, environment, signals, session.look)
    except Ended as ended:
        session.end()
        return ended.code
    code = command.wait()
    if args.scenario is not None:
        _tell_of_scenario()
    session.end()
    return code


def _kept(path: str) -> str:
    """A log's path that means the same in the daemon, whose stdin and stdout are others."""
    path = os.path.abspath(path)
    number = ownership.open_already(path)
    if number is None:
        return path
    try:
        return f"/dev/fd/{os.dup(number)}"
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _enter() -> int:
    """The namespaces and what they are furnished with; the first process of the new one."""
    from imafs.host import linux, mounts
    from imafs.host.sandbox import graft, init, namespaces

    mounts.check_fuse()
    own_user = namespaces.enter()
    if not own_user:
        _forget_others()
    try:
        for place in (SECURITY, CLASS, HOME):
            graft.provide(place)
        for place in (SECURITY, CLASS, HOME):
            linux.tmpfs(place)
        os.mkdir(SOCKETS, 0o700)
    except OSError as error:
        raise MountError(
            f"{error.filename}: {error.strerror}: a file system cannot be mounted there; in a "
            "container AppArmor may forbid it (--security-opt apparmor=unconfined)"
        ) from None
    return init.start()


def _forget_others() -> None:
    """Takes other emulators' mounts, and the machine's securityfs, out of our namespace.

    Clients look for the lines of /proc/mounts that name a securityfs, and take the first one or
    expect one. In a user namespace mounts from outside cannot be taken out, nor those that others
    cover: to take away what covers them would show the command what it does not see outside.
    """
    from imafs.host import mounts

    # Of two on one place the later one covers the other.
    for mount in reversed(mounts.mounts()):
        if mount.ours or mount.fstype == mounts.FSNAME:
            with suppress(mounts.OutOfReachError):
                mounts.detach(mount)


def _become_daemon(signals: Signals, say: int) -> None:
    """This child: out of the terminal's reach, its ready line into the pipe."""
    os.setsid()
    signals.give_back()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(say, 1)
    os.environ["TMPDIR"] = HOME
    # The service that we are part of is not started by our mount.
    os.environ.pop("NOTIFY_SOCKET", None)


def _is_ready(ready: int, signals: Signals) -> bool:
    """Waits for the daemon's line. False: it has ended instead, and has said why."""
    os.set_blocking(ready, False)
    line = b""
    while not line.endswith(b"\n"):
        signals.wait(0.01)
        try:
            piece = os.read(ready, 4096)
        except BlockingIOError:
            continue
        if not piece:
            return False
        line += piece
    return True


def _furnish(args: argparse.Namespace) -> None:
    """Adds what the daemon's mount does not bring by itself: the TPM's class, /proc/cmdline."""
    from imafs.cli import kernel_options
    from imafs.emulator.sysfs import CLASS_TPM
    from imafs.host.sandbox import graft, proc_cmdline

    chip = f"{SECURITY}/{CLASS_TPM}/{CHIP}"
    try:
        if os.path.isdir(chip):
            # A link, as in sysfs: a bind would be a second line of a securityfs in /proc/mounts.
            os.symlink(os.path.relpath(chip, CLASS), f"{CLASS}/{CHIP}")
        if os.path.isfile(args.audit_log):  # a pipe or a terminal is no log to look into
            graft.show_file(args.audit_log, AUDIT_LOGS, HOME)
        proc_cmdline.show(kernel_options.BOOT_WORDS, kernel_options.boot_words(args), HOME)
    except OSError as error:
        raise MountError(f"{error.filename}: {error.strerror}") from None


def _show_device(number: object) -> None:
    """The TPM's devices by the names that everybody knows; those of the machine are covered."""
    from imafs.host import linux

    if number == 0:
        return
    try:
        for name in ("/dev/tpm", "/dev/tpmrm"):
            linux.bind(f"{name}{number}", f"{name}0")
    except OSError as error:
        raise MountError(f"{error.filename}: {error.strerror}") from None


def _environment(args: argparse.Namespace) -> dict[str, str]:
    """The command's: ours, and where the TPM and the control socket are."""
    from imafs.control import paths
    from imafs.tpm.environment import fapi_config
    from imafs.verbs.client import ControlClient

    with ControlClient(CONTROL) as client:
        status = client.status()
    if args.tpm_device:
        _show_device(status["tpm_device"])
    environment = {**os.environ, **status["environment"]}
    environment[paths.VARIABLE] = CONTROL
    environment[paths.DIRECTORY_VARIABLE] = SOCKETS
    tcti = status["tcti"]
    if isinstance(tcti, str):
        config = fapi_config(tcti, HOME, SECURITY)
        if config is not None:
            for name in ("user", "system/policy", "log"):  # else FAPI warns
                Path(HOME, "fapi", name).mkdir(parents=True)
            Path(HOME, "fapi.json").write_text(json.dumps(config, indent=1))
            environment["TSS2_FAPICONF"] = f"{HOME}/fapi.json"
    return environment


def _tell_port(environment: Mapping[str, str]) -> None:
    """On stderr, where the TPM is not at the port at which clients look that know no other."""
    port = environment.get("TPM_COMMAND_PORT")
    if port != str(TPM_PORT):
        print(
            f"imafs: the TPM is at port {port}: {TPM_PORT} or {TPM_PORT + 1} is taken, and a "
            "client that does not look into its environment finds another TPM there, or none",
            file=sys.stderr,
            flush=True,
        )


def _tell_of_scenario() -> None:
    """On stderr, where it did not take place: the command has met no bad day then."""
    from imafs.scenarios import script
    from imafs.verbs.client import ControlClient

    try:
        with ControlClient(CONTROL) as client:
            problems = script.problems(client.status()["scenario"])
    except ImafsError as error:
        problems = [f"what became of the scenario is not known: {error}"]
    for problem in problems:
        print(f"imafs: {shown(problem)}", file=sys.stderr)


class Session:
    """The two processes that are there for the command's sake."""

    def __init__(self, first: int, daemon: int, log: str) -> None:
        self._first = first
        self._log = log
        self._daemon = daemon
        self._code: int | None = None
        self._ending = False

    def look(self) -> None:
        """Says it, once, when the daemon has ended before the command."""
        if self._code is None and self._daemon_ended() and not self._ending:
            print(
                f"imafs: the emulator has ended (exit code {self._code}); {self._last_lines()}",
                file=sys.stderr,
                flush=True,
            )

    def _last_lines(self) -> str:
        """Where its log is; the end of one that goes with the session."""
        if self._log != LOG:
            return f"see {shown(self._log)}"
        lines = Path(LOG).read_text(errors="replace").splitlines()[-_LAST_LINES:]
        said = "which ends with:\n" + lines_shown("\n".join(lines)) if lines else "which is empty"
        return f"--log-file FILE keeps its log, {said}"

    def _daemon_ended(self) -> bool:
        if self._code is None:
            pid, status = os.waitpid(self._daemon, os.WNOHANG)
            self._code = status_of(status) if pid else None
        return self._code is not None

    def end(self) -> int:
        """The daemon in order, then everything that is left; the daemon's exit code."""
        self._ending = True
        if not self._daemon_ended():
            os.kill(self._daemon, signal.SIGTERM)
            deadline = time.monotonic() + _PARTING
            while not self._daemon_ended() and time.monotonic() < deadline:
                signal.sigtimedwait({signal.SIGCHLD}, deadline - time.monotonic())
        os.kill(self._first, signal.SIGKILL)
        # A pid namespace ends with its last zombie, and the daemon is our child.
        if self._code is None:
            self._code = status_of(os.waitpid(self._daemon, 0)[1])
        os.waitpid(self._first, 0)
        return self._code or 0
