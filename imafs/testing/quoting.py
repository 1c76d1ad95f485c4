# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Quotes of the emulator's TPM, made and checked by tpm2-tools as a verifier would."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imafs.errors import TpmError
from imafs.host import programs
from imafs.text import shown

#: Seconds per command.
DEADLINE = 30.0


@dataclass(frozen=True, slots=True)
class Quote:
    """TPM2_Quote's answer: ``message`` (TPMS_ATTEST) and ``signature`` (TPMT_SIGNATURE).

    ``public`` is the attestation key's TPM2B_PUBLIC. The other fields are the message's:
    ``pcr_digest`` is SHA-256 over the selected PCRs' values, ``reset_count`` counts the
    reboots of the TPM, which a kexec is not.
    """

    message: bytes
    signature: bytes
    public: bytes
    nonce: bytes
    pcr_digest: bytes
    reset_count: int


def parse(message: bytes) -> tuple[bytes, bytes, int]:
    """``(nonce, pcr_digest, reset_count)`` of a TPMS_ATTEST. Raises :class:`TpmError`."""
    try:
        if message[:6] != b"\xffTCG\x80\x18":
            raise TpmError("the message is no quote")
        at = 6
        (size,) = struct.unpack_from(">H", message, at)
        at += 2 + size  # qualifiedSigner
        (size,) = struct.unpack_from(">H", message, at)
        nonce = message[at + 2 : at + 2 + size]
        at += 2 + size
        _, resets = struct.unpack_from(">QI", message, at)
        at += 17 + 8  # TPMS_CLOCK_INFO, firmwareVersion
        (banks,) = struct.unpack_from(">I", message, at)
        at += 4
        for _ in range(banks):
            at += 3 + message[at + 2]
        (size,) = struct.unpack_from(">H", message, at)
        digest = message[at + 2 : at + 2 + size]
    except (struct.error, IndexError):
        raise TpmError("the quote's message is cut short") from None
    return nonce, digest, resets


def quote(environment: Mapping[str, str], nonce: bytes, bank: str, pcrs: Sequence[int]) -> Quote:
    """A quote by a primary ECC key of the endorsement hierarchy, checked before it returns.

    Raises :class:`TpmError` where tpm2-tools lack, fail or do not end.
    """
    with tempfile.TemporaryDirectory(prefix="imafs-quote-") as home:
        selection = f"{bank}:{','.join(map(str, pcrs))}"
        tools = _Tools(home, environment)
        # Without a resource manager a TPM has room for three objects: leave none behind.
        try:
            tools.run(
                *(
                    "tpm2_createprimary",
                    "-C",
                    "e",
                    "-g",
                    "sha256",
                    "-G",
                    "ecc256:ecdsa-sha256:null",
                ),
                *("-a", _ATTRIBUTES, "-c", "key"),
            )
            tools.run("tpm2_readpublic", "-c", "key", "-o", "public")
            tools.run(
                *("tpm2_quote", "-c", "key", "-l", selection, "-q", nonce.hex() or "00"),
                *("-g", "sha256", "-m", "message", "-s", "signature", "-o", "values"),
            )
        finally:
            tools.run("tpm2_flushcontext", "-t")
        tools.run(
            *("tpm2_checkquote", "-u", "public", "-m", "message", "-s", "signature"),
            *("-f", "values", "-q", nonce.hex() or "00", "-g", "sha256"),
        )
        message = Path(home, "message").read_bytes()
        given, digest, resets = parse(message)
        return Quote(
            message,
            Path(home, "signature").read_bytes(),
            Path(home, "public").read_bytes(),
            given,
            digest,
            resets,
        )


_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"


class _Tools:
    def __init__(self, home: str, environment: Mapping[str, str]) -> None:
        self._home = home
        self._environment = {**os.environ, **environment}

    def run(self, command: str, *words: str) -> None:
        program = programs.find(command)
        if program is None:
            raise TpmError(f"{command} is not installed: apt-get install tpm2-tools")
        try:
            done = subprocess.run(
                [program, *words],
                cwd=self._home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=DEADLINE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TpmError(f"{command} did not end within {DEADLINE:g} s") from None
        if done.returncode:
            raise TpmError(f"{command}: {shown(done.stderr.strip())}")
