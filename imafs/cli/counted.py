# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Numbers with their nouns: one record, two records."""

from __future__ import annotations


def counted(number: object, noun: str) -> str:
    """``1 record``, ``2 records``, ``- records`` where the number is not known."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
