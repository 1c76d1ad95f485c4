# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Ask a real kernel about its policy, and store the answers.

    python -m tests.conformance.policy_oracle ORACLE

ORACLE as in :mod:`tests.conformance.oracle`. Three boots: ``rules`` plays the scripts in
``policy`` one after the other (each goes on with the policy that the one before left),
``builtin`` prints what the words of ima_policy= make, ``decide`` lets users open and
execute files under ``decide.rules``; its list says what was measured.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conformance import recordings
from tests.conformance.oracle import build_probe
from tests.support import run

HERE = Path(__file__).parent / "policy"
NAME = "policy-7.2.13"
#: The words of the boot ``builtin``; ask-kernel itself has ima_policy=tcb before them.
WORDS = "ima_policy=critical_data|appraise_tcb ima_policy=secure_boot|fail_securely|nosuch"

#: The files of rules that 2-sessions.script names, below /policies.
FILES = {
    "good": b"measure fowner=100\n# c\n\ndont_measure fowner=101\n",
    "unended": b"measure fowner=102\nmeasure fowner=103",
    "bad": b"measure fowner=104\nbogus\n",
    "nul": b"measure fowner=105\n\0measure fowner=106\n",
    "empty": b"",
}

_RULES = """\
cp -r /mnt/files /policies
cp /mnt/probe /probe
for s in /mnt/scripts/*.script; do
  n=${s##*/}
  /probe /sys/kernel/security/ima < $s > /mnt/answers/${n%.script}.out 2>&1
done
"""
_BUILTIN = "cat /sys/kernel/security/ima/policy > /mnt/answers/builtin.policy\n"
_DECIDE = """\
D=/sys/kernel/security/ima
cp /mnt/probe /probe
mkdir /q; mount -t tmpfs none /q
while read name owner group how uid gid; do
  if [ $how = x ]; then cp /bin/busybox $name; fi
  echo $name >> $name; chmod 777 $name; chown $owner:$group $name
done < /mnt/cases
echo /mnt/decide.rules > $D/policy
/probe $D < /mnt/decide.script > /dev/null
while read name owner group how uid gid; do [ $how = x ] && $name true; done < /mnt/cases
cat $D/policy > /mnt/answers/decide.policy
cat $D/ascii_runtime_measurements > /mnt/answers/decide.ascii
"""

OWNERS = (
    *((0, 0), (7, 0), (1234, 0), (1234, 950), (1235, 0), (1236, 0), (1237, 0), (4, 0)),
    *((1240, 0), (1241, 0), (1242, 0), (1243, 0), (1244, 0)),
)
USERS = ((0, 0), (1000, 1000), (1001, 2), (0, 2))


@dataclass(frozen=True)
class Case:
    """One use of a file of its own on a tmpfs: ``how`` is r, w, rw, or x by root."""

    name: str
    owner: int
    group: int
    how: str
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.name} {self.owner} {self.group} {self.how} {self.uid} {self.gid}"


def cases() -> Iterator[Case]:
    """All uses, in the order in which they happen."""
    number = 0
    for owner, group in OWNERS:
        for how in ("r", "rw", "w"):
            for uid, gid in USERS:
                number += 1
                yield Case(f"/q/f{number}", owner, group, how, uid, gid)
    for owner in (0, 7, 1242, 1243):
        number += 1
        yield Case(f"/q/f{number}", owner, 0, "x", 0, 0)


def scripts() -> dict[str, str]:
    """Name -> text of the scripts of rules, in the order in which they are played."""
    return {path.stem: path.read_text() for path in sorted(HERE.glob("*.script"))}


def _opens() -> str:
    return "".join(
        f"fork {{\n become {case.uid} {case.gid}\n open a {case.name} {case.how}\n}}\n"
        for case in cases()
        if case.how != "x"
    )


def ask(oracle: Path, shell: str, command_line: str = "") -> dict[str, bytes]:
    """One boot that runs ``shell``: name -> content of what it left in /mnt/answers."""
    with tempfile.TemporaryDirectory(prefix="imafs-oracle-") as name:
        share = Path(name)
        build_probe(share / "probe")
        for folder in ("answers", "scripts", "files"):
            (share / folder).mkdir()
        for script, text in scripts().items():
            (share / "scripts" / f"{script}.script").write_text(text)
        for file, content in FILES.items():
            (share / "files" / file).write_bytes(content)
        shutil.copy(HERE / "decide.rules", share)
        (share / "cases").write_text("".join(f"{case}\n" for case in cases()))
        (share / "decide.script").write_text(_opens())
        (share / "run.sh").write_text(shell)
        run([oracle / "ask-kernel", share, command_line], deadline=300)
        return {path.name: path.read_bytes() for path in (share / "answers").iterdir()}


def ask_all(oracle: Path) -> dict[str, bytes]:
    """Three boots: name -> content of every answer."""
    return ask(oracle, _RULES) | ask(oracle, _BUILTIN, WORDS) | ask(oracle, _DECIDE)


def record(oracle: Path, target: Path) -> None:
    """Ask everything and store it."""
    answers = ask_all(oracle)
    with tempfile.TemporaryDirectory(prefix="imafs-oracle-") as name:
        top = Path(name) / NAME
        top.mkdir()
        for file, content in answers.items():
            (top / file).write_bytes(content)
        shutil.copy(recordings.pack(top, Path(name) / "packed.tar.xz"), target)


if __name__ == "__main__":
    record(Path(sys.argv[1]).resolve(), recordings.DATA / f"{NAME}.tar.xz")
