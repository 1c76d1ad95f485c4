# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a TPM says in a quote, read from the bytes that tpm2-tools write.

Structures: TCG "TPM 2.0 Library", part 2: TPMS_ATTEST (10.12.12), TPMS_QUOTE_INFO (10.12.4),
TPMS_CLOCK_INFO (10.11.1), TPML_PCR_SELECTION (10.9.7), TPMT_SIGNATURE (11.3.4), TPM2B_PUBLIC
(12.2.5), all big endian. The file of PCR values (``tpm2_quote -o``) is tpm2-tools' own: the
two structures of C as they lie in the memory of a little-endian machine (lib/pcr.c,
``pcr_fwrite_serialized``).

Every input is hostile: each size is checked before anything is taken, and bytes that are left
over refuse the whole.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from imafs.attest.pcrvalues import SHA3
from imafs.errors import FormatError
from imafs.formats.algorithms import ALGORITHMS, HashAlgorithm, by_tpm_id
from imafs.lists.replay import PcrValues

MAGIC = 0xFF544347  # TPM_GENERATED_VALUE
ST_ATTEST_QUOTE = 0x8018

ALG_RSA, ALG_ECC, ALG_NULL = 0x0001, 0x0023, 0x0010
ALG_RSASSA, ALG_RSAPSS, ALG_ECDSA, ALG_ECDAA = 0x0014, 0x0016, 0x0018, 0x001A
SCHEMES = {ALG_RSASSA: "rsassa", ALG_RSAPSS: "rsapss", ALG_ECDSA: "ecdsa"}
CURVES = {0x0003: "p256", 0x0004: "p384"}

#: TPMA_OBJECT (8.3): what makes a key one that signs nothing but what its TPM says.
FIXED_TPM, RESTRICTED, DECRYPT, SIGN = 1 << 1, 1 << 16, 1 << 17, 1 << 18

#: TPM2_MAX_PCRS, TPM2_NUM_PCR_BANKS of tpm2-tss, and bytes of the largest digest.
_MOST_SELECT, _BANKS, _DIGEST = 4, 16, 64
_SELECTION = struct.Struct("<HB4sx")
_SELECTIONS = struct.Struct(f"<I{_BANKS * _SELECTION.size}s")
_DIGESTS_OF_A_LIST = 8
_LIST = struct.Struct(f"<I{_DIGESTS_OF_A_LIST * (2 + _DIGEST)}s")
#: 32 PCRs of 16 banks in lists of eight.
_MOST_LISTS = _BANKS * 32 // _DIGESTS_OF_A_LIST

#: (TPM_ALG_ID of the bank, PCRs in rising order), in the order in which they were asked for.
Selection = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Clock:
    """TPMS_CLOCK_INFO: milliseconds, TPM resets, and restarts since the last of these.

    A TPM obfuscates the counters for keys outside of the endorsement hierarchy, always by the
    same number for one key: differences remain.
    """

    clock: int
    reset_count: int
    restart_count: int
    safe: bool


@dataclass(frozen=True, slots=True)
class Quote:
    """A TPMS_ATTEST of type quote. ``digest`` is over the values of ``selection``."""

    message: bytes
    signer: bytes
    nonce: bytes
    clock: Clock
    firmware: int
    selection: Selection
    digest: bytes


@dataclass(frozen=True, slots=True)
class Signature:
    """A TPMT_SIGNATURE; ``numbers`` are RSA's one, or ECDSA's r and s."""

    scheme: str
    algorithm: HashAlgorithm
    numbers: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PublicArea:
    """A TPMT_PUBLIC of a signing key: RSA has ``exponent``, ECC ``curve``.

    ``numbers`` are the modulus, or x and y. ``name`` is the key's (part 1, 16).
    """

    attributes: int
    numbers: tuple[int, ...]
    exponent: int
    curve: str | None
    name: bytes

    @property
    def is_attestation_key(self) -> bool:
        """Whether it signs nothing from outside that looks like a quote (part 1, 25.2)."""
        wanted = FIXED_TPM | RESTRICTED | SIGN
        return self.attributes & wanted == wanted and not self.attributes & DECRYPT


