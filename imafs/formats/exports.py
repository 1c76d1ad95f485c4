# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Records in the forms that other programs take: JSON, TCG CEL, RFC 9684.

Sources: TCG Canonical Event Log Format 1.0 (JSON as tpm2-tss' FAPI writes and verifies it,
TLV with lengths as go-tpm-tools has them), RFC 9684 (``ima-event``) in the JSON of RFC 7951.
"""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imafs.errors import FormatError
from imafs.formats.algorithms import HashAlgorithm, tools_name
from imafs.formats.binary import Parsed, Record
from imafs.formats.fields import Field
from imafs.formats.list_file import name_of
from imafs.formats.readings import told

#: "type" and "length" of CEL-TLV.
_TLV = struct.Struct(">BI")
_RECNUM, _PCR, _DIGESTS, _IMA_TEMPLATE = 0, 1, 3, 7
_TEMPLATE_NAME, _TEMPLATE_DATA = 0, 1
#: The typedef ``pcr`` of ietf-tpm-remote-attestation.
_PCR_MOST = 31


@dataclass(frozen=True, slots=True)
class Row:
    """A record to be shown, by its number, with the template digest of ``algorithm``.

    ``line`` is that of an ASCII list, ``fault`` what is wrong with the record.
    """

    number: int
    parsed: Parsed
    digest: bytes
    algorithm: HashAlgorithm
    line: int | None = None
    fault: str = ""

    @property
    def record(self) -> Record:
        """The record itself."""
        return self.parsed.record

    @property
    def extended(self) -> bytes:
        """The digest that went into the PCR: of a violation ones, where the list has zeros."""
        return b"\xff" * len(self.digest) if self.record.violation else self.digest


def json_line(row: Row, raw: bool = False) -> bytes:
    """One JSON object, as docs/list.schema.json has it. Nothing of the record is lost.

    ``raw`` adds the template data, which is there anyway where it does not hold its fields.
    """
    record = row.record
    about: dict[str, object] = {"record": row.number}
    if row.line is None:
        about["offset"] = row.parsed.start
    else:
        about["line"] = row.line
        about["unproven"] = record.violation
    about |= {
        "pcr": record.pcr,
        "template_digest": f"{row.algorithm.name}:{row.digest.hex()}",
        "template": record.template.label,
        "violation": record.violation,
    }
    if row.fault:
        about["fault"] = row.fault
    try:
        about["fields"] = [_field(record, f, p) for f, p in record.template.parts(record.data)]
    except FormatError:
        about["fields"], raw = [], True
    if raw:
        about["template_data"] = record.data.hex()
    return json.dumps(about).encode() + b"\n"


def _field(record: Record, field: Field, part: bytes) -> dict[str, str]:
    """``text`` where the bytes are UTF-8; ``hex`` where that does not say them all."""
    shown = record.template.field_text(field, part).encode("latin-1") if part else b""
    about = {"name": field.name}
    try:
        about["text"] = shown.decode()
    except UnicodeDecodeError:
        about["hex"] = part.hex()
        return about
    if told(field, shown, record.template.order) != part:
        about["hex"] = part.hex()
    return about


def cel_json(rows: Iterable[Row]) -> Iterator[bytes]:
    """TCG CEL in JSON: one array, an event per line."""
    yield b"["
    between = b"\n"
    for row in rows:
        record = row.record
        event = {
            "recnum": row.number,
            "pcr": record.pcr,
            "digests": [{"hashAlg": tools_name(row.algorithm), "digest": row.extended.hex()}],
            "content_type": "ima_template",
            "content": {
                "template_name": record.template.label,
                # What the digest is taken over: of template ima not what the list holds.
                "template_data": record.template.hash_input(record.data).hex(),
            },
        }
        yield between + json.dumps(event).encode()
        between = b",\n"
    yield b"\n]\n"


def cel_tlv(rows: Iterable[Row]) -> Iterator[bytes]:
    """TCG CEL in TLV. Raises :class:`FormatError` for a hash without a TPM's number."""
    for row in rows:
        record, number = row.record, row.algorithm.tpm_id
        if number is None or number > 0xFF:
            raise FormatError(f"CEL-TLV has no number for {row.algorithm.name}: give --to sha256")
        content = _tlv(_TEMPLATE_NAME, record.template.label.encode("latin-1"))
        content += _tlv(_TEMPLATE_DATA, record.template.hash_input(record.data))
        yield b"".join(
            (
                _tlv(_RECNUM, row.number.to_bytes(8, "big")),
                _tlv(_PCR, record.pcr.to_bytes(1, "big")),
                _tlv(_DIGESTS, _tlv(number, row.extended)),
                _tlv(_IMA_TEMPLATE, content),
            )
        )


def _tlv(kind: int, value: bytes) -> bytes:
    return _TLV.pack(kind, len(value)) + value


def rfc9684(rows: Iterable[Row]) -> Iterator[bytes]:
    """``ima-event-logs`` of ietf-tpm-remote-attestation.

    Raises :class:`FormatError` for a PCR that its type does not have.
    """
    yield b'{"ietf-tpm-remote-attestation:ima-event-logs": {"ima-event-entry": ['
    between = b"\n"
    for row in rows:
        yield between + json.dumps(_ima_event(row)).encode()
        between = b",\n"
    yield b"\n]}}\n"


def _ima_event(row: Row) -> dict[str, object]:
    record = row.record
    if record.pcr > _PCR_MOST:
        raise FormatError(f"RFC 9684 has no PCR {record.pcr}", record=row.number)
    event: dict[str, object] = {
        # RFC 7951: 64-bit numbers are strings.
        "event-number": str(row.number + 1),
        "ima-template": record.template.label,
    }
    name = _yang_string(name_of(record))
    if name is not None:
        event["filename-hint"] = name
    for field, part in record.template.parts(record.data):
        if field.name in ("d", "d-ng", "d-ngv2") and part:
            event |= _filedata(field, part)
        elif field.name == "sig" and part:
            event["signature"] = b64encode(part).decode()
    return event | {
        "template-hash-algorithm": row.algorithm.name,
        "template-hash": b64encode(row.digest).decode(),
        "pcr-index": record.pcr,
    }


def _filedata(field: Field, part: bytes) -> dict[str, object]:
    if field.name == "d":
        algorithm, digest = "md5" if len(part) == 16 else "sha1", part
    else:
        prefix, _, digest = part.partition(b"\0")
        algorithm = prefix.rstrip(b":").rpartition(b":")[2].decode("latin-1")
    return {
        "filedata-hash": b64encode(digest).decode(),
        "filedata-hash-algorithm": algorithm,
    }


def _yang_string(name: bytes | None) -> str | None:
    """A name as YANG's strings have it; None where they cannot (RFC 7950, 9.4)."""
    if name is None:
        return None
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return None
    allowed = all(c in "\t\n\r" or (c >= " " and ord(c) & 0xFFFE != 0xFFFE) for c in text)
    return text if allowed and not any("\ufdd0" <= c <= "\ufdef" for c in text) else None
