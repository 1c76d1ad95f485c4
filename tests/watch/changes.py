# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The uses of changes.script in a kernel: files that change while they are open.

    python -m tests.watch.changes ORACLE     # ask a real kernel anew, store its records

ORACLE is a directory with ``ask-kernel`` (see tests/conformance/oracle.py).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tests.support import run
from tests.watch.uses import neutral

HERE = Path(__file__).parent
SCRIPT = HERE / "changes.script"
RECORDS = HERE.parent / "data" / "changes-7.2.13.txt"
RULE = "measure func=FILE_CHECK mask=MAY_READ uid=0"
#: File system -> where it is mounted in the machine.
SYSTEMS = {"ext4": "/t", "tmpfs": "/u"}


def build(folder: Path) -> Path:
    """The program that takes the script."""
    program = folder / "changes"
    run(["gcc", "-O2", "-Wall", "-static", "-o", program, HERE / "changes.c"])
    return program


def image(folder: Path) -> Path:
    """An empty ext4."""
    path = folder / "image"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", path])
    return path


_RUN = """\
mkdir /case /t /u; mount -t tmpfs none /case
cp /mnt/image /mnt/changes /mnt/changes.script /case
mount -t ext4 -o loop /case/image /t; mount -t tmpfs none /u
echo '{rule}' > /sys/kernel/security/ima/policy
for place in /t /u; do (cd $place; /case/changes < /case/changes.script); done
cat /sys/kernel/security/ima/ascii_runtime_measurements_sha256 > /mnt/list
echo violations: $(cat /sys/kernel/security/ima/violations)
"""


def ask(oracle: Path) -> list[str]:
    """The records of a real kernel, each behind its file system."""
    with tempfile.TemporaryDirectory(prefix="imafs-changes-") as name:
        share = Path(name)
        build(share)
        image(share)
        shutil.copy(SCRIPT, share)
        (share / "run.sh").write_text(_RUN.format(rule=RULE))
        print(run([oracle / "ask-kernel", share], deadline=300).stdout)
        listed = (share / "list").read_bytes()
    return [
        f"{system} {record}"
        for system, place in SYSTEMS.items()
        for record in neutral(listed, place, {})
    ]


if __name__ == "__main__":
    records = ask(Path(sys.argv[1]).resolve())
    RECORDS.write_text("".join(f"{record}\n" for record in records))
