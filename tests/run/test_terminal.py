# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs run`` on a terminal, started by a shell with job control."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.runs import path_with_imafs
from tests.support import ROOT, DeadlineError, require

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

RUN = f"{sys.executable} -P -m imafs run --tpm none"
PROMPT = r"<>"


class Terminal:
    """A bash on a pseudo-terminal of its own."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        self._text = ""
        # The session's leader takes the terminal on fd 0 as its own.
        take = "import fcntl,os,termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        take += "os.execlp('bash', 'bash', '--norc', '--noprofile', '-i')"
        self.process = subprocess.Popen(
            [sys.executable, "-c", take],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=ROOT,
            env={
                **os.environ,
                **path_with_imafs(),
                "PS1": "<>",
                "TERM": "dumb",
                "INPUTRC": "/dev/null",
            },
        )
        os.close(slave)

    def expect(self, pattern: str, seconds: float = 60) -> str:
        """Waits for text; what came before it and it."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self._text)):
            left = max(0, end - time.monotonic())
            if not select.select([self._master], [], [], left)[0]:
                raise DeadlineError(f"no {pattern!r} within {seconds:g} s in {self._text!r}")
            self._text += os.read(self._master, 4096).decode()
        seen, self._text = self._text[: match.end()], self._text[match.end() :]
        return seen

    def type(self, text: str) -> None:
        """Keys."""
        os.write(self._master, text.encode())

    def ask(self, command: str) -> str:
        """A command line of the shell that has the prompt, and what it printed."""
        self.type(f"{command}\n")
        return self.expect(PROMPT)

    def resize(self, rows: int, columns: int) -> None:
        """As the window of a terminal emulator."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def close(self) -> None:
        """Hangs up, as a closed window does."""
        os.close(self._master)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(60)
            raise


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    require("bash")
    one = Terminal()
    try:
        one.expect(PROMPT)
        yield one
    finally:
        one.close()


def test_ctrl_c(terminal: Terminal) -> None:
    terminal.type(f"{RUN} -- sh -c 'echo u''p; exec sleep 1000'\n")
    terminal.expect("up\r")
    terminal.type("\x03")
    terminal.expect(PROMPT)
    assert "rc=130" in terminal.ask("echo rc=$?")


def test_ctrl_c_comes_once(terminal: Terminal, tmp_path: Path) -> None:
    """From the kernel to the whole group, and not from us a second time."""
    script = tmp_path / "script"
    script.write_text(
        "trap 'n=x$n; echo interrupted' INT; echo up; read a; echo got $n; read b; echo then $n."
    )
    terminal.type(f"{RUN} -- bash {script}\n")
    terminal.expect("up\r")
    terminal.type("\x03")
    terminal.expect("interrupted\r")
    terminal.type("\n")
    terminal.expect("got x\r")
    terminal.type("\n")
    terminal.expect(r"then x\.\r")
    terminal.expect(PROMPT)


def test_ctrl_z_and_fg(terminal: Terminal) -> None:
    """The shell outside sees a stopped job; the emulator goes on, then the command too."""
    terminal.type(f"{RUN} -- sh -c 'echo u''p; read x; echo got $x; exit 5'\n")
    terminal.expect("up\r")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.expect(PROMPT)
    terminal.type("fg\n")
    terminal.expect("fg\r\n.*\r\n")
    terminal.type("word\n")
    terminal.expect("got")
    terminal.expect(PROMPT)
    assert "rc=5" in terminal.ask("echo rc=$?")


def test_a_shell_with_job_control_inside(terminal: Terminal) -> None:
    terminal.type(f"{RUN} -- bash --norc --noprofile -i\n")
    terminal.expect(PROMPT)
    terminal.type("sh -c 'echo u''p; exec sleep 1000'\n")
    terminal.expect("up\r")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.expect(PROMPT)
    assert "sleep" in terminal.ask("jobs")
    # Until bash knows of its end, or it would not leave.
    terminal.ask("kill -9 %1; until ! jobs %1 >/dev/null 2>&1; do :; done")
    terminal.ask("exit 6")
    assert "rc=6" in terminal.ask("echo rc=$?")
    # The terminal is the outer shell's again.
    terminal.type("read x; echo got $x\n")
    terminal.type("word\n")
    terminal.expect("got word")


def test_the_terminal_goes_back_to_a_script(terminal: Terminal) -> None:
    """A script without job control reads on after the shell inside had the terminal."""
    terminal.type(f"sh -c '{RUN} -- bash --norc --noprofile -i; echo rc=$?; read x; echo got $x'\n")
    terminal.expect(PROMPT)
    terminal.type("exit 3\n")
    terminal.expect("rc=3")
    terminal.type("word\n")
    terminal.expect("got word")


def test_size(terminal: Terminal, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})\n"
        "print('up', flush=True)\n"
        "signal.sigwait({signal.SIGWINCH})\n"
        "print(*os.get_terminal_size())\n"
    )
    terminal.type(f"{RUN} -- {sys.executable} {script}\n")
    terminal.expect("up\r")
    terminal.resize(33, 77)
    terminal.expect("77 33")
    terminal.expect(PROMPT)
