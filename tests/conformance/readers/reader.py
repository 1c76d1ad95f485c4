# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Reads a list as Python programs do: ``reader.py MODE LIST OUT``."""

import fileinput
import io
import linecache
import mmap
import os
import pathlib
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable

MODE, LIST, OUT = sys.argv[1:4]


def copied(copy: Callable[[str, str], object]) -> bytes:
    """What a function of shutil copies."""
    copy(LIST, OUT)
    return pathlib.Path(OUT).read_bytes()


def copyfileobj() -> bytes:
    """By a loop of reads."""
    whole = io.BytesIO()
    with open(LIST, "rb") as file:
        shutil.copyfileobj(file, whole)
    return whole.getvalue()


def sendfile() -> object:
    """What os.sendfile answers first."""
    with open(LIST, "rb") as file, open(OUT, "wb") as into:
        try:
            return os.sendfile(into.fileno(), file.fileno(), 0, 1 << 20)
        except OSError as error:
            return error.strerror


def getsize() -> bytes:
    """One read of as many bytes as the file is said to have."""
    with open(LIST, "rb", 0) as file:
        return os.read(file.fileno(), os.path.getsize(LIST))


def once() -> bytes:
    """One read of a MiB."""
    with open(LIST, "rb", 0) as file:
        return os.read(file.fileno(), 1 << 20)


def parts(buffering: int) -> object:
    """Bytes of a read of 70,000, and of all the rest."""
    with open(LIST, "rb", buffering) as file:
        return len(file.read(70000)), len(file.read())


def readinto() -> bytes:
    """One read into a buffer."""
    buffer = bytearray(65536)
    with open(LIST, "rb", 0) as file:
        return bytes(buffer[: file.readinto(buffer)])


def seek_end() -> object:
    """Where the end is said to be, and how much is read from there."""
    with open(LIST, "rb") as file:
        try:
            end: object = file.seek(0, os.SEEK_END)
        except OSError as error:
            end = error.strerror
        return end, len(file.read())


def seek_text() -> object:
    """Whether going back gives the same text again."""
    with open(LIST, encoding="ascii") as file:
        file.readline()
        place = file.tell()
        first = file.read()
        file.seek(place)
        return place, len(first), file.read() == first


def mapped() -> object:
    """The length of a mapping of the whole file."""
    with open(LIST, "rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as whole:
                return len(whole[:])
        except (OSError, ValueError) as error:
            return type(error).__name__, str(error)


def pread() -> object:
    """How many bytes are at each of 20 places."""
    with open(LIST, "rb", 0) as file:
        return [len(os.pread(file.fileno(), 4096, number * 4096)) for number in range(20)]


def by_fileinput() -> str:
    """Line by line."""
    with fileinput.input(LIST, encoding="ascii") as lines:
        return "".join(lines)


def by_tarfile() -> object:
    """Size and content in an archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(LIST, "list")
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        inside = tar.extractfile("list")
        return tar.getmember("list").size, inside and inside.read()


def by_zipfile() -> bytes:
    """Content in an archive."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", strict_timestamps=False) as zipped:
        zipped.write(LIST, "list")
    return zipfile.ZipFile(archive).read("list")


def lines() -> str:
    """By the iterator of a text file."""
    with open(LIST, encoding="ascii") as file:
        return "".join(list(file))


MODES: dict[str, Callable[[], object]] = {
    "text": lambda: pathlib.Path(LIST).read_text("ascii"),
    "bytes": lambda: pathlib.Path(LIST).read_bytes(),
    "lines": lines,
    "copyfile": lambda: copied(shutil.copyfile),
    "copy2": lambda: copied(shutil.copy2),
    "copyfileobj": copyfileobj,
    "sendfile": sendfile,
    "getsize": getsize,
    "once": once,
    "unbuffered": lambda: parts(0),
    "buffered": lambda: parts(-1),
    "readinto": readinto,
    "seek-end": seek_end,
    "seek-text": seek_text,
    "mmap": mapped,
    "pread": pread,
    "linecache": lambda: linecache.getline(LIST, 300),
    "fileinput": by_fileinput,
    "tarfile": by_tarfile,
    "zipfile": by_zipfile,
}

found = MODES[MODE]()
if isinstance(found, bytes):
    sys.stdout.buffer.write(found)
else:
    print(found)
