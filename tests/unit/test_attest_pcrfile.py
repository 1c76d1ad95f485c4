# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""PCR values in all the forms that files have, and lines that are none."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from imafs.attest import pcrfile
from imafs.errors import FileError, FormatError, TpmError
from tests.conformance.recordings import Moment, load, names

ONE = hashlib.sha1(b"1").digest()
TWO = hashlib.sha256(b"2").digest()
THREE = hashlib.sha256(b"3").digest()

#: As tpm2_pcrread 5.4 prints it.
PCRREAD = f"""\
  sha1:
    0 : 0x{ONE.hex().upper()}
  sha256:
    10: 0x{TWO.hex().upper()}
    23: 0x{THREE.hex().upper()}
"""
VALUES = {"sha1": {0: ONE}, "sha256": {10: TWO, 23: THREE}}


def test_what_tpm2_pcrread_prints() -> None:
    assert pcrfile.parse(PCRREAD) == VALUES


def test_a_table() -> None:
    text = f"sha1 0 {ONE.hex()}\n\n# a comment\nsha256 10 {TWO.hex().upper()}\n"
    assert pcrfile.parse(text + f"  sha256\t23  {THREE.hex()}  \n") == VALUES


def test_lines_of_one_bank_are_told_by_their_size() -> None:
    """What evmctl takes, and the kernel's /sys/class/tpm/tpm0/device/pcrs with its spaces."""
    assert pcrfile.parse(f"PCR-10: {TWO.hex()}\nPCR-23: {THREE.hex()}\n") == {
        "sha256": {10: TWO, 23: THREE}
    }
    spaced = " ".join(f"{byte:02X}" for byte in ONE)
    assert pcrfile.parse(f"PCR-00: {spaced} \n") == {"sha1": {0: ONE}}


def test_the_last_value_of_a_pcr_counts() -> None:
    assert pcrfile.parse(f"sha256 10 {TWO.hex()}\nsha256 10 {THREE.hex()}\n") == {
        "sha256": {10: THREE}
    }


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "pcrs"
    path.write_text(PCRREAD)
    assert pcrfile.read(str(path)) == VALUES


def test_the_directory_of_sysfs(tmp_path: Path) -> None:
    for bank, pcrs in VALUES.items():
        folder = tmp_path / f"pcr-{bank}"
        folder.mkdir()
        for number, value in pcrs.items():
            (folder / str(number)).write_text(f"{value.hex().upper()}\n")
    (tmp_path / "tpm_version_major").write_text("2\n")
    assert pcrfile.read(str(tmp_path)) == VALUES


