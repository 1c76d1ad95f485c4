# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The options of ``imafs mount`` about the kernel that is played."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from imafs.cli import options

if TYPE_CHECKING:
    from imafs.kernel.commandline import Settled


class _InOrder(argparse.Action):
    """Keeps the value, and its place among the others: a kernel's command line has an order."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        given = getattr(namespace, "boot_words", ())
        namespace.boot_words = (*given, (f"ima_{self.dest}", values))


def add_options(group: argparse._ArgumentGroup) -> None:
    """Adds the options."""
    from imafs.interface.profiles import PROFILES

    known = ", ".join(
        p.name + (f" ({', '.join(p.aliases)})" if p.aliases else "") for p in PROFILES
    )
    group.add_argument(
        "--profile",
        metavar="NAME",
        default="mainline",
        help=f"the interface that is played, see `imafs profiles`: {known}",
    )
    group.add_argument(
        "--no-staging",
        action="store_true",
        help="CONFIG_IMA_STAGING=n: no _staged files, while N still deletes, as in such a kernel "
        "(or the option of the profile's own series)",
    )
    group.add_argument(
        "--draft-bugs",
        action="store_true",
        help="play the known bugs of the profile too: see imafs profiles",
    )
    group.add_argument(
        "--export-root",
        metavar="DIR",
        help="where the export profiles may write the list, at paths that their clients choose",
    )
    group.add_argument(
        "--export-limit",
        type=options.integer,
        metavar="N",
        help="CONFIG_IMA_MEASUREMENT_LIST_SIZE: export when there are more records",
    )
    group.add_argument("--flush-htable", action="store_true", help="boot with ima_flush_htable")
    group.add_argument("--disable-htable", action="store_true", help="CONFIG_IMA_DISABLE_HTABLE=y")
    for option, metavar, text in (
        ("--hash", "ALG", "ima_hash= (sha256; sha1 with --template ima)"),
        ("--template", "NAME", "ima_template= (ima-ng); ima takes sha1 and md5: the first holds"),
        ("--template-fmt", "FMT", "ima_template_fmt=, such as d-ng|n-ng"),
    ):
        group.add_argument(option, metavar=metavar, help=text, action=_InOrder)
    group.add_argument(
        "--audit-log",
        metavar="FILE",
        help="append what a kernel audits to FILE, in the form of its log: why there was a "
        "violation, the lines of policies",
    )
    group.add_argument(
        "--pcr",
        type=options.integer,
        default=10,
        metavar="N",
        help="CONFIG_IMA_MEASURE_PCR_IDX, 8 to 14 (10)",
    )
    group.add_argument(
        "--padded-banks",
        metavar="ALG,...",
        help="banks whose hash this kernel's IMA lacks: they get zero-padded SHA-1 "
        "(Debian 6.1: sha384,sha512)",
    )
    group.add_argument(
        "--kexec-extra-memory",
        type=options.integer,
        default=0,
        metavar="KB",
        help="CONFIG_IMA_KEXEC_EXTRA_MEMORY_KB, 0 to 40: room for records between load and "
        "execute (0: half a page)",
    )
    group.add_argument(
        "--st-size",
        type=_st_size,
        choices=("actual",),
        help="show true sizes and fill every read, unlike a kernel: tar and rsync copy lists "
        "then, and programs that trust a size, or take a short read for the end, pass here and "
        "lose records on a kernel",
    )
    group.add_argument(
        "--large-reads",
        action="store_true",
        help="fill every read instead of stopping at a page as seq_file does",
    )


def settled(args: argparse.Namespace) -> Settled:
    """Hash and template as a kernel with these options has them.

    Raises :class:`imafs.errors.FormatError` for a name that no kernel knows, and for a hash
    that this machine cannot compute.
    """
    from imafs.kernel import commandline

    found = commandline.settle(getattr(args, "boot_words", ()))
    found.algorithm.constructor()
    return found


#: Words of a command line that a kernel with IMA looks at, and that :func:`boot_words` tells.
BOOT_WORDS = frozenset(
    {"ima_policy", "ima_tcb", "ima_hash", "ima_template", "ima_template_fmt", "ima_flush_htable"}
)


def boot_words(args: argparse.Namespace) -> list[str]:
    """The words by which a kernel would have been asked for these options, in their order."""
    from imafs.kernel.policy import builtin

    words = []
    policy = (args.policy or "").replace(",", "|").split("|")
    if set(policy) <= set(builtin.WORDS):
        if "ima_tcb" in policy:
            words.append("ima_tcb")
        named = [word for word in policy if word != "ima_tcb"]
        words += [f"ima_policy={'|'.join(named)}"] if named else []
    words += [f"{name}={value}" for name, value in getattr(args, "boot_words", ())]
    return [*words, "ima_flush_htable"] if args.flush_htable else words


def tell(args: argparse.Namespace) -> None:
    """On stderr: what such a kernel does not take of its options."""
    for line in settled(args).said:
        print(f"imafs: {line}", file=sys.stderr, flush=True)


def _st_size(text: str) -> str:
    if text == "zero":
        raise argparse.ArgumentTypeError("zero is what every mount shows now: leave it out")
    return text
