# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Ask a real kernel: boot it in QEMU with IMA, staging and a software TPM, and play scripts.

Needs a directory with ``ask-kernel`` (a script that boots Linux with CONFIG_IMA_STAGING=y,
runs ``DIR/run.sh`` in it, DIR being /mnt inside, and prints what it printed), gcc with a
static C library, qemu-system-x86 and swtpm. A boot with its questions takes 2 to 60 s.

    python -m tests.conformance.oracle ORACLE     # ask the questions anew and store the answers
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.conformance import recordings
from tests.support import run

HERE = Path(__file__).parent
BANKS = ("sha1", "sha256", "sha384", "sha512")

#: Where the questions are -> the kernel command line with which they are asked.
QUESTIONS = {"questions": "", "questions-flush-htable": "ima_flush_htable"}

_HEAD = """\
D=/sys/kernel/security/ima
T=/sys/class/tpm/tpm0
echo "measure func=FILE_CHECK mask=MAY_READ fowner=1234" > $D/policy
cp /mnt/probe /probe
mkdir /q /tmpm; mount -t tmpfs none /q; mount -t tmpfs none /tmpm
keep() {
  for b in sha1 sha256 sha384 sha512; do
    cat $D/ascii_runtime_measurements_$b > /mnt/answers/$1.ascii.$b
    cat $D/binary_runtime_measurements_$b > /mnt/answers/$1.binary.$b
    cat $T/pcr-$b/10 > /mnt/answers/$1.pcr10.$b
  done
}
keep start
"""

# Every question begins with empty lists, whatever the one before left.
_EACH = """\
for s in /mnt/scripts/*.script; do
  n=${s##*/}; n=${n%.script}; mkdir /q/$n
  /probe $D < /mnt/empty.script > /dev/null
  /probe $D < $s > /mnt/answers/$n.out 2>&1
  cat $T/pcr-sha256/10 > /mnt/answers/$n.pcr10
done
"""

EMPTY = """\
open a ascii_runtime_measurements_staged w
write a "D\\n"
write a "A\\n"
write a "D\\n"
close a
"""


@dataclass(frozen=True)
class Oracle:
    """A directory with ``ask-kernel``."""

    directory: Path

    def play(
        self, scripts: Mapping[str, str], command_line: str = "", *, separate: bool = True
    ) -> dict[str, bytes]:
        """Play ``scripts`` (name -> text) in one boot and return file name -> content.

        Files: ``NAME.out`` per script, ``NAME.pcr10`` (sha256) after it, ``start.*`` and
        ``end.*`` (lists and PCR 10 of every bank). ``separate`` empties the lists before
        each script.
        """
        with tempfile.TemporaryDirectory(prefix="imafs-oracle-") as name:
            share = Path(name)
            build_probe(share / "probe")
            (share / "answers").mkdir()
            (share / "scripts").mkdir()
            for script, text in scripts.items():
                (share / "scripts" / f"{script}.script").write_text(text)
            (share / "empty.script").write_text(EMPTY if separate else "")
            (share / "run.sh").write_text(f"{_HEAD}{_EACH}keep end\n")
            run([self.directory / "ask-kernel", share, command_line], deadline=300)
            return {path.name: path.read_bytes() for path in (share / "answers").iterdir()}


def build_probe(target: Path) -> None:
    """Compile probe.c into a static program."""
    run(["gcc", "-O2", "-Wall", "-static", "-pthread", "-o", target, HERE / "probe.c"])


def questions(folder: str) -> dict[str, str]:
    """Name -> script of the questions in ``folder`` (a key of QUESTIONS), as played."""
    # By file name with its suffix: the guest's shell takes them in this order.
    found = sorted((HERE / folder).glob("*.script"))
    return {path.stem: path.read_text() for path in found}


def record(oracle: Oracle, target: Path) -> None:
    """Ask all questions and store the answers, with viol.script once more from a known start."""
    with tempfile.TemporaryDirectory(prefix="imafs-oracle-") as name:
        top = Path(name) / "questions-7.2.13"
        asked = {folder: (questions(folder), line, True) for folder, line in QUESTIONS.items()}
        viol = recordings.load("7.2.13").text("viol.script")
        asked["viol"] = ({"viol": viol}, "", False)
        for folder, (scripts, line, separate) in asked.items():
            (top / folder).mkdir(parents=True)
            for file, content in oracle.play(scripts, line, separate=separate).items():
                (top / folder / file).write_bytes(content)
        shutil.copy(recordings.pack(top, Path(name) / "packed.tar.xz"), target)


if __name__ == "__main__":
    record(Oracle(Path(sys.argv[1]).resolve()), recordings.DATA / "questions-7.2.13.tar.xz")