@pytest.mark.parametrize("name", ["pcrs", "device/pcrs", "pcrs.txt"])
def test_a_directory_with_all_pcrs_in_one_file(tmp_path: Path, name: str) -> None:
    """Of a TPM 1.2, or of a recording."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"PCR-10: {' '.join(f'{byte:02X}' for byte in ONE)} \n")
    assert pcrfile.read(str(tmp_path)) == {"sha1": {10: ONE}}


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIME])
def test_a_tpm_behind_sysfs_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    file = tmp_path / "pcr-sha1" / "0"
    file.parent.mkdir()
    file.touch()

    def failing(self: Path) -> str:
        raise OSError(number, "why")

    monkeypatch.setattr(Path, "read_text", failing)
    with pytest.raises(TpmError) as caught:
        pcrfile.read(str(tmp_path))
    assert str(caught.value) == f"{file}: the TPM does not answer (why)"


# Forms of other tools


def spaced(value: bytes) -> str:
    return "".join(f"{byte:02x} " for byte in value)


def lines_of_16(value: bytes) -> str:
    return "".join(f" {spaced(value[at : at + 16])}\n" for at in range(0, len(value), 16))


WARNINGS = """\
WARNING:esys:src/tss2-esys/esys_tcti_default.c:137:tcti_from_file() Could not load TCTI file: "x"
ERROR:tcti:src/tss2-tcti/tcti-device.c:442:Tss2_Tcti_Device_Init() Failed to open /dev/tpmrm0
WARNING: the TPM is slow
"""
TEN = {"sha256": {10: TWO}}
ROWS = {"sha1": {10: ONE, 11: ONE}, "sha256": {10: TWO}}
BOTH = {"sha1": {10: ONE}, "sha256": {10: TWO}}

FORMS = {
    # tsspcrread -halg sha1 -halg sha256 -ha 10, of IBM's TSS 1.6
    "tsspcrread": (
        f"count 2\n digest length 20\n{lines_of_16(ONE)} digest length 32\n{lines_of_16(TWO)}",
        BOTH,
    ),
    "tsspcrread -v": (
        f"count 1 pcrUpdateCounter 21\n digest length 32\n{lines_of_16(TWO)}",
        TEN,
    ),
    "tsspcrread -ns": (f"{TWO.hex()}\n", TEN),
    "number and value": (f"10: {TWO.hex()}\n23: {THREE.hex()}", {"sha256": {10: TWO, 23: THREE}}),
    "number, equals": (f"10 = 0x{TWO.hex()}", TEN),
    "imaextend -sim": (
        (
            "imaextend: line 0\nimaextend: line 1\n"
            f"algorithmId TPM_ALG_SHA1\n PCR 10: {spaced(ONE)}\n"
            f"algorithmId TPM_ALG_SHA256\n PCR 10: {spaced(TWO)}\n"
        ),
        BOTH,
    ),
    "colons": (f"PCR10: {TWO.hex(':').upper()}", TEN),
    "brackets": (f"PCR[10] = {TWO.hex()}", TEN),
    "tpm2_pcrlist 3.x": (f"sha1 :\n  10 : {ONE.hex()}\nsha256 :\n  10 : {TWO.hex()}\n", BOTH),
    "tpm2_pcrlist 2.x": (
        (
            f"\nBank/Algorithm: TPM_ALG_SHA1(0x0004)\nPCR_10: {spaced(ONE)}\n\n"
            f"Bank/Algorithm: TPM_ALG_SHA256(0x000b)\nPCR_10: {spaced(TWO)}\n"
        ),
        BOTH,
    ),
    "tpm2_quote": (
        (
            "quoted: ff544347\nsignature:\n  alg: ecdsa\n  sig: 3045\n"
            f"pcrs:\n  sha256:\n    10: 0x{TWO.hex()}\ncalcDigest: 887a\n"
        ),
        TEN,
    ),
    "tpm2_checkquote": (f"pcrs:\n  sha256:\n    10: 0x{TWO.hex()}\nsig: 3045\n", TEN),
    "a table with colons": (f"sha1:10: {ONE.hex()}\nSHA-256 PCR-10 {TWO.hex()}\n", BOTH),
    "sm3": (f"  sm3_256:\n    10: 0x{TWO.hex()}\n", {"sm3": {10: TWO}}),
    "sha3": (f"  sha3_256:\n    10: 0x{TWO.hex()}\n", {"sha3-256": {10: TWO}}),
    "systemd-analyze pcrs": (
        (
            f"NR NAME                SHA256\n 0 platform-code       {THREE.hex()}\n"
            f"10 ima                 {TWO.hex()}\n16 debug               {ONE.hex() + '00' * 12}\n"
        ),
        {"sha256": {0: THREE, 10: TWO, 16: ONE + bytes(12)}},
    ),
    "rows": (f"10 {ONE.hex()}\n10 sha256 0x{TWO.hex()}\nPCR-11 {ONE.hex()}", ROWS),
    "CSV": (f"sha1,10,{ONE.hex()}\n10,sha256,{TWO.hex()}\n", BOTH),
    "CRLF": (PCRREAD.replace("\n", "\r\n"), VALUES),
    "a BOM": ("\ufeff" + PCRREAD, VALUES),
    "what the TSS logs": (WARNINGS + PCRREAD, VALUES),
    "a BOM before what the TSS logs": ("\ufeff" + WARNINGS + PCRREAD, VALUES),
    "JSON by bank": (json.dumps({"sha256": {"10": TWO.hex()}, "sha1": {"10": ONE.hex()}}), BOTH),
    "JSON, nested": (
        json.dumps({"quote": {"pcrs": {"TPM_ALG_SHA256": {"PCR-10": f"0x{TWO.hex()}"}}}, "n": 1}),
        TEN,
    ),
    "JSON beside its bank": (json.dumps({"hash_alg": "sha256", "pcrs": {"10": TWO.hex()}}), TEN),
    "JSON rows": (
        json.dumps(
            [
                {"pcr": 10, "bank": "sha1", "value": ONE.hex(), "equal": True},
                {"pcr": 10, "bank": "sha256", "value": TWO.hex()},
                {"pcr": 11, "bank": "sha256", "value": None},
            ]
        ),
        BOTH,
    ),
    "JSON of Go": (
        json.dumps(
            {"PCRs": [{"Index": 10, "Digest": base64.b64encode(TWO).decode(), "DigestAlg": 11}]}
        ),
        TEN,
    ),
    "JSON arrays": (
        json.dumps({"sha256": [TWO.hex()] * 24}),
        {"sha256": dict.fromkeys(range(24), TWO)},
    ),
    "JSON with a BOM": ("\ufeff" + json.dumps({"sha256": {"10": TWO.hex()}}), TEN),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_forms_of_other_tools(name: str, encoding: str, tmp_path: Path) -> None:
    text, values = FORMS[name]
    path = tmp_path / "pcrs"
    path.write_bytes(text.encode(encoding))
    assert pcrfile.read(str(path)) == values


def test_a_value_without_a_number_is_of_the_pcr_that_is_meant() -> None:
    assert pcrfile.parse(TWO.hex(), pcr=11) == {"sha256": {11: TWO}}


def test_a_pipe(tmp_path: Path) -> None:
    """What a shell's <(tpm2_pcrread) is."""
    reading, writing = os.pipe()
    try:
        os.write(writing, PCRREAD.encode())
        os.close(writing)
        assert pcrfile.read(f"/dev/fd/{reading}") == VALUES
    finally:
        os.close(reading)


