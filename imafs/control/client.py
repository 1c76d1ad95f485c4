# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The client's end of a control socket; synchronous, standard library only.

A product has a client of its own on top of it, with a method for each operation.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from imafs.control import peers, wire
from imafs.control.ops import Table
from imafs.errors import ControlError, Refused, UsageError

DEADLINE_SECONDS = 30.0
MAX_ANSWER = 1 << 26  # bytes; the status of many readers, or a measure of many paths

Progress = Callable[[int, int], None]
"""Called with (done, total) for every progress line."""

Answer = dict[str, object]


class Client:
    """One connection to a daemon that speaks ``table``; not to be shared by threads.

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
        table: Table,
        *,
        deadline: float = DEADLINE_SECONDS,
        uid: int | None = None,
    ) -> None:
        self._path = os.fspath(path)
        self._table = table
        #: Seconds for one answer.
        self.deadline = deadline
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

    def __enter__(self) -> Self:
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
        operation = self._table.get(op)
        if deadline is None and not (operation is not None and operation.lengthy):
            deadline = self.deadline
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
