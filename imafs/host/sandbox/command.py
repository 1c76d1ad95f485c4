# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A command in the foreground: its signals, its stops, its exit code.

It stays in our process group, so that whatever a terminal sends (Ctrl-C, Ctrl-Z, a new size)
reaches it from the kernel; what anybody else sends to us is passed on.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from imafs.text import shown

#: Passed on to the command. Not SIGCONT: it works by itself, see :meth:`Command._stopped`.
FORWARDED = frozenset(
    {
        *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP),
        *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGALRM),
    }
)
AWAITED = FORWARDED | {signal.SIGCHLD}
_SI_KERNEL = 0x80  # siginfo.h: not by kill(2); a terminal, which told the whole group
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as a shell


class Ended(Exception):
    """A signal came before there was a command; ``code`` is the exit code."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number
        super().__init__(signal.Signals(number).name)


class Signals:
    """Blocks :data:`AWAITED` in this process from its making on; children get it all back."""

    def __init__(self) -> None:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)

    def give_back(self) -> None:
        """In a child: the mask and the dispositions that a program expects (Python changes)."""
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def wait(self, seconds: float) -> None:
        """Until a child changes, or ``seconds``. Raises :class:`Ended` at any other signal."""
        info = signal.sigtimedwait(AWAITED, seconds)
        if info is not None and info.si_signo in (
            *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
        ):
            raise Ended(info.si_signo)


def status_of(status: int) -> int:
    """The exit code of a wait status, 128 + n for signal n, as a shell shows it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


class Command:
    """The command, started. ``look`` is called whenever any child of ours changed."""

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        signals: Signals,
        look: Callable[[], object],
    ) -> None:
        self._look = look
        self._terminal = next((fd for fd in range(3) if os.isatty(fd)), None)
        self._foreground = self._is_foreground()
        self.pid = os.fork()
        if self.pid == 0:
            signals.give_back()
            _become(words, environment)

    def _is_foreground(self) -> bool:
        return self._terminal is not None and _group(self._terminal) == os.getpgrp()

    def wait(self) -> int:
        """Passes signals on until the command ends; its exit code."""
        while True:
            info = signal.sigwaitinfo(AWAITED)
            if info.si_signo == signal.SIGCHLD:
                self._look()
                code = self._changed()
                if code is not None:
                    self._take_terminal_back()
                    return code
            # What the command sends to its whole group it has sent to itself as well.
            elif info.si_code != _SI_KERNEL and info.si_pid != self.pid:
                os.kill(self.pid, info.si_signo)

    def _changed(self) -> int | None:
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if not pid:
                return None
            if not os.WIFSTOPPED(status):
                return status_of(status)
            if self._terminal is not None:
                self._stopped()

    def _stopped(self) -> None:
        """Stops us too, so that the shell that started us sees a stopped job."""
        os.kill(os.getpid(), signal.SIGSTOP)
        os.kill(self.pid, signal.SIGCONT)

    def _take_terminal_back(self) -> None:
        # A shell cannot: the group that had the terminal is outside its pid namespace.
        if self._foreground and self._terminal is not None and not self._is_foreground():
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(self._terminal, os.getpgrp())
            signal.signal(signal.SIGTTOU, before)


def _group(terminal: int) -> int:
    try:
        return os.tcgetpgrp(terminal)
    except OSError:  # not our controlling terminal
        return -1


def _become(words: Sequence[str], environment: Mapping[str, str]) -> None:
    code = _NOT_EXECUTABLE
    try:
        os.execvpe(words[0], list(words), environment)
    except FileNotFoundError:
        code = _NOT_FOUND
        _complain(f"{words[0]}: not found")
    except OSError as error:
        _complain(f"{words[0]}: {error.strerror}")
    finally:
        os._exit(code)


def _complain(text: str) -> None:
    print(f"imafs: {shown(text)}", file=sys.stderr, flush=True)