MOMENTS = [m for name in names() for m in load(name).moments()]


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_recorded_pcrs(moment: Moment, tmp_path: Path) -> None:
    path = tmp_path / "pcrs.txt"
    path.write_bytes(moment.files["pcrs.txt"])
    if moment.pcrs:
        assert pcrfile.read(str(path)) == moment.pcrs
    else:  # a kernel without a TPM
        with pytest.raises(FormatError, match="no PCR values in it"):
            pcrfile.read(str(path))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no PCR values in it"),
        ("# nothing\n\n", "no PCR values in it"),
        ("sha256:\n", "no PCR values in it"),
        (f"sha1 0 {ONE.hex()}\nhello\n", "line 2 is no PCR value: 'hello'"),
        ("x" * 200, f"line 1 is no PCR value: '{'x' * 60}'"),
        (f"sha1 0 {ONE.hex()[1:]}", "line 1: an odd number of digits"),
        (f"sha1 0 {TWO.hex()}", "line 1: 64 hexadecimal digits are no value of bank sha1"),
        (f"sha1:\n  0 : 0x{TWO.hex()}", "line 2: 64 hexadecimal digits are no value of bank sha1"),
        (f"nobank 0 {ONE.hex()}", "line 1: 40 hexadecimal digits are no value of bank nobank"),
        ("PCR-10: 00", "line 1: 2 hexadecimal digits are no value of any bank"),
        ("0 : 0x", "line 1 is no PCR value"),
        (f"sha256\n10: {ONE.hex()}", "line 2: 40 hexadecimal digits are no value of bank sha256"),
        (f"sm3_256:\n10: {ONE.hex()}", "line 2: 40 hexadecimal digits are no value of bank sm3"),
        ("count 1\n digest length 32\n 00 00\n", "it ends inside a value"),
        ("WARNING:esys:x\n", "no PCR values in it"),
        ("[]", "no PCR values in it"),
        ('{"sha1": {"10": "xy z"}}', "PCR 10: neither hexadecimal nor base64"),
        ('{"sha1": {"10": "00"}}', "PCR 10: 2 hexadecimal digits are no value of bank sha1"),
        ('{"sha1": ', "broken JSON: "),
        ("[" * 100000, "broken JSON: "),
    ],
)
def test_what_is_no_pcr_value(text: str, complaint: str) -> None:
    with pytest.raises(FormatError) as caught:
        pcrfile.parse(text, source="file")
    assert str(caught.value).startswith(f"file: {complaint}")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"missing: No such file"):
        pcrfile.read(str(tmp_path / "missing"))
    with pytest.raises(FormatError, match="no pcr-<bank> directories"):
        pcrfile.read(str(tmp_path))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """As tpm2_pcrread -o writes them: not even with some luck they are taken for a text."""
    path = tmp_path / "pcrs"
    for data in (b"\xff\xfe\0", ONE + TWO, bytes(32), bytes(range(128, 148)), THREE * 24):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=r"is binary, such as|is no PCR value") as caught:
            pcrfile.read(str(path))
        assert "\n" not in str(caught.value)
        if data[:2] != b"\xff\xfe":
            assert "tpm2_pcrread > FILE" in str(caught.value)


