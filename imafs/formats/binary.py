# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The binary measurement list: records to bytes and back.

Source: Linux 7.3 ima_fs.c, ``ima_putc`` calls of ``ima_measurements_show``::

    u32 pcr; u8 template_digest[]; u32 name_len; char name[]; u32 data_len; data

``data_len`` is absent for template ``ima``. Integers are little endian, which is
native on x86 and arm64 and what ``ima_canonical_fmt`` gives elsewhere.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from imafs.errors import FormatError
from imafs.formats import templates
from imafs.formats.algorithms import SHA1, Bank, HashAlgorithm, bank_for, by_name
from imafs.formats.templates import TEMPLATE_NAME_MAX, Template

_U32 = struct.Struct("<I")
_IMA = templates.TEMPLATES["ima"]
#: A TPM 2.0 PC Client has 24 PCRs; a larger number in a list is a broken list.
PCR_LIMIT = 24
#: Banks whose lists can be told apart by their digests, narrowest first.
LIST_BANKS = tuple(bank_for(by_name(name)) for name in ("sha1", "sha256", "sha384", "sha512"))
#: How the kernel's ASCII list begins, and gzip, xz, bzip2, zstd and zip.
_ASCII_LINE = re.compile(rb" ?[0-9]{1,2} [0-9a-f]{32,128} ")
_ARCHIVES = (b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")
#: How many records are tried before a list's width is called ambiguous.
_TRIES = 64


@dataclass(frozen=True, slots=True)
class Record:
    """One record without its digests. ``data`` is the template data."""

    pcr: int
    template: Template
    data: bytes
    violation: bool = False


def header(pcr: int, digest: bytes, template: Template, data: bytes) -> bytes:
    """The bytes of a record in front of its template data."""
    label = template.label.encode("latin-1")
    front = _U32.pack(pcr) + digest + _U32.pack(len(label)) + label
    return front if template.is_ima else front + _U32.pack(len(data))


def encode(record: Record, digest: bytes) -> bytes:
    """The record as the list of the bank with this ``digest`` holds it."""
    return header(record.pcr, digest, record.template, record.data) + record.data


@dataclass(frozen=True, slots=True)
class Parsed:
    """A record found in a list: where (``start``, ``end`` bytes) and with which digest."""

    record: Record
    digest: bytes
    start: int
    end: int


class Reader:
    """Walks a binary list of one digest width.

    Structure only: digests are not checked here, see :func:`read`.
    """

    def __init__(self, data: bytes, width: int) -> None:
        self.data = data
        self.width = width
        self._templates: dict[bytes, Template] = {}

    def _u32(self, at: int, record: int, what: str) -> int:
        if at + 4 > len(self.data):
            raise FormatError(
                f"the list ends inside {what}", record=record, offset=min(at, len(self.data))
            )
        return int.from_bytes(self.data[at : at + 4], "little")

    def __iter__(self) -> Iterator[Parsed]:
        """Records in order. Raises :class:`FormatError` with record and offset."""
        for pcr, template, body, digest, start, end in self.walk():
            yield Parsed(Record(pcr, template, body, not any(digest)), digest, start, end)

    def walk(self) -> Iterator[tuple[int, Template, bytes, bytes, int, int]]:
        """As iteration, as plain tuples (three times as fast, measured).

        PCR, template, template data, template digest, start and end of the record.
        """
        data, width, size = self.data, self.width, len(self.data)
        front = struct.Struct(f"<I{width}sI")
        fixed, unpack, known = front.size, front.unpack_from, self._templates
        at = number = 0
        while at < size:
            start = at
            if at + fixed > size:
                self._short(at, number)
            pcr, digest, name_len = unpack(data, at)
            if pcr >= PCR_LIMIT:
                raise self._no_pcr(pcr, number, at)
            at += fixed
            if not 0 < name_len <= TEMPLATE_NAME_MAX:
                raise FormatError(
                    f"a template name of {name_len} bytes", record=number, offset=at - 4
                )
            if at + name_len > size:
                raise FormatError(
                    "the list ends inside the template's name", record=number, offset=size
                )
            name = data[at : at + name_len]
            template = known.get(name) or self._template(name, number, at)
            at += name_len
            if template is _IMA:
                end = self._ima_end(at, number, digest)
            else:
                length = self._u32(at, number, "the length of the template data")
                at += 4
                end = at + length
                if end > size:
                    raise FormatError(
                        f"template data of {length} bytes where {size - at} are left",
                        record=number,
                        offset=at - 4,
                    )
            yield pcr, template, data[at:end], digest, start, end
            at = end
            number += 1

    def _short(self, at: int, record: int) -> None:
        """Names what is missing where not even a record's front fits."""
        pcr = self._u32(at, record, "the PCR number")
        if pcr >= PCR_LIMIT:
            raise self._no_pcr(pcr, record, at)
        self._u32(at + 4 + self.width, record, "the template digest or the length of the name")

    def _no_pcr(self, pcr: int, record: int, at: int) -> FormatError:
        """The refusal of a PCR number: at the very front by what else begins so."""
        foreign = _foreign(self.data) if at == 0 else None
        if foreign is not None:
            return FormatError(f"this is no binary list, but {foreign}")
        return FormatError(f"PCR {pcr} is out of range", record=record, offset=at)

    def _template(self, name: bytes, record: int, at: int) -> Template:
        known = self._templates.get(name)
        if known is None:
            try:
                known = templates.lookup(name.decode("latin-1"))
            except FormatError as error:
                raise FormatError(error.reason, record=record, offset=at) from None
            self._templates[name] = known
        return known

    def _ima_end(self, at: int, record: int, digest: bytes) -> int:
        # The stream does not say whether the digest has 20 bytes or, with
        # ima_hash=md5, 16 (observed: boot_aggregate keeps 20 even then). Take the
        # size whose template digest checks, else the first whose lengths fit.
        fits: list[int] = []
        for size in (20, 16):
            if at + size + 4 > len(self.data):
                continue
            name_len: int = _U32.unpack_from(self.data, at + size)[0]
            end = at + size + 4 + name_len
            if name_len > 255 or end > len(self.data):
                continue
            fits.append(end)
            body = self.data[at:end]
            algorithm = _by_width(self.width)
            if algorithm and templates.TEMPLATES["ima"].digest(body, algorithm) == digest:
                return end
        if not fits:
            raise FormatError(
                "no digest and name of template ima fit here", record=record, offset=at
            )
        return fits[0]


def _foreign(data: bytes) -> str | None:
    """What files are that are often taken for a binary list; it begins with a small number."""
    if _ASCII_LINE.match(data):
        return "the ASCII list: its neighbour binary_runtime_measurements is one"
    if data.startswith(_ARCHIVES) or data[257:262] == b"ustar":
        return "an archive: unpack a recording for its lists (imafs mount --load plays it whole)"
    return None


def _by_width(width: int) -> HashAlgorithm | None:
    return next((b.algorithm for b in LIST_BANKS if b.digest_size == width), None)


def digest_matches(parsed: Parsed, algorithm: HashAlgorithm) -> bool:
    """Whether the template digest is the record's, in ``algorithm`` or as padded SHA-1.

    Violations (zero digest) match anything: the list holds no digest of theirs.
    """
    record = parsed.record
    if record.violation or record.template.digest(record.data, algorithm) == parsed.digest:
        return True
    padded = record.template.digest(record.data, SHA1).ljust(len(parsed.digest), b"\0")
    return algorithm is not SHA1 and padded == parsed.digest


def check_fields(parsed: Parsed, number: int) -> None:
    """Raises :class:`FormatError` where the template data does not hold its fields."""
    record = parsed.record
    try:
        record.template.split(record.data)
    except FormatError as error:
        at = parsed.end - len(record.data) + (error.offset or 0)
        raise FormatError(error.reason, record=number, offset=at) from None


def read(data: bytes, bank: Bank | None = None) -> Iterator[Parsed]:
    """Every record of a binary list, each with its template digest checked.

    ``bank`` names the list's bank; None finds it by :func:`detect`. Raises
    :class:`FormatError` with record number, byte offset and reason; a caller that
    wants all or nothing reads to the end before it acts.
    """
    chosen = bank if bank is not None else detect(data)
    assert chosen.algorithm is not None
    for number, parsed in enumerate(Reader(data, chosen.digest_size)):
        check_fields(parsed, number)
        if not digest_matches(parsed, chosen.algorithm):
            raise wrong_digest(parsed, chosen, number)
        yield parsed


def detect(data: bytes) -> Bank:
    """The bank of a list, found by the first template digests that check.

    An empty list is SHA-1's. Raises :class:`FormatError` where nothing checks (with
    the place that the best attempt reached) or where only violations could be read.
    """
    if not data:
        return LIST_BANKS[0]
    furthest: tuple[tuple[int, bool, bool, int], FormatError] | None = None
    only_violations = False
    for bank in LIST_BANKS:
        assert bank.algorithm is not None
        whole = False  # whether the record at fault has whole fields
        try:
            for number, parsed in enumerate(Reader(data, bank.digest_size)):
                check_fields(parsed, number)
                if not parsed.record.violation:
                    if digest_matches(parsed, bank.algorithm):
                        return bank
                    whole = True
                    raise wrong_digest(parsed, bank, number)
                if number >= _TRIES:
                    break
            only_violations = True
        except FormatError as error:
            # The attempt that read the most is the true one; a wrong width hardly
            # ever gets a record whole, or finds a template's name.
            named = _begins_with_template(data, bank.digest_size)
            at = (error.offset or 0) if error.record or whole or named else 0
            reach = (error.record or 0, whole, named, at)
            if furthest is None or reach > furthest[0]:
                furthest = (reach, error)
    if only_violations or furthest is None:
        raise FormatError(
            "the first records are all violations, which say nothing about the bank: name it "
            "with --bank (imafs mount: --load-bank)"
        )
    reach, refusal = furthest
    if any(reach) or not refusal.offset:
        raise refusal
    # No width has anything for it: the place is that of the usual one.
    raise FormatError(
        f"{refusal.reason} (of a sha1 list; --bank names another)",
        record=refusal.record,
        offset=refusal.offset,
    )


def _begins_with_template(data: bytes, width: int) -> bool:
    """Whether a template's name stands where the first record of this width has one."""
    at = 4 + width + 4
    length = int.from_bytes(data[at - 4 : at], "little")
    name = data[at : at + min(length, TEMPLATE_NAME_MAX)]
    return name.decode("latin-1") in templates.TEMPLATES


def wrong_digest(parsed: Parsed, bank: Bank, number: int) -> FormatError:
    """The refusal of record ``number``, whose template digest is not its own."""
    return FormatError(
        f"the {bank.name} template digest {parsed.digest.hex()} is not that of the template data",
        record=number,
        offset=parsed.start + 4,
    )


def refuse_other_bank(data: bytes, bank: Bank, source: str | None) -> None:
    """Raises :class:`FormatError` where the list is of another bank than was said."""
    found = None
    with suppress(FormatError):
        found = detect(data)
    if found is not None and found.name != bank.name:
        raise FormatError(
            f"this is a list of bank {found.name}, not {bank.name}; the bank need not be named",
            source=source,
        )
