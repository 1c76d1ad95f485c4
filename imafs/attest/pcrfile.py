# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""PCR values as files hold them.

Read: the YAML that ``tpm2_pcrread`` prints, ``pcrs.txt`` (``bank index VALUE`` per line),
``PCR-10: HEX`` lines (one bank, evmctl's form), and the kernel's sysfs directory
(``/sys/class/tpm/tpm0`` with ``pcr-<bank>/<index>``).
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from imafs.attest.replay import PcrValues
from imafs.errors import FileError, FormatError, TpmError
from imafs.formats.algorithms import ALGORITHMS

_BANKS = {a.name: a.digest_size for a in ALGORITHMS if a.tpm_id is not None}
_BANK_LINE = re.compile(r"^\s*(?P<bank>[a-z][a-z0-9_-]*)\s*:\s*$")
_YAML = re.compile(r"^\s*(?P<pcr>\d+)\s*:\s*0x(?P<value>[0-9A-Fa-f]+)\s*$")
_TABLE = re.compile(r"^\s*(?P<bank>[a-z][a-z0-9-]*)\s+(?P<pcr>\d+)\s+(?P<value>[0-9A-Fa-f]+)\s*$")
_PCR_LINE = re.compile(r"^\s*PCR-(?P<pcr>\d+)\s*:\s*(?P<value>[0-9A-Fa-f ]+?)\s*$")


def read(path: str) -> PcrValues:
    """PCR values of a file or of a sysfs directory.

    Raises :class:`FileError` where it cannot be read, :class:`TpmError` where the TPM behind
    sysfs does not answer, and :class:`FormatError` (file, line) where a line is none of the
    known forms or has a value of the wrong size.
    """
    place = Path(path)
    try:
        if place.is_dir():
            return _sysfs(place)
        text = place.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise FileError(path, error) from None
    return parse(text, source=path)


def parse(text: str, *, source: str | None = None) -> PcrValues:
    """PCR values of a text in any of the line forms. Raises :class:`FormatError`."""
    values: dict[str, dict[int, bytes]] = {}
    bank: str | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if match := _BANK_LINE.match(line):
            bank = match["bank"]
            continue
        match = _YAML.match(line) or _TABLE.match(line) or _PCR_LINE.match(line)
        if match is None:
            raise FormatError(
                f"line {number} is no PCR value: {line.strip()[:60]!r}", source=source
            )
        found = match.groupdict()
        try:
            value = bytes.fromhex(found["value"].replace(" ", ""))
        except ValueError:
            raise FormatError(f"line {number}: an odd number of digits", source=source) from None
        name = found.get("bank") or bank or _by_size(len(value))
        if name is None or _BANKS.get(name) != len(value):
            of = "any bank" if name is None else f"bank {name}"
            raise FormatError(
                f"line {number}: {2 * len(value)} hexadecimal digits are no value of {of}",
                source=source,
            )
        values.setdefault(name, {})[int(found["pcr"])] = value
    if not values:
        raise FormatError("no PCR values in it", source=source)
    return values


def _by_size(size: int) -> str | None:
    return next((name for name, wanted in _BANKS.items() if wanted == size), None)


def _sysfs(place: Path) -> PcrValues:
    values: dict[str, dict[int, bytes]] = {}
    for folder in sorted(place.glob("pcr-*")):
        bank = folder.name.removeprefix("pcr-")
        for file in folder.iterdir():
            if file.name.isdigit():
                one = parse(f"{bank} {file.name} {_ask(file)}", source=str(file))
                values.setdefault(bank, {}).update(one[bank])
    if not values:
        raise FormatError("no pcr-<bank> directories in it", source=str(place))
    return values


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
