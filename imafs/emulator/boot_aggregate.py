# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a boot makes: boot_aggregate, the first record, and the policy.

Source: Linux 7.3 ima_crypto.c ``ima_calc_boot_aggregate``, ima_init.c
``ima_add_boot_aggregate``. The bank is that of the default hash, else SHA-256's, else
SHA-1's; the digest is over PCR 0 to 7, and 8 and 9 too unless it is SHA-1. Without a
TPM (or such a bank) it is zeros of the default hash (TPM-bypass).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace

from imafs.emulator.audit_log import Audit
from imafs.emulator.config import EmulatorConfig
from imafs.errors import Refused
from imafs.formats.algorithms import SHA1, Bank, HashAlgorithm
from imafs.formats.fields import Measurement
from imafs.kernel.policy.policy_file import Audited, Closed, PolicyFile
from imafs.lists.replay import PcrValues

NAME = b"boot_aggregate"
#: PCRs that may be aggregated.
PCRS = tuple(range(10))


def aggregate_bank(banks: Sequence[Bank], default: HashAlgorithm) -> Bank | None:
    """The bank that is aggregated, None where there is none of the three."""
    by_name = {bank.name: bank for bank in banks if bank.algorithm is not None}
    return by_name.get(default.name) or by_name.get("sha256") or by_name.get("sha1")


def unreadable(banks: Sequence[Bank]) -> PcrValues:
    """The values of a TPM that does not answer: ``ima_pcrread`` complains in the log and
    leaves zeros (Linux 7.3 ima_crypto.c:417)."""
    return {bank.name: dict.fromkeys(PCRS, bytes(bank.digest_size)) for bank in banks}


def _aggregate(algorithm: HashAlgorithm, value: Callable[[int], bytes]) -> bytes:
    last = 8 if algorithm is SHA1 else 10
    return algorithm.digest(b"".join(value(pcr) for pcr in range(last)))


def boot_aggregate(banks: Sequence[Bank], default: HashAlgorithm, values: PcrValues) -> Measurement:
    """The measurement, from the TPM's ``values`` of PCR 0 to 9."""
    bank = aggregate_bank(banks, default)
    if bank is None or bank.algorithm is None:
        # The field d of template ima has 20 bytes even then (observed with md5).
        return Measurement(NAME, default, bytes(default.digest_size), sha1=bytes(20))
    digest = _aggregate(bank.algorithm, lambda pcr: values[bank.name][pcr])
    sha1 = None
    if "sha1" in values:
        sha1 = _aggregate(SHA1, lambda pcr: values["sha1"][pcr])
    return Measurement(NAME, bank.algorithm, digest, sha1=sha1 or bytes(20))


def policy_file(config: EmulatorConfig, audit: Audit) -> PolicyFile:
    """The policy file after a boot: ``ima_policy=``, then what a boot script wrote.

    Raises :class:`Refused` where ``config.policy_text`` is no policy.
    """
    read = config.policy_read
    if read is None:
        read = bool(config.profile.policy_mode & 0o400)
    file = PolicyFile(replace(config.policy_config, read=read), config.policy)
    if config.policy_text is not None:
        file.open_write()
        audited: Audited = []
        file.load(b"", config.policy_text, audited)
        audit.rules(audited)
        audit.policy("policy_update", Closed.COMPLETED.value, ok=True)
        if file.close_write() is Closed.FAILED:
            raise Refused(errno.EINVAL, "the policy holds no rule")
    return file
