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

from imafs.control.peers import peer_of
from imafs.errors import ControlError, DegradedError, ImafsError, UntrustedError
from imafs.keeper.collector import Collector
from imafs.keeper.ledger import Ledger

log = logging.getLogger(__name__)

SOCKET = "control.sock"
_REQUEST_MAX = 64
_ANSWER_MAX = 1 << 20
_SECONDS = 30.0
_CLIENTS = 16
#: Seconds for an answer: a flush takes two looks.
_PATIENCE = 60.0


def status(collector: Collector) -> dict[str, Any]:
    """JSON types only."""
    life, catalogue = collector.life, collector.catalogue
    ledger = life.archive.ledger if life is not None else None
    total = len(catalogue) if catalogue is not None else 0
    stored = catalogue.stored if catalogue is not None else 0
    verified, error = collector.verified, collector.last_error
    return {
        "state": collector.state.value,
        "why": collector.why or None,
        "view": "refused" if collector.refusal else "served",
        "refusal": collector.refusal,
        "source": collector.source,
        "life": None if life is None else life.facts.number,
        "boots": [] if ledger is None else list(dict.fromkeys(era.boot for era in ledger.eras)),
        "boot": collector.boot,
        "records": {
            **{"total": total, "stored": stored, "in_kernel": total - stored},
            "deleted": 0 if ledger is None else ledger.deleted,
        },
        "batches_deleted": collector.deleted,
        "looked": collector.looked_at,
        "verified": None
        if verified is None
        else {
            "from": 0 if ledger is None else ledger.unconfirmed,
            **{"records": verified[0], "when": verified[1]},
        },
        "last_error": None if error is None else {"text": error[0], "when": error[1]},
        **marks(ledger),
        "alarms": dict(collector.alarms),
        "flush_htable": collector.flushes,
        "view_measured": collector.view_measured,
        "pid": os.getpid(),
    }


def marks(ledger: Ledger | None) -> dict[str, Any]:
    """Where the life is not what its PCRs tell, by numbers of records."""
    return {
        "gaps": [
            {
                **{"after": gap.index, "records": gap.missing, "why": gap.why},
                **{"verified": gap.verified, "verified_at": gap.verified_at},
            }
            for gap in (() if ledger is None else ledger.gaps)
        ],
        "diverged": [] if ledger is None else [mark.index for mark in ledger.diverged],
        "resets": [] if ledger is None else [mark.index for mark in ledger.resets],
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
                with suppress(OSError):  # read-only by now, or gone: the next keeper removes it
                    self.path.unlink(missing_ok=True)

    async def _one(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with self._limit, stream:
                request = b""
                with trio.move_on_after(_SECONDS):
                    request = bytes(await stream.receive_some(_REQUEST_MAX))
                answer = await self._answer(request.strip())  # which has deadlines of its own
                with trio.move_on_after(_SECONDS):
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


def ask(store: str, request: str, uid: int | None = None) -> Mapping[str, Any]:
    """The answer of the keeper of ``store``. Raises :class:`ControlError` where none runs, and
    what the keeper refuses with.

    Whoever has made the socket may not be a keeper: nobody is asked but root, this user and
    the store's own, or ``uid`` alone where that is given.
    """
    path = Path(store) / SOCKET
    end = time.monotonic() + _PATIENCE
    try:
        believed = {0, os.geteuid(), os.stat(store).st_uid} if uid is None else {uid}
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_SECONDS)
            sock.connect(os.fspath(path))
            peer = peer_of(sock)
            if peer.uid not in believed:
                raise UntrustedError(f"{path}: uid {peer.uid} listens there: not asked")
            sock.sendall(request.encode() + b"\n")
            data = b""
            while not data.endswith(b"\n") and len(data) < _ANSWER_MAX:
                sock.settimeout(max(end - time.monotonic(), 0.001))
                piece = sock.recv(1 << 16)
                if not piece:
                    break
                data += piece
    except OSError as error:
        raise ControlError(
            f"{path}: no keeper answers: {error.strerror or error}. Start it, or name its store "
            "with --store"
        ) from None
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        raise ControlError(f"{path}: the keeper ended before it answered") from None
    if isinstance(answer, dict) and answer.get("ok") is False:
        raise DegradedError(str(answer.get("error")))
    if not isinstance(answer, dict) or not _is_status(answer.get("status")):
        raise ControlError(f"{path}: no keeper answers there, or one of another version")
    found: Mapping[str, Any] = answer["status"]
    return found


def flush(store: str) -> Mapping[str, Any]:
    """The status once all is stored that the kernel has. A keeper says no where that takes it
    longer than a reader may wait: it is asked again for as long as more is stored each time (a
    first list comes in pieces). Raises what :func:`ask` does."""
    stored = ask(store, "status")["records"]["stored"]
    while True:
        try:
            return ask(store, "flush")
        except DegradedError:
            before, stored = stored, ask(store, "status")["records"]["stored"]
            if stored <= before:
                raise


def _is_status(found: Any) -> bool:
    """Whether an answer has what is read of it."""
    return (
        _has(found, _STATUS)
        and _has(found["records"], _RECORDS)
        and (found["last_error"] is None or _has(found["last_error"], _ERROR))
        and (found["verified"] is None or _has(found["verified"], _VERIFIED))
        and all(isinstance(text, str) for text in found["alarms"].values())
    )


def _has(found: Any, types: Mapping[str, Any]) -> bool:
    return isinstance(found, dict) and all(
        key in found and isinstance(found[key], kind) for key, kind in types.items()
    )


_STATUS = {
    **{"state": str, "why": str | None, "view": str, "refusal": str | None, "records": dict},
    **{"life": int | None, "boot": str, "verified": dict | None, "alarms": dict},
    **{"flush_htable": bool | None, "view_measured": str},
    **{"gaps": list, "looked": int | float | None, "last_error": dict | None},
}
_RECORDS = dict.fromkeys(("total", "stored", "in_kernel", "deleted"), int)
_ERROR = {"text": str, "when": int | float}
_VERIFIED = {"from": int, "records": int, "when": int | float}
