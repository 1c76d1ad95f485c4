# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The control socket: JSON lines over a unix socket that only the owner may use.

``ops`` is the one table of operations, ``wire`` the format of the lines, ``server``
the daemon's end (trio), ``client`` the other end (standard library only) and
``paths`` knows where the sockets are. Nothing is imported here, so that a client
need not load the server's event loop.
"""
