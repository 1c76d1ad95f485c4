# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The files that uses.sh uses, and their uses in a kernel: one image for both sides.

    python -m tests.watch.uses ORACLE     # ask a real kernel anew, store its list

ORACLE is a directory with ``ask-kernel`` (see tests/conformance/oracle.py).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.support import run

HERE = Path(__file__).parent
LIST = HERE.parent / "data" / "uses-7.2.13.txt"

LONG = "n" * 150
#: Content -> the files that hold it.
_TEXT = (
    *("data", "users", "effective", "real", "both", "written", "symlinked-to", "unread"),
    *("by-openat2", "mapped", "direct", "shared", "cut", "with two spaces", "with\nnewline"),
    *("täb\tünd UTF-8", "scripts/read", f"{LONG}/{LONG}"),
)
#: Program -> its tag.
_PROGRAMS = (*("hello", "by-user", "interpreter", "linked-to", "setuid", "deleted"),)


def build(folder: Path) -> None:
    """Compile what is used (``folder/tree``) and the program that uses it (``folder/use``)."""
    tree = folder / "tree"
    for name in ("bin", "lib", "lib-2", "scripts", LONG):
        (tree / name).mkdir(parents=True)
    run(["gcc", "-O2", "-Wall", "-static", "-o", folder / "use", HERE / "use.c"])
    for name in _PROGRAMS:
        _compile(tree / "bin" / name, HERE / "hello.c", "-static", f'-DTAG="{name}"')
    for name in ("lib/library.so", "lib-2/library.so", "lib/read-by-user.so"):
        source = HERE / "library.c"
        _compile(
            tree / name, source, "-shared", f"-Wl,-soname,library.so,--build-id=0x{len(name):04x}"
        )
    _compile(
        tree / "bin/dynamic",
        HERE / "hello.c",
        *('-DTAG="dynamic"', "-DLIBRARY", "-fPIE", "-pie"),
        tree / "lib/library.so",
    )
    shutil.copy(os.path.realpath("/lib64/ld-linux-x86-64.so.2"), tree / "lib/ld.so")
    for name in _TEXT:
        (tree / name).write_text(f"{name[:20]}\n")
    (tree / "empty").touch()
    (tree / "large").write_bytes(bytes(range(256)) * 8192)
    for name in ("script", "script-2"):
        (tree / "bin" / name).write_text(f"#!bin/interpreter\n{name}\n")
        (tree / "bin" / name).chmod(0o755)
    (tree / "bin/setuid").chmod(0o4755)
    (tree / "symlink").symlink_to("bin/linked-to")
    (tree / "symlinked").symlink_to("symlinked-to")


def _compile(target: Path, source: Path, *options: str | Path) -> None:
    # Sources before libraries; the order of options does not matter.
    run(["gcc", "-O2", "-Wall", "-nostdlib", "-s", "-o", target, source, *options])


def image(folder: Path) -> Path:
    """A file system with the tree in it."""
    path = folder / "image"
    with path.open("wb") as file:
        file.truncate(32 << 20)
    run(["mkfs.ext4", "-q", "-F", "-d", folder / "tree", path])
    return path


def symbols(folder: Path) -> dict[str, str]:
    """Digest -> name of what a compiler made: another one makes other files of it."""
    tree = folder / "tree"
    made = [p for d in ("bin", "lib", "lib-2") for p in (tree / d).iterdir()]
    return {hashlib.sha256(p.read_bytes()).hexdigest(): f"{p.relative_to(tree)}" for p in made}


def neutral(ascii_list: bytes, prefix: str, names: dict[str, str]) -> list[str]:
    """The records below ``prefix`` of a SHA-256 list: PCR, file digest or what it is the digest
    of, name below the prefix. Newlines in names are ``\\n``."""
    text = ascii_list.decode("utf-8", "surrogateescape").replace("with\n", "with\\n")
    lines = []
    for line in text.splitlines():
        pcr, _, _, digest, name = line.split(" ", 4)
        if name.startswith(f"{prefix}/"):
            algorithm, _, value = digest.partition(":")
            value = names.get(value, value)
            lines.append(f"{pcr} {algorithm}:{value} {name[len(prefix) + 1 :]}")
    return lines


_RUN = """\
mkdir /case /t; mount -t tmpfs none /case; cp /mnt/image /mnt/use /mnt/uses.sh /case
mount -t ext4 -o loop /case/image /t && cd /t
LONG={long}; export LONG
sh /case/uses.sh /case/use
cd /; cat /sys/kernel/security/ima/ascii_runtime_measurements_sha256 > /mnt/list
cat /sys/kernel/security/ima/violations
"""


def ask(oracle: Path) -> list[str]:
    """The records of a real kernel under its policy tcb."""
    with tempfile.TemporaryDirectory(prefix="imafs-uses-") as name:
        folder = Path(name)
        build(folder)
        share = folder / "share"
        share.mkdir()
        for path in (image(folder), folder / "use", HERE / "uses.sh"):
            shutil.copy(path, share)
        (share / "run.sh").write_text(_RUN.format(long=LONG))
        print(run([oracle / "ask-kernel", share], deadline=300).stdout)
        return neutral((share / "list").read_bytes(), "/t", symbols(folder))


if __name__ == "__main__":
    records = ask(Path(sys.argv[1]).resolve())
    LIST.write_text("".join(f"{record}\n" for record in records))