def serialized(*banks: tuple[int, dict[int, bytes]]) -> bytes:
    """As tpm2-tools 5.4 writes TPML_PCR_SELECTION and TPML_DIGESTs (lib/pcr.c)."""
    selections = b""
    for identifier, values in banks:
        bitmap = sum(1 << pcr for pcr in values)
        selections += struct.pack("<HB4sx", identifier, 3, bitmap.to_bytes(4, "little"))
    out = struct.pack("<I128s", len(banks), selections)
    flat = [value for _, values in banks for _, value in sorted(values.items())]
    pieces = [flat[at : at + 8] for at in range(0, len(flat), 8)]
    out += struct.pack("<I", len(pieces))
    for piece in pieces:
        digests = b"".join(struct.pack("<H64s", len(value), value) for value in piece)
        out += struct.pack("<I528s", len(piece), digests)
    return out


@pytest.mark.parametrize("count", [1, 8, 9, 24])
def test_the_pcrs_of_a_quote(tmp_path: Path, count: int) -> None:
    """tpm2_quote -o: banks and PCRs are named in it."""
    path = tmp_path / "pcrs"
    mine = {pcr: hashlib.sha256(b"%d" % pcr).digest() for pcr in range(count)}
    path.write_bytes(serialized((4, {10: ONE}), (11, mine), (0x27, {23: TWO})))
    assert pcrfile.read(str(path)) == {"sha1": {10: ONE}, "sha256": mine, "sha3-256": {23: TWO}}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + bytes(532),
        lambda data: b"\x11" + data[1:],
        lambda data: data[:4] + b"\xff" + data[5:],
        lambda data: data[:7] + b"\x03" + data[8:],
        lambda data: data[:136] + b"\x09" + data[137:],
        lambda data: data[:140] + b"\x41" + data[141:],
        lambda data: data[:140] + b"\x15" + data[141:],
        lambda data: bytes(4) + data[4:],
    ],
)
def test_the_pcrs_of_a_quote_that_are_damaged(damage: Callable[[bytes], bytes]) -> None:
    good = serialized((4, {10: ONE}), (11, {10: TWO}))
    assert pcrfile.parse(good) == {"sha1": {10: ONE}, "sha256": {10: TWO}}
    with pytest.raises(FormatError):
        pcrfile.parse(damage(good))


def test_digests_of_a_pcr_in_json() -> None:
    """TCG's shape of a PCR's values; an event log has it too, with what an event has."""
    digests = [
        {"hashAlg": "sha1", "digest": ONE.hex()},
        {"hashAlg": "TPM2_ALG_SHA256", "digest": TWO.hex()},
    ]
    for node in (
        {"pcr": 10, "digests": digests},
        [{"pcr": 10, "digests": digests[:1]}, {"PCR": "10", "digests": digests[1:]}],
        {"pcrs": [{"pcr": 10, "digests": digests}]},
    ):
        assert pcrfile.parse(json.dumps(node)) == {"sha1": {10: ONE}, "sha256": {10: TWO}}
    event = {"recnum": 0, "pcr": 10, "digests": digests, "content_type": "ima_template"}
    for log in ([event], event, {"events": [event]}):
        with pytest.raises(FormatError, match="this is an event log: what extended PCRs"):
            pcrfile.parse(json.dumps(log))


QUOTED_AND_NAMED = {
    "tpm2_pcrread, quoted": f"> sha1:\n>   10: 0x{ONE.hex().upper()}\n",
    "grep of sysfs": f"/sys/class/tpm/tpm0/pcr-sha1/10:{ONE.hex().upper()}\n",
    "head of sysfs": f"==> /sys/class/tpm/tpm0/pcr-sha1/10 <==\n{ONE.hex().upper()}\n",
    "evmctl's sample": f"pcrread: tsspcrread -halg sha1\n10: {ONE.hex()}\n",
    "gotpm": f"Reading pcr 10 (sha1)\n10: {ONE.hex()}\n",
    "a slot": f"PcrSlot10: {ONE.hex()}\n",
    "a log's extend": f"+PCR[10]: {ONE.hex()}\n",
    "systemd's JSON": f'[{{"nr": 10, "name": "ima", "sha1": "{ONE.hex()}"}}]',
}


@pytest.mark.parametrize("name", QUOTED_AND_NAMED)
def test_values_that_are_quoted_or_named_by_their_file(name: str) -> None:
    assert pcrfile.parse(QUOTED_AND_NAMED[name]) == {"sha1": {10: ONE}}
