# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""PCR values as files hold them.

Read: the YAML of ``tpm2_pcrread`` (and what ``tpm2_quote`` and ``tpm2_checkquote`` print
around it), tables (``bank index VALUE``), one bank's lines (``PCR-10: HEX``, ``10: HEX``, the
kernel's and IBM's with a space between bytes), ``tsspcrread``, JSON, and the kernel's sysfs
directory (``/sys/class/tpm/tpm0`` with ``pcr-<bank>/<index>``) or what grep and head show of it;
each of these quoted by a mail too; and what ``tpm2_quote -o`` writes (:mod:`.pcrbinary`).

A line that is none of these is refused: a value that is passed over would be compared with
nothing. What the TSS libraries log and what the tools print beside values is known and left out.
"""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

from imafs.attest import pcrbinary, pcrjson
from imafs.attest.pcrvalues import DEFAULT_PCR, Collected, bank_named
from imafs.errors import FileError, FormatError, TpmError
from imafs.lists.replay import PcrValues

#: A text of PCR values is a few KiB; JSON of an attestation may hold a list beside them.
MOST = 64 << 20

_HEX = r"(?:0[xX])?(?P<value>[0-9A-Fa-f]{2}(?:[ :]?[0-9A-Fa-f])*)"
_TABLE = re.compile(
    rf"(?P<bank>[A-Za-z][\w-]*)[\s:,]+(?:PCR[-_ ]?)?(?P<pcr>\d+)[\s:=,]+{_HEX}", re.I
)
_PCR_LINE = re.compile(rf"\+?(?:PCR(?:Slot)?)?[-_ ]?\[?(?P<pcr>\d+)\]?\s*[:=]\s*{_HEX}", re.I)
#: ``10 ima HEX`` (systemd-analyze pcrs), ``10 sha256 HEX``, ``10 HEX``, ``PCR-10 HEX``
_ROW = re.compile(
    r"(?:PCR[-_ ]?)?(?P<pcr>\d{1,2})[\s,]+(?:(?P<word>-|[A-Za-z][\w-]*)[\s,]+)?"
    r"(?:0x)?(?P<value>[0-9A-Fa-f]{40,})",
    re.I,
)
_HEADING = re.compile(r"NR\s+NAME\s+(?P<bank>\S+)")
_BARE = re.compile(_HEX)
#: ``sha256:``, ``sha256 (0x000b) :``, ``Bank/Algorithm: TPM_ALG_SHA1(0x4)``, IBM's ``algorithmId``
_BANK_LINE = re.compile(
    r"(?:(?:Bank/Algorithm|algorithmId|bank|hash)\s*:?\s*)?(?P<bank>[A-Za-z][\w-]*)"
    r"\s*(?:\(0x[0-9A-Fa-f]+\))?\s*:?",
    re.I,
)
#: The TSS' log lines, what tpm2-tools print around PCRs, and IBM's tools.
_BESIDE = re.compile(
    r"(?:WARNING|ERROR|INFO|DEBUG|TRACE)\s*:.*"
    r"|(?:pcrs|signature|selected-pcrs)\s*:"
    r"|(?:quoted|alg|sig|calcDigest|qualifiedSigner|extraData)\s*:\s*\w*"
    r"|count \d+(?: pcrUpdateCounter \d+)?|pcrUpdateCounter \d+"
    r"|\w+: (?:line \d+|success)|---|\.\.\."
)
#: A line that a mail or an issue quotes.
_QUOTED = re.compile(r"(?:>\s?)+")
#: A sysfs file named in front of its value (grep), or above it (head, tail).
_FILE = re.compile(rf"(?:==>\s*)?\S*?pcr-(?P<bank>\w+)/(?P<pcr>\d+)(?:\s*<==|:\s*{_HEX})", re.I)
#: What a tool says above the values of one bank: ``tsspcrread -halg sha1``, ``pcr 10 (sha256)``
_SAID = re.compile(r"(?:.*\s-halg\s+|reading pcrs?\b.*\()(?P<bank>\w+)\)?", re.I)
_LENGTH = re.compile(r"digest length (?P<length>\d+)")


#: All PCRs in one file: of a TPM 1.2 in sysfs, and of a recording that was unpacked.
_OLD = ("pcrs", "device/pcrs", "pcrs.txt")


def read(path: str, pcr: int = DEFAULT_PCR) -> PcrValues:
    """PCR values of a file or of a sysfs directory.

    Raises :class:`FileError` where it cannot be read, :class:`TpmError` where the TPM behind
    sysfs does not answer, and :class:`FormatError` (file, line) where a line is none of the
    known forms or has a value of the wrong size.
    """
    place = Path(path)
    try:
        if place.is_dir():
            old = next((one for name in _OLD if (one := place / name).is_file()), None)
            if old is None:
                return _sysfs(place)
            place = old
        with place.open("rb") as file:  # a pipe, too: <(tpm2_pcrread)
            data = file.read(MOST + 1)
    except OSError as error:
        raise FileError(path, error) from None
    if len(data) > MOST:
        raise FormatError(f"PCR values are no file of more than {MOST >> 20} MiB", source=path)
    return parse(data, source=path, pcr=pcr)


def _decoded(data: bytes) -> str:
    """The text of a file: UTF-8, or UTF-16 as PowerShell's ``>`` writes it, without its BOM."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    return data.decode("utf-8-sig", errors="replace")