class _Cursor:
    """Takes numbers and bytes, never more than there are."""

    def __init__(self, data: bytes, source: str) -> None:
        self._data = data
        self._source = source
        self.at = 0

    def refuse(self, reason: str, at: int | None = None) -> FormatError:
        return FormatError(reason, source=self._source, offset=self.at if at is None else at)

    def take(self, size: int, what: str) -> bytes:
        if size > len(self._data) - self.at:
            raise self.refuse(f"ends inside {what}")
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "big")

    def sized(self, most: int, what: str) -> bytes:
        """A TPM2B: its size, then so many bytes."""
        size = self.number(2, f"the size of {what}")
        if size > most:
            raise self.refuse(f"{what} of {size} bytes, more than {most}", self.at - 2)
        return self.take(size, what)

    def algorithm(self, what: str) -> HashAlgorithm:
        tpm_id = self.number(2, what)
        found = by_tpm_id(tpm_id)
        if found is None:
            raise self.refuse(f"{what}: unknown hash algorithm {tpm_id:#06x}", self.at - 2)
        return found

    def end(self) -> None:
        if self.at < len(self._data):
            raise self.refuse(f"{len(self._data) - self.at} bytes are left over")


def parse_quote(data: bytes, source: str = "quote.msg") -> Quote:
    """A TPMS_ATTEST. Raises :class:`FormatError` (byte, reason) for anything but a quote."""
    cursor = _Cursor(data, source)
    if cursor.number(4, "the magic") != MAGIC:
        raise cursor.refuse("no TPM made this: TPM_GENERATED_VALUE is not in front", 0)
    kind = cursor.number(2, "the type")
    if kind != ST_ATTEST_QUOTE:
        raise cursor.refuse(f"attests something else than PCRs (type {kind:#06x})", 4)
    # TPM2B_NAME: a hash's id and digest; TPM2B_DATA: at most a TPMT_HA.
    signer = cursor.sized(2 + _DIGEST, "the qualified signer")
    nonce = cursor.sized(2 + _DIGEST, "the nonce")
    clock, resets, restarts = struct.unpack(">QII", cursor.take(16, "the clock"))
    safe = cursor.number(1, "the clock's safe")
    if safe > 1:
        raise cursor.refuse(f"the clock's safe is {safe}, neither 0 nor 1", cursor.at - 1)
    firmware = cursor.number(8, "the firmware's version")
    selection = tuple(_selections(cursor))
    digest = cursor.sized(_DIGEST, "the PCR digest")
    cursor.end()
    return Quote(
        *(data, signer, nonce, Clock(clock, resets, restarts, bool(safe))),
        *(firmware, selection, digest),
    )


def _selections(cursor: _Cursor) -> Iterator[tuple[int, tuple[int, ...]]]:
    count = cursor.number(4, "the number of banks")
    if count > _BANKS:
        raise cursor.refuse(f"a selection of {count} banks, more than {_BANKS}", cursor.at - 4)
    banks = set()
    for _ in range(count):
        bank = cursor.number(2, "a bank")
        if bank in banks:
            raise cursor.refuse(f"bank {bank:#06x} is selected twice", cursor.at - 2)
        banks.add(bank)
        size = cursor.number(1, "the size of a selection")
        if size > _MOST_SELECT:
            raise cursor.refuse(f"a selection of {size} bytes", cursor.at - 1)
        yield bank, _numbers(cursor.take(size, "a selection"))


def _numbers(bits: bytes) -> tuple[int, ...]:
    value = int.from_bytes(bits, "little")
    return tuple(n for n in range(8 * len(bits)) if value >> n & 1)


def parse_signature(data: bytes, source: str = "quote.sig") -> Signature:
    """A TPMT_SIGNATURE of RSA or ECDSA. Raises :class:`FormatError`."""
    cursor = _Cursor(data, source)
    scheme = cursor.number(2, "the scheme")
    if scheme not in SCHEMES:
        raise cursor.refuse(f"signature scheme {scheme:#06x} is not RSA-SSA, RSA-PSS or ECDSA", 0)
    algorithm = cursor.algorithm("the signature's hash")
    numbers: tuple[bytes, ...]
    if scheme == ALG_ECDSA:
        numbers = (cursor.sized(_DIGEST + 2, "r"), cursor.sized(_DIGEST + 2, "s"))
    else:
        numbers = (cursor.sized(512, "the signature"),)
    cursor.end()
    return Signature(SCHEMES[scheme], algorithm, numbers)


