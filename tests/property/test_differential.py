# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs list`` and a reader written from the kernel's source, on lists that were damaged."""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import re
import sys
from collections.abc import Callable
from functools import cache

import pytest

from imafs.cli import list as list_command
from imafs.cli.main import build_parser
from imafs.errors import FormatError
from tests.conformance.recordings import load, names
from tests.property import kernellist
from tests.property.reference import FORMATS, WIDTHS, Rec, u32

BANKS = ("sha1", "sha256", "sha384", "sha512")
CUSTOM = ("d-ng|n-ng|iuid|igid|imode", "n-ng", "xattrlengths|d-ngv2", "ima-new", "no|such")
Random = random.Random
#: Bytes that no text has; each whole record has a NUL.
_CONTROL = {*range(0x20)} - {*b"\t\n\v\f\r\x1b"}
#: Differences that there may be, by name, and why.
KNOWN = {
    "bank": "without a record that proves it the bank is not known",
    "text": "what is left of a first record may have no byte that a text has not",
    "layout": "a first record that lost just so many bytes has the layout of a narrower bank",
}


def _field(rng: Random, name: str) -> bytes:
    if name in ("n", "n-ng", "xattrnames"):
        return bytes(rng.randrange(1, 256) for _ in range(rng.randrange(20))) + b"\0"
    if name in ("d-ng", "d-ngv2", "d-modsig"):
        prefix = rng.choice((b"sha256:\0", b"ima:sha1:\0", b":\0", b"", b"a:b\0"))
        return prefix + rng.randbytes(rng.choice((0, 16, 20, 32)))
    if name in ("iuid", "igid", "imode"):
        return rng.randbytes(rng.choice((0, 1, 2, 3, 4, 8)))
    return rng.randbytes(rng.randrange(30))


def _record(rng: Random) -> Rec:
    label = rng.choice((*FORMATS, *CUSTOM, "ima-ng", "ima-ng", "ima-sig"))
    pcr, violation = rng.choice((10, 10, 10, 0, 11, 63)), rng.random() < 0.15
    if label == "ima":
        name = _field(rng, "n")[:-1]
        return Rec(pcr, label, (rng.randbytes(rng.choice((20, 20, 16))), name), violation)
    fields = FORMATS.get(label, label).split("|")
    return Rec(pcr, label, tuple(_field(rng, name) for name in fields), violation)


@cache
def _recorded() -> list[tuple[str, bytes]]:
    """Short lists of real kernels, with their banks."""
    found = []
    for name in names():
        for moment in load(name).moments():
            for file, content in moment.files.items():
                bank = next((bank for bank in BANKS if file.endswith(f"_{bank}")), None)
                if file.startswith("binary") and bank and 0 < len(content) < 4000:
                    found.append((bank, content))
    assert found
    return found


def _list(rng: Random) -> tuple[str, bytes]:
    if rng.random() < 0.2:
        return rng.choice(_recorded())
    bank = rng.choice(BANKS)
    padded = bank != "sha1" and rng.random() < 0.1
    recs = [_record(rng) for _ in range(rng.randrange(1, 6))]
    return bank, b"".join(rec.binary(rec.shown(bank, padded=padded)) for rec in recs)


def _bit(rng: Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(rng: Random, data: bytearray) -> None:
    data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(rng: Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    number = rng.choice((0, 1, 4, 255, 256, 2**31, 2**32 - 1, len(data), len(data) - at - 4))
    data[at : at + 4] = u32(max(number, 0))


def _length(rng: Random, data: bytearray) -> None:
    """One more or one less, where a length stands."""
    places = [
        at for at in range(len(data) - 3) if 0 < data[at] < 200 and not any(data[at + 1 : at + 4])
    ]
    if places:
        at = rng.choice(places)
        data[at] += rng.choice((-1, 1))


def _cut(rng: Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _delete(rng: Random, data: bytearray) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 4, 20, 100))]


def _insert(rng: Random, data: bytearray) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice((b"\0", rng.randbytes(4), u32(10), data[: rng.randrange(120)]))


def _zeros(rng: Random, data: bytearray) -> None:
    """As the digest of a violation, which covers nothing."""
    at = rng.randrange(len(data))
    end = min(at + rng.choice((4, *WIDTHS.values())), len(data))
    data[at:end] = bytes(end - at)


