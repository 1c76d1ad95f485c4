# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Where commands take PCR values from: a file, a TPM, or the TPM of a running imafs."""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imafs.attest import pcrfile
from imafs.attest.pcrvalues import DEFAULT_PCR, Collected
from imafs.cli import options
from imafs.errors import ControlError, FormatError, UsageError
from imafs.lists.replay import PcrValues
from imafs.tpm.quoting import within

#: The kernel's own TPM, where there is one.
SYSFS = "/sys/class/tpm/tpm0"
#: Seconds that a TPM gets for all its PCRs; a chip needs about one.
DEADLINE = 10.0
#: How TCTIs begin (tpm2-tss).
_TCTI = re.compile(r"(device|swtpm|mssim|tabrmd|cmd|pcap|libtpms|libtss2-tcti-\S+)(:|$)")
#: What to say where a list does not lead to such PCRs.
ADOPTED = (
    "The emulator has adopted a value that no record explains (--adopt): no list leads to its PCRs"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """PCR values; ``adopted``: their emulator went on over values that no record explains."""

    values: PcrValues
    adopted: bool = False


class NoTpmError(UsageError):
    """There are no PCR values because there is no TPM, here or in the emulator meant."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--pcrs``, ``--tcti`` and ``--control``, one of them at most."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--pcrs",
        metavar="FILE",
        help="PCR values: what tpm2_pcrread or tsspcrread prints, or tpm2_quote -o writes, "
        f"pcrs.txt of a recording, `PCR-10: HEX` or `10: HEX` lines, JSON, or a directory such "
        f"as {SYSFS}; - is standard input",
    )
    where.add_argument("--tcti", metavar="TCTI", help="read the PCRs of this TPM")
    where.add_argument(
        "--control",
        metavar="SOCKET",
        help="the TPM of the imafs that listens there (default: of the mount that holds the "
        f"list, else {SYSFS}, else of the only imafs running)",
    )
    options.add_listener(parser)


def reader(args: argparse.Namespace, path: str) -> Callable[[], Reading]:
    """A function that reads all PCRs now. ``path`` is the list (or directory) meant.

    Raises :class:`imafs.errors.ImafsError` where nothing was named and nothing is found, and
    so does the function: :class:`NoTpmError` where that is because there is no TPM.
    """
    from imafs.cli import find_daemon

    uid = find_daemon.listener(args)
    pcr = getattr(args, "pcr", DEFAULT_PCR)
    if args.pcrs == "-":
        piped = Reading(pcrfile.parse(_piped(), source="standard input", pcr=pcr))
        return lambda: piped
    if args.pcrs is not None:
        if _TCTI.match(args.pcrs) and not Path(args.pcrs).exists():
            raise UsageError(f"--pcrs {args.pcrs}: that is a TPM, not a file: give --tcti")
        return lambda: Reading(pcrfile.read(args.pcrs, pcr))
    if args.tcti is not None:
        return lambda: Reading(_of_tpm(args.tcti))
    if args.control is not None:
        return lambda: _of_imafs(Path(args.control), uid)
    socket = find_daemon.of_place(path)
    if socket is not None:
        return lambda: _of_imafs(socket)
    if Path(SYSFS, "pcr-sha1").is_dir() or Path(SYSFS, "pcr-sha256").is_dir():
        return lambda: Reading(pcrfile.read(SYSFS))
    from imafs.control.paths import find_sockets

    kind = UsageError
    try:
        if not Path(SYSFS).exists() and not find_sockets():
            kind = NoTpmError
        only = find_daemon.chosen(None)
    except ControlError as error:
        raise kind(f"no PCR values: give --pcrs FILE or --tcti TCTI ({error})") from None
    return lambda: _of_imafs(only)


def _piped() -> str | bytes:
    # Bytes where there are any: UTF-16 would be no text to Python's own decoder.
    if isinstance(sys.stdin, io.TextIOWrapper):
        return bytes(sys.stdin.buffer.read())
    return sys.stdin.read()


def _of_imafs(socket: Path, uid: int | None = None) -> Reading:
    from imafs.verbs.client import ControlClient

    with ControlClient(socket, uid=uid) as client:
        status = client.call("status")
    tcti, pcrs = status.get("tcti"), status.get("pcrs")
    if not isinstance(tcti, str):
        raise NoTpmError("that imafs has no TPM: give --pcrs FILE")
    rows = pcrs if isinstance(pcrs, list) else []
    return Reading(_of_tpm(tcti), any(isinstance(r, dict) and r.get("adopted") for r in rows))


def _of_tpm(tcti: str) -> PcrValues:
    """Raises :class:`TpmError`, also where the TPM does not answer."""

    def ask() -> PcrValues:
        from imafs.tpm import open_device

        # Reading a hardware TPM is harmless.
        device = open_device(tcti, allow_hardware=True)
        try:
            return device.read_pcrs(range(24))
        finally:
            device.close()

    return within(DEADLINE, ask, tcti)


def begin(text: str) -> tuple[str | None, str]:
    """``--from [BANK:]VALUE``: a bank, None where the size of the value says it, and digits."""
    bank, colon, digits = text.rpartition(":")
    found = Collected(None)
    try:
        found.add(bank if colon else None, 0, digits, f"{text!r}")
    except FormatError as error:
        raise argparse.ArgumentTypeError(error.reason) from None
    return (bank if colon else None), digits


def begun(given: Sequence[tuple[str | None, str]], pcr: int) -> PcrValues:
    """The values of ``pcr`` before the first record of a list, as ``--from`` gives them."""
    found = Collected(None)
    for bank, digits in given:
        found.add(bank, pcr, digits, "--from")
    return found.values
