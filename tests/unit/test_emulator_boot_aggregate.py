# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""boot_aggregate of every combination of banks, against hashlib (Linux 7.3 ima_crypto.c)."""

from __future__ import annotations

import hashlib
from itertools import combinations

import pytest

from imafs.emulator.boot_aggregate import aggregate_bank, boot_aggregate
from imafs.formats.algorithms import Bank, by_name
from imafs.formats.templates import TEMPLATES
from tests.property.builders import BANKS, banks
from tests.property.reference import WIDTHS

COMBINATIONS = [names for size in range(1, 5) for names in combinations(BANKS, size)]
DEFAULTS = ("md5", "sha1", "sha256", "sha384", "sha512")


def value(name: str, pcr: int) -> bytes:
    return hashlib.new(name, b"%s %d" % (name.encode(), pcr)).digest()


def values(names: tuple[str, ...]) -> dict[str, dict[int, bytes]]:
    return {name: {pcr: value(name, pcr) for pcr in range(24)} for name in names}


def expected_bank(names: tuple[str, ...], default: str) -> str | None:
    """The default's bank if there is one, else SHA-256, else SHA-1."""
    for name in (default, "sha256", "sha1"):
        if name in names:
            return name
    return None


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("backwards", [False, True])
def test_digest(names: tuple[str, ...], default: str, backwards: bool) -> None:
    tpm = banks(*(names[::-1] if backwards else names))
    measurement = boot_aggregate(tpm, by_name(default), values(names))
    assert measurement.name == b"boot_aggregate"
    assert not measurement.violation
    name = expected_bank(names, default)
    found = aggregate_bank(tpm, by_name(default))
    assert (found.name if found else None) == name
    if name is None:
        assert measurement.algorithm.name == default
        assert measurement.digest == bytes(WIDTHS[default])
        return
    # PCR 0 to 7; 8 and 9 too unless it is SHA-1.
    last = 7 if name == "sha1" else 9
    joined = b"".join(value(name, pcr) for pcr in range(last + 1))
    assert measurement.algorithm.name == name
    assert measurement.digest == hashlib.new(name, joined).digest()


@pytest.mark.parametrize("default", DEFAULTS)
def test_without_a_tpm_it_is_zeros_and_no_violation(default: str) -> None:
    measurement = boot_aggregate((), by_name(default), {})
    assert measurement.digest == bytes(WIDTHS[default])
    assert not measurement.violation
    data = TEMPLATES["ima-ng"].build(measurement)
    assert TEMPLATES["ima-ng"].split(data) == [
        default.encode() + b":\0" + bytes(WIDTHS[default]),
        b"boot_aggregate\0",
    ]


@pytest.mark.parametrize("default", ["sha1", "sha256"])
def test_template_ima_gets_the_sha1_aggregate(default: str) -> None:
    names = ("sha1", "sha256")
    measurement = boot_aggregate(banks(*names), by_name(default), values(names))
    data = TEMPLATES["ima"].build(measurement)
    joined = b"".join(value("sha1", pcr) for pcr in range(8))
    assert data[:20] == hashlib.sha1(joined).digest()
    assert data[24:] == b"boot_aggregate"


def test_a_bank_unknown_to_the_kernel_is_not_aggregated() -> None:
    unknown = Bank(0x27, 32, None)
    assert aggregate_bank((unknown,), by_name("sha256")) is None
    measurement = boot_aggregate((unknown,), by_name("sha256"), {"tpm_alg_27": {}})
    assert measurement.digest == bytes(32)
