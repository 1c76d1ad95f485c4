# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A control socket: JSON lines over a unix socket that only its owner may use.

``ops`` describes operations as data, ``wire`` the format of the lines, ``server`` is the
daemon's end (trio), ``client`` the other end (standard library only), ``paths`` and ``peers``
say where the sockets are and who may be asked. Each product hands in its own table::

    TABLE = Table(Operation("flush", "commit what is staged", lengthy=True))

    class Handlers:
        async def flush(self, options: Options, progress: ProgressCallback) -> dict[str, object]:
            return {"records": await self._keeper.flush()}

    # In the daemon, inside a nursery; then from anywhere, without any event loop:
    await nursery.start(serve, "/run/imafs/keeper/control.sock", TABLE, {"flush": h.flush})
    with Client("/run/imafs/keeper/control.sock", TABLE) as keeper:
        print(keeper.call("flush")["records"])

``hello`` is in every table. Nothing is imported here, so that a client need not load the
server's event loop.
"""
