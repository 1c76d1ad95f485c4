# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Plays recorded steps of drafts through a mount."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType

from imafs.verbs.client import ControlClient
from tests.conformance.draftsteps import Row, payload
from tests.mount.daemon import Daemon, alive, read_to_end
from tests.support import wait_for

_LIBC = ctypes.CDLL(None, use_errno=True)
_FLAGS = {"R": os.O_RDONLY, "W": os.O_WRONLY, "RW": os.O_RDWR}
BINARY = "binary_runtime_measurements"


def answer(call: Callable[[], int | None]) -> str:
    """The number that a call returns (0 for none), or its errno's name."""
    try:
        return str(call() or 0)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _write(descriptor: int, data: bytes | None, size: int) -> int:
    if data is not None:
        return os.write(descriptor, data)
    written: int = _LIBC.write(descriptor, None, size)
    if written < 0:
        raise OSError(ctypes.get_errno(), "write from a bad pointer")
    return written


class Other:
    """Another process that opens files when it is told to, and closes them at once."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self._socket.close()
            _serve(theirs)
        theirs.close()

    def __enter__(self) -> Other:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        os.waitpid(self.pid, 0)

    def ask(self, command: str, path: os.PathLike[str], mode: str) -> str:
        """``open`` tries and closes, ``hold`` keeps it open until the process ends."""
        self._socket.sendall(f"{command} {_FLAGS[mode]} {os.fspath(path)}\n".encode())
        return self._socket.recv(100).decode()

    def kill(self) -> None:
        """SIGKILL, and wait."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)


def _serve(theirs: socket.socket) -> None:
    try:
        while line := theirs.recv(4096).decode():
            command, flags, path = line.rstrip("\n").split(" ", 2)
            try:
                descriptor = os.open(path, int(flags))
            except OSError as error:
                theirs.sendall(errno.errorcode[error.errno or 0].encode())
                continue
            if command == "open":
                os.close(descriptor)
            theirs.sendall(b"0")
    finally:
        os._exit(0)


