# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Reads lists by every call there is, again and again: a process of its own, killed at will.

    viewer.py DIRECTORY RINGS SEED FILE...

Writes a JSON line per try: what was read between which moments, or the error. Runs until it is
killed. Imports nothing of imafs.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import json
import mmap
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

SIZES = (97, 4096, 8192, 65536, 1 << 20)
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p


def by_read(path: str, size: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return b"".join(iter(lambda: file.read(size) or b"", b""))


def by_pread(path: str, size: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        whole = b""
        while piece := os.pread(file.fileno(), size, len(whole)):
            whole += piece
        return whole


def by_readv(path: str, size: int) -> bytes:
    with open(path, "rb", buffering=0) as file:
        whole, parts = b"", [bytearray(size), bytearray(size)]
        while count := os.readv(file.fileno(), parts):
            whole += b"".join(parts)[:count]
        return whole


def by_sendfile(path: str, size: int) -> bytes:
    out = os.memfd_create("copy")
    try:
        with open(path, "rb", buffering=0) as file:
            while os.sendfile(out, file.fileno(), None, size):
                pass
        return os.pread(out, os.fstat(out).st_size, 0)
    finally:
        os.close(out)


def by_splice(path: str, size: int) -> bytes:
    out, into = os.pipe()
    try:
        with open(path, "rb", buffering=0) as file:
            whole = b""
            while count := os.splice(file.fileno(), into, min(size, 1 << 16)):
                whole += os.read(out, count)
            return whole
    finally:
        os.close(out)
        os.close(into)


def by_copy_file_range(path: str, size: int) -> bytes:
    out = os.memfd_create("copy")
    try:
        with open(path, "rb", buffering=0) as file:
            while os.copy_file_range(file.fileno(), out, size):
                pass
        return os.pread(out, os.fstat(out).st_size, 0)
    finally:
        os.close(out)


def by_copyfile(path: str, size: int) -> bytes:
    target = f"/dev/shm/viewer-{os.getpid()}-{size}"
    try:
        shutil.copyfile(path, target)
        return Path(target).read_bytes()
    finally:
        Path(target).unlink(missing_ok=True)


def by_mmap(path: str, size: int) -> bytes:
    """The first page, through a pipe by a child: a page that is refused kills it."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            address = LIBC.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, descriptor, 0)
            os.write(into, ctypes.string_at(address, 4096))
        finally:
            os._exit(1)
    os.close(into)
    try:
        page = os.read(out, 4096)
    finally:
        os.close(out)
        os.waitpid(child, 0)
    if not page:
        raise OSError(errno.ENODEV, "mmap")
    return page


def output(*words: str) -> bytes:
    done = subprocess.run(words, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise OSError(errno.EIO, " ".join(words))
    return done.stdout


def by_tar(path: str, size: int) -> bytes:
    archive = output("tar", "-C", os.path.dirname(path), "-chf", "-", os.path.basename(path))
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        member = opened.extractfile(opened.getmembers()[0])
        return member.read() if member is not None else b""


def ways(rings: str) -> dict[str, Callable[[str, int], bytes]]:
    """Every way by its name."""
    found: dict[str, Callable[[str, int], bytes]] = {
        name.removeprefix("by_"): call for name, call in globals().items() if name[:3] == "by_"
    }
    found["cat"] = lambda path, size: output("cat", path)
    if shutil.which("busybox"):
        found["busybox cat"] = lambda path, size: output("busybox", "cat", path)
    if rings:
        found["aio"] = lambda path, size: output(rings, "aio", path, str(size))
        found["uring"] = lambda path, size: output(rings, "uring", path, str(size))
    return found


def main(directory: str, rings: str, seed: str, *names: str) -> None:
    """Runs until it is killed."""
    chance = random.Random(int(seed))
    known = ways(rings)
    while True:
        name, way = chance.choice(names), chance.choice(list(known))
        said: dict[str, object] = {"file": name, "way": way, "begun": time.monotonic()}
        try:
            content = known[way](os.path.join(directory, name), chance.choice(SIZES))
        except OSError as error:
            said["error"] = errno.errorcode.get(error.errno or 0, "?")
        else:
            said |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        said["done"] = time.monotonic()
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
