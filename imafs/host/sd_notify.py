# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""sd_notify(3) without a library: one datagram to $NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket

from imafs.text import shown


def notify(*lines: str) -> None:
    """Sends ``lines`` (``READY=1``); nothing where no service manager listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # abstract namespace
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        # A mountpoint's line end would be another assignment, MAINPID=1 for one.
        sock.sendto("\n".join(map(shown, lines)).encode(), address)