def parse(given: str | bytes, *, source: str | None = None, pcr: int = DEFAULT_PCR) -> PcrValues:
    """PCR values in any of the forms. Raises :class:`FormatError`.

    ``pcr`` is the one that a value without a number belongs to (tsspcrread prints none).
    """
    found = Collected(source)
    if isinstance(given, bytes) and pcrbinary.is_binary(given):
        pcrbinary.collect(given, found)
        return found.values
    text = (_decoded(given) if isinstance(given, bytes) else given).removeprefix("\ufeff")
    if text.lstrip().startswith(("{", "[")):
        try:
            pcrjson.collect(json.loads(text), found)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"broken JSON: {error}", source=source) from None
    else:
        _lines(text, found, pcr)
    if not found.values:
        raise FormatError("no PCR values in it", source=source)
    return found.values


def kept(data: bytes, source: str) -> PcrValues:
    """PCR values that a recording has; none of a machine without a TPM."""
    return parse(data, source=source) if data.strip() else {}


def _lines(text: str, found: Collected, pcr: int) -> None:
    bank: str | None = None
    named: int | None = None  # by the heading of a sysfs file
    wanted, begun = 0, ""  # of tsspcrread: digits that a value has, and those read so far
    for number, full in enumerate(text.splitlines(), 1):
        where, line = f"line {number}", _QUOTED.sub("", full.strip(), count=1).strip()
        if wanted and _BARE.fullmatch(line):
            begun += _digits(line)
            if len(begun) >= wanted:
                found.add(None, pcr, begun, where)
                wanted, begun = 0, ""
        elif not line or line.startswith("#") or _BESIDE.fullmatch(line):
            continue
        elif match := _LENGTH.fullmatch(line):
            wanted, begun = 2 * int(match["length"]), ""
        elif match := _FILE.fullmatch(line):
            bank, named = match["bank"], int(match["pcr"])
            if match["value"] is not None:
                found.add(bank, named, match["value"], where)
        elif (match := _SAID.fullmatch(line)) and bank_named(match["bank"]):
            bank = match["bank"]
        elif match := _PCR_LINE.fullmatch(line):
            found.add(bank, int(match["pcr"]), match["value"], where)
        elif match := _TABLE.fullmatch(line):
            found.add(match["bank"], int(match["pcr"]), match["value"], where)
        elif match := _ROW.fullmatch(line):
            of = bank_named(match["word"] or "")
            found.add(of or bank, int(match["pcr"]), match["value"], where)
        elif (match := _HEADING.fullmatch(line)) or (
            (match := _BANK_LINE.fullmatch(line))
            and (line.endswith(":") or bank_named(match["bank"]))
        ):
            bank = match["bank"]
        elif _BARE.fullmatch(line):
            found.add(bank, pcr if named is None else named, line, where)
        else:
            why = pcrbinary.RAW if "\ufffd" in line else f"is no PCR value: {line[:60]!r}"
            raise FormatError(f"{where} {why}", source=found.source)
    if wanted:
        raise FormatError("it ends inside a value", source=found.source)


def _digits(line: str) -> str:
    return line.replace(" ", "").replace(":", "")


def _sysfs(place: Path) -> PcrValues:
    found = Collected(str(place))
    for folder in sorted(place.glob("pcr-*")):
        bank = folder.name.removeprefix("pcr-")
        for file in folder.iterdir():
            if file.name.isdigit():
                found.add(bank, int(file.name), _ask(file), str(file))
    if not found.values:
        raise FormatError("no pcr-<bank> directories in it", source=str(place))
    return found.values


#: What a read of sysfs says where the TPM fails or is late; an emulator's says EIO.
_OF_THE_TPM = frozenset({errno.EIO, errno.ETIME, errno.ETIMEDOUT, errno.EBUSY, errno.ENODEV})


def _ask(file: Path) -> str:
    """A value: the kernel asks the TPM for it whenever the file is read."""
    try:
        return file.read_text().strip()
    except OSError as error:
        if error.errno in _OF_THE_TPM:
            raise TpmError(f"{file}: the TPM does not answer ({error.strerror})") from None
        raise
