# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What an emulator is started with."""

from __future__ import annotations

from dataclasses import dataclass

from imafs.formats.algorithms import SHA256, HashAlgorithm
from imafs.formats.templates import TEMPLATES, Template
from imafs.kernel.policy.match import Policy
from imafs.kernel.policy.session import DEFAULT_CONFIG, PolicyConfig
from imafs.kernel.profiles import PROFILES, Profile
from imafs.kernel.queue import CACHE


@dataclass(frozen=True, slots=True)
class EmulatorConfig:
    """The kernel's Kconfig and command line, and what only an emulator has.

    ``pcr`` is CONFIG_IMA_MEASURE_PCR_IDX; ``padded_banks`` names banks whose hash this
    kernel's IMA lacks; ``adopt`` goes on over PCRs that no loaded list explains;
    ``policy`` is what ``ima_policy=`` made at boot, None without it;
    ``large_reads`` fills every read; ``size_zero`` shows st_size 0 as the kernel does.
    """

    profile: Profile = PROFILES[0]
    staging: bool = True
    flush_htable: bool = False
    disable_htable: bool = False
    algorithm: HashAlgorithm = SHA256
    template: Template = TEMPLATES["ima-ng"]
    pcr: int = 10
    padded_banks: frozenset[str] = frozenset()
    boot_aggregate: bool = True
    adopt: bool = False
    policy: Policy | None = None
    policy_config: PolicyConfig = DEFAULT_CONFIG
    large_reads: bool = False
    size_zero: bool = False
    cache: int = CACHE
