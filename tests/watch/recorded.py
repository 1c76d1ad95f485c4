# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""viol.script on watched files under their recorded names, in a root directory of its own.

``unshare --mount python -m tests.watch.recorded EMPTY-DIRECTORY``: in the root that is made
there ``/tmpm`` is an ext4 of its own (which tcb measures), everything else is the machine's.
Fails by an exception.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.conformance.playing import compare, prober
from tests.conformance.test_recorded_scripts import AGAIN, SEVEN, hexdump, recorded_state, state
from tests.mount.daemon import Daemon
from tests.support import run
from tests.watch.disk import Disk
from tests.watch.looking import status


def enter_root(root: Path) -> None:
    """A root directory in which names may be added; needs a mount namespace of our own."""
    run(["mount", "-t", "tmpfs", "none", root])
    for path in Path("/").iterdir():
        place = root / path.name
        if path.is_symlink():
            place.symlink_to(path.readlink())
        elif path.is_dir():
            place.mkdir()
            run(["mount", "--rbind", path, place])
    here = os.getcwd()
    os.chroot(root)
    os.chdir(here)


def play(emulator: Daemon, script: str) -> str:
    """On the files themselves: nothing is asked through the control socket."""
    return run([prober(), emulator.dir], stdin=script).stdout


def violations(disk: Disk) -> None:
    """Recorded answers, list bytes of every bank, and PCRs."""
    known = AGAIN.below("viol")
    start = disk.base / "start"
    start.write_bytes(known["start.binary.sha1"])
    with Daemon("--load", str(start), "--watch", "/tmpm") as emulator:
        answers = play(emulator, SEVEN.text("viol.script"))
        lines = SEVEN.text("viol.out").splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith("00000000  "))
        complaints = compare("\n".join([*lines[:first], ""]), answers)
        complaints += compare(known["viol.out"].decode(), answers)
        assert not complaints, "\n".join(complaints)
        dump = hexdump(emulator.read("binary_runtime_measurements_sha256"))
        assert dump == lines[first : first + len(dump)]
        assert state(emulator) == recorded_state(known, "end")
        assert status(emulator)["violations"] == 3


def main() -> None:
    """The root's mounts end with the namespace; its directory is the caller's."""
    enter_root(Path(sys.argv[1]))
    disk = Disk(point=Path("/tmpm"))
    try:
        violations(disk)
    finally:
        disk.close()


if __name__ == "__main__":
    main()