class Player:
    """The state of one mount, and a method for each suite of steps."""

    def __init__(self, daemon: Daemon, control: ControlClient) -> None:
        self.daemon = daemon
        self._control = control
        self._added: list[str] = []
        self._number = 0
        self._lists = [n for n in os.listdir(daemon.dir) if n.startswith("binary_")]
        self.staged_file = next((n for n in self._lists if n.endswith("staged")), None)

    # State

    def state(self) -> dict[str, int]:
        """count, cur and staged, in records, as the steps have them."""
        records = self._control.call("status", {}, deadline=30)["records"]
        assert isinstance(records, dict)
        with open(self.daemon.path("runtime_measurements_count"), "rb") as file:
            count = int(file.read())
        return {"count": count, "cur": records["current"], "staged": records["staged"]}

    def add(self, number: int) -> None:
        """New records."""
        for _ in range(number):
            self._number += 1
            self._measure(f"/draft/{self._number}")

    def _measure(self, name: str) -> None:
        digest = hashlib.sha256(name.encode()).hexdigest()
        given = {"digest": f"sha256:{digest}", "name": name}
        self._control.call("measure", given, deadline=30)
        self._added.append(name)

    def again(self, at: int) -> None:
        """A record that was measured before, by its place in the order of measuring."""
        self._measure(self._added[at])
        self._added.pop()

    def prepare(self, current: int, staged: int, stage: str | None) -> None:
        """Brings the lists to these lengths; ``stage`` is the file that takes A.

        Anew where records would have to go, else by adding: what was trimmed so far counts.
        """
        now = self.state()
        if now["cur"] > current or now["staged"] != staged:
            self._control.call("reset", {}, deadline=30)
            self._added.clear()
            if staged:
                assert stage is not None
                self.add(staged)
                with open(self.daemon.path(stage), "wb", buffering=0) as file:
                    file.write(b"A\n")
            now = self.state()
        self.add(current - now["cur"])

    def _delta(self, before: dict[str, int]) -> dict[str, int]:
        now = self.state()
        return {key: now[key] - before[key] for key in now}

    def _shown(self, state: dict[str, int]) -> Row:
        return {**state, "staged": state["staged"] if self.staged_file else "ENOENT"}

    # Suites

    def writes(self, row: Row) -> Row:
        """One write through a fresh descriptor."""
        before = self.state()
        descriptor = os.open(self.daemon.path(row["step"].split()[0]), os.O_WRONLY)
        data = payload(row)
        written = answer(lambda: _write(descriptor, data, row["len"]))
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.close(descriptor)
        after = self.state()
        return {
            "write": written,
            "pos": position,
            "after": self._shown(after),
            "delta": {key: after[key] - before[key] for key in after},
        }

    def offsets(self, row: Row) -> Row:
        """Writes at positions, several on one descriptor, after reads."""
        before = self.state()
        path, op = self.daemon.path(row["step"]), row["op"]
        if op.startswith("O_RDWR read10"):
            return self._read_and_write(row, before)
        flags = os.O_RDWR if op.startswith("O_RDWR") else os.O_WRONLY
        flags |= os.O_APPEND if op.startswith("O_APPEND") else 0
        descriptor = os.open(path, flags)
        if op == "pwrite":
            data = payload(row)
            assert data is not None
            given: object = answer(lambda: os.pwrite(descriptor, data, row["off"]))
        elif op == "O_APPEND write":
            given = answer(lambda: os.write(descriptor, b"1\n"))
        elif op == "writev":
            parts = [part.encode() for part in row["seq"]]
            given = answer(lambda: os.writev(descriptor, parts))
        else:
            given = self._one_after_another(descriptor, row["seq"], rewind=op.endswith("lseek0"))
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.close(descriptor)
        found: Row = {"ret": given, "delta": self._delta(before)}
        return found if op == "O_APPEND write" else {**found, "pos": position}

    def _one_after_another(self, descriptor: int, texts: list[str], *, rewind: bool) -> object:
        given = []
        for text in texts:
            given.append(answer(lambda text=text: os.write(descriptor, text.encode())))  # type: ignore[misc]
            if rewind:
                os.lseek(descriptor, 0, os.SEEK_SET)
        return given

    def _read_and_write(self, row: Row, before: dict[str, int]) -> Row:
        path = self.daemon.path(row["step"])
        lists = (self._content(BINARY), self._content(row["step"]))
        descriptor = os.open(path, os.O_RDWR)
        found: Row = {"read10": str(len(os.read(descriptor, 10)))}
        data = payload(row)
        assert data is not None
        found["write"] = answer(lambda: os.write(descriptor, data))
        found["pos_after_write"] = os.lseek(descriptor, 0, os.SEEK_CUR)
        read_to_end(descriptor)
        found["read_end"] = str(len(os.read(descriptor, 10)))
        os.lseek(descriptor, 0, os.SEEK_SET)
        again = read_to_end(descriptor)
        with Other() as other:
            found["open_rd_meanwhile"] = other.ask("open", path, "R")
        os.close(descriptor)
        found["after"] = self._shown(self.state())
        found["delta"] = self._delta(before)
        known = {lists[1]: "current", lists[0]: "current", b"": "empty"}
        found["reread_is"] = "other" if row["step"] == "ima_trim_log" else known[again]
        return found

    def _content(self, name: str | None) -> bytes:
        if name is None:
            return b""
        descriptor = os.open(self.daemon.path(name), os.O_RDONLY)
        try:
            return read_to_end(descriptor)
        finally:
            os.close(descriptor)

    def flow(self, row: Row) -> Row:
        """echo, add and duplicates, one after the other."""
        before = self.state()
        lists = [self._content(BINARY), self._content(self.staged_file)]
        words = row["step"].split()
        found: Row = {}
        if words[0] == "echo":
            descriptor = os.open(self.daemon.path(words[3]), os.O_WRONLY)
            found["write"] = answer(lambda: os.write(descriptor, f"{words[1]}\n".encode()))
            os.close(descriptor)
        elif words[0] == "add":
            self.add(int(words[1]))
        else:
            assert words[0] == "duplicate", row
            self.again(0 if "deleted" in words[1:] else -1)
        after = [self._content(BINARY), self._content(self.staged_file)]
        found["after"] = self._shown(self.state())
        found["delta"] = self._delta(before)
        if words[0] == "echo":
            staged = self.staged_file is not None
            found["staged_now_equals_old_current"] = int(staged and after[1] == lists[0])
            found["bin_staged_equals_old_bin"] = int(staged and after[1] == lists[0])
            found["cur_unchanged"] = int(after[0] == lists[0])
            found["staged_unchanged"] = int(after[1] == lists[1])
            found["violations_delta"] = int(self._content("violations"))
        return found

    def trimlog(self, row: Row) -> Row:
        """Writes to ima_trim_log and what it reads."""
        words = row["step"].split()
        if words[0] in ("echo", "add"):
            return self.flow(row)
        if words[0] == "read":
            return {"text": self._content("ima_trim_log").decode()}
        before, reads = self.state(), int(self._content("ima_trim_log"))
        descriptor = os.open(self.daemon.path("ima_trim_log"), os.O_WRONLY)
        data = payload(row)
        written = answer(lambda: os.write(descriptor, data or b""))
        os.close(descriptor)
        return {
            "write": written,
            "reads_before": reads,
            "reads_after": int(self._content("ima_trim_log")),
            "delta": self._delta(before),
        }

    # Opens that meet each other

    def conc(self, row: Row) -> Row:
        """Two processes, two threads, forks: who may open what while who holds what."""
        step = row["step"]
        if step.startswith("P1 "):
            mode, name = step[3:].rstrip(")").split("(")
            with Other() as other:
                first = os.open(self.daemon.path(name), _FLAGS[mode])
                found = {
                    key: other.ask(
                        "open", self.daemon.path(key[:-1].split("(")[1]), key.split("(")[0][3:]
                    )
                    for key in row
                    if key.startswith("P2 ")
                }
                os.close(first)
            return {"p1_open": "0", **found}
        if "first" in row:
            return self._same_process(row)
        return _CONC[step](self)

    def _same_process(self, row: Row) -> Row:
        mode, name = row["step"].removeprefix("same-process ").rstrip(")").split("(")
        first = os.open(self.daemon.path(name), _FLAGS[mode])
        found = {"first": "0"}
        for key in row:
            if key.endswith(")"):
                mode, name = key[:-1].split("(")
                found[key] = self._try(name, mode)
        os.close(first)
        return found

    def _try(self, name: str, mode: str) -> str:
        def opened() -> None:
            os.close(os.open(self.daemon.path(name), _FLAGS[mode]))

        return answer(opened)

    def _open(self, mode: str) -> int:
        return os.open(self.daemon.path(BINARY), _FLAGS[mode])

    def _others(self, *modes: str) -> list[str]:
        with Other() as other:
            return [other.ask("open", self.daemon.path(BINARY), mode) for mode in modes]

    def readers_leave(self) -> Row:
        readers = [self._open("R") for _ in range(5)]
        tried = []
        while readers:
            tried += self._others("W")
            os.close(readers.pop())
        return {"writer": [*tried, *self._others("W")]}

    def _two_writers(self, *, second_first: bool) -> Row:
        first = self._open("W")
        second = self._try(BINARY, "W")
        found = {"w1": "0", "w2": second, "other_r": self._others("R")[0]}
        # The second was refused, so there is nothing of it to close.
        order = (-1, first) if second_first else (first, -1)
        found["close"] = answer(lambda: os.close(order[0]))
        found["other_r_after1"], found["other_w_after1"] = self._others("R", "W")
        found["close2"] = answer(lambda: os.close(order[1]))
        found["other_r_after2"], found["other_w_after2"] = self._others("R", "W")
        return found

    def second_closes_first(self) -> Row:
        return self._two_writers(second_first=True)

    def first_closes_first(self) -> Row:
        return self._two_writers(second_first=False)

    def inherited(self) -> Row:
        before = self.state()
        held = self._open("W")
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(theirs, answer(lambda: os.write(held, b"1\n")).encode())
            os._exit(0)
        os.waitpid(child, 0)
        found: Row = {"open": "0", "child_write": os.read(ours, 100).decode()}
        os.close(ours)
        os.close(theirs)
        found["reader_after_child_exit"] = self._others("R")[0]
        os.close(held)
        found["reader_after_close"] = self._others("R")[0]
        found["delta"] = self._delta(before)
        return found

    def opener_exits(self) -> Row:
        ours, theirs = socket.socketpair()
        opener = os.fork()
        if opener == 0:
            self._open("W")
            if os.fork() == 0:
                ours.close()
                theirs.sendall(str(os.getpid()).encode())
                theirs.recv(1)
            os._exit(0)
        os.waitpid(opener, 0)
        theirs.close()
        child = int(ours.recv(100))
        reader, writer = self._others("R", "W")
        ours.close()
        wait_for(lambda: not alive(child), 60, "the child has ended")
        again = self._others("R", "W")
        return {
            "reader_while_child_holds": reader,
            "writer_while_child_holds": writer,
            "reader_after": again[0],
            "writer_after": again[1],
        }

    def forked_close(self) -> Row:
        first = self._open("W")
        second = self._try(BINARY, "W")
        reader, writer = self._others("R", "W")
        os.close(first)
        again = self._others("R", "W", "R")
        return {
            "w1": "0",
            "w2": second,
            "other_r_while_w1_open": reader,
            "other_w_while_w1_open": writer,
            "other_r_after": again[0],
            "other_w_after": again[1],
            "other_r_after2": again[2],
        }

    def threads(self) -> Row:
        held = self._open("W")
        tried: list[str] = []
        thread = threading.Thread(target=lambda: tried.extend(self._try(BINARY, m) for m in "WR"))
        thread.start()
        thread.join()
        os.close(held)
        return {
            "main_w": "0",
            "thread_w": tried[0],
            "thread_r": tried[1],
            "w_after": self._try(BINARY, "W"),
        }

    def duplicated(self) -> Row:
        held = self._open("W")
        copy = os.dup(held)
        os.close(held)
        while_copied = self._others("R")[0]
        os.close(copy)
        return {"w": "0", "r_after_close1": while_copied, "r_after_close2": self._others("R")[0]}

    def reader_half_way(self) -> Row:
        before = self.state()
        reader = self._open("R")
        os.read(reader, 10)
        refused = self._others("W")[0]
        self.add(3)
        assert read_to_end(reader)
        os.close(reader)
        return {
            "other_w": refused,
            "other_w_after_reader_closed": self._others("W")[0],
            "delta": self._delta(before),
        }

    def writer_and_entries(self) -> Row:
        before = self.state()
        held = self._open("W")
        self.add(3)
        during = self.state()["count"] - before["count"]
        os.close(held)
        return {"w": "0", "count_delta_seen_during": during, "delta": self._delta(before)}

    def killed(self) -> Row:
        with Other() as writer:
            held = writer.ask("hold", self.daemon.path(BINARY), "W")
            refused = self._try(BINARY, "R")
            writer.kill()
        return {
            "w": held,
            "r_before": refused,
            "r_after": self._try(BINARY, "R"),
            "w_after": self._try(BINARY, "W"),
        }

    def at_the_end(self) -> Row:
        return {
            "w": self._try(BINARY, "W"),
            "r": self._try(BINARY, "R"),
            "w2": self._try(BINARY, "W"),
        }


_CONC: dict[str, Callable[[Player], Row]] = {
    "5 readers then writer, readers leave one by one": Player.readers_leave,
    "same-process 2 writers, close second then first": Player.second_closes_first,
    "same-process 2 writers, close first then second": Player.first_closes_first,
    "inherited writer fd: child writes 1": Player.inherited,
    "opener exits, its child keeps the writer fd": Player.opener_exits,
    "same-process 2 writers; a forked child closes the last reference of one": Player.forked_close,
    "main thread holds W, another thread opens W / R": Player.threads,
    "dup of a writer fd, close one": Player.duplicated,
    "reader half way; writer refused; entries are still added": Player.reader_half_way,
    "entries are added while a writer is open": Player.writer_and_entries,
    "writer killed by SIGKILL": Player.killed,
    "lock state at the end": Player.at_the_end,
}
