# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Recordings: an IMA directory and its PCRs, taken at one moment, as one tar archive.

``<name>/`` holds every file of the directory verbatim, ``pcrs.txt`` (``bank index VALUE``
per line), ``ls-la.txt`` and ``meta.json``. A recording goes into bug reports and is played
by ``imafs mount --load``.
"""

from __future__ import annotations

import errno
import io
import json
import lzma
import os
import stat
import tarfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from imafs.attest.replay import PcrValues
from imafs.attest.verify import Verdict, verify
from imafs.errors import FormatError, Refused

CURRENT = "binary_runtime_measurements"
STAGED = "binary_runtime_measurements_staged"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Files by name, links by name, and the PCRs that the lists lead to."""

    files: Mapping[str, bytes]
    links: Mapping[str, str]
    modes: Mapping[str, int]
    pcrs: PcrValues
    verdict: Verdict | None


def take(
    directory: str,
    read_pcrs: Callable[[], PcrValues],
    *,
    padded: tuple[str, ...] = (),
    tries: int = 20,
    check: bool = True,
) -> Snapshot:
    """Reads lists and PCRs until they agree, at most ``tries`` times.

    While it reads, an open descriptor keeps writers out (A, D and N are EBUSY). Raises
    :class:`Refused` where a file cannot be read (EBUSY: a writer has it) and
    :class:`FormatError` where list and PCRs never agree; ``check`` False takes the
    first pair as it is. Without any PCR (no TPM) the lists are checked by themselves:
    the verdict has no match.
    """
    verdict: Verdict | None = None
    for _ in range(tries):
        try:
            with open(Path(directory, CURRENT), "rb"):
                files, links, modes = _files(directory)
        except OSError as error:
            code = error.errno or errno.EIO
            raise Refused(code, f"{error.filename}: {os.strerror(code)}") from None
        pcrs = read_pcrs()
        lists = files.get(_real(STAGED, links), b"") + files[_real(CURRENT, links)]
        if not check:
            return Snapshot(files, links, modes, pcrs, None)
        verdict = verify(lists, pcrs, padded=padded)
        if not pcrs or verdict.matched == verdict.records:
            return Snapshot(files, links, modes, pcrs, verdict)
    raise FormatError(
        f"list and PCRs did not agree in {tries} tries (the list has "
        f"{verdict.records if verdict else 0} records): were records deleted, or is the machine "
        "too busy? --no-check records them as they are",
        source=directory,
    )


def _real(name: str, links: Mapping[str, str]) -> str:
    return links.get(name, name)


def _files(directory: str) -> tuple[dict[str, bytes], dict[str, str], dict[str, int]]:
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    modes: dict[str, int] = {}
    for entry in sorted(Path(directory).iterdir()):
        mode = entry.lstat().st_mode
        modes[entry.name] = mode
        if stat.S_ISLNK(mode):
            links[entry.name] = str(entry.readlink())
        elif stat.S_ISREG(mode):
            try:
                files[entry.name] = entry.read_bytes()
            except PermissionError:
                if entry.name != "policy":  # not readable in every kernel
                    raise
    return files, links, modes


def write(snapshot: Snapshot, path: str, about: Mapping[str, object]) -> None:
    """Writes the archive; compressed as the suffix says (.tar, .tar.gz, .tar.xz).

    It appears under its name only when it is whole. Raises :class:`Refused`.
    """
    target = Path(path)
    name = target.name.removesuffix(".tgz").split(".tar")[0] or "recording"
    kind = {".gz": "w:gz", ".tgz": "w:gz", ".xz": "w:xz"}.get(target.suffix, "w")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        # tarfile's modes are literals to the type checker.
        with tarfile.open(partial, kind) as archive:  # type: ignore[call-overload]
            for file, content in snapshot.files.items():
                _add(archive, f"{name}/{file}", content, snapshot.modes[file])
            for link, where in snapshot.links.items():
                info = tarfile.TarInfo(f"{name}/{link}")
                info.type, info.linkname = tarfile.SYMTYPE, where
                archive.addfile(info)
            _add(archive, f"{name}/pcrs.txt", _pcr_lines(snapshot.pcrs))
            _add(archive, f"{name}/ls-la.txt", _listing(snapshot))
            _add(archive, f"{name}/meta.json", json.dumps(about, indent=2).encode() + b"\n")
        partial.replace(target)
    except OSError as error:
        code = error.errno or errno.EIO
        raise Refused(code, f"{path}: {os.strerror(code)}") from None
    finally:
        partial.unlink(missing_ok=True)


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = stat.S_IMODE(mode)
    info.mtime = int(time.time())
    archive.addfile(info, io.BytesIO(content))


def _pcr_lines(pcrs: PcrValues) -> bytes:
    lines = [
        f"{bank} {pcr} {value.hex().upper()}\n"
        for bank, values in pcrs.items()
        for pcr, value in sorted(values.items())
    ]
    return "".join(lines).encode()


def _listing(snapshot: Snapshot) -> bytes:
    lines = []
    for name, mode in snapshot.modes.items():
        link = f" -> {snapshot.links[name]}" if name in snapshot.links else ""
        lines.append(f"{stat.filemode(mode)} {name}{link}\n")
    return "".join(lines).encode()


def lists_of(path: str) -> tuple[bytes, bytes] | None:
    """(staged, current) binary SHA-1 lists of a recording; None where it is no archive.

    Raises :class:`FormatError` for an archive without a list, or with several.
    """
    try:
        return _lists_of(path) if tarfile.is_tarfile(path) else None
    except (tarfile.TarError, EOFError, KeyError, lzma.LZMAError, zlib.error) as error:
        raise FormatError(f"broken archive: {error}", source=path) from None


def _lists_of(path: str) -> tuple[bytes, bytes]:
    found: dict[str, list[bytes]] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() or member.issym() else None
            if file is not None:
                found.setdefault(Path(member.name).name, []).append(file.read())
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        if len(archive.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise FormatError("the archive is cut: its end mark is missing", source=path)
    current = found.get(CURRENT, [])
    if len(current) != 1:
        raise FormatError(f"{len(current)} files {CURRENT} in it, not one", source=path)
    return next(iter(found.get(STAGED, [])), b""), current[0]
