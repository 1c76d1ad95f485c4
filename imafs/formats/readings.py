# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Readings of an ASCII record: the bytes that its text can have been, likeliest first.

The text does not say all: a name may hold blanks (kernels since 3.13 write ``_`` for them),
blanks at the end may be gone, and of a template that is not known no field's kind is known.
The template digest says which reading is the record; of a violation, whose digest is zero,
nothing does.

Source: Linux 7.3 ima_fs.c (``ima_ascii_measurements_show``), ima_template_lib.c
(``ima_show_template_data_ascii``); :mod:`imafs.formats.fields` is the other direction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice, product

from imafs.formats.fields import UNKNOWN, Field, swap
from imafs.formats.templates import Order, Template

#: How many readings of one line are tried, and lengths of one name: of a line of blanks there
#: are any number.
MOST = 256
_LENGTHS = 64
#: How many blanks an editor took from the end of a name at most.
_BLANKS = 4
_HEX = re.compile(rb"(?:[0-9A-Fa-f]{2})*")
_NUMBER = re.compile(rb"0|[1-9][0-9]{0,19}")
_SIZES = (1, 2, 4, 8)
#: What no violation has: the kernel gives none to its records (ima_api.c, ima_add_violation).
_SIGNATURES = frozenset({"sig", "modsig", "d-modsig"})


def readings(template: Template, text: bytes | None) -> Iterator[list[bytes]]:
    """Field data that prints as ``text``: what stands behind the template's name and a blank.

    None where the line ends with the name. The first has, of all that are possible, the
    fewest blanks in its names.
    """
    words = [] if text is None else text.split(b" ")
    if template.opaque:
        return (list(parts) for parts in islice(product(*map(_unknown, words)), MOST))
    return islice(_all(template, words), MOST)


def plain(template: Template, text: bytes | None) -> list[list[bytes]]:
    """The readings of a violation: each field as a kernel stores it, differing in names alone.

    One that a kernel writes is the only one: each word a field, no blank in a name, and no
    signature, unless the line ends in the blank of an empty field, so that nothing was cut.
    """
    words = [] if text is None else text.split(b" ")
    if template.opaque:
        return [[_unknown(word)[0] for word in words]]
    splits = islice(_splits(template.fields, words, template.order), MOST)
    found = [[kinds[0] for kinds in split] for split in splits]
    return found[:1] if found and _as_a_kernel(template, found[0], words) else found


def _as_a_kernel(template: Template, parts: Sequence[bytes], words: Sequence[bytes]) -> bool:
    if len(words) != len(template.fields):
        return False
    signed = any(
        part for f, part in zip(template.fields, parts, strict=True) if f.name in _SIGNATURES
    )
    return not signed or not words[-1]


def _all(template: Template, words: list[bytes]) -> Iterator[list[bytes]]:
    for split in _splits(template.fields, words, template.order):
        yield from map(list, product(*split))
    # Blanks that an editor took from the end of a name, where that ended the line.
    if words and template.fields[-1].string:
        for count in range(1, _BLANKS + 1):
            longer = [*words[:-1], words[-1] + b" " * count]
            for split in _splits(template.fields, longer, template.order):
                yield from map(list, product(*split))


def _splits(
    fields: Sequence[Field], words: Sequence[bytes], order: Order
) -> Iterator[list[list[bytes]]]:
    """Each field's candidates, for every way to deal out the words; names take what is over."""
    if not fields:
        if not words:
            yield []
        return
    field, rest = fields[0], fields[1:]
    if not words:
        # The blanks of empty fields at the end, which an editor took.
        for tail in _splits(rest, words, order):
            yield [_kinds(field, b"", order), *tail]
        return
    likely = max(len(words) - len(rest), 1) if field.string else 1
    others = chain(range(likely + 1, len(words) + 1), range(likely - 1, 0, -1))
    for take in (likely, *islice(others if field.string else (), _LENGTHS)):
        kinds = _kinds(field, b" ".join(words[:take]), order)
        if kinds:
            for tail in _splits(rest, words[take:], order):
                yield [kinds, *tail]


def told(field: Field, text: bytes, order: Order) -> bytes | None:
    """The field data that ``text`` stands for at first sight; None where it stands for none."""
    kinds = _unknown(text) if field is UNKNOWN else _kinds(field, text, order)
    return kinds[0] if kinds else None


def _kinds(field: Field, text: bytes, order: Order) -> list[bytes]:
    """The field data that print as ``text``, likeliest first; none where nothing does."""
    if field.string:
        # xattrnames is empty where there are none; a name has its NUL also then.
        ends = [text + b"\0", text]
        return ends if text or field.name != "xattrnames" else ends[::-1]
    if not text:
        return [b""]
    if field.digest:
        return _digests(text)
    if field.number:
        return _numbers(text, field.word, order)
    return [bytes.fromhex(text.decode("ascii"))] if _HEX.fullmatch(text) else []


def _digests(text: bytes) -> list[bytes]:
    prefix, colon, digits = text.rpartition(b":")
    if not _HEX.fullmatch(digits):
        return []
    raw = bytes.fromhex(digits.decode("ascii"))
    # Where a colon alone stands in front of the digest it is not printed.
    return [prefix + b":\0" + raw] if colon else [raw, b":\0" + raw]


def _numbers(text: bytes, word: int, order: Order) -> list[bytes]:
    if not _NUMBER.fullmatch(text):
        return []
    number = int(text)
    sizes = [word, *(size for size in _SIZES if size != word)]
    little = [number.to_bytes(size, "little") for size in sizes if number < 1 << 8 * size]
    return little if order == "little" else [swap(raw, len(raw)) for raw in little]


def _unknown(word: bytes) -> list[bytes]:
    """Of a field of which nothing is known: a text, a digest with its algorithm, or bytes."""
    found = _digests(word) if b":" in word else []
    found.append(word + b"\0")
    if _HEX.fullmatch(word):
        found.append(bytes.fromhex(word.decode("ascii")))
    if _NUMBER.fullmatch(word):
        found += _numbers(word, 4, "little")
    return found
