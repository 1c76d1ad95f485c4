# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The firmware's log, old and crypto-agile, and the boot_aggregate that it explains."""

from __future__ import annotations

import hashlib
import random
import struct
from contextlib import suppress
from dataclasses import replace

import pytest

from imafs.attest.evidence import check
from imafs.attest.firmware import Boot, boot_aggregate, read
from imafs.attest.kinds import Kind
from imafs.errors import FormatError
from imafs.formats.algorithms import SHA1, SHA256
from tests.papertpm import PaperTpm
from tests.property.reference import Rec

BANKS = {"sha1": (0x0004, 20), "sha256": (0x000B, 32)}
EVENTS = [(0, b"firmware"), (7, b"secure boot"), (4, b"boot loader"), (9, b"kernel")]


def old_event(pcr: int, data: bytes, kind: int = 8) -> bytes:
    digest = hashlib.sha1(data).digest() if kind != 3 else bytes(20)
    return struct.pack("<II20sI", pcr, kind, digest, len(data)) + data


def new_event(pcr: int, data: bytes, kind: int = 8) -> bytes:
    out = struct.pack("<III", pcr, kind, len(BANKS))
    for name, (tpm_id, size) in BANKS.items():
        digest = hashlib.new(name, data).digest() if kind != 3 else bytes(size)
        out += struct.pack("<H", tpm_id) + digest
    return out + struct.pack("<I", len(data)) + data


SPEC = (
    b"Spec ID Event03\0"
    + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(BANKS))
    + b"".join(struct.pack("<HH", *pair) for pair in BANKS.values())
    + b"\0"
)
OLD = b"".join(old_event(*event) for event in EVENTS)
NEW = old_event(0, SPEC, 3) + b"".join(new_event(*event) for event in EVENTS)
LOCALITY = (
    old_event(0, SPEC, 3)
    + new_event(0, b"StartupLocality\0\3", 3)
    + b"".join(new_event(*event) for event in EVENTS)
)


def pcrs(bank: str, begin: int = 0) -> dict[int, bytes]:
    size = BANKS[bank][1]
    values = {pcr: bytes(size) for pcr in range(10)}
    values[0] = bytes(size - 1) + bytes([begin])
    for pcr, data in EVENTS:
        values[pcr] = hashlib.new(bank, values[pcr] + hashlib.new(bank, data).digest()).digest()
    return values


@pytest.mark.parametrize(
    ("log", "banks", "begin"),
    [(OLD, ["sha1"], 0), (NEW, list(BANKS), 0), (LOCALITY, list(BANKS), 3)],
)
def test_logs_lead_to_the_pcrs(log: bytes, banks: list[str], begin: int) -> None:
    found = read(log)
    assert list(found.pcrs) == banks
    for bank in banks:
        values = pcrs(bank, begin)
        assert all(values[pcr] == value for pcr, value in found.pcrs[bank].items())
        assert {0, 4, 7, 9} == set(found.pcrs[bank])


def test_boot_aggregates() -> None:
    for bank, algorithm, wanted in (
        ("sha256", SHA256, 10),
        ("sha256", SHA256, 8),
        ("sha1", SHA1, 8),
    ):
        values = {bank: pcrs(bank)}
        digest = algorithm.digest(b"".join(values[bank][n] for n in range(wanted)))
        assert boot_aggregate(algorithm, digest, values) is Boot.MATCHES
        assert boot_aggregate(algorithm, digest[::-1], values) is Boot.DIFFERS
        assert boot_aggregate(algorithm, digest, {}) is Boot.UNKNOWN
        del values[bank][3]
        assert boot_aggregate(algorithm, digest, values) is Boot.UNKNOWN
    assert boot_aggregate(SHA256, bytes(32), {}) is Boot.BYPASS


def test_a_bundle_with_the_firmwares_log() -> None:
    machine = PaperTpm()
    machine.boot_only()
    digest = hashlib.sha256(b"".join(pcrs("sha256").values())).digest()
    machine.measure(Rec(10, "ima-ng", (b"sha256:\0" + digest, b"boot_aggregate\0")))
    bundle = replace(machine.bundle(), firmware=NEW)
    found = check(bundle, machine.demand())
    assert (found.kind, found.boot) == (Kind.OK, Boot.MATCHES)
    other = replace(machine.bundle(), firmware=NEW + new_event(5, b"more"))
    assert check(other, machine.demand()).kind is Kind.BOOT
    broken = check(replace(machine.bundle(), firmware=NEW[:-1]), machine.demand())
    assert (broken.kind, broken.said.startswith("firmware.bin: byte")) == (Kind.MALFORMED, True)


@pytest.mark.parametrize("log", [OLD, NEW, LOCALITY])
def test_logs_that_are_cut_or_changed(log: bytes) -> None:
    for at in range(len(log)):
        with suppress(FormatError):
            read(log[:at])
    chance = random.Random(9)
    for _ in range(3000):
        changed = bytearray(log)
        changed[chance.randrange(len(log))] = chance.randrange(256)
        with suppress(FormatError):
            read(bytes(changed))
    for size in (0xFFFFFFFF, 1 << 31):
        with pytest.raises(FormatError, match="ends inside"):
            read(struct.pack("<II20sI", 0, 8, bytes(20), size))
