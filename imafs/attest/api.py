# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What programs call: :func:`attest` on a machine, :func:`check` on its verifier."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from imafs import disk
from imafs.attest import gather, quote, signatures
from imafs.attest.bundle import Bundle
from imafs.attest.judgement import Demand, Judgement
from imafs.attest.lanes import HASHES
from imafs.attest.pcrvalues import DEFAULT_PCR
from imafs.attest.reference import Reference
from imafs.attest.verifier import Verifier
from imafs.errors import UsageError
from imafs.tpm import quoting

StrPath = str | os.PathLike[str]

#: Banks of which one is quoted, best first: each proves every record alone.
_PREFERRED = ("sha256", "sha384", "sha512", "sm3", "sha1")
_MOST = 1 << 20
#: Bytes of a nonce: TPM2B_DATA of tpm2-tss.
NONCE = 64


def attest(
    source: StrPath | gather.Source,
    *,
    tcti: str,
    key: quoting.Key,
    nonce: bytes,
    banks: Sequence[str] = (),
    pcrs: Sequence[int] | None = None,
    since: int = 0,
    padded: Sequence[str] = (),
    pcr: int = DEFAULT_PCR,
    certificates: bytes | None = None,
    firmware: bytes | None = None,
    kept: Callable[[], gather.Kept] | None = None,
    deadline: float | None = None,
) -> Bundle:
    """Evidence for ``nonce``: a quote, and the records of ``source`` that lead to it.

    ``source`` is an IMA directory, of which the records from ``since`` on are given; or, of those
    who keep the records themselves, a function that gives the list to a quote (:class:`Held`).
    ``banks``: SHA-256 where the TPM has it; ``pcrs``: those that records went to; ``kept``: what
    the keeper of the directory says of the list; ``deadline``: seconds for each quote.

    Raises :class:`ImafsError`: :class:`TpmError`, :class:`MismatchError` where the list does not
    lead to the quote, :class:`FileError`; and what the function raises.
    """
    if len(nonce) > NONCE:
        raise UsageError(f"a nonce of {len(nonce)} bytes: a TPM takes {NONCE} at most")
    chosen = _banks(tcti, banks, deadline)
    asked = gather.Asked(
        nonce, chosen, tuple(pcrs) if pcrs is not None else None, tuple(padded), pcr
    )
    read, boot_ids = (source, tuple) if callable(source) else _directory(Path(source), since)
    return gather.gather(
        asked,
        lambda asked_for, selection: quoting.quote(tcti, key, asked_for, selection, deadline),
        read,
        beside=gather.Beside(certificates, firmware),
        kept=kept or (lambda: gather.Kept(boot_ids=boot_ids())),
    )


def _directory(place: Path, since: int) -> tuple[gather.Source, Callable[[], tuple[str, ...]]]:
    """What reads an IMA directory, and what gives the boot_ids of its kernels."""
    # Of an emulator's kernel this machine's boot_id says nothing.
    real = os.path.realpath(place).startswith("/sys/kernel/security/")
    return (
        lambda clock: gather.Held(gather.read_directory(place), since),
        gather.boot_id if real else tuple,
    )


def _banks(tcti: str, asked: Sequence[str], deadline: float | None) -> tuple[str, ...]:
    """The banks to quote. Raises :class:`UsageError` for one that the TPM has not."""
    there = [quote.bank_name(tpm_id) for tpm_id in quoting.banks(tcti, deadline)]
    missing = [bank for bank in asked if bank not in there]
    if missing:
        raise UsageError(f"the TPM has no bank {missing[0]}; it has: {', '.join(there)}")
    usable = [bank for bank in (*_PREFERRED, *there) if bank in there and bank in HASHES]
    if not usable:
        raise UsageError(f"no bank of the TPM can be replayed here: {', '.join(there)}")
    return tuple(asked) or (usable[0],)


def context(path: StrPath) -> quoting.Key:
    """The key of a context file (``tpm2_createak -c``, ``imafs attest --create-ak``)."""
    return quoting.Key(os.fspath(path), context=disk.read_whole(os.fspath(path), _MOST))


def persistent(handle: int) -> quoting.Key:
    """The key of a persistent handle (0x81000000 to 0x81ffffff)."""
    named = f"{handle:#x}"
    return quoting.Key(named, handle=quoting.handle_named(named))


def create_key(
    tcti: str, kind: str = "ecdsa-p256-sha256", *, deadline: float | None = None
) -> quoting.Key:
    """A key under the endorsement hierarchy; the same again where there was one of this kind.

    Its ``context`` is what a file of :func:`context` holds, until the TPM is reset. Raises
    :class:`TpmError`, also behind ``deadline`` seconds.
    """
    return quoting.create(tcti, kind, deadline)


def flush(tcti: str, *, deadline: float | None = None) -> None:
    """Frees what killed programs have left in a TPM without a resource manager.

    There is room for three objects and three sessions, and those of programs that still run are
    flushed too: for a TPM that nobody else uses. Raises :class:`TpmError`.
    """
    quoting.flush(tcti, deadline)


def keys(*paths: StrPath) -> tuple[signatures.Key, ...]:
    """The public keys of files: TPM2B_PUBLIC, PEM, DER. Raises :class:`ImafsError`."""
    return tuple(
        key
        for path in paths
        for key in signatures.read_keys(disk.read_whole(os.fspath(path), _MOST), os.fspath(path))
    )


def anchors(*paths: StrPath) -> tuple[x509.Certificate, ...]:
    """The certificates of authorities that vouch for keys. Raises :class:`ImafsError`."""
    return tuple(
        certificate
        for path in paths
        for certificate in signatures.read_certificates(
            disk.read_whole(os.fspath(path), _MOST), os.fspath(path)
        )
    )


def check(
    bundle: bytes | Bundle | StrPath,
    *,
    nonce: bytes,
    keys: Sequence[signatures.Key] = (),
    anchors: Sequence[x509.Certificate] = (),
    state: StrPath | None = None,
    new: bool = False,
    enrol: bool = False,
    padded: Sequence[str] = (),
    pcr: int = DEFAULT_PCR,
    pcrs: Sequence[int] = (),
    reference: Reference | None = None,
    no_violations: bool = False,
    now: datetime | None = None,
) -> Judgement:
    """The verdict on a bundle, or on the file of one. What it is like raises nothing.

    ``state`` is the file of what is known of the machine, or a directory with one per machine;
    it is on the disk when this returns. ``new`` begins one. Raises :class:`ImafsError` where a
    file cannot be read or written.
    """
    demand = Demand(
        nonce=nonce,
        now=now or datetime.now(UTC),
        keys=keys,
        anchors=anchors,
        enrol=enrol,
        padded=tuple(padded),
        pcr=pcr,
        pcrs=tuple(pcrs),
        reference=reference,
        no_violations=no_violations,
    )
    verifier = Verifier(demand, None if state is None else Path(state), new)
    if isinstance(bundle, Bundle):
        return verifier.judge(bundle.encode())
    if isinstance(bundle, bytes):
        return verifier.judge(bundle)
    return verifier.check(os.fspath(bundle))
