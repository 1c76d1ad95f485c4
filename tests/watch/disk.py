# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A file system of one's own to watch: marks reach whole file systems, never the machine's."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.support import require, run, wait_for


class Disk:
    """An ext4 image, mounted on ``root``; ``image`` None: an empty one. Goes with close().

    ``point`` is where, instead of a directory of its own.
    """

    def __init__(self, image: Path | None = None, point: Path | None = None) -> None:
        require("root", "cap_sys_admin", "/dev/loop-control", "mkfs.ext4")
        self.base = Path(tempfile.mkdtemp(prefix="imafs-watch-"))
        self.base.chmod(0o755)
        self.root = point or self.base / "disk"
        self.root.mkdir(exist_ok=True)
        if image is None:
            image = self.base / "image"
            with image.open("wb") as file:
                file.truncate(256 << 20)
            run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", image])
        run(["mount", "-t", "ext4", "-o", "loop", image, self.root])
        shutil.rmtree(self.root / "lost+found")

    def file(self, name: str, content: bytes = b"content\n", mode: int = 0o644) -> Path:
        """A file with this content."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        return path

    def program(self, name: str, of: str = "/bin/true") -> Path:
        """A copy of a program, of a content of its own."""
        return self.file(name, Path(of).read_bytes() + name.encode(), 0o755)

    def close(self) -> None:
        """Unmounts it, with whatever lies on it."""
        run(["umount", "--lazy", "--recursive", self.root], check=False)
        shutil.rmtree(self.base)


def unmount(point: Path) -> None:
    """Unmounts what is watched, or could be: it is busy while an emulator looks at it."""
    wait_for(lambda: not run(["umount", point], check=False).returncode, 60, f"{point} is free")
