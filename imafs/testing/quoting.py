# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Quotes and evidence of the emulator's TPM, made and checked as an attester and a verifier do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from imafs.attest import api, signatures
from imafs.attest import quote as quotes
from imafs.errors import TpmError
from imafs.tpm import quoting


@dataclass(frozen=True, slots=True)
class Quote:
    """TPM2_Quote's answer: ``message`` (TPMS_ATTEST) and ``signature`` (TPMT_SIGNATURE).

    ``public`` is the attestation key's TPM2B_PUBLIC, ``values`` the file that tpm2_checkquote
    takes with ``-f``. The other fields are the message's: ``pcr_digest`` is SHA-256 over the
    selected PCRs' values, ``reset_count`` counts the reboots of the TPM, which a kexec is not.
    """

    message: bytes
    signature: bytes
    public: bytes
    nonce: bytes
    pcr_digest: bytes
    reset_count: int
    values: bytes = field(default=b"", repr=False)


def quote(tcti: str, nonce: bytes, bank: str, pcrs: Sequence[int]) -> Quote:
    """A quote by a primary ECC key of the endorsement hierarchy, checked before it returns.

    Raises :class:`TpmError` where the TPM does not answer, or records are extended meanwhile.
    """
    selection = quotes.selection_of({bank: pcrs})
    made = quoting.quote(tcti, key(tcti), nonce, selection)
    said = quotes.parse_quote(made.message)
    signature = quotes.parse_signature(made.signature)
    wrong = signatures.verify(signatures.read_key(made.public, "key"), signature, made.message)
    places = [(bank_id, pcr) for bank_id, numbers in selection for pcr in numbers]
    for values in (made.before, made.after):
        selected = quotes.Selected(selection, tuple(values[place] for place in places))
        if selected.digest(signature.algorithm) == said.digest and wrong is None:
            return Quote(
                *(made.message, made.signature, made.public),
                *(said.nonce, said.digest, said.clock.reset_count),
                quotes.encode_pcrs(selected),
            )
    raise TpmError(wrong or "records were extended while the TPM signed: hold them, and try again")


def key(tcti: str) -> quoting.Key:
    """The attestation key: the same one on the same TPM."""
    return api.create_key(tcti)


def public_key(tcti: str) -> tuple[signatures.Key, ...]:
    """The public part, which a verifier knows."""
    made = key(tcti)
    assert made.public is not None
    return (signatures.read_key(made.public, "key"),)
