# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""TPMs: swtpm started by us, any TCTI, or none (IMA's TPM-bypass).

Blocking throughout; the engine calls it from a worker thread.
"""

from imafs.tpm.device import (
    Device,
    ExtendError,
    ExtendRefused,
    HangUnsupported,
    NoTpm,
    PcrValues,
    ResetUnsupported,
)
from imafs.tpm.open import open_device

__all__ = [
    "Device",
    "ExtendError",
    "ExtendRefused",
    "HangUnsupported",
    "NoTpm",
    "PcrValues",
    "ResetUnsupported",
    "open_device",
]
