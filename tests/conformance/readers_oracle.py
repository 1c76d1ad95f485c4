# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Ask a real kernel what readers of a list get: the reader cases in a Debian on Linux 7.2.13.

Besides what :mod:`tests.conformance.oracle` needs: root, debootstrap, gcc, go, rustc.

    python -m tests.conformance.readers_oracle ORACLE     # play the cases anew, store the answers

Full emulation: about ten minutes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tests.conformance import recordings
from tests.conformance.readercases import READERS, build, parse
from tests.support import run

NAME = "readers-7.2.13"
PACKAGES = "busybox,gawk,mawk,nodejs,perl,python3,rsync,xxd,binutils,procps"

#: 700 measured files make a list of some 100 KB; nothing that the cases do is measured.
_RUN = """\
D=/sys/kernel/security/ima
R=/mnt/root
mkdir /tmpm; mount -t tmpfs none /tmpm
echo "measure func=FILE_CHECK mask=MAY_READ fowner=1234" > $D/policy
i=0; while [ $i -lt 700 ]; do echo $i > /tmpm/f$i-$((i*i*i%100003*31)); i=$((i+1)); done
chown 1234 /tmpm/*; cat /tmpm/* > /dev/null
cat $D/binary_runtime_measurements_sha1 > /mnt/answers/binary
cat $D/ascii_runtime_measurements_sha1 > /mnt/answers/ascii
mount -t proc none $R/proc; mount -t sysfs none $R/sys
mount -t securityfs none $R/sys/kernel/security
mount -t devtmpfs none $R/dev; mount -t tmpfs none $R/tmp
[ -e $R/dev/fd ] || ln -s /proc/self/fd $R/dev/fd
chroot $R /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin python3 /programs/play.py \\
  $D/ascii_runtime_measurements_sha1 /programs /programs/cases.txt \\
  > /mnt/answers/answers.tsv 2> /mnt/errors
cat $D/ascii_runtime_measurements_sha1 | cmp - /mnt/answers/ascii && touch /mnt/frozen
cat /proc/version > /mnt/answers/uname.txt; cat /proc/cmdline > /mnt/answers/cmdline.txt
cat $R/etc/debian_version > /mnt/answers/debian_version
"""


def record(ask: Path, target: Path) -> None:
    """Play all cases on the kernel of ``ask`` (ask-kernel) and store what they got."""
    with tempfile.TemporaryDirectory(prefix="imafs-readers-") as name:
        share = Path(name)
        root = share / "root"
        bootstrap = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm"]
        run([*bootstrap, root], deadline=900)
        programs = root / "programs"
        shutil.copytree(READERS, programs)
        build(programs, ("reader", "reader-go", "reader-rs"))
        (share / "answers").mkdir()
        (share / "run.sh").write_text(_RUN)
        run([ask, share], env={"ASK_KERNEL_TIMEOUT": "3000"}, deadline=3100)
        assert (share / "frozen").exists(), (share / "errors").read_text()
        told = parse((share / "answers" / "answers.tsv").read_text()).values()
        odd = [str(answer) for answer in told if answer.got[:2] not in ("0|", "1|")]
        assert not odd, odd  # a tool that is not there, or no mode of a program
        kept = share / NAME
        shutil.move(share / "answers", kept)
        recordings.pack(kept, target)


if __name__ == "__main__":
    record(Path(sys.argv[1]).resolve() / "ask-kernel", recordings.DATA / f"{NAME}.tar.xz")
