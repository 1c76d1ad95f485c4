# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The recordings of real kernels in tests/data: one ``NAME.tar.xz`` each.

tests/data/README.md says where each comes from.

    python -m tests.conformance.recordings DIRECTORY     # pack it into tests/data
"""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

DATA = Path(__file__).parent.parent / "data"


@dataclass(frozen=True)
class Moment:
    """One state of a recorded kernel: every file of the IMA directory and the PCRs, read
    at the same time.

    ``files`` has the content of a file, or is short of it where ``md5`` alone was kept
    (7.3.4-gen5000); ``pcrs`` is bank -> index -> value, empty without a TPM.
    """

    recording: str
    name: str
    files: Mapping[str, bytes]
    md5: Mapping[str, str]
    pcrs: Mapping[str, Mapping[int, bytes]]

    def __str__(self) -> str:
        return f"{self.recording}/{self.name}"

    @property
    def lists(self) -> list[str]:
        """Names of the measurement lists, staged ones included."""
        return sorted(name for name in self.md5 if "_runtime_measurements" in name)

    @property
    def count(self) -> bytes:
        """runtime_measurements_count."""
        return self.files["runtime_measurements_count"]

    @property
    def violations(self) -> bytes:
        """violations."""
        return self.files["violations"]

    @property
    def policy(self) -> str:
        """The active policy; empty where that kernel did not show it."""
        return self.files["policy.txt"].decode()

    def matches(self, name: str, content: bytes) -> bool:
        """Whether ``content`` is what the kernel's file ``name`` had, byte for byte."""
        if name in self.files and self.files[name] != content:
            return False
        return hashlib.md5(content, usedforsecurity=False).hexdigest() == self.md5[name]


@dataclass(frozen=True)
class Recording:
    """All files of one recording, by their path in it."""

    name: str
    files: Mapping[str, bytes]

    def text(self, path: str) -> str:
        """A file of scripts or answers."""
        return self.files[path].decode("utf-8", "surrogateescape")

    @property
    def command_line(self) -> str:
        """The kernel's command line (absent for 7.2.13, whose README entry has it)."""
        return self.text("cmdline.txt").strip()

    def below(self, folder: str) -> dict[str, bytes]:
        """Name -> content of the files in ``folder``."""
        paths = {PurePosixPath(path): content for path, content in self.files.items()}
        return {p.name: content for p, content in paths.items() if str(p.parent) == folder}

    def moments(self) -> Iterator[Moment]:
        """Every folder with PCRs, in order of its name."""
        for path in sorted(self.files):
            folder, _, file = path.rpartition("/")
            if file == "pcrs.txt":
                yield self._moment(folder)

    def _moment(self, folder: str) -> Moment:
        files = self.below(folder)
        sums = (line.split() for line in files["MD5SUMS"].decode().splitlines())
        pcrs: dict[str, dict[int, bytes]] = {}
        for line in files["pcrs.txt"].decode().splitlines():
            bank, index, value = line.split()
            pcrs.setdefault(bank, {})[int(index)] = bytes.fromhex(value)
        return Moment(self.name, folder, files, {name: md5 for md5, name in sums}, pcrs)


def names() -> list[str]:
    """The recordings in tests/data."""
    return sorted(path.name.removesuffix(".tar.xz") for path in DATA.glob("*.tar.xz"))


@cache
def load(name: str) -> Recording:
    """Unpack a recording; KeyError-free: FileNotFoundError when there is none."""
    files = {}
    with tarfile.open(DATA / f"{name}.tar.xz") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                files[member.name.removeprefix(f"{name}/")] = content.read()
    return Recording(name, files)


def pack(directory: Path, target: Path) -> Path:
    """Pack ``directory`` reproducibly (sorted, no times, no owners) and return ``target``."""
    with tarfile.open(target, "w:xz", preset=9) as archive:
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                member = tarfile.TarInfo(f"{directory.name}/{path.relative_to(directory)}")
                member.size = len(content)
                member.mode = 0o644
                archive.addfile(member, io.BytesIO(content))
    return target


if __name__ == "__main__":
    _source = Path(sys.argv[1])
    pack(_source, DATA / f"{_source.name}.tar.xz")
