# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A kernel in QEMU with one static program and nothing else, and Debian's own kernels for it."""

from __future__ import annotations

import gzip
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support import run


def archive(files: Mapping[str, bytes]) -> bytes:
    """An initramfs (cpio, newc) of executable files in its root."""
    parts = []
    for number, (name, content) in enumerate([*files.items(), ("TRAILER!!!", b"")], 1):
        numbers = (number, 0o100755, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % n for n in numbers) + name.encode() + b"\0"
        for part in (head, content):
            parts.append(part + bytes(-len(part) % 4))
    return gzip.compress(b"".join(parts), 1)


def boot(kernel: Path, files: Mapping[str, bytes], *, deadline: float = 300) -> str:
    """What a machine says on its console until /init powers it off. Full emulation."""
    with tempfile.TemporaryDirectory(prefix="imafs-machine-") as home:
        initrd = Path(home, "initrd")
        initrd.write_bytes(archive(files))
        line = "console=ttyS0 quiet panic=-1"
        command = ["qemu-system-x86_64", "-M", "q35", "-cpu", "max", "-accel", "tcg", "-m", "512"]
        command += ["-nographic", "-no-reboot", "-nic", "none", "-append", line]
        done = run([*command, "-kernel", kernel, "-initrd", initrd], deadline=deadline)
        return done.stdout.replace("\r", "")


def debian(metapackage: str, directory: Path) -> tuple[Path, bytes]:
    """The kernel that ``metapackage`` of this machine's Debian brings: vmlinuz, and its fuse.ko.

    Downloaded by apt-get, not installed.
    """
    told = run(["apt-cache", "depends", metapackage]).stdout
    found = re.search(r"Depends: (linux-image-\d\S+)", told)
    assert found is not None, told
    run(["apt-get", "download", found[1]], cwd=directory, deadline=300)
    (package,) = directory.glob(f"{found[1]}_*.deb")
    run(["dpkg-deb", "-x", package, directory], deadline=120)
    (kernel,) = directory.glob("boot/vmlinuz-*")
    (module,) = directory.glob("lib/modules/*/kernel/fs/fuse/fuse.ko")
    return kernel, module.read_bytes()
