# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The quote of a bundle: whose signature, whose key, which nonce, which values.

Each function raises :class:`Found` with the verdict where the answer is no.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509

from imafs.attest import bundle as bundles
from imafs.attest import quote, signatures
from imafs.attest.bundle import Bundle
from imafs.attest.judgement import Demand, Found
from imafs.attest.kinds import Kind
from imafs.attest.lanes import HASHES
from imafs.attest.state import State
from imafs.formats.algorithms import HashAlgorithm
from imafs.lists.replay import PcrValues

_HALF = 1 << 31
_WHOLE = 1 << 32


@dataclass(frozen=True, slots=True)
class Signed:
    """A quote that ``key`` has signed; ``algorithm`` is the signature's hash."""

    key: signatures.Key
    quote: quote.Quote
    algorithm: HashAlgorithm


def signed(bundle: Bundle, demand: Demand) -> Signed:
    """The quote, and which key signed it. Raises :class:`FormatError` too."""
    said = quote.parse_quote(bundle.message)
    signature = quote.parse_signature(bundle.signature)
    candidates = list(demand.keys)
    if bundle.key is not None:
        candidates = [signatures.read_key(bundle.key, bundles.KEY)]
    elif bundle.certificates is not None:
        candidates = [signatures.key_of(_chain(bundle)[0], bundles.CERTIFICATES)]
    if not candidates:
        raise Found(Kind.KEY, "the bundle has no ak.pub, and no --ak was given")
    wrong = None
    for key in candidates:
        wrong = signatures.verify(key, signature, said.message)
        if wrong is None:
            return Signed(key, said, signature.algorithm)
    if len(candidates) > 1:
        wrong = "the signature is of none of the keys of --ak"
    raise Found(Kind.SIGNATURE, str(wrong))


def _chain(bundle: Bundle) -> list[x509.Certificate]:
    if bundle.certificates is None:
        return []
    return signatures.read_certificates(bundle.certificates, bundles.CERTIFICATES)


def trusted(bundle: Bundle, key: signatures.Key, demand: Demand, state: State | None) -> None:
    """Whether this is the key of the machine that is meant."""
    known = demand.by_der.get(key.der)
    area = known.area if known is not None and known.area is not None else key.area
    if area is not None and not area.is_attestation_key:
        raise Found(
            Kind.KEY,
            "the key may sign what did not come from its TPM: it is not restricted, or may "
            "leave the TPM. Make one with --create-ak or tpm2_createak",
        )
    if state is not None and state.key != key.fingerprint:
        raise Found(
            Kind.MACHINE,
            f"the state is of the machine with the key {state.key[:16]}, the bundle of "
            f"{key.fingerprint[:16]}: is it another machine's, or has it a new key (--new)?",
        )
    if demand.keys:
        if known is None:
            raise Found(
                Kind.MACHINE,
                f"the quote is signed by the key {key.fingerprint[:16]}, which is none of "
                "--ak: the bundle is of another machine",
            )
    elif demand.anchors:
        problem = signatures.vouched(key, _chain(bundle), demand.anchors, demand.now)
        if problem is not None:
            raise Found(Kind.KEY, problem)
    elif state is None and not demand.enrol:
        raise Found(
            Kind.KEY,
            f"nothing vouches for the key {key.fingerprint}: give --ak PUB or --ca CERTS, or "
            "--enrol --state FILE to remember it as this machine's",
        )


def fresh(said: quote.Quote, demand: Demand, state: State | None) -> None:
    """Whether the quote answers this request."""
    if state is not None and fingerprint(said) in state.quotes:
        raise Found(
            Kind.REPLAYED,
            "this quote was accepted before: ask the machine again, with a new nonce",
        )
    if said.nonce == demand.nonce:
        return
    if state is not None and _older(said.clock, state.clock):
        raise Found(
            Kind.REPLAYED,
            "the quote has another nonce and is older than the last one that was accepted: "
            "somebody sends a bundle of the past",
        )
    raise Found(
        Kind.NONCE,
        f"the quote has {_nonce(said.nonce)}, not {_nonce(demand.nonce)}: it answers another "
        "request",
    )


def fingerprint(said: quote.Quote) -> str:
    """By which a quote is known again."""
    return hashlib.sha256(said.message).hexdigest()


def _nonce(nonce: bytes) -> str:
    return f"the nonce {nonce.hex()}" if nonce else "no nonce"


def _older(clock: quote.Clock, than: quote.Clock) -> bool:
    ahead = (clock.reset_count - than.reset_count) % _WHOLE
    return ahead >= _HALF or (ahead == 0 and clock.clock <= than.clock)


def rebooted(clock: quote.Clock, state: State | None) -> bool:
    """Whether the TPM was reset since the state. Raises :class:`Found` where time went back."""
    if state is None:
        return False
    ahead = (clock.reset_count - state.clock.reset_count) % _WHOLE
    if ahead >= _HALF:
        raise Found(
            Kind.ROLLBACK,
            f"the TPM counts {_WHOLE - ahead} resets fewer than before: a virtual machine was "
            "set back, or its TPM replaced. Look at it; --new begins anew",
        )
    if ahead == 0 and (
        clock.clock < state.clock.clock
        or (clock.restart_count - state.clock.restart_count) % _WHOLE >= _HALF
    ):
        raise Found(
            Kind.ROLLBACK,
            "the TPM's clock went back without a reset: a virtual machine was set back. Look "
            "at it; --new begins anew",
        )
    return ahead > 0


def values(bundle: Bundle, found: Signed, demand: Demand) -> PcrValues:
    """The PCR values that were quoted, of banks that can be replayed."""
    selected = quote.parse_pcrs(bundle.pcrs)
    if selected.selection != found.quote.selection:
        raise Found(Kind.PCRS, "quote.pcrs are of other PCRs than the quote")
    algorithm = found.algorithm
    if not algorithm.available or selected.digest(algorithm) != found.quote.digest:
        raise Found(
            Kind.PCRS, f"the {algorithm.name} over quote.pcrs is not the digest in the quote"
        )
    known = {bank: row for bank, row in selected.by_bank().items() if bank in HASHES and row}
    for pcr in (demand.pcr, *demand.pcrs):
        if not any(pcr in row for row in known.values()):
            raise Found(Kind.UNPROVEN, f"PCR {pcr} is in no bank of the quote: ask for it")
    return known


def consistent(bundle: Bundle, said: quote.Quote, quoted: PcrValues, demand: Demand) -> None:
    """Whether the manifest says nothing else than what is signed."""
    manifest = bundle.manifest
    if manifest is None:
        return
    if manifest.clock != said.clock:
        raise Found(Kind.MANIFEST, "the clock of the manifest is not the quote's")
    for bank, row in manifest.end.items():
        for pcr, value in row.items():
            if quoted.get(bank, {}).get(pcr, value) != value:
                raise Found(
                    Kind.MANIFEST, f"{bank}:{pcr} at the end is not the value that was quoted"
                )
    foreign = [bank for bank in manifest.padded if bank not in demand.padded]
    if foreign:
        raise padded(foreign)


def padded(banks: list[str]) -> Found:
    """Banks that hold zero-padded SHA-1, which the verifier has not said to take."""
    names = ",".join(banks)
    return Found(
        Kind.UNPROVEN,
        f"{names} holds zero-padded SHA-1, which is as strong as SHA-1: --padded-banks {names} "
        "takes it all the same",
    )
