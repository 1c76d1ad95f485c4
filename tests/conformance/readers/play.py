# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Plays reader cases against one list: ``play.py LIST PROGRAMS CASES [GROUP...]``.

On a kernel and on an emulator alike, so with nothing but the standard library. Prints one line
per case of the groups (all groups where none is named): ``name|status|bytes|hash|stderr``; bytes
and hash (the first eight digits of SHA-256) are of stdout, in which, as in stderr, the paths
of the list, of its directory and of the work directory are replaced by words.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

#: Seconds for one case, in full emulation too.
LONGEST = 300


def cases(text: str) -> Iterator[tuple[str, str, str]]:
    """(group, name, command) of every line of a table of cases."""
    group = ""
    for line in text.splitlines():
        if line.startswith("["):
            group = re.split(r"\W+", line)[1]
        elif line and not line.startswith("#"):
            name, _, command = line.partition(" ")
            yield group, name, command.strip()


def plain(data: bytes, place: str, work: str) -> bytes:
    """Without what differs from machine to machine."""
    directory, name = os.path.split(place)
    for path, word in ((place, "LIST"), (place[1:], "LIST"), (work, "WORK"), (name, "LIST")):
        data = data.replace(path.encode(), word.encode())
    return data.replace(directory.encode(), b"DIR")


def complaint(data: bytes) -> str:
    """The first three lines of stderr that name no line of a program, as one."""
    text = re.sub(r"0x[0-9a-f]+|line \d+", "N", data.decode("utf-8", "replace"))
    kept = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(kept[:3]).replace("|", "/")


def play(command: str, place: str, programs: str) -> tuple[int, int, str, str]:
    """(status, bytes, hash, stderr) of one case in a work directory of its own."""
    with tempfile.TemporaryDirectory(prefix="case-") as work:
        environment = {
            "PATH": os.environ["PATH"],
            "LC_ALL": "C",
            "HOME": work,
            "F": place,
            "D": os.path.dirname(place),
            "N": os.path.basename(place),
            "O": work + "/out",
            "W": work,
            "P": programs,
            "PYTHON": sys.executable,
        }
        done = subprocess.run(
            ["bash", "-c", command],
            env=environment,
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LONGEST,
            check=False,
        )
        out, error = (plain(data, place, work) for data in (done.stdout, done.stderr))
        digest = hashlib.sha256(out).hexdigest()[:8]
        return done.returncode, len(out), digest, complaint(error)


def main(place: str, programs: str, table: str, *groups: str) -> None:
    """Every case of the groups, one line each."""
    with open(table, encoding="utf-8") as file:
        found = list(cases(file.read()))
    for group, name, command in found:
        if groups and group not in groups:
            continue
        print(name, *play(command, place, programs), sep="|", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
