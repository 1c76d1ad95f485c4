# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Opens a file as somebody: a child process behind a prefix prints what came of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support import run

#: Prints "read: ok" or "read: EACCES", then the same for write. Nothing is written.
_TRY = """
import errno, os, sys
for word, flags in (("read", os.O_RDONLY), ("write", os.O_WRONLY)):
    try:
        fd = os.open(sys.argv[1], flags)
    except OSError as error:
        print(word, errno.errorcode[error.errno])
    else:
        if flags == os.O_RDONLY:
            data = os.read(fd, 4096)
            assert data, "an empty list"
        os.close(fd)
        print(word, "ok")
"""


def tries(path: Path, prefix: Sequence[str] = ()) -> dict[str, str]:
    """``{"read": "ok", "write": "EPERM"}`` of a caller behind ``prefix``."""
    # The system's python: other users may not be able to reach a virtual environment's.
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    result = run([*prefix, python, "-c", _TRY, str(path)], cwd="/")
    return dict(line.split(" ", 1) for line in result.stdout.splitlines())


NO_SYS_ADMIN = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
USER_1000 = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all")
#: Group root: the mode bits 0660 let it through, the capability does not.
USER_1000_GROUP_0 = ("setpriv", "--reuid=1000", "--regid=0", "--clear-groups", "--inh-caps=-all")
USER_NAMESPACE = ("unshare", "--user", "--map-root-user")
#: A pid namespace of its own below the daemon's.
CHILD_PIDS = ("unshare", "--fork", "--pid", "--mount-proc")
