# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a keeper tells of itself, and the socket in its store by which it is asked.

A request is a line, ``status`` or ``flush``; the answer is one JSON object. Only the keeper's
own user and root can connect (mode 0600).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from imafs.errors import ControlError, DegradedError, ImafsError
from imafs.keeper.collector import Collector
from imafs.keeper.facts import BEGAN_ANEW, BEHIND_A_GAP, CONFIRMED
from imafs.keeper.ledger import Ledger

log = logging.getLogger(__name__)

SOCKET = "control.sock"
_REQUEST_MAX = 64
_ANSWER_MAX = 1 << 20
_SECONDS = 30.0
_CLIENTS = 16


def status(collector: Collector) -> dict[str, Any]:
    """JSON types only."""
    life, catalogue = collector.life, collector.catalogue
    ledger = life.archive.ledger if life is not None else None
    total = len(catalogue) if catalogue is not None else 0
    stored = catalogue.stored if catalogue is not None else 0
    verified = collector.verified
    return {
        "state": collector.state.value,
        "why": collector.why or None,
        "view": "refused" if collector.refusal else "served",
        "refusal": collector.refusal,
        "source": collector.source,
        "life": None if life is None else life.facts.number,
        "boots": [] if ledger is None else list(dict.fromkeys(era.boot for era in ledger.eras)),
        "boot": collector.boot,
        "records": {"total": total, "stored": stored, "in_kernel": total - stored},
        "batches_deleted": collector.deleted,
        "verified": None if verified is None else {"records": verified[0], "when": verified[1]},
        **marks(ledger),
        "alarms": dict(collector.alarms),
        "flush_htable": collector.flushes,
        "view_measured": collector.view_measured,
        "pid": os.getpid(),
    }


def marks(ledger: Ledger | None) -> dict[str, Any]:
    """Where the life is not what its PCRs tell, by numbers of records."""
    anchors = [] if ledger is None else ledger.anchors
    usual = (CONFIRMED, BEHIND_A_GAP, BEGAN_ANEW)
    return {
        "gaps": [
            {"after": gap.index, "records": gap.missing, "why": gap.why}
            for gap in (() if ledger is None else ledger.gaps)
        ],
        "diverged": [mark.index for mark in anchors if mark.why not in usual],
        "resets": [mark.index for mark in anchors if mark.why == BEGAN_ANEW],
    }


class Server:
    """The keeper's end."""

    def __init__(self, collector: Collector, store: str) -> None:
        self._collector = collector
        self.path = Path(store) / SOCKET
        self._limit = trio.CapacityLimiter(_CLIENTS)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it is cancelled. The store's lock is ours, so a socket that is there is stale."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            try:
                self.path.unlink(missing_ok=True)
                os.fchmod(sock.fileno(), 0o600)
                sock.bind(os.fspath(self.path))
                sock.listen(_CLIENTS)
            except OSError as error:
                raise ControlError(f"{self.path}: {error.strerror or error}") from None
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock.dup()))
            task_status.started()
            try:
                await trio.serve_listeners(self._one, [listener])
            finally:
                self.path.unlink(missing_ok=True)

    async def _one(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with self._limit, stream:
                with trio.move_on_after(_SECONDS):
                    request = await stream.receive_some(_REQUEST_MAX)
                    answer = await self._answer(bytes(request).strip())
                    await stream.send_all(json.dumps(answer).encode() + b"\n")

    async def _answer(self, request: bytes) -> dict[str, Any]:
        try:
            if request == b"flush":
                await self._collector.flush()
            elif request != b"status":
                raise ControlError("no such request")
        except ImafsError as error:
            return {"ok": False, "error": str(error), "code": error.exit_code}
        return {"ok": True, "status": status(self._collector), "when": time.time()}


def ask(store: str, request: str) -> Mapping[str, Any]:
    """The answer of the keeper of ``store``. Raises :class:`ControlError` where none runs, and
    what the keeper refuses with."""
    path = Path(store) / SOCKET
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_SECONDS)
            sock.connect(os.fspath(path))
            sock.sendall(request.encode() + b"\n")
            data = b""
            while not data.endswith(b"\n") and len(data) < _ANSWER_MAX:
                piece = sock.recv(1 << 16)
                if not piece:
                    break
                data += piece
    except OSError as error:
        raise ControlError(f"{path}: no keeper answers: {error.strerror or error}") from None
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        raise ControlError(f"{path}: the keeper ended before it answered") from None
    if not isinstance(answer, dict) or not isinstance(answer.get("status", {}), dict):
        raise ControlError(f"{path}: no keeper answers there")
    if not answer.get("ok"):
        raise DegradedError(str(answer.get("error")))
    found: Mapping[str, Any] = answer["status"]
    return found
