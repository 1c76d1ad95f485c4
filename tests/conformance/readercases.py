# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Reader cases: what clients of many kinds get from one list, here and on Linux 7.2.13.

``readers/cases.txt`` is the table of them, ``readers/play.py`` plays it, on both sides. The
kernel's answers are the recording ``readers-7.2.13``, with the very list that was read:
the emulator serves the same bytes. How two answers are compared, in words:

* Status, number of bytes and hash of stdout have to be the same.
* stderr has to be the same where the tools are Debian 12's, those that were asked on the kernel;
  other versions put other words there.
* Paths and numbers of lines are replaced on both sides (``play.py``).
* Cases in which the *machine's* kernel decides how splice, sendfile and copy_file_range of a FUSE
  file end are judged where that is what 7.2.13 does: :func:`own_splice`.
* fs.promises.readFile of Debian 12's Node 18 takes a short read for the end; Node 20 gets the whole
  list, on 7.2.13 too (asked with 20.20.2), so ``node-promises`` is judged by the version.
* A plain user may not write to a list: ``append`` is not played as one.
* What else differs stands in :data:`DIFFERENCES`, with what is served instead and why; a row that
  is not needed, or no longer true, is an error.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from tests.conformance import recordings
from tests.support import missing, run

HERE = Path(__file__).parent
READERS = HERE / "readers"
CASES = READERS / "cases.txt"
RECORDING = "readers-7.2.13"
#: The list that the cases read.
LIST = "ascii_runtime_measurements_sha1"

#: Program -> how it is compiled. As on the kernel, so with nothing of the machine's in it.
_COMPILERS: Mapping[str, tuple[str, ...]] = {
    "reader": ("gcc", "-O2", "-Wall", "-static", "-pthread", "-o", "{out}", "{in}.c"),
    "reader-go": ("go", "build", "-o", "{out}", "{in}.go"),
    "reader-rs": ("rustc", "-O", "-o", "{out}", "{in}.rs"),
}


@dataclass(frozen=True)
class Group:
    """Cases of one kind of clients, and the commands without which they cannot be played."""

    name: str
    needs: tuple[str, ...]
    cases: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What one case got: status, bytes and hash of stdout (``got``), and its stderr."""

    name: str
    got: str
    stderr: str

    def __str__(self) -> str:
        return f"{self.got} {self.stderr!r}"


@dataclass(frozen=True)
class Difference:
    """What is served in place of the kernel's answer, and why."""

    got: str
    why: str


@cache
def groups() -> dict[str, Group]:
    """The groups of the table, in order."""
    found: dict[str, Group] = {}
    head, cases = "", list[str]()
    for line in [*CASES.read_text().splitlines(), "[end]"]:
        if line.startswith("["):
            if head:
                name, _, needs = head.partition(":")
                found[name] = Group(name, tuple(needs.split()), tuple(cases))
            head, cases = line.strip("[]"), []
        elif line and not line.startswith("#"):
            cases.append(line.split()[0])
    return found


def parse(text: str) -> dict[str, Answer]:
    """What play.py prints."""
    found = {}
    for line in text.splitlines():
        name, status, length, digest, stderr = line.split("|")
        found[name] = Answer(name, f"{status}|{length}|{digest}", stderr)
    return found


@cache
def kernel() -> dict[str, Answer]:
    """The answers on Linux 7.2.13."""
    found = parse(recordings.load(RECORDING).text("answers.tsv"))
    if _node_reads_on():
        found["node-promises"] = replace(found["node-readFile"], name="node-promises")
    return found


def _node_reads_on() -> bool:
    """Whether fs.promises.readFile of this machine reads to the end."""
    if missing("node") is not None:
        return False
    version = re.match(r"v(\d+)", run(["node", "--version"]).stdout)
    return version is not None and int(version[1]) >= 20


def recorded(form: str) -> bytes:
    """The list that was read, ``binary`` or ``ascii``, SHA-1."""
    return recordings.load(RECORDING).files[form]


def build(directory: Path, programs: Iterable[str] = _COMPILERS) -> None:
    """Compiles ``programs`` into ``directory``."""
    for program in programs:
        source, out = READERS / "reader", directory / program
        words = [w.format(**{"in": source, "out": out}) for w in _COMPILERS[program]]
        env = {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOCACHE": str(directory / "gocache")}
        run(words, env=env, deadline=300)


def pinned() -> bool:
    """Whether the tools are those that were asked on the kernel."""
    release = Path("/etc/os-release").read_text()
    return "ID=debian\n" in release and 'VERSION_ID="12"' in release


#: Cases in which splice, sendfile or copy_file_range is asked by itself.
SPLICING = frozenset(
    {
        *("c-sendfile", "c-splice", "c-readsplice", "c-teesplice", "c-sendoff-4096"),
        *("c-sendoff-5000", "c-cfr", "py-sendfile"),
    }
)


def own_splice() -> bool:
    """Whether this machine's kernel refuses to splice a FUSE file as 7.2.13 does a list.

    6.1 goes through read and copies all of it. From 6.5 on (its source) the page cache is asked,
    whose refusal is EINVAL in 6.18 and EIO in 7.3.4. ``test_twin.py`` measures all three.
    """
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    assert found is not None
    return (6, 5) <= (int(found[1]), int(found[2])) < (7, 0)


#: Case -> what an emulator gives instead. Nothing else may differ.
DIFFERENCES: Mapping[str, Difference] = {
    "c-mmapp": Difference(
        "0|11|64c8f628", "FUSE maps direct files privately: SIGBUS in place of ENODEV at mmap"
    ),
    "c-poll": Difference("0|38|fed34f00", "every FUSE file has a poll method: epoll_ctl succeeds"),
    "c-readv": Difference(
        "0|99685|5545dd43", "FUSE makes one read of all parts, seq_file's readers one of each"
    ),
    "c-statx": Difference(
        "0|144|cdead080", "AT_STATX_DONT_SYNC shows the size that this kernel keeps for splice"
    ),
    "c-fionread": Difference("0|81|8e293b28", "FIONREAD is made of that size"),
    "append-limited": Difference("-25|0|e3b0c442", "the end of the file is at that size: SIGXFSZ"),
}


def complaints(
    names: Sequence[str], served: Mapping[str, Answer], *, stderr: bool, splice: bool
) -> list[str]:
    """What is wrong with what was ``served`` for the cases ``names``; see the module."""
    wrong = []
    for name in names:
        if name in SPLICING and not splice:
            continue
        expected, answer = kernel()[name], served.get(name)
        row = DIFFERENCES.get(name)
        if answer is None:
            wrong.append(f"{name}: not played")
        elif row is not None and expected.got == answer.got:
            wrong.append(f"{name}: equal to the kernel, so its row in DIFFERENCES goes")
        elif answer.got != (row.got if row else expected.got):
            wrong.append(f"{name}: {answer}, where a kernel has {expected}")
        elif row is None and stderr and answer.stderr != expected.stderr:
            wrong.append(
                f"{name}: stderr {answer.stderr!r}, where a kernel has {expected.stderr!r}"
            )
    return wrong


def figure(served: Mapping[str, Answer], *, stderr: bool) -> tuple[int, int]:
    """How many cases are equal to the kernel, of how many that were played."""
    equal = [
        name
        for name, answer in served.items()
        if answer.got == kernel()[name].got
        and (not stderr or answer.stderr == kernel()[name].stderr)
    ]
    return len(equal), len(served)


def environment() -> dict[str, str]:
    """For play.py: PATH with the system's directories."""
    return {"PATH": f"{os.environ['PATH']}:/usr/sbin:/usr/bin:/sbin:/bin"}
