# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The probe language: lines, words, quoted texts, slots, paths and how an errno is printed.

Formats are those of probe.c, to the byte. LANGUAGE.md describes the verbs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from tests.conformance.measurer import Measurer

BUFFER = 4 << 20
SLOTS = 64

_LETTERS = {
    "t": os.O_TRUNC,
    "a": os.O_APPEND,
    "c": os.O_CREAT,
    "n": os.O_NONBLOCK,
    "d": os.O_DIRECT,
    "f": os.O_NOFOLLOW,
    "p": os.O_PATH,
    "x": os.O_EXCL,
    "y": os.O_DIRECTORY,
    "s": os.O_SYNC,
    "m": os.O_NOATIME,
}
_ESCAPES = {"n": 10, "t": 9, "0": 0}

# Which verbs print -1 in front of the errno, and what follows it.
_SIZED = {
    "write",
    "pwrite",
    "writev",
    "badwrite",
    "badread",
    "thread-write",
    "sendfile",
    "splice",
    "copyrange",
    "setxattr",
    "getxattr",
    "listxattr",
    "lseek",
    "fstat",
    "stat",
    "lstat",
    "readv",
}
_READS = {"read", "pread", "thread-read"}


def failure(verb: str, name: str) -> str:
    """How ``verb`` prints the errno ``name``."""
    if verb in _SIZED:
        return f"-1 {name}"
    if verb in _READS:
        return f"-1 {name} fnv=00000000"
    if verb == "text":
        return f'-1 {name} ""'
    if verb == "fionread":
        return f"{name} -1"
    return name


# Where Linux has two names for one number, glibc and Python do not agree on the first.
_OTHER_NAMES = {errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EDEADLK: "EDEADLK", errno.EAGAIN: "EAGAIN"}


def errno_name(error: OSError) -> str:
    """The name that strerrorname_np(3) has for it."""
    code = error.errno or 0
    return _OTHER_NAMES.get(code) or errno.errorcode.get(code, "?")


def number(text: str) -> int:
    """atoll(3): leading blanks, sign and digits, 0 without any."""
    text = text.lstrip()
    end = 1 if text[:1] in ("-", "+") else 0
    while end < len(text) and text[end].isdigit():
        end += 1
    return int(text[:end]) if text[:end].lstrip("+-") else 0


def fnv1a(data: bytes) -> int:
    """32-bit FNV-1a, as the recordings have it."""
    value = 2166136261
    for byte in data:
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value


class Call:
    """One line of a script: its words (1 to 11, "" where missing) and quoted texts."""

    def __init__(self, line: str) -> None:
        self.line = line
        words = line.replace("\t", " ").split(" ")
        self.words = [w for w in words if w][:12]
        self.words += [""] * (12 - len(self.words))
        self.verb = self.words[0]

    @property
    def texts(self) -> list[bytes]:
        """Every "quoted text" of the line with \\n \\t \\0 \\xHH resolved."""
        found: list[bytes] = []
        at = self.line.find('"')
        while at >= 0:
            text = bytearray()
            at += 1
            while at < len(self.line) and self.line[at] != '"':
                char = self.line[at]
                if char == "\\" and at + 1 < len(self.line):
                    at += 1
                    char = self.line[at]
                    if char == "x":
                        text.append(int(self.line[at + 1 : at + 3], 16))
                        at += 2
                    elif char in _ESCAPES:
                        text.append(_ESCAPES[char])
                    else:
                        text += os.fsencode(char)
                else:
                    text += os.fsencode(char)
                at += 1
            found.append(bytes(text))
            at = self.line.find('"', at + 1)
        return found

    @property
    def text(self) -> bytes:
        """The first quoted text, empty when there is none."""
        texts = self.texts
        return texts[0] if texts else b""


class Player:
    """The state of one run: slots a to z and the places that paths mean."""

    def __init__(self, root: str, files: str | None, measurer: Measurer | None) -> None:
        self.root = root
        self.files = files
        self.measurer = measurer
        self.fds = [0] * SLOTS

    def put(self, text: str) -> None:
        """Print at once: a fork or a SIGKILL must find no buffer."""
        data = os.fsencode(text)
        while data:
            data = data[os.write(1, data) :]

    def path(self, file: str) -> str:
        """Relative to the IMA directory; absolute below ``files`` when that is given."""
        if file.startswith("/"):
            return file if self.files is None else self.files + file
        return f"{self.root}/{file}"

    def slot(self, word: str) -> int:
        """a is 0; anything else than one character is 0 too."""
        at = ord(word) - ord("a") if len(word) == 1 else 0
        return at if 0 <= at < SLOTS else 0

    def fd(self, word: str) -> int:
        """The descriptor in a slot (0 before its first use, -1 after a failed open)."""
        return self.fds[self.slot(word)]

    def keep(self, word: str, opening: Callable[[], int]) -> str:
        """Run an open-like call and store its descriptor, or -1."""
        fd = -1
        try:
            fd = opening()
        finally:
            self.fds[self.slot(word)] = fd
        return "ok"


def open_flags(word: str) -> int:
    """Flags of the letters; ``rw`` anywhere, else w or r in front."""
    flags = os.O_RDWR if "rw" in word else os.O_WRONLY if word[:1] == "w" else os.O_RDONLY
    for letter, flag in _LETTERS.items():
        if letter in word:
            flags |= flag
    return flags


def to_the_end(fd: int, size: int) -> tuple[list[bytes], str]:
    """What read(2) calls of ``size`` bytes give until the end, and the errno's name or "0"."""
    pieces: list[bytes] = []
    left = BUFFER
    try:
        while piece := os.read(fd, min(size, left)):
            pieces.append(piece)
            left -= len(piece)
    except OSError as error:
        return pieces, errno_name(error)
    return pieces, "0"


def stat_answer(s: os.stat_result) -> str:
    """How a struct stat is printed."""
    return (
        f"mode={s.st_mode:o} uid={s.st_uid} gid={s.st_gid} size={s.st_size} "
        f"nlink={s.st_nlink} blksize={s.st_blksize}"
    )
