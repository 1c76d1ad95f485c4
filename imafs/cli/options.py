# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Values of options that several commands take, checked while the command line is read."""

from __future__ import annotations

import argparse
import re

from imafs.attest import pcrvalues
from imafs.errors import FormatError, UsageError
from imafs.formats.algorithms import (
    Bank,
    HashAlgorithm,
    bank_named,
    list_bank_named,
    named,
    padded_banks_named,
)
from imafs.formats.binary import PCR_LIMIT
from imafs.formats.templates import custom


def bank(text: str) -> Bank:
    """A PCR bank by its name."""
    try:
        return bank_named(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def list_bank(text: str) -> Bank:
    """The bank of a list, which may be of any hash that this machine can compute."""
    try:
        return list_bank_named(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def algorithm(text: str) -> HashAlgorithm:
    """A hash algorithm by the kernel's name or that of tpm2-tools, which can be computed."""
    try:
        found = named(text)
        found.constructor()
    except FormatError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return found


def padded_banks(text: str) -> tuple[str, ...]:
    """Names of banks that hold zero-padded SHA-1, with commas."""
    try:
        return padded_banks_named(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_moment(parser: argparse.ArgumentParser) -> None:
    """``--moment`` of the commands that read lists."""
    parser.add_argument(
        "--moment",
        metavar="NAME",
        help="directory of the lists, where a recording has several moments",
    )


def add_padded_banks(parser: argparse.ArgumentParser) -> None:
    """``--padded-banks`` of the commands that replay a list."""
    parser.add_argument(
        "--padded-banks",
        type=padded_banks,
        metavar="ALG,...",
        default=(),
        help="banks that hold zero-padded SHA-1",
    )


def integer(text: str) -> int:
    """Any integer; who takes it knows its range."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def add_listener(parser: argparse.ArgumentParser) -> None:
    """``--uid`` of the commands that ask a daemon; see :func:`imafs.cli.find_daemon.listener`."""
    parser.add_argument(
        "--uid",
        dest="listener",
        metavar="N",
        type=uid,
        help="with --control: whose daemon that is, where it is neither root's nor this user's",
    )


def uid(text: str) -> int:
    """A user's number."""
    return _number(text, 0, 2**32 - 2)


def count(text: str) -> int:
    """A number of records, one or more."""
    return _number(text, 1, None)


def record_number(text: str) -> int:
    """A record's number; the first one is 0."""
    return _number(text, 0, None)


def record_number_or_algorithm(text: str) -> int | HashAlgorithm:
    """One of both: no hash has a number for its name."""
    return record_number(text) if text.lstrip("+-").isdecimal() else algorithm(text)


def template_fmt(text: str) -> str:
    """Fields as ima_template_fmt= takes them."""
    try:
        return custom(text).label
    except FormatError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def pcr(text: str) -> int:
    """A PCR's number."""
    return _number(text, 0, PCR_LIMIT - 1)


def _number(text: str, least: int, most: int | None) -> int:
    value = integer(text)
    if value < least or (most is not None and value > most):
        limits = f"{least} or more" if most is None else f"{least} to {most}"
        raise argparse.ArgumentTypeError(f"{value}: {limits}")
    return value


def pcrs(text: str) -> tuple[int, ...]:
    """Numbers of PCRs, with commas."""
    return tuple(pcr(word) for word in text.split(","))


def pcr_banks(text: str) -> tuple[str, ...]:
    """Names of PCR banks, with commas, as the kernel or a tool spells them."""
    found = {word: pcrvalues.bank_named(word) for word in text.split(",")}
    for word, name in found.items():
        if name is None:
            raise argparse.ArgumentTypeError(f"{word!r} is no PCR bank")
    return tuple(dict.fromkeys(name for name in found.values() if name is not None))


def hexadecimal(text: str) -> bytes:
    """Bytes in hexadecimal digits."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: no hexadecimal digits, two for a byte"
        ) from None


def nonce(text: str) -> bytes:
    """Bytes in hexadecimal digits, and some: any quote without a nonce would answer to none."""
    found = hexadecimal(text)
    if not found:
        raise argparse.ArgumentTypeError("no nonce: it is empty")
    return found


def expression(text: str) -> re.Pattern[bytes]:
    """A regular expression for bytes."""
    try:
        return re.compile(text.encode(errors="surrogateescape"))
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
