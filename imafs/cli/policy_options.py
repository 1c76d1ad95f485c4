# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The options of ``imafs mount`` about the IMA policy, and what they become."""

from __future__ import annotations

import argparse
import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imafs.formats.templates import Template
    from imafs.interface.profiles import Profile
    from imafs.kernel.policy.match import Policy
    from imafs.kernel.policy.policy_file import PolicyConfig

#: A kernel without ``ima_policy=``: no rule, so nothing is measured.
NONE = "none"
#: What --policy-without may name.
_ABSENT = ("lsm", "modsig", "keys", "appraise")


def add_options(group: argparse._ArgumentGroup) -> None:
    """Adds the options."""
    group.add_argument(
        "--policy",
        metavar="WORDS|FILE",
        help="ima_policy= (tcb, ima_tcb, critical_data, appraise_tcb, secure_boot, fail_securely, "
        "several with commas), none (a kernel without ima_policy=: nothing is measured), or a "
        "file of rules as a boot script would load it; without this option no policy is active, "
        "and whatever is asked for is measured",
    )
    group.add_argument(
        "--policy-read",
        action=argparse.BooleanOptionalAction,
        help="CONFIG_IMA_READ_POLICY (as the profile's kernel has it)",
    )
    group.add_argument(
        "--policy-write",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="CONFIG_IMA_WRITE_POLICY: rules may be written again after the first load (yes)",
    )
    group.add_argument(
        "--policy-release",
        metavar="RELEASE",
        help="7.3 or 7.2, which has neither CONFIGFS in tcb nor records of the policy itself "
        "(mainline: 7.3)",
    )
    group.add_argument(
        "--policy-without",
        metavar="WORD,...",
        default="",
        help=f"what this kernel lacks and its rules may not say: {', '.join(_ABSENT)}",
    )


@dataclass(frozen=True, slots=True)
class Chosen:
    """The policy that the options ask for: built in, or the text of a file."""

    policy: Policy | None
    text: bytes | None
    source: str
    read: bool | None
    config: PolicyConfig


def chosen(args: argparse.Namespace, profile: Profile, template_fmt: Template | None) -> Chosen:
    """From the command line. Raises UsageError, and Refused with the file and its line."""
    from imafs.errors import UsageError
    from imafs.kernel.policy import builtin
    from imafs.kernel.policy.language import Words
    from imafs.kernel.policy.match import Policy
    from imafs.kernel.policy.policy_file import PolicyConfig

    absent = {word for word in args.policy_without.split(",") if word}
    unknown = absent.difference(_ABSENT)
    if unknown:
        raise UsageError(f"--policy-without {', '.join(unknown)}: one of {', '.join(_ABSENT)}")
    # An alias of mainline may be a release itself: --profile 7.2.
    releases = {release.name for release in builtin.RELEASES}
    of_profile = args.profile if args.profile in releases else profile.policy_release
    config = PolicyConfig(
        write=args.policy_write,
        appraise="appraise" not in absent,
        release=builtin.release(args.policy_release or of_profile),
        words=Words(
            lsm="lsm" not in absent,
            modsig="modsig" not in absent,
            keys="keys" not in absent,
            template_fmt=template_fmt,
        ),
    )
    if args.policy is None:
        return Chosen(None, None, "none", args.policy_read, config)
    if args.policy == NONE:
        return Chosen(Policy(), None, NONE, args.policy_read, config)
    words = args.policy.replace("|", ",").split(",")
    if "/" not in args.policy and (set(words) <= set(builtin.WORDS) or len(words) > 1):
        rules = builtin.rules(words, config.release, write=config.write)
        return Chosen(Policy(rules), None, args.policy, args.policy_read, config)
    return Chosen(None, _text(args.policy, config), args.policy, args.policy_read, config)


def _text(file: str, config: PolicyConfig) -> bytes:
    from imafs.errors import Refused, UsageError
    from imafs.kernel.policy.builtin import WORDS
    from imafs.kernel.policy.language import parse
    from imafs.kernel.policy.policy_file import lines
    from imafs.text import shown

    try:
        text = Path(file).read_bytes()
    except OSError as error:
        raise UsageError(
            f"--policy {file}: {error.strerror}; the built-in policies are {', '.join(WORDS)}, none"
        ) from None
    rules = seen = 0
    try:
        for line in lines(text):
            seen += 1
            rules += parse(line, config.words) is not None
    except Refused as refused:
        # A kernel with the same file: an errno for the boot script, and a line in the log.
        where = f"{file}: line {seen}: {shown(refused)}"
        raise Refused(refused.errno, where) from None
    if not rules:
        raise Refused(errno.EINVAL, f"{file}: there is no rule in it")
    return text