def parse_public(data: bytes, source: str = "ak.pub") -> PublicArea:
    """A TPM2B_PUBLIC, or its TPMT_PUBLIC, of an RSA or ECC key. Raises :class:`FormatError`."""
    cursor = _Cursor(data, source)
    if len(data) > 2 and int.from_bytes(data[:2], "big") == len(data) - 2:
        cursor.at = 2
    area = data[cursor.at :]
    kind = cursor.number(2, "the type of the key")
    if kind not in (ALG_RSA, ALG_ECC):
        raise cursor.refuse(f"a key of type {kind:#06x} is neither RSA nor ECC", cursor.at - 2)
    naming = cursor.algorithm("the hash of the name")
    if not naming.available:
        raise cursor.refuse(f"{naming.name} cannot be computed on this machine")
    attributes = cursor.number(4, "the attributes")
    cursor.sized(_DIGEST, "the policy")
    if cursor.number(2, "the symmetric algorithm") != ALG_NULL:
        cursor.take(4, "the symmetric algorithm")
    scheme = cursor.number(2, "the scheme")
    if scheme != ALG_NULL:
        cursor.take(4 if scheme == ALG_ECDAA else 2, "the scheme's hash")
    numbers: tuple[int, ...]
    if kind == ALG_RSA:
        cursor.number(2, "the number of bits")
        # 0 is the default, 65537 (12.2.3.5).
        exponent, curve = cursor.number(4, "the exponent") or 65537, None
        numbers = (int.from_bytes(cursor.sized(512, "the modulus"), "big"),)
    else:
        curve_id = cursor.number(2, "the curve")
        if curve_id not in CURVES:
            raise cursor.refuse(f"curve {curve_id:#06x} is not P-256 or P-384", cursor.at - 2)
        exponent, curve = 0, CURVES[curve_id]
        if cursor.number(2, "the key derivation") != ALG_NULL:
            cursor.take(2, "the key derivation's hash")
        x, y = cursor.sized(_DIGEST + 2, "x"), cursor.sized(_DIGEST + 2, "y")
        numbers = (int.from_bytes(x, "big"), int.from_bytes(y, "big"))
    cursor.end()
    assert naming.tpm_id is not None
    name = naming.tpm_id.to_bytes(2, "big") + naming.digest(area)
    return PublicArea(attributes, numbers, exponent, curve, name)


# The values that were quoted


@dataclass(frozen=True, slots=True)
class Selected:
    """PCR values in the order of their selection."""

    selection: Selection
    values: tuple[bytes, ...]

    def digest(self, algorithm: HashAlgorithm) -> bytes:
        """What a TPM signs of them."""
        return algorithm.digest(b"".join(self.values))

    def by_bank(self) -> dict[str, dict[int, bytes]]:
        """Bank name -> PCR -> value."""
        found: dict[str, dict[int, bytes]] = {}
        values = iter(self.values)
        for tpm_id, pcrs in self.selection:
            bank = found.setdefault(bank_name(tpm_id), {})
            for pcr in pcrs:
                bank[pcr] = next(values)
        return found


def bank_name(tpm_id: int) -> str:
    """The kernel's name of a bank."""
    found = _BY_ID.get(tpm_id)
    return found if found is not None else f"tpm_alg_{tpm_id:x}"


_BY_ID = {a.tpm_id: a.name for a in ALGORITHMS if a.tpm_id is not None} | SHA3
_IDS = {name: tpm_id for tpm_id, name in _BY_ID.items()}


def bank_id(name: str) -> int:
    """The TPM_ALG_ID of a bank by its name. Raises :class:`FormatError`."""
    found = _IDS.get(name)
    if found is None:
        raise FormatError(f"{name} is no PCR bank")
    return found


