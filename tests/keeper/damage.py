# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What may happen to the files of a store that lies still: one damage, as a seed says."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

#: Files below a store that have no bytes of their own, or belong to a keeper that runs.
_NONE = ("lock", "socket")


def files(store: Path) -> list[Path]:
    """Those that may be damaged, in order."""
    found = (path for path in store.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path for path in found if path.name not in _NONE)


def content(store: Path) -> dict[str, object]:
    """All that is below a store: the bytes of files, where links lead, and which else is there."""
    found: dict[str, object] = {}
    for path in sorted(store.rglob("*")):
        name = str(path.relative_to(store))
        if path.is_symlink():
            found[name] = path.readlink()
        else:
            found[name] = path.read_bytes() if path.is_file() else path.is_fifo()
    return found


def flipped(rng: random.Random, path: Path) -> None:
    """One bit, or some."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 20)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(rng: random.Random, path: Path) -> None:
    """The end is gone."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(rng.choice((0, size // 2, rng.randrange(size + 1), max(0, size - 1))))


def grown(rng: random.Random, path: Path) -> None:
    """Something stands behind it."""
    with path.open("ab") as file:
        file.write(rng.choice((b"\0" * 4096, rng.randbytes(100), b"\n", b"{}\n")))


def zeroed(rng: random.Random, path: Path) -> None:
    """A block reads as zeros, as of a sector that was never written."""
    block = rng.choice((512, 4096))
    size = path.stat().st_size
    begin = rng.randrange(0, max(1, size), block)
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(bytes(min(block, size - begin)))


def taken_out(rng: random.Random, path: Path) -> None:
    """Bytes are gone from the middle, and what was behind them has moved."""
    data = path.read_bytes()
    begin = rng.randrange(len(data) + 1)
    path.write_bytes(data[:begin] + data[begin + rng.choice((1, 16, 512)) :])


def lines(rng: random.Random, path: Path) -> None:
    """A line of a text is gone, there twice, or elsewhere; or those behind it are gone."""
    found = path.read_bytes().splitlines(keepends=True)
    if not found:
        return
    at = rng.randrange(len(found))
    how = rng.choice(("out", "twice", "moved", "end"))
    line = found[at]
    if how == "end":
        del found[at:]
    elif how == "twice":
        found.insert(rng.randrange(len(found) + 1), line)
    else:
        del found[at]
        if how == "moved":
            found.insert(rng.randrange(len(found) + 1), line)
    path.write_bytes(b"".join(found))


def swapped(rng: random.Random, path: Path) -> None:
    """It and another file of its kind have each other's place."""
    other = rng.choice([o for o in files(path.parent) if o.suffix == path.suffix])
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def removed(rng: random.Random, path: Path) -> None:
    """It is gone, or the directory that it is in."""
    if rng.random() < 0.2:
        shutil.rmtree(path.parent)
    else:
        path.unlink()


def directory(rng: random.Random, path: Path) -> None:
    """A directory has its name."""
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        (path / "file").write_bytes(b"of somebody")


def link(rng: random.Random, path: Path) -> None:
    """A link has its name: to itself elsewhere, to nothing, to a device or round."""
    elsewhere = path.with_name(f".{path.name}.moved")
    path.rename(elsewhere)
    path.symlink_to(rng.choice((elsewhere.name, "nothing", "/dev/zero", path.name)))


def pipe(rng: random.Random, path: Path) -> None:
    """A pipe has its name, that nobody writes to."""
    path.unlink()
    os.mkfifo(path)


Damage = Callable[[random.Random, Path], None]
DAMAGES: tuple[Damage, ...] = (
    *(flipped, flipped, cut, grown, zeroed, zeroed, taken_out, lines, lines, swapped),
    *(removed, directory, link, pipe),
)


def damaged(rng: random.Random, store: Path) -> list[str]:
    """Damages a store, once or twice; what was done."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        there = files(store)
        if not there:
            break
        # There are more segments and indices than journals, which have to be met as often.
        kind = rng.choice(sorted({path.suffix or path.name for path in there}))
        path = rng.choice([p for p in there if (p.suffix or p.name) == kind])
        damage = rng.choice(DAMAGES)
        damage(rng, path)
        done.append(f"{damage.__name__} {path.relative_to(store)}")
    return done
