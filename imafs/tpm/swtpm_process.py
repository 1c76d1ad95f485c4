# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""One swtpm process: started, proven to be ours, told apart from others, ended.

swtpm 0.7.1 takes a listening socket by descriptor for its control channel only
(``--server fd=`` wants a connected one), so ports are given by number: a free pair is
found by binding it, and the listeners are then compared with the sockets that
the process really has (/proc/net/tcp against /proc/PID/fd). Two ports in a row,
because tpm2-tss and IBM's TSS know no other layout.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from imafs.errors import TpmError
from imafs.host import programs

START_DEADLINE = 15.0
STOP_DEADLINE = 2.0
_PAIR_TRIES = 64
_LOWEST_PORT = 10240  # below are the registered ones that people really use
#: Bytes on the disk of its state below which that is named as a reason for its end.
_ROOM = 1 << 20
_START_TRIES = 8

# Control channel (swtpm's tpm_ioctl.h, man swtpm_ioctls).
_CMD_INIT = 2

# setpriv makes the kernel kill swtpm when its parent thread ends; the shell then looks
# whether the parent had ended before that, and becomes swtpm (same process, same parent).
# No Python code runs between fork and exec, which would not be safe with threads about.
_LAUNCH = ("--pdeathsig", "KILL", "--", "/bin/sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')


def _tool(name: str, package: str) -> str:
    path = programs.find(name)
    if path is None:
        raise TpmError(f"{name} is not installed: apt-get install {package}")
    return path


def _candidates() -> Iterator[int]:
    """Lower ports of pairs to try.

    First outside of the range from which the kernel takes ports for connect(): there 20,000
    commands through tcti-swtpm (a connection each) leave no pair free, TIME_WAIT
    keeping every other port for a minute. Then what the kernel offers.
    """
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
    low, high = (int(limit) for limit in limits)
    outside = [*range(_LOWEST_PORT, low - 1), *range(max(high + 1, _LOWEST_PORT), 65535)]
    yield from random.sample(outside, min(_PAIR_TRIES, len(outside)))
    yield from [0] * _PAIR_TRIES


def reserve_preferred(stack: ExitStack, port: int) -> int:
    """That pair where it is free, else any."""
    try:
        return reserve_ports(stack, port)
    except TpmError:
        return reserve_ports(stack)


def reserve_ports(stack: ExitStack, fixed: int | None = None) -> int:
    """Bind a free pair of ports on 127.0.0.1, kept until ``stack`` closes; the lower one.

    ``fixed`` asks for that pair, also where connections of an earlier swtpm have left it in
    TIME_WAIT. Any other is bound strictly, so two of us never get the same pair; SO_REUSEADDR
    comes after the bind and nobody listens, so swtpm (which sets it too) can bind and listen
    beside us.
    """
    for lower in _candidates() if fixed is None else (fixed,):
        with ExitStack() as attempt:
            port = lower
            try:
                for _ in range(2):
                    sock = attempt.enter_context(socket.socket())
                    if fixed is not None:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(("127.0.0.1", port))
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    port = sock.getsockname()[1] + 1
            except (OSError, OverflowError):
                continue  # one is taken, or would be 65536
            stack.enter_context(attempt.pop_all())
            return port - 2
    if fixed is not None:
        raise TpmError(f"the TCP ports {fixed} and {fixed + 1} on 127.0.0.1 are not free for swtpm")
    raise TpmError("no two free TCP ports in a row on 127.0.0.1 for swtpm")


def _listening_inodes(ports: Sequence[int]) -> dict[int, str]:
    """Port -> socket inode of the listeners on 127.0.0.1 or on all addresses."""
    found: dict[int, str] = {}
    with open("/proc/net/tcp", encoding="ascii") as table:
        next(table)
        for line in table:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            # 0A is TCP_LISTEN; the address is in host byte order.
            if fields[3] == "0A" and int(port, 16) in ports:
                loopback = f"{struct.unpack('=I', bytes([127, 0, 0, 1]))[0]:08X}"
                if address in {loopback, "00000000"}:
                    found[int(port, 16)] = fields[9]
    return found


def owns_listeners(pid: int, ports: Sequence[int]) -> bool:
    """Whether process ``pid`` holds the listening socket of every port."""
    inodes = _listening_inodes(ports)
    if len(inodes) != len(ports):
        return False
    held = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed in between
            held.add(os.readlink(entry))
    return all(f"socket:[{inode}]" in held for inode in inodes.values())


class SwtpmProcess:
    """A running swtpm on a state directory.

    A thread of its own starts it and waits for it to end. PR_SET_PDEATHSIG is bound to
    the *thread* that forked, so that thread must live as long as swtpm; and
    it leaves no zombie. swtpm dies with this process, by whatever signal that
    dies. It does not survive a fork of the daemon, so start it after any fork.
    """

    def __init__(
        self,
        state: Path,
        *,
        keep_fds: Sequence[int] = (),
        port: int | None = None,
        preferred: int | None = None,
    ) -> None:
        self._state = state
        self._keep_fds = tuple(keep_fds)
        self._setpriv = _tool("setpriv", "util-linux")
        self._swtpm = _tool("swtpm", "swtpm")
        self.log = state / "swtpm.log"
        self.pid_file = state / "swtpm.pid"
        self._ended = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        for _ in range(_START_TRIES):
            with ExitStack() as reserved:
                if port is None and preferred is not None:
                    self.port = reserve_preferred(reserved, preferred)
                    preferred = None  # somebody else may be taking it at the same moment
                else:
                    self.port = reserve_ports(reserved, port)
                if self._start():
                    return
        raise TpmError(f"swtpm found its ports taken {_START_TRIES} times: {self._last_line()}")

    @property
    def pid(self) -> int:
        """Process id of swtpm."""
        assert self._child is not None
        return self._child.pid

    def _start(self) -> bool:
        """True once it listens; False when another process took the ports first."""
        self._ended = threading.Event()
        started = threading.Event()
        failure: list[OSError] = []
        thread = threading.Thread(
            target=self._spawn_and_wait,
            args=(self._ended, started, failure),
            name="imafs-swtpm",
            daemon=True,
        )
        thread.start()
        started.wait()
        if failure:
            raise TpmError(f"cannot start swtpm: {failure[0]}") from failure[0]
        deadline = time.monotonic() + START_DEADLINE
        ports = (self.port, self.port + 1)
        try:
            while not self._wait_end(0.002):
                # /proc/PID/fd is gone when swtpm has just ended.
                with suppress(FileNotFoundError):
                    if owns_listeners(self.pid, ports):
                        return True
                if time.monotonic() > deadline:
                    raise TpmError(
                        f"swtpm did not listen within {START_DEADLINE:g} s: {self._last_line()}"
                    )
        except (OSError, TpmError):
            self.kill()
            raise
        self._ended.wait(1)
        reason = self._last_line()
        how = self._how()
        self.release()
        # "swtpm: Could not open TCP socket: Address already in use" (0.7.1, LC_ALL=C).
        if "in use" in reason:
            return False
        raise TpmError(f"swtpm did not start{how}{self._room()}")

    def _command(self) -> list[str]:
        return [
            self._setpriv,
            *_LAUNCH,
            str(os.getpid()),
            self._swtpm,
            "socket",
            "--tpm2",
            "--tpmstate",
            f"dir={self._state},mode=0600",
            "--server",
            f"type=tcp,port={self.port},bindaddr=127.0.0.1",
            "--ctrl",
            f"type=tcp,port={self.port + 1},bindaddr=127.0.0.1",
            "--flags",
            "not-need-init,startup-clear",
            "--pid",
            f"file={self.pid_file}",
        ]

    def _spawn_and_wait(
        self, ended: threading.Event, started: threading.Event, failure: list[OSError]
    ) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TPM_")}
        environment["LC_ALL"] = "C"
        try:
            with open(self.log, "wb", opener=_private) as log:
                child = subprocess.Popen(
                    self._command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    pass_fds=self._keep_fds,
                    # A Ctrl-C is for the daemon, which ends swtpm after its last extend.
                    start_new_session=True,
                )
            try:
                self._pidfd = os.pidfd_open(child.pid)
            except OSError:  # Linux before 5.3, or no descriptor left
                child.kill()
                child.wait()
                raise
            self._child = child
            programs.lower_descriptors(child.pid)
        except OSError as error:
            failure.append(error)
            return
        finally:
            started.set()
        child.wait()
        ended.set()

    def _wait_end(self, seconds: float) -> bool:
        """Whether swtpm has ended, at the latest ``seconds`` from now."""
        poller = select.poll()
        if self._pidfd < 0:
            return True
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    def verify(self, seconds: float = 0) -> None:
        """Raise :class:`TpmError` when swtpm has ended, waiting ``seconds`` for that.

        As long as it lives nobody else can listen on its ports: a connection made
        before a successful verify is one to our swtpm.
        """
        if self._wait_end(seconds):
            self._ended.wait(1)
            raise TpmError(f"swtpm has ended{self._how()}")

    def _how(self) -> str:
        code = self._child.returncode if self._child is not None else None
        last = self._last_line()
        quoted = f": {last}" if last else ""
        if code is not None and code < 0:
            return f" (killed by {signal.Signals(-code).name}){quoted}"
        return f" (exit code {code}){quoted}" if code is not None else quoted

    def _room(self) -> str:
        """A disk that is full: swtpm (0.7.1) then ends without a word, its log is there too."""
        info = os.statvfs(self._state)
        free = info.f_bavail * info.f_frsize
        return f"; {self._state} has {free} bytes of room left" if free < _ROOM else ""

    def _last_line(self) -> str:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        except FileNotFoundError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _control(self, command: int, *arguments: int) -> None:
        with socket.create_connection(("127.0.0.1", self.port + 1), timeout=5) as sock:
            self.verify()
            sock.sendall(struct.pack(f">{1 + len(arguments)}I", command, *arguments))
            answer = sock.recv(4)
        if answer != bytes(4):
            raise TpmError(
                f"swtpm refused control command {command}: {answer.hex() or 'no answer'}"
            )

    def power_cycle(self) -> None:
        """Hardware reset (CMD_INIT); the TPM then waits for TPM2_Startup."""
        try:
            self._control(_CMD_INIT, 0)
        except OSError as error:
            self.verify(0.2)
            raise TpmError(f"swtpm's control channel: {error}") from error

    def pause(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End swtpm: SIGTERM, two seconds later SIGKILL (which a stopped one needs)."""
        if not self._wait_end(0):
            self._signal(signal.SIGTERM)
            if not self._wait_end(STOP_DEADLINE):
                self._signal(signal.SIGKILL)
                self._wait_end(5)
        self.release()

    def kill(self) -> None:
        """SIGKILL, which also ends a stopped swtpm."""
        self._signal(signal.SIGKILL)
        self._wait_end(5)
        self.release()

    def _signal(self, number: signal.Signals) -> None:
        # By descriptor: the number may belong to another process by now.
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def release(self) -> None:
        """Forget an ended swtpm: wait for its reaping, close its descriptor."""
        self._ended.wait(5)
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
        with suppress(FileNotFoundError):
            self.pid_file.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_APPEND | os.O_NOFOLLOW, 0o600)
