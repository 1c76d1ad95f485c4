# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Lines of the probe language, as far as differences are explained by them (LANGUAGE.md)."""

from __future__ import annotations


def number(text: str) -> int:
    """atoll(3): leading blanks, sign and digits, 0 without any."""
    text = text.lstrip()
    end = 1 if text[:1] in ("-", "+") else 0
    while end < len(text) and text[end].isdigit():
        end += 1
    return int(text[:end]) if text[:end].lstrip("+-") else 0


class Call:
    """One line of a script: its words, 12 of them, "" where missing."""

    def __init__(self, line: str) -> None:
        words = line.split()[:12]
        self.words = words + [""] * (12 - len(words))
        self.verb = self.words[0]