def parse_pcrs(data: bytes, source: str = "quote.pcrs") -> Selected:
    """The file of ``tpm2_quote -o`` (serialized). Raises :class:`FormatError`."""
    if len(data) < _SELECTIONS.size + 4:
        raise FormatError(
            "is no file of tpm2_quote -o in its own format (--pcrs_format=serialized)",
            source=source,
        )
    count, rows = _SELECTIONS.unpack_from(data)
    if count > _BANKS:
        raise FormatError(f"a selection of {count} banks", source=source, offset=0)
    selection: list[tuple[int, tuple[int, ...]]] = []
    for number, (bank, size, bits) in enumerate(_SELECTION.iter_unpack(rows)):
        at = 4 + number * _SELECTION.size
        if number >= count:
            break
        if size > _MOST_SELECT:
            raise FormatError(f"a selection of {size} bytes", source=source, offset=at + 2)
        if any(bank == other for other, _ in selection):
            raise FormatError(f"bank {bank:#06x} is selected twice", source=source, offset=at)
        selection.append((bank, _numbers(bits[:size])))
    values = tuple(_values(data, source))
    wanted = sum(len(pcrs) for _, pcrs in selection)
    if len(values) != wanted:
        raise FormatError(f"{len(values)} values for {wanted} PCRs", source=source)
    found = Selected(tuple(selection), values)
    _check_sizes(found, source)
    return found


def _values(data: bytes, source: str) -> Iterator[bytes]:
    at = _SELECTIONS.size
    lists = int.from_bytes(data[at : at + 4], "little")
    at += 4
    if lists > _MOST_LISTS or len(data) != at + lists * _LIST.size:
        raise FormatError(
            f"{len(data)} bytes do not hold {lists} lists of digests", source=source, offset=at - 4
        )
    for number in range(lists):
        start = at + number * _LIST.size
        count, digests = _LIST.unpack_from(data, start)
        if count > _DIGESTS_OF_A_LIST:
            raise FormatError(f"a list of {count} digests", source=source, offset=start)
        for place in range(count):
            row = digests[place * (2 + _DIGEST) : (place + 1) * (2 + _DIGEST)]
            size = int.from_bytes(row[:2], "little")
            if size > _DIGEST:
                raise FormatError(
                    f"a digest of {size} bytes",
                    source=source,
                    offset=start + 4 + place * (2 + _DIGEST),
                )
            yield row[2 : 2 + size]


def _check_sizes(found: Selected, source: str) -> None:
    values = iter(found.values)
    for tpm_id, pcrs in found.selection:
        algorithm = by_tpm_id(tpm_id)
        for pcr in pcrs:
            size = len(next(values))
            if algorithm is not None and size != algorithm.digest_size:
                raise FormatError(
                    f"{size} bytes are no value of PCR {pcr} in bank {algorithm.name}",
                    source=source,
                )


def encode_pcrs(selected: Selected) -> bytes:
    """The file of ``tpm2_quote -o``, as tpm2_checkquote reads it."""
    rows = b"".join(
        _SELECTION.pack(bank, 3, sum(1 << pcr for pcr in pcrs).to_bytes(4, "little"))
        for bank, pcrs in selected.selection
    )
    values = selected.values
    lists = [values[at : at + 8] for at in range(0, len(values), _DIGESTS_OF_A_LIST)]
    out = [_SELECTIONS.pack(len(selected.selection), rows), len(lists).to_bytes(4, "little")]
    for some in lists:
        digests = b"".join(len(v).to_bytes(2, "little") + v.ljust(_DIGEST, b"\0") for v in some)
        out.append(_LIST.pack(len(some), digests))
    return b"".join(out)


def selected(selection: Selection, values: PcrValues) -> Selected:
    """The values of a selection in its order. Raises KeyError where one is not there."""
    return Selected(
        selection,
        tuple(values[bank_name(tpm_id)][pcr] for tpm_id, pcrs in selection for pcr in pcrs),
    )


def selection_of(banks: Mapping[str, Sequence[int]]) -> Selection:
    """Bank names with their PCRs as a selection. Raises :class:`FormatError`."""
    return tuple((bank_id(name), tuple(sorted(set(pcrs)))) for name, pcrs in banks.items())
