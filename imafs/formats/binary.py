# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The binary measurement list: records to bytes and back.

Source: Linux 7.3 ima_fs.c, ``ima_putc`` calls of ``ima_measurements_show``::

    u32 pcr; u8 template_digest[]; u32 name_len; char name[]; u32 data_len; data

``data_len`` is absent for template ``ima``. Integers are in the machine's byte order:
little endian on x86 and arm64, and elsewhere with ``ima_canonical_fmt``.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from imafs.errors import FormatError
from imafs.formats import templates
from imafs.formats.algorithms import ALGORITHMS, SHA1, Bank, HashAlgorithm, list_bank
from imafs.formats.templates import TEMPLATE_NAME_MAX, Order, Template

_IMA = "ima"
#: A rule takes pcr=0 to 63 (ima_policy.c: IMA_PCR is a field of 64 bits there), and the record
#: stays whatever the TPM says of its extend; a larger number is a broken list.
PCR_LIMIT = 64
#: Banks whose lists are told apart by their digests: those of TPMs first, narrowest first.
LIST_BANKS = tuple(
    list_bank(algorithm)
    for algorithm in sorted(ALGORITHMS, key=lambda algorithm: algorithm.tpm_id is None)
    if algorithm.available
)
_WIDTHS = tuple(dict.fromkeys(bank.digest_size for bank in LIST_BANKS))
ORDERS: tuple[Order, Order] = ("little", "big")
#: How the kernel's ASCII list begins.
_ASCII_LINE = re.compile(rb" ?[0-9]{1,2} [0-9a-f]{32,128} ")
#: How gzip, xz, bzip2, zstd and zip begin.
_ARCHIVES = (b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")
#: Why the bank of a list stays unknown, and what helps.
ONLY_VIOLATIONS = (
    "the first records are all violations, which say nothing about the bank: name it "
    "with --bank (imafs mount: --load-bank)"
)
#: Templates that one list is remembered to have: a list can name as many as it has records.
_KNOWN = 1024
#: How many records are tried before a list's width is called ambiguous.
_TRIES = 64


@dataclass(frozen=True, slots=True)
class Record:
    """One record without its digests. ``data`` is the template data.

    ``claimed`` is the bank and the template digest that a tampered list has for it, where
    that is not its own.
    """

    pcr: int
    template: Template
    data: bytes
    violation: bool = False
    claimed: tuple[str, bytes] | None = None


def header(pcr: int, digest: bytes, template: Template, data: bytes) -> bytes:
    """The bytes of a record in front of its template data."""
    label, order = template.label.encode("latin-1"), template.order
    front = pcr.to_bytes(4, order) + digest + len(label).to_bytes(4, order) + label
    return front if template.is_ima else front + len(data).to_bytes(4, order)


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
    """Walks a binary list of one digest width, whose numbers are in ``order``.

    ``opaque`` takes templates that are not known as well; their fields are those of ``fmt``
    where that is given. Structure only: digests are not checked here, see :func:`read`.
    """

    def __init__(
        self,
        data: bytes,
        width: int,
        order: Order = "little",
        *,
        opaque: bool = False,
        fmt: str | None = None,
        pcrs: int = PCR_LIMIT,
    ) -> None:
        self.data = data
        self.width = width
        self.order = order
        self._opaque = opaque
        self._fmt = fmt
        self._pcrs = pcrs
        self._templates: dict[bytes, Template] = {}

    def _u32(self, at: int, record: int, what: str) -> int:
        if at + 4 > len(self.data):
            raise FormatError(
                f"the list ends inside {what}", record=record, offset=min(at, len(self.data))
            )
        return int.from_bytes(self.data[at : at + 4], self.order)

    def __iter__(self) -> Iterator[Parsed]:
        """Records in order. Raises :class:`FormatError` with record and offset."""
        for pcr, template, body, digest, start, end in self.walk():
            yield Parsed(Record(pcr, template, body, not any(digest)), digest, start, end)

    def walk(
        self, at: int = 0, number: int = 0
    ) -> Iterator[tuple[int, Template, bytes, bytes, int, int]]:
        """As iteration, as plain tuples (three times as fast, measured), from byte ``at``, at which
        the record of that number begins.

        PCR, template, template data, template digest, start and end of the record.
        """
        data, width, size = self.data, self.width, len(self.data)
        front = struct.Struct(f"{'<' if self.order == 'little' else '>'}I{width}sI")
        fixed, unpack, known = front.size, front.unpack_from, self._templates
        pcrs = self._pcrs
        while at < size:
            start = at
            if at + fixed > size:
                self._short(at, number)
            pcr, digest, name_len = unpack(data, at)
            if pcr >= pcrs:
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
            if template.label == _IMA:
                end = self._ima_end(template, at, number, digest)
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

    def ends(self) -> array[int]:
        """Where each record ends, nothing else: ten times as fast (measured). Raises
        :class:`FormatError` as a walk does."""
        data, size, pcrs = self.data, len(self.data), self._pcrs
        order = "<" if self.order == "little" else ">"
        front = struct.Struct(f"{order}I{self.width}xI")
        number = struct.Struct(f"{order}I").unpack_from
        fixed, unpack = front.size, front.unpack_from
        found = array("Q")
        known: set[bytes] = set()
        at = 0
        with suppress(struct.error):  # the list ends inside a record: the walk says where
            while at < size:
                pcr, name_len = unpack(data, at)
                if pcr >= pcrs or not 0 < name_len <= TEMPLATE_NAME_MAX:
                    break
                name = data[at + fixed : at + fixed + name_len]
                if name not in known:
                    if len(name) < name_len:
                        break
                    if self._template(name, len(found), at + fixed).label == _IMA:
                        break  # no length says where its records end
                    if len(known) < _KNOWN:
                        known.add(name)
                (length,) = number(data, at + fixed + name_len)
                at += fixed + name_len + 4 + length
                if at > size:
                    break
                found.append(at)
        at = found[-1] if found else 0
        if at < size:
            found.extend([row[-1] for row in self.walk(at, len(found))])
        return found

    def _short(self, at: int, record: int) -> None:
        """Names what is missing where not even a record's front fits."""
        pcr = self._u32(at, record, "the PCR number")
        if pcr >= self._pcrs:
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
            label = name.decode("latin-1")
            try:
                if self._opaque:
                    known = templates.named(label, self.order, self._fmt)
                else:
                    known = templates.lookup(label, self.order)
            except FormatError as error:
                raise FormatError(error.reason, record=record, offset=at) from None
            if len(self._templates) >= _KNOWN:
                self._templates.clear()
            self._templates[name] = known
        return known

    def _ima_end(self, template: Template, at: int, record: int, digest: bytes) -> int:
        # The stream does not say whether the digest has 20 bytes or, with
        # ima_hash=md5, 16 (observed: boot_aggregate keeps 20 even then). Take the
        # size whose template digest checks, else the first whose lengths fit.
        fits: list[int] = []
        for size in (20, 16):
            if at + size + 4 > len(self.data):
                continue
            name_len = int.from_bytes(self.data[at + size : at + size + 4], self.order)
            end = at + size + 4 + name_len
            if name_len > 255 or end > len(self.data):
                continue
            fits.append(end)
            body = self.data[at:end]
            if any(template.digest(body, a) == digest for a in of_width(self.width)):
                return end
        if not fits:
            raise FormatError(
                "no digest and name of template ima fit here", record=record, offset=at
            )
        return fits[0]


def _foreign(data: bytes) -> str | None:
    """The kind of a file that is often taken for a binary list; that begins with a small number."""
    if _ASCII_LINE.match(data):
        return "the ASCII list: its neighbour binary_runtime_measurements is one"
    if data.startswith(_ARCHIVES) or data[257:262] == b"ustar":
        return "an archive: unpack a recording for its lists (imafs mount --load plays it whole)"
    return None


def of_width(width: int) -> tuple[HashAlgorithm, ...]:
    """The algorithms whose digests have ``width`` bytes, those of TPMs first."""
    return _OF_WIDTH.get(width, ())


_OF_WIDTH = {
    width: tuple(b.algorithm for b in LIST_BANKS if b.digest_size == width and b.algorithm)
    for width in _WIDTHS
}


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
    if not record.template.is_ima and record.template.fits(record.data):
        return
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
    shape = detected(data) if bank is None else Shape(bank, order_of(data, bank.digest_size))
    bank = shape.bank
    assert bank.algorithm is not None
    for number, parsed in enumerate(Reader(data, bank.digest_size, shape.order)):
        check_fields(parsed, number)
        if not digest_matches(parsed, bank.algorithm):
            raise wrong_digest(parsed, bank, number)
        yield parsed


@dataclass(frozen=True, slots=True)
class Shape:
    """How a binary list is written. ``doubt`` says why nothing proves it."""

    bank: Bank
    order: Order = "little"
    doubt: FormatError | None = None


def detect(data: bytes) -> Bank:
    """The bank of a list; as :func:`detected`."""
    return detected(data).bank


def detected(data: bytes) -> Shape:
    """The shape of a list, found by the first template digest that checks.

    An empty list is SHA-1's. Raises :class:`FormatError` where nothing checks (with
    the place that the best attempt reached) or where only violations could be read.
    """
    shape = recognise(data)
    if shape.doubt is not None:
        raise shape.doubt
    return shape


def recognise(data: bytes) -> Shape:
    """As :func:`detected`, of a damaged list too: what its records are most likely to be.

    Raises :class:`FormatError` where not one record is whole.
    """
    if not data:
        return Shape(LIST_BANKS[0])
    furthest: _Attempt | None = None
    only_violations = False
    for width in _WIDTHS:
        for order in ORDERS:
            attempt = _attempt(data, width, order)
            if attempt.shape.doubt is None:
                if attempt.proven:
                    return attempt.shape
                only_violations = True
            elif furthest is None or attempt.reach > furthest.reach:
                # The attempt that read the most is the true one; a wrong width hardly
                # ever gets a record whole, or finds a template's name.
                furthest = attempt
    if only_violations or furthest is None:
        raise FormatError(ONLY_VIOLATIONS)
    refusal = furthest.shape.doubt
    assert refusal is not None
    if furthest.whole:
        return furthest.shape
    if any(furthest.reach) or not refusal.offset:
        raise refusal
    # No width has anything for it: the place is that of the usual one.
    raise FormatError(
        f"{refusal.reason} (of a sha1 list; --bank names another)",
        record=refusal.record,
        offset=refusal.offset,
    )


def order_of(data: bytes, width: int) -> Order:
    """The byte order of a list of a known width: that in which more of it can be read."""
    reaches = {order: _attempt(data, width, order).reach for order in ORDERS}
    return "big" if reaches["big"] > reaches["little"] else "little"


@dataclass(frozen=True, slots=True)
class _Attempt:
    """``whole``: records in front of the first structural fault."""

    shape: Shape
    reach: tuple[int, int, bool, int] = (0, 0, False, 0)
    whole: int = 0
    proven: bool = False


def _attempt(data: bytes, width: int, order: Order) -> _Attempt:
    """Reads the first records as of one width and byte order, up to one that is proven."""
    doubt: FormatError | None = None
    whole = 0
    algorithms = of_width(width)
    bank = next(bank for bank in LIST_BANKS if bank.digest_size == width)
    try:
        for number, parsed in enumerate(Reader(data, width, order, opaque=True)):
            whole += 1
            if parsed.record.violation:
                pass
            elif found := next((a for a in algorithms if digest_matches(parsed, a)), None):
                proven = (1, whole, True, parsed.end)
                return _Attempt(Shape(list_bank(found), order), proven, whole, True)
            elif doubt is None:
                doubt = _not_a_digest_of(parsed, bank, number)
            if number >= _TRIES:
                break
    except FormatError as error:
        doubt = doubt or error
    if doubt is None:
        return _Attempt(Shape(bank, order), (0, whole, True, len(data)), whole)
    named = _begins_with_template(data, width, order)
    at = (doubt.offset or 0) if whole or named else 0
    return _Attempt(Shape(bank, order, doubt), (0, whole, named, at), whole)


def _not_a_digest_of(parsed: Parsed, bank: Bank, number: int) -> FormatError:
    """Why a record proves nothing: its fields do not fit, or its digest is of no algorithm."""
    try:
        check_fields(parsed, number)
    except FormatError as error:
        return error
    refusal = wrong_digest(parsed, bank, number)
    others = not_computed(bank)
    reason = f"{refusal.reason}; {others}" if others else refusal.reason
    return FormatError(reason, record=refusal.record, offset=refusal.offset)


def not_computed(bank: Bank) -> str:
    """Which hashes of this width the list may be of too, as this machine cannot tell."""
    width = bank.digest_size
    names = [a.name for a in ALGORITHMS if a.digest_size == width and not a.available]
    return f"of {', '.join(names)} this machine knows nothing" if names else ""


def _begins_with_template(data: bytes, width: int, order: Order) -> bool:
    """Whether a template's name stands where the first record of this width has one."""
    at = 4 + width + 4
    length = int.from_bytes(data[at - 4 : at], order)
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
