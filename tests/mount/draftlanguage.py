# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A small language for rows of tables: what is done to a mount, and what it answers.

A script is a line of commands with `` ; `` between them, each ``WORDS`` or ``WORDS => ANSWER``:

    add 5                   so many new records
    st A => ok              echo to a file: a newline is added; ``!A`` none, ``\\x00`` bytes
    st@3 A => EINVAL        the same at a position
    count => 5              runtime_measurements_count
    read st => 5            records in a list, or the errno; of another file its text
    again 0 => kept         the first record of the row once more: kept, forgotten
    open st w => ok         held until the row ends; ``close`` closes the last one
    other or r => EBUSY     opened by another process
    nobody tl 05 => EPERM EPERM EPERM   root without CAP_SYS_ADMIN: opens to read, to write, writes
    mode or => 0440         also ``absent``
    link st                 ... => target
    log => time= NS; ...    the text of the newest record, its time left out
    suspend, resume, reset
    hold                    a kexec that is held behind its copy of the lists

Files: ``or`` and ``st`` (SHA-1 ASCII), ``tl`` ima_trim_log, ``ln`` list_name, ``fm``
flush_measurements, any other by its name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
from collections.abc import Callable

from imafs.interface.profiles import Profile, lookup
from imafs.verbs.client import ControlClient
from tests.mount.callers import NO_SYS_ADMIN
from tests.mount.daemon import Daemon, read_to_end
from tests.support import run

_FLAGS = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}
_NAMES = {"tl": "ima_trim_log", "ln": "list_name", "fm": "flush_measurements"}


#: Opens for reading and for writing, and writes the text if there is one.
_NOBODY = """
import errno, os, sys
def tried(call):
    try:
        print(call() and "ok", end=" ")
    except OSError as error:
        print(errno.errorcode[error.errno], end=" ")
tried(lambda: os.open(sys.argv[1], os.O_RDONLY))
tried(lambda: os.open(sys.argv[1], os.O_WRONLY))
if sys.argv[2:]:
    tried(lambda: os.write(os.open(sys.argv[1], os.O_WRONLY), sys.argv[2].encode() + b"\\n"))
"""


def _answer(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


class Speaker:
    """Speaks to one mount of a profile."""

    def __init__(self, daemon: Daemon, control: ControlClient, profile: str) -> None:
        self._daemon = daemon
        self._control = control
        self._profile: Profile = lookup(profile)
        self._names: list[str] = []
        self._number = 0
        self._held: list[int] = []

    def row(self, script: str) -> str | None:
        """Plays a row on a list of 5 records; what is wrong, or None."""
        self._control.call("reset", {}, deadline=30)
        self._names.clear()
        self._add("5")
        try:
            for line in script.split(" ; "):
                command, _, expected = line.strip().partition(" => ")
                found = self._say(command)
                if found != (expected or "ok"):
                    return f"{script}\n    {command}: {found}, not {expected or 'ok'}"
        finally:
            while self._held:
                os.close(self._held.pop())
        return None

    def _say(self, command: str) -> str:
        word, *rest = command.split(" ")
        verb = _VERBS.get(word)
        if verb is not None:
            return verb(self, *rest)
        name, _, position = word.partition("@")
        return self._write(name, " ".join(rest), int(position or 0))

    def path(self, name: str) -> str:
        """The path of a file by its short name."""
        profile = self._profile
        if name == "or":
            name = profile.current.name.format(form="ascii", bank="sha1")
        elif name == "st":
            assert profile.staged is not None
            name = profile.staged.name.format(form="ascii", bank="sha1")
        return str(self._daemon.path(_NAMES.get(name, name)))

    def _write(self, name: str, text: str, position: int) -> str:
        raw = text.startswith("!")
        text = text[1:] if raw else text
        data = text.encode("latin-1").decode("unicode_escape").encode("latin-1")
        data += b"" if raw else b"\n"
        descriptor = os.open(self.path(name), os.O_WRONLY)
        try:
            written = os.pwrite(descriptor, data, position)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        finally:
            os.close(descriptor)
        return "ok" if written == len(data) else str(written)

    def _add(self, number: str) -> str:
        for _ in range(int(number)):
            self._number += 1
            self._names.append(f"/row/{self._number}")
            assert self._measure(self._names[-1]) == "forgotten"
        return "ok"

    def _measure(self, name: str) -> str:
        digest = hashlib.sha256(name.encode()).hexdigest()
        given = {"digest": f"sha256:{digest}", "name": name}
        rows = self._control.call("measure", given, deadline=30)["measured"]
        assert isinstance(rows, list)
        return "kept" if rows[0]["duplicate"] else "forgotten"

    def _again(self, at: str) -> str:
        return self._measure(self._names[int(at)])

    def _content(self, name: str) -> bytes:
        descriptor = os.open(self.path(name), os.O_RDONLY)
        try:
            return read_to_end(descriptor)
        finally:
            os.close(descriptor)

    def _count(self) -> str:
        return self._content("runtime_measurements_count").decode().strip()

    def _read(self, name: str) -> str:
        try:
            content = self._content(name)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return str(content.count(b"\n")) if name in ("or", "st") else content.decode().strip()

    def _open(self, name: str, mode: str) -> str:
        return _answer(lambda: self._held.append(os.open(self.path(name), _FLAGS[mode])))

    def _close(self) -> str:
        os.close(self._held.pop())
        return "ok"

    def _other(self, name: str, mode: str) -> str:
        answers, child_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                answer = _answer(lambda: os.open(self.path(name), _FLAGS[mode]))
                os.write(child_end, answer.encode())
            finally:
                os._exit(0)
        os.close(child_end)
        os.waitpid(child, 0)
        answer = os.read(answers, 100).decode()
        os.close(answers)
        return answer

    def _nobody(self, name: str, *text: str) -> str:
        python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
        command = [*NO_SYS_ADMIN, python, "-c", _NOBODY, self.path(name), *text]
        return run(command, cwd="/").stdout.strip()

    def _mode(self, name: str) -> str:
        try:
            return f"{os.stat(self.path(name)).st_mode & 0o7777:04o}"
        except FileNotFoundError:
            return "absent"

    def _link(self, name: str) -> str:
        return os.readlink(self._daemon.path(name))

    def _log(self) -> str:
        line = self._content("or").splitlines()[-1].split(b" ")
        assert line[4] == b"trim_ima_event_logs", line
        text = bytes.fromhex(line[5].decode()).decode()
        return re.sub(r"(time= ?)\d{18,20};", r"\1NS;", text)

    def _control_verb(self, verb: str) -> str:
        self._control.call(verb, {}, deadline=30)
        return "ok"

    def _suspend(self) -> str:
        return self._control_verb("suspend")

    def _resume(self) -> str:
        return self._control_verb("resume")

    def _hold(self) -> str:
        self._control.call("kexec_execute", {"hold": True}, deadline=30)
        return "ok"


_VERBS: dict[str, Callable[..., str]] = {
    "add": Speaker._add,
    "again": Speaker._again,
    "count": Speaker._count,
    "read": Speaker._read,
    "open": Speaker._open,
    "close": Speaker._close,
    "other": Speaker._other,
    "nobody": Speaker._nobody,
    "mode": Speaker._mode,
    "link": Speaker._link,
    "log": Speaker._log,
    "suspend": Speaker._suspend,
    "resume": Speaker._resume,
    "hold": Speaker._hold,
}
