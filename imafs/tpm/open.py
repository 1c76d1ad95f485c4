# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""From the ``--tpm`` option to a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imafs.errors import UsageError
from imafs.formats.algorithms import HashAlgorithm
from imafs.tpm.device import Device, NoTpm
from imafs.tpm.swtpm import SwtpmDevice
from imafs.tpm.tcti import TctiDevice


def open_device(
    spec: str,
    *,
    state_dir: Path | None = None,
    banks: Sequence[HashAlgorithm] | None = None,
    allow_hardware: bool = False,
    port: int | None = None,
    preferred: int | None = None,
) -> Device:
    """Open ``swtpm`` (one of our own), ``none``, or any TCTI string.

    ``state_dir``, ``port``, ``preferred`` and ``banks`` are for ``swtpm``; with a TCTI string
    ``banks`` is what is expected. ``allow_hardware`` admits a TPM that is not a known software one.
    Blocks; raises :class:`imafs.errors.TpmError` and :class:`imafs.errors.UsageError`.
    """
    if spec == "none":
        if banks:
            raise UsageError("there are no PCR banks without a TPM")
        return NoTpm()
    if spec == "swtpm":
        return SwtpmDevice(state_dir=state_dir, banks=banks, port=port, preferred=preferred)
    if not spec or spec.startswith(":"):
        raise UsageError("the TPM is swtpm, none or a TCTI string such as swtpm:port=2321")
    return TctiDevice(spec, banks=banks, allow_hardware=allow_hardware)
