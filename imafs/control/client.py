# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The client's end of the control socket; synchronous, standard library only.

with ControlClient("/run/imafs/mnt-ima.sock") as imafs:
    imafs.measure("/usr/bin/true")
    print(imafs.status()["violations"])
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from imafs.control import peers, wire
from imafs.control.ops import OPERATIONS
from imafs.errors import ControlError, Refused, UsageError

DEADLINE_SECONDS = 30.0
MAX_ANSWER = 1 << 26  # bytes; the status of many readers, or a measure of many paths

Progress = Callable[[int, int], None]
"""Called with (done, total) for every progress line."""

Answer = dict[str, object]


class ControlClient:
    """One connection to a daemon; not to be shared by threads.

    ``uid``: whose daemon is meant, where it is neither root's nor this user's; anybody else who
    listens there is asked nothing (:class:`UntrustedError`, a ControlError).

    ``deadline``: seconds for connecting and for one answer, from its request to its last
    byte; operations that may take long (``Operation.lengthy``) have none unless a call
    says so. Every method returns the answer without its ``ok`` and ``id``; raises
    :class:`Refused` with the daemon's errno and text (and its ``exit_code``) when the
    request is refused, :class:`UsageError` when it could not be a request, and
    :class:`ControlError` when the daemon cannot be reached, hangs up, is too late or
    speaks nonsense. After a ControlError the connection is of no more use.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        deadline: float = DEADLINE_SECONDS,
        uid: int | None = None,
    ) -> None:
        self._path = os.fspath(path)
        self._deadline = deadline
        self._lines = wire.LineBuffer(MAX_ANSWER)
        self._last_id = 0
        self._between = True  # between two requests: nothing half sent or half read
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(deadline)
        try:
            self._socket.connect(self._path)
        except OSError as error:
            self._socket.close()
            raise ControlError(f"{self._path}: {_reason(error)}") from error
        #: Who listens there.
        self.peer = peers.peer_of(self._socket)
        try:
            peers.check_listener(self._path, self.peer, uid)
        except ControlError:
            self._socket.close()
            raise

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def call(
        self,
        op: str,
        options: Mapping[str, object] | None = None,
        *,
        progress: Progress | None = None,
        deadline: float | None = None,
    ) -> Answer:
        """Any operation. ``deadline``: seconds for this answer, instead of the default."""
        operation = OPERATIONS.get(op)
        if deadline is None and not (operation is not None and operation.lengthy):
            deadline = self._deadline
        given = {k: v for k, v in (options or {}).items() if v is not None}
        self._last_id += 1
        request: dict[str, object] = {**given, "op": op, "id": self._last_id}
        if progress is not None:
            request["progress"] = True
        try:
            line = wire.encode(request)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{op}: cannot be said in JSON: {error}") from error
        if not self._between:
            raise ControlError(f"{self._path}: an earlier request was broken off: connect anew")
        self._between = False
        try:
            answer = self._exchange(line, progress, deadline)
        except OSError as error:
            raise ControlError(f"{self._path}: {op}: {_reason(error)}") from error
        self._between = True
        return _result(answer)

    def _exchange(self, line: bytes, progress: Progress | None, deadline: float | None) -> Answer:
        end = None if deadline is None else time.monotonic() + deadline
        try:
            self._limit(end)
            self._socket.sendall(line)
        except (BrokenPipeError, ConnectionResetError):
            # It may have said why before it hung up.
            return self._answer(progress, end)
        return self._answer(progress, end)

    def _answer(self, progress: Progress | None, end: float | None) -> Answer:
        while True:
            answer = self._receive(end)
            # A refusal of the connection, or of a line as a whole, knows no id.
            if answer.get("id", self._last_id) != self._last_id:
                raise ControlError(f"{self._path}: answer to another request: {answer.get('id')!r}")
            report = answer.get("progress")
            if "ok" in answer or not isinstance(report, dict):
                return answer
            if progress is not None:
                done, total = report.get("done"), report.get("total")
                if isinstance(done, int) and isinstance(total, int):
                    progress(done, total)

    def _receive(self, end: float | None) -> Answer:
        try:
            while (line := self._lines.next_line()) is None:
                self._limit(end)
                received = self._socket.recv(65536)
                if not received:
                    raise ControlError(f"{self._path}: the daemon hung up before it answered")
                self._lines.feed(received)
            return wire.decode(line)
        except UsageError as error:
            raise ControlError(f"{self._path}: not an answer: {error}") from error

    def _limit(self, end: float | None) -> None:
        if end is None:
            self._socket.settimeout(None)
            return
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def hello(self) -> Answer:
        """``imafs`` (version), ``protocol``, ``ops``."""
        return self.call("hello")

    def measure(
        self,
        *paths: str | os.PathLike[str],
        digest: str | None = None,
        name: str | None = None,
        deadline: float | None = None,
    ) -> Answer:
        """Measure files (relative to this process), or ``digest`` (``ALG:HEX``) as ``name``."""
        absolute = [_absolute(path) for path in paths] or None
        options = {"paths": absolute, "digest": digest, "name": name}
        return self.call("measure", options, deadline=deadline)

    def violation(self, name: str) -> Answer:
        """Add a violation."""
        return self.call("violation", {"name": name})

    def critical_data(
        self,
        label: str,
        name: str,
        *,
        file: str | os.PathLike[str] | None = None,
        data: bytes | None = None,
    ) -> Answer:
        """Measure the bytes of ``file``, or ``data``, as critical data."""
        options = {
            "label": label,
            "name": name,
            "file": None if file is None else _absolute(file),
            "data": None if data is None else data.hex(),
        }
        return self.call("critical_data", options)

    def generate(
        self,
        count: int,
        *,
        name: str | None = None,
        progress: Progress | None = None,
        deadline: float | None = None,
    ) -> Answer:
        """Add ``count`` generated records whose names begin with ``name``."""
        options = {"count": count, "name": name}
        return self.call("generate", options, progress=progress, deadline=deadline)

    def repeat(self) -> Answer:
        """Ask once more for the last measurement."""
        return self.call("repeat")

    def load(
        self,
        file: str | os.PathLike[str],
        *,
        bank: str | None = None,
        moment: str | None = None,
        as_is: bool = False,
        progress: Progress | None = None,
        deadline: float | None = None,
    ) -> Answer:
        """Append the measurement list in ``file``."""
        options = {"file": _absolute(file), "bank": bank, "moment": moment, "as_is": as_is or None}
        return self.call("load", options, progress=progress, deadline=deadline)

    def wait(
        self,
        *,
        records: int | None = None,
        extended: bool | None = None,
        timeout: int | None = None,
    ) -> Answer:
        """Wait for ``records`` records since boot and, if ``extended``, for the TPM."""
        deadline = None if timeout is None else timeout + self._deadline
        options = {"records": records, "extended": extended, "timeout": timeout}
        return self.call("wait", options, deadline=deadline)

    def status(self) -> Answer:
        """Lists, PCRs, readers, failures."""
        return self.call("status")

    def watch(self, *paths: str | os.PathLike[str]) -> Answer:
        """Measure what is used below ``paths`` (relative to this process)."""
        return self.call("watch", {"paths": [_absolute(path) for path in paths]})

    def unwatch(self, *paths: str | os.PathLike[str]) -> Answer:
        """Watch ``paths`` no more."""
        return self.call("unwatch", {"paths": [_absolute(path) for path in paths]})

    def suspend(self) -> Answer:
        """Stop adding records."""
        return self.call("suspend")

    def resume(self) -> Answer:
        """Add records again."""
        return self.call("resume")

    def kexec_load(self, cmdline: str | None = None) -> Answer:
        """Load a kernel for kexec, with this command line."""
        return self.call("kexec_load", {} if cmdline is None else {"cmdline": cmdline})

    def kexec_execute(
        self,
        profile: str | None = None,
        *,
        no_carry: bool = False,
        whole: bool = False,
        hold: bool = False,
    ) -> Answer:
        """Start the next kernel by kexec, or with ``hold`` stop before it."""
        options = {"profile": profile, "no_carry": no_carry, "whole": whole, "hold": hold}
        return self.call("kexec_execute", {k: v for k, v in options.items() if v})

    def kexec_finish(self) -> Answer:
        """Start the next kernel of a kexec that is held."""
        return self.call("kexec_finish")

    def kexec_buffer(self, file: str | os.PathLike[str]) -> Answer:
        """Write the kexec buffer of this moment to a file."""
        return self.call("kexec_buffer", {"file": _absolute(file)})

    def reboot(self, profile: str | None = None) -> Answer:
        """Reboot: down through suspend."""
        return self.call("reboot", {"profile": profile} if profile else {})

    def reset(self) -> Answer:
        """Power off and on."""
        return self.call("reset")

    def fault(self, operation: str, errno_name: str, **chosen: str | int | bool | None) -> Answer:
        """Let calls fail; ``chosen``: files, next, every, percent, seed, writing, reading."""
        return self.call("fault", {"operation": operation, "errno": errno_name, **chosen})

    def fault_clear(self, fault: int | None = None) -> Answer:
        """Drop one fault, or all."""
        return self.call("fault_clear", {"fault": fault})

    def fault_list(self) -> Answer:
        """The faults in force."""
        return self.call("fault_list")

    def tpm(self, **pace: int | bool | None) -> Answer:
        """Hold the TPM up: behind (records), delay (ms), fail (extends), hang; or work."""
        return self.call("tpm", pace)

    def agent(self, action: str, count: int | None = None) -> Answer:
        """Act as another agent on the same list."""
        return self.call("agent", {"action": action, "count": count})

    def scenario(
        self, file: str | os.PathLike[str] | None = None, *, name: str | None = None
    ) -> Answer:
        """Begin the scenario in ``file``, or the ready one called ``name``."""
        options = {"file": None if file is None else _absolute(file), "name": name}
        return self.call("scenario", options)

    def scenario_end(self) -> Answer:
        """End the scenario."""
        return self.call("scenario_end")

    def stop(self) -> Answer:
        """Unmount and end the daemon."""
        return self.call("stop")


def _absolute(path: str | os.PathLike[str]) -> str:
    # Not abspath: ".." after a symbolic link is for the system to resolve.
    return str(Path(path).absolute())


def _result(answer: Answer) -> Answer:
    ok = answer.pop("ok", None)
    answer.pop("id", None)
    if ok is True:
        return answer
    if ok is not False:
        raise ControlError("not an answer: neither ok nor refused")
    name, text, code = answer.get("errno"), answer.get("error"), answer.get("exit_code")
    number = getattr(errno, name, None) if isinstance(name, str) else None
    refused = Refused(
        number if isinstance(number, int) else errno.EIO,
        text if isinstance(text, str) else "refused without a reason",
    )
    # 0 would say that it was done, and a process has no code above 255.
    if isinstance(code, int) and 0 < code < 256:
        refused.exit_code = code
    raise refused


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, BlockingIOError):  # connect(2) on a full backlog
        return "it accepts no connections"
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return f"nobody listens there ({error.strerror})"
    return error.strerror or str(error)
