# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A /proc/cmdline that says what was asked for: a file of ours bound over the namespace's.

Of the machine's command line the words that are told anew are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from imafs.host import linux

CMDLINE = "/proc/cmdline"


def told(machine: str, names: Collection[str], words: Sequence[str]) -> str:
    """The command line ``machine`` without its words of ``names``, and with ``words``.

    Quotes hold a word together there, and a name ends at ``=`` (kernel/params.c, ``next_arg``).
    """
    kept = [word for word in _split(machine) if word.partition("=")[0].strip('"') not in names]
    # What is behind -- is for init.
    end = kept.index("--") if "--" in kept else len(kept)
    return " ".join([*kept[:end], *words, *kept[end:]])


def _split(line: str) -> list[str]:
    words, word, quoted = [], "", False
    for character in line.strip():
        quoted ^= character == '"'
        if character.isspace() and not quoted:
            words.append(word)
            word = ""
        else:
            word += character
    return [word for word in [*words, word] if word]


def show(names: Collection[str], words: Sequence[str], home: str) -> None:
    """Binds it over /proc/cmdline; a file in ``home`` holds it. Raises OSError.

    Nothing is bound where the machine's says the same already: a /proc with something bound
    over it lets no user make another one in a namespace of theirs (mount_too_revealing).
    """
    machine = Path(CMDLINE).read_text(encoding="utf-8", errors="surrogateescape")
    line = told(machine, names, words)
    if line == " ".join(_split(machine)):
        return
    file = Path(home, "cmdline")
    file.write_text(f"{line}\n", encoding="utf-8", errors="surrogateescape")
    file.chmod(0o444)
    linux.bind(str(file), CMDLINE)
