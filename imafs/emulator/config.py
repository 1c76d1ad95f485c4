# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What an emulator is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imafs.errors import UsageError
from imafs.formats.algorithms import SHA256, HashAlgorithm
from imafs.formats.templates import TEMPLATES, Template
from imafs.interface.profiles import PROFILES, Profile
from imafs.kernel.kexec import EXTRA
from imafs.kernel.policy.match import Policy
from imafs.kernel.policy.policy_file import DEFAULT_CONFIG, PolicyConfig
from imafs.kernel.queue import CACHE


@dataclass(frozen=True, slots=True)
class EmulatorConfig:
    """The kernel's Kconfig and command line, and what only an emulator has.

    ``pcr`` is CONFIG_IMA_MEASURE_PCR_IDX; ``padded_banks`` names banks whose hash this
    kernel's IMA lacks; ``adopt`` goes on over PCRs that no loaded list explains;
    ``policy`` is what ``ima_policy=`` made at boot, None without it; ``policy_text`` what a
    boot script wrote to the policy file; ``policy_source`` tells people which of them;
    ``policy_read`` is CONFIG_IMA_READ_POLICY, None: as the profile's mode of the file;
    ``large_reads`` fills every read; ``true_sizes`` shows them, and fills too.
    ``draft_bugs`` brings back the known bugs of a draft; ``export_root`` is the directory below
    which drafts may write the list, ``export_limit`` CONFIG_IMA_MEASUREMENT_LIST_SIZE.
    ``kexec_extra`` is CONFIG_IMA_KEXEC_EXTRA_MEMORY_KB in bytes (0 there: half a page).
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
    policy_text: bytes | None = None
    policy_source: str = "none"
    policy_read: bool | None = None
    policy_config: PolicyConfig = DEFAULT_CONFIG
    large_reads: bool = False
    true_sizes: bool = False
    cache: int = CACHE
    kexec_extra: int = EXTRA
    draft_bugs: bool = False
    export_root: Path | None = None
    export_limit: int | None = None

    @property
    def played(self) -> Profile:
        """The profile, with its draft's bugs if they are wanted."""
        return self.profile.with_bugs() if self.draft_bugs else self.profile

    def check(self) -> None:
        """Raises :class:`UsageError` where the profile and the options do not fit."""
        profile = self.profile
        self.check_next(profile)
        # --export-root may be for the profile of a later kernel.
        if self.export_limit is not None and self.export_root is None:
            raise UsageError("--export-limit is about --export-root, which is not given")
        if (
            profile.export is not None
            and self.export_limit is not None
            and not profile.export.limit
        ):
            raise UsageError(f"profile {profile.name} has no limit to set with --export-limit")
        if not self.staging and profile.option is None:
            raise UsageError(
                f"--no-staging: profile {profile.name} has no staged files to leave out"
            )
        if self.draft_bugs and profile.draft_rules is None:
            raise UsageError(f"no bug of profile {profile.name} can be played: see imafs profiles")

    def check_next(self, profile: Profile) -> None:
        """Raises :class:`UsageError` where ``profile`` cannot run with these options."""
        if profile.export is not None and self.export_root is None:
            raise UsageError(
                f"profile {profile.name} writes files by paths that its clients choose: "
                "name the directory for them with --export-root"
            )