def _double(rng: Random, data: bytearray) -> None:
    data += data[rng.choice((0, rng.randrange(len(data)))) :]


def _nothing(rng: Random, data: bytearray) -> None:
    pass


MUTATIONS: tuple[Callable[[Random, bytearray], None], ...] = (
    *(_nothing, _bit, _byte, _number, _length, _cut, _delete, _insert, _zeros, _double),
)


def _mutated(rng: Random) -> tuple[str, bytes]:
    bank, content = _list(rng)
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if data:
            rng.choice(MUTATIONS)(rng, data)
    return bank, bytes(data)


def _listed(args: argparse.Namespace, data: bytes) -> tuple[int, bytes, str]:
    """Exit code, output and messages of the command, run here."""
    stdin, stdout, stderr = sys.stdin, sys.stdout, sys.stderr
    output = io.BytesIO()
    sys.stdin, sys.stdout = io.TextIOWrapper(io.BytesIO(data)), io.TextIOWrapper(output)
    sys.stderr = io.StringIO()
    try:
        code = list_command.run(args)
        sys.stdout.flush()
        return code, output.getvalue(), sys.stderr.getvalue()
    except FormatError as error:
        return error.exit_code, b"", f"imafs: {error}\n"
    finally:
        sys.stdin, sys.stdout, sys.stderr = stdin, stdout, stderr


def difference(data: bytes, bank: str, args: argparse.Namespace) -> str | None:
    """In what ``list`` differs from the other reader; a name of :data:`KNOWN`, or more."""
    expected = kernellist.read(data, bank)
    code, shown, said = _listed(args, data)
    lines = b"".join(expected.lines)
    if expected.fault is None:
        if code == 0 and shown == lines:
            return None
    elif code == 3:
        number = re.search(r"\brecord ([0-9]+)", said)
        # A record that can be read and is not sound stands behind a mark.
        behind = shown[len(lines) :]
        agreed = shown.startswith(lines) and (not behind or behind.startswith(b"! "))
        if agreed and number is not None and int(number[1]) == expected.fault:
            return None
    if args.bank is None and not expected.proven:
        return "bank"
    if code == 3 and expected.fault == 0 and "this is a list of bank" in said and not shown:
        return "layout"
    if code == 3 and expected.fault == 0 and "this is a text" in said and not _CONTROL & {*data}:
        return "text"
    place = "sound" if expected.fault is None else f"broken at {expected.fault}"
    return f"{place} there, {code} here: {said}{shown!r}\n{lines!r}"


def _compare(count: int, seed: int) -> dict[str, int]:
    parser = build_parser()
    rng = Random(seed)
    known = dict.fromkeys(KNOWN, 0)
    sound = 0
    for number in range(count):
        bank, data = _mutated(rng)
        words = ["--bank", bank] if rng.random() < 0.7 and data else []
        found = difference(data, bank, parser.parse_args(["list", "-", *words]))
        if found in known:
            known[found] += 1
        elif found is not None:
            digest = hashlib.sha256(data).hexdigest()
            pytest.fail(f"list {number} of seed {seed} ({digest}, {words}): {found}\n{data.hex()}")
        else:
            sound += 1
    # Nearly all are compared to the end.
    assert sound > 0.9 * count, known
    return known


def test_two_readers_agree_on_damaged_lists() -> None:
    _compare(2000, 14)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10))
def test_two_readers_agree_on_many_damaged_lists(seed: int) -> None:
    _compare(10_000, 1000 + seed)


@pytest.mark.parametrize("change", ["nothing", "name", "digest", "pcr"])
def test_the_comparison_sees_differences(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is wrong in one respect is found out."""
    real = kernellist.read

    def wrong(data: bytes, bank: str) -> kernellist.Read:
        found = real(data, bank)
        if change == "name":
            found.lines = [
                line.replace(b"/", b"?").replace(b" ima", b" IMA") for line in found.lines
            ]
        elif change == "digest" and found.fault is not None and found.fault > 1:
            found.fault -= 1
            del found.lines[-1]
        elif change == "pcr" and found.lines:
            found.lines[0] = b"99" + found.lines[0][2:]
        return found

    monkeypatch.setattr(kernellist, "read", wrong)
    if change == "nothing":
        _compare(100, 1)
        return
    with pytest.raises(pytest.fail.Exception):
        _compare(300, 1)
