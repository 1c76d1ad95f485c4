# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs mount --background``: the same command in a session of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence


def start(directory: str, arguments: Sequence[str]) -> int:
    """Starts the daemon and returns once its mount answers, or with its exit code.

    Its line on stdout is repeated here. Log lines go to --log-file; without one only
    those until the mount answers are seen.
    """
    command = [sys.executable, "-m", "imafs", *(a for a in arguments if a != "--background")]
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        assert child.stdout is not None
        line = child.stdout.readline()
        if line:
            sys.stdout.write(line)
            # The child lives on; this process ends now and must not wait for it.
            child.returncode = 0
            return 0
        code = child.wait()
        errors.seek(0)
        sys.stderr.write(errors.read())
        return code
