# SPDX-License-Identifier: GPL-2.0-only OR MIT
r"""Text from outside, made fit for a log or a terminal: names, paths, errors, answers.

A line end in a file name forges a line of the log, an escape sequence or a bidi control
rewrites what a terminal shows, and a byte that is no UTF-8 cannot be printed at all. All of
it becomes ``\xNN``, byte by byte. A backslash stays as it is, so that shown text can be shown
again; who needs the bytes back takes ``--json``, or a path that is :func:`quoted`.
"""

from __future__ import annotations

import shlex

#: Stands for what a limit took away.
_CUT = "..."
_NAMED = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", "'": "\\'"}


def shown(value: object, limit: int | None = None) -> str:
    """``str(value)`` in one line of printable characters; bytes as file names are decoded.

    ``limit``: characters at most. The middle of what is longer is cut out, between two
    characters or escapes: of a path both ends tell most.
    """
    text = _text(value)
    if limit is None or len(text) <= limit:
        whole = text if text.isprintable() else "".join(map(_escaped, text))
        if limit is None or len(whole) <= limit:
            return whole
    room = max(limit - len(_CUT), 0)
    tail = _fitting(text[: -room // 3 - 1 : -1], room // 3)
    head = _fitting(text[:room], room - sum(map(len, tail)))
    return ("".join([*head, _CUT, *reversed(tail)]))[:limit]


def lines_shown(text: str, indent: str = "") -> str:
    """Text of several lines that are meant, such as a traceback, each one :func:`shown`.

    Behind an ``indent`` no line of it can be taken for one of the log.
    """
    return "\n".join(indent + shown(line) for line in text.split("\n"))


def quoted(path: object) -> str:
    r"""A path as a shell reads it back, in one line: ``$'a\nb'`` where it must be escaped.

    ``$'...'`` is POSIX's (2024), and older in bash, ksh and zsh.
    """
    text = _text(path)
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(_NAMED.get(character) or _octal(character) for character in text) + "'"


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    return str(value)


def _fitting(text: str, room: int) -> list[str]:
    """The beginning of ``text`` that fits, character by character."""
    pieces: list[str] = []
    for character in text:
        piece = _escaped(character)
        room -= len(piece)
        if room < 0:
            break
        pieces.append(piece)
    return pieces


def _escaped(character: str) -> str:
    # Not printable: C0, C1, DEL, all other controls and formats (bidi, zero width), surrogates,
    # line and paragraph separators, spaces but the one, what Unicode has not assigned.
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in _bytes(character))


def _octal(character: str) -> str:
    # Not \x: bash reads as many hexadecimal digits as follow.
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in _bytes(character))


def _bytes(character: str) -> bytes:
    """Of a file name's odd byte that byte; of a surrogate that stands for none its three."""
    try:
        return character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return character.encode("utf-8", "surrogatepass")


def counted(number: object, noun: str) -> str:
    """``1 record``, ``2 records``, ``- records`` where the number is not known."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
