# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs attest DIR``: a quote, and the records that lead to it, as one file."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from typing import TYPE_CHECKING

from imafs import disk
from imafs.attest.pcrvalues import DEFAULT_PCR
from imafs.cli import options
from imafs.cli.input_file import read_bytes
from imafs.errors import ControlError, FileError, GapError, MismatchError, UsageError, nearest
from imafs.text import counted, shown
from imafs.tpm.quoting import KINDS, Key, handle_named

if TYPE_CHECKING:
    from imafs.attest.bundle import Bundle
    from imafs.cli.find_keeper import Keeper

_RESOURCE_MANAGER = "/dev/tpmrm0"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "attest",
        help="make evidence: a quote and the records that lead to it",
        description="Quotes the TPM first, reads the list of an IMA directory then (a kernel's, an "
        "emulator's, a keeper's view), replays it to the quote and cuts it there: what came later "
        "stays in the list. The bundle is a tar with quote.msg, quote.sig and quote.pcrs as "
        "tpm2-tools write them, the key, and records.bin in the kernel's SHA-1 binary form; "
        "`imafs check` judges it. Exit codes: 0 the bundle is written, 4 the TPM, "
        f"{MismatchError.exit_code} no part of the list leads to the quote, "
        f"{GapError.exit_code} the keeper refuses its view.",
    )
    parser.add_argument("directory", metavar="DIR", help="the IMA directory")
    parser.add_argument(
        "--tcti",
        metavar="TCTI",
        help="the TPM (that of the emulator which serves DIR, or is kept there, else "
        "device:/dev/tpmrm0)",
    )
    key = parser.add_mutually_exclusive_group(required=True)
    key.add_argument(
        "--ak",
        metavar="HANDLE|FILE",
        help="the attestation key: a persistent handle (0x81...), or a context file of tpm2-tools",
    )
    key.add_argument(
        "--create-ak",
        metavar="FILE",
        help="make one under the endorsement hierarchy, and write its context into FILE: for --ak "
        "until the TPM's next reset. The same TPM gives the same key again",
    )
    parser.add_argument(
        "--key",
        type=_kind,
        metavar="KIND",
        default=next(iter(KINDS)),
        help=f"with --create-ak: {', '.join(KINDS)} (the first)",
    )
    parser.add_argument(
        "--nonce",
        type=options.nonce,
        metavar="HEX",
        required=True,
        help="the verifier's, of at most 64 bytes",
    )
    parser.add_argument("-o", "--output", metavar="BUNDLE", required=True, help="- is stdout")
    parser.add_argument(
        "--banks",
        type=options.pcr_banks,
        metavar="ALG,...",
        default=(),
        help="banks to quote (sha256 where the TPM has it)",
    )
    parser.add_argument(
        "--pcrs",
        type=options.pcrs,
        metavar="N,...",
        help="PCRs to quote (those that records went to)",
    )
    parser.add_argument(
        "--since",
        type=options.record_number,
        metavar="N",
        default=0,
        help="leave out the first N records: the verifier knows them",
    )
    parser.add_argument(
        "--pcr",
        type=options.pcr,
        metavar="N",
        default=DEFAULT_PCR,
        help="the PCR of records without a rule's own (CONFIG_IMA_MEASURE_PCR_IDX, 10)",
    )
    options.add_padded_banks(parser)
    parser.add_argument(
        "--certificates", metavar="FILE", help="the key's certificate and those above it (PEM)"
    )
    parser.add_argument(
        "--firmware-log",
        metavar="FILE",
        help="binary_bios_measurements: explains boot_aggregate",
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    parser.set_defaults(run=run)


def _kind(text: str) -> str:
    """A kind of key."""
    if text not in KINDS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no kind of key{nearest(text, KINDS)}; there are: {', '.join(KINDS)}"
        )
    return text


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from imafs.cli import find_keeper

    keeper = None
    try:
        keeper = find_keeper.of_place(args.directory)
    except ControlError as error:
        # What a quote proves needs no word of a keeper's.
        print(f"imafs: what the keeper knows is left out: {error}", file=sys.stderr)
    try:
        made = _made(args, keeper)
    except FileError as error:
        if keeper is not None and error.errno == errno.EIO:
            keeper.tell_if_refused()
        find_keeper.tell_if_kept(args.directory, error)
        raise
    _write(args.output, made.encode(), 0o644)
    _tell(args, made)
    return 0


def _made(args: argparse.Namespace, keeper: Keeper | None) -> Bundle:
    from imafs.attest import api

    tcti = args.tcti or _tcti(args.directory if keeper is None else keeper.source())
    return api.attest(
        args.directory,
        tcti=tcti,
        key=_key(args, tcti),
        nonce=args.nonce,
        banks=args.banks,
        pcrs=args.pcrs,
        since=args.since,
        padded=args.padded_banks,
        pcr=args.pcr,
        certificates=read_bytes(args.certificates) if args.certificates else None,
        firmware=read_bytes(args.firmware_log) if args.firmware_log else None,
        kept=None if keeper is None else keeper.kept,
    )


def _tcti(directory: str) -> str:
    """The TPM that the list's records are extended to. Raises :class:`ImafsError`."""
    from imafs.cli import find_daemon
    from imafs.verbs.client import ControlClient

    socket = find_daemon.of_place(directory)
    if socket is None:
        if not os.path.exists(_RESOURCE_MANAGER):
            raise UsageError(f"{_RESOURCE_MANAGER} is not there: name the TPM with --tcti")
        return f"device:{_RESOURCE_MANAGER}"
    with ControlClient(socket) as client:
        tcti = client.status().get("tcti")
    if not isinstance(tcti, str):
        raise UsageError("that imafs has no TPM: nothing can be quoted")
    return tcti


def _key(args: argparse.Namespace, tcti: str) -> Key:
    from imafs.attest import api

    if args.create_ak is None:
        handle = handle_named(args.ak)
        return api.context(args.ak) if handle is None else api.persistent(handle)
    made = api.create_key(tcti, args.key)
    assert made.context is not None
    _write(args.create_ak, made.context, 0o600)
    return made


def _write(path: str, data: bytes, mode: int) -> None:
    if path == "-":
        sys.stdout.buffer.write(data)
        return
    try:
        with disk.replacing(path, mode) as descriptor:
            disk.fill(descriptor, [data])
    except OSError as error:
        raise FileError(path, error) from None


def _tell(args: argparse.Namespace, made: Bundle) -> None:
    manifest = made.manifest
    assert manifest is not None
    file = sys.stderr if args.output == "-" else sys.stdout
    quoted = {bank: sorted(row) for bank, row in manifest.end.items()}
    if args.json:
        row = {
            "bundle": args.output,
            "first": manifest.first,
            "records": manifest.count,
            "excess": manifest.excess,
            "quoted": quoted,
            "next": manifest.first + manifest.count,
        }
        print(json.dumps(row), file=file)
        return
    pcrs = ", ".join(f"{bank}:{pcr}" for bank, row in quoted.items() for pcr in row)
    behind = f"; {manifest.excess} behind the quote stay for the next" if manifest.excess else ""
    print(
        f"{shown(args.output)}: {counted(manifest.count, 'record')} from {manifest.first} on lead "
        f"to the quote of {pcrs}{behind}",
        file=file,
    )
