# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The verbs that make a kernel measure a file.

Where a kernel's policy measures the read of a file that belongs to uid 1234, the
emulator is asked for the same content under the same name; the file work is done on
both sides.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.conformance.language import Call, Player, number
from tests.conformance.measurer import OWNER, Request


def _file_work(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, content)
    os.fchown(fd, OWNER, 0)
    os.close(fd)
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 1)
    os.close(fd)


def _request(p: Player, name: str, content: bytes) -> list[Request]:
    if p.measurer is None:
        return []
    return [p.measurer.request_for(name, content)]


def _ask(p: Player, requests: list[Request]) -> None:
    if p.measurer is not None:
        p.measurer.ask(requests)


def _prepare(p: Player, name: str) -> str:
    """The file's real path; below ``--files`` its directories come into being."""
    path = p.path(name)
    if p.files is not None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def measure(p: Player, c: Call) -> str:
    """``measure PATH TEXT``: the content is the line from the *first* occurrence of TEXT's
    first word on, as in the program that made the recordings (``measure /m4 a`` therefore
    writes ``asure /m4 a``).
    """
    content = os.fsencode(c.line[c.line.find(c.words[2]) :])
    _file_work(_prepare(p, c.words[1]), content)
    _ask(p, _request(p, c.words[1], content))
    return "0"


def measure_many(p: Player, c: Call) -> str:
    """``measuren PATH N TAG``: N contents ``TAG-i\\n`` of one file."""
    wanted, bad = number(c.words[2]), 0
    path = _prepare(p, c.words[1])
    requests: list[Request] = []
    for i in range(wanted):
        content = os.fsencode(f"{c.words[3]}-{i}\n")
        try:
            _file_work(path, content)
        except OSError:
            bad += 1
        else:
            requests += _request(p, c.words[1], content)
    _ask(p, requests)
    return f"done {wanted} bad {bad}"


def long_name(base: str, size: int) -> tuple[list[str], str]:
    """The directories below ``base`` and the path of exactly ``size`` bytes in them."""
    path = base
    directories = []
    while len(path) < size:
        path += "/" + "n" * min(200, size - len(path) - 1)
        if size - len(path) == 1:
            path += "n"
        if len(path) < size:
            directories.append(path)
    return directories, path


def measure_long(p: Player, c: Call) -> str:
    """``measurelong BASE SIZE TEXT``: a file whose path in the script has SIZE bytes.

    With ``--files`` the real path would be longer than PATH_MAX, so a short one stands
    for it: only its name matters, and that is what the emulator is told.
    """
    directories, name = long_name(c.words[1], number(c.words[2]))
    content = os.fsencode(c.words[3])
    if p.files is None:
        for directory in [c.words[1], *directories]:
            os.makedirs(directory, exist_ok=True)
        _file_work(name, content)
    else:
        _file_work(_prepare(p, f"{c.words[1]}/long-name"), content)
    _ask(p, _request(p, name, content))
    return "0"


TABLE: dict[str, Callable[[Player, Call], str]] = {
    "measure": measure,
    "measuren": measure_many,
    "measurelong": measure_long,
}
