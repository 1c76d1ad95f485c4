# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs mount DIR``: the options, and what they become."""

from __future__ import annotations

import argparse
import errno
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from imafs.cli import kernel_options, options, policy_options

if TYPE_CHECKING:
    from imafs.cli.daemon import Plan
    from imafs.formats.algorithms import HashAlgorithm
    from imafs.interface.profiles import Profile

T = TypeVar("T")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "mount",
        help="mount the emulator on an empty directory",
        description="Plays the kernel: serves the IMA directory of securityfs on DIR, "
        "backed by a measurement queue that extends a TPM. Runs in the foreground until "
        "SIGTERM, SIGINT, `imafs umount DIR` or `imafs ctl stop`.",
    )
    directory = parser.add_argument("dir", metavar="DIR", nargs="?", help="an empty directory")
    parser.add_argument("--background", action="store_true", help="return when the mount answers")
    parser.add_argument(
        "--layout",
        choices=("ima", "securityfs"),
        default="ima",
        help="DIR is the IMA directory itself, or securityfs' root with integrity/ima and ima",
    )
    parser.add_argument(
        "--control",
        metavar="SOCKET",
        help="control socket (default: of DIR's name in /run/imafs or $XDG_RUNTIME_DIR/imafs, "
        "else DIR.sock)",
    )
    add_shared_options(parser)
    parser.set_defaults(run=run, refuse=parser.error)
    # DIR is optional to argparse only: --measure may have taken it (see _settle_directory).
    directory.required = True
    parser.usage = parser.format_usage().removeprefix("usage: ").replace("[DIR]", "DIR").rstrip()


def add_shared_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that starts an emulator."""
    parser.add_argument(
        "--log-file", metavar="FILE", help="append log lines to FILE instead of stderr"
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="the least severe lines that are logged (info)",
    )
    parser.add_argument(
        "--scenario",
        metavar="NAME|FILE",
        help="begin with a ready scenario (imafs scenarios) or one from a file",
    )
    kernel_options.add_options(parser.add_argument_group("the kernel that is played"))
    policy_options.add_options(parser.add_argument_group("the IMA policy"))
    _tpm_options(parser.add_argument_group("the TPM"))
    _list_options(parser.add_argument_group("the measurement list"))
    _watch_options(parser.add_argument_group("watched files"))


def _tpm_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tpm",
        metavar="WHICH",
        default="swtpm",
        help="swtpm (started and stopped by imafs), none (TPM-bypass), or a TCTI string",
    )
    group.add_argument("--tpm-state", metavar="DIR", help="keep the state of swtpm in DIR")
    group.add_argument(
        "--banks", metavar="ALG,...", help="PCR banks of swtpm; another TPM must have just these"
    )
    group.add_argument(
        "--tpm-port",
        type=options.integer,
        metavar="N",
        help="TCP port of swtpm on 127.0.0.1, its control channel's is the next (any free pair)",
    )
    group.add_argument(
        "--tpm-device",
        action="store_true",
        help="make /dev/tpmN and /dev/tpmrmN for swtpm, by the kernel's vTPM proxy; in imafs run "
        "they are /dev/tpm0 and /dev/tpmrm0; as root only",
    )
    group.add_argument(
        "--adopt",
        action="store_true",
        help="go on although PCRs hold what no loaded list explains; then no list verifies "
        "against them",
    )
    group.add_argument(
        "--allow-hardware-tpm", action="store_true", help="extend a TPM that is not a software one"
    )
    group.add_argument(
        "--bios-log",
        metavar="FILE",
        help="serve FILE as tpm0/binary_bios_measurements (layout securityfs); it extends nothing",
    )


def _list_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--load",
        metavar="FILE|DIR",
        help="begin with a recorded list, binary or ASCII (no boot_aggregate), a recording of "
        "`imafs record`, or the directory of an unpacked one",
    )
    group.add_argument("--load-bank", metavar="ALG", help="bank of that list where it is ambiguous")
    group.add_argument(
        "--load-moment", metavar="NAME", help="which moment, where that recording has several"
    )
    group.add_argument(
        "--as-is",
        action="store_true",
        help="load records with a wrong template digest too: the lists show it, and the PCRs are "
        "extended with it; the status says that the list is not sound",
    )
    group.add_argument(
        "--measure",
        metavar="PATH",
        action="append",
        nargs="+",
        default=[],
        help="measure these files and directories before the mount is announced; may be given "
        "again. Where DIR is named nowhere else it is the last of several PATHs, as with `cp`",
    )
    group.add_argument("--no-boot-aggregate", action="store_true", help="begin with an empty list")
    group.add_argument(
        "--cache",
        metavar="SIZE",
        default="64M",
        help="bound of the cache of rendered views: bytes, or with K, M, G (64M)",
    )


def _watch_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--watch",
        metavar="PATH",
        action="append",
        nargs="+",
        default=[],
        help="measure files below PATH by the policy (tcb without one) whenever they are "
        "really executed or read, before they are; as root only, may be given again; see "
        "docs/watching.md",
    )
    group.add_argument(
        "--watch-deadline",
        metavar="SECONDS",
        type=_seconds,
        default=5.0,
        help="let whoever opens a watched file go on after so long without its measurement (5)",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.1 <= value <= 60:  # nor is nan
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 60")
    return value


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    _settle_directory(args)
    if args.background:
        from imafs.cli.background import start

        _checked(kernel_options.tell, args)  # its own lines go to a file
        return start(args.dir, sys.argv[1:])
    from imafs.cli.daemon import run as run_daemon

    return run_daemon(plan(args))


def _settle_directory(args: argparse.Namespace) -> None:
    """DIR where --measure or --watch took it.

    ``--measure A B DIR`` can mean nothing else: to measure an empty directory, the only
    kind of place that is mounted upon, is to measure nothing, and so is to watch it.
    """
    groups: list[list[str]] = [*args.measure, *args.watch]
    if args.dir is None:
        several = next((group for group in reversed(groups) if len(group) > 1), None)
        if several is None:
            args.refuse("the following arguments are required: DIR")
        else:
            args.dir = several.pop()


def plan(args: argparse.Namespace) -> Plan:
    """The options as a plan. Raises :class:`imafs.errors.UsageError` where they make no sense."""
    return _checked(_plan, args)


def _checked(work: Callable[[argparse.Namespace], T], args: argparse.Namespace) -> T:
    from imafs.errors import FormatError, UsageError

    try:
        return work(args)
    except FormatError as error:  # of an option's value, not of any input
        raise UsageError(str(error)) from None


def _plan(args: argparse.Namespace) -> Plan:
    from imafs.cli.daemon import Plan
    from imafs.cli.input_file import read_bytes
    from imafs.emulator.config import EmulatorConfig
    from imafs.errors import UsageError
    from imafs.formats.algorithms import list_bank_named, padded_banks_named
    from imafs.formats.templates import TEMPLATES
    from imafs.interface import profiles
    from imafs.kernel.kexec import EXTRA
    from imafs.tpm.environment import absolute

    profile = profiles.lookup(args.profile)
    _refuse_contradictions(args, profile)
    if args.load_bank is not None:
        list_bank_named(args.load_bank)
    found = kernel_options.settled(args)
    if args.tpm_port is not None and (args.tpm != "swtpm" or not 0 < args.tpm_port < 65535):
        raise UsageError(f"--tpm-port {args.tpm_port}: 1 to 65534, and for --tpm swtpm")
    if args.bios_log and args.layout != "securityfs":
        raise UsageError("--bios-log: the boot log is in securityfs: --layout securityfs")
    if not 8 <= args.pcr <= 14:
        raise UsageError(f"--pcr {args.pcr}: CONFIG_IMA_MEASURE_PCR_IDX is 8 to 14")
    if not 0 <= args.kexec_extra_memory <= 40:
        raise UsageError(f"--kexec-extra-memory {args.kexec_extra_memory}: 0 to 40")
    own = None if found.template.label in TEMPLATES else found.template
    rules = policy_options.chosen(args, profile, own)
    config = EmulatorConfig(
        profile=profile,
        staging=not args.no_staging,
        flush_htable=args.flush_htable,
        disable_htable=args.disable_htable,
        algorithm=found.algorithm,
        template=found.template,
        pcr=args.pcr,
        padded_banks=frozenset(_named("--padded-banks", args.padded_banks, padded_banks_named)),
        boot_aggregate=not args.no_boot_aggregate,
        adopt=args.adopt,
        policy=rules.policy,
        policy_text=rules.text,
        policy_source=rules.source,
        policy_read=rules.read,
        policy_config=rules.config,
        large_reads=args.large_reads,
        true_sizes=args.st_size == "actual",
        cache=size(args.cache),
        draft_bugs=args.draft_bugs,
        export_root=_export_root(args.export_root, args.dir),
        export_limit=args.export_limit,
        kexec_extra=args.kexec_extra_memory * 1024 or EXTRA,
    )
    config.check()
    return Plan(
        directory=args.dir,
        layout=args.layout,
        control=Path(os.path.abspath(args.control)) if args.control else None,
        config=config,
        said=found.said,
        audit_log=os.path.abspath(args.audit_log) if args.audit_log else None,
        tpm=absolute(args.tpm),
        tpm_state=Path(os.path.abspath(args.tpm_state)) if args.tpm_state else None,
        banks=_named("--banks", args.banks, _algorithms) or None,
        allow_hardware=args.allow_hardware_tpm,
        load=args.load,
        load_bank=args.load_bank,
        load_moment=args.load_moment,
        as_is=args.as_is,
        measure=[os.path.abspath(path) for group in args.measure for path in group],
        log_file=args.log_file,
        log_level=args.log_level,
        boot_log=read_bytes(args.bios_log) if args.bios_log else None,
        tpm_port=args.tpm_port,
        tpm_device=args.tpm_device,
        scenario=args.scenario,
        watch=_watched([path for group in args.watch for path in group]),
        watch_deadline=args.watch_deadline,
    )


def _watched(paths: Sequence[str]) -> list[str]:
    from imafs.errors import UsageError

    for path in paths:
        if not os.path.exists(path):
            raise UsageError(f"--watch {path}: {os.strerror(errno.ENOENT)}")
    return [os.path.abspath(path) for path in paths]


def _refuse_contradictions(args: argparse.Namespace, profile: Profile) -> None:
    """Options that would be without effect. Raises :class:`imafs.errors.UsageError`."""
    from imafs.errors import UsageError

    foreign = args.tpm not in ("swtpm", "none")
    for wrong, what in (
        (
            args.load_bank and not args.load,
            "--load-bank says the bank of --load, which is not given",
        ),
        (
            args.load_moment and not args.load,
            "--load-moment is of --load, which is not given",
        ),
        (args.as_is and not args.load, "--as-is is about --load, which is not given"),
        (
            args.template is not None and args.template_fmt is not None,
            "--template and --template-fmt: one of them says the template",
        ),
        (
            args.tpm_device and args.tpm != "swtpm",
            "--tpm-device is for --tpm swtpm: another TPM has its own way in",
        ),
        (
            args.tpm_state is not None and args.tpm != "swtpm",
            "--tpm-state is for --tpm swtpm: the state of another TPM is its own",
        ),
        (
            args.allow_hardware_tpm and not foreign,
            f"--allow-hardware-tpm: --tpm {args.tpm} is no hardware",
        ),
        (args.adopt and args.tpm == "none", "--adopt: --tpm none has no PCRs"),
        (
            args.padded_banks is not None and args.tpm == "none",
            "--padded-banks: --tpm none has no PCR banks",
        ),
    ):
        if wrong:
            raise UsageError(what)


def _export_root(text: str | None, mountpoint: str) -> Path | None:
    from imafs.errors import UsageError

    if text is None:
        return None
    from imafs.host.ownership import check as check_place

    root = Path(os.path.realpath(text))
    if not root.is_dir():
        raise UsageError(f"--export-root {text}: not a directory")
    check_place(f"{root}/x", "--export-root")
    if root.is_relative_to(os.path.realpath(mountpoint)):
        # The daemon would wait for its own answer.
        raise UsageError(f"--export-root {text}: inside of the mount itself")
    return root


def _named(option: str, text: str | None, read: Callable[[str], Sequence[T]]) -> Sequence[T]:
    """The value of an option, as ``read`` takes it; nothing where it is not given."""
    from imafs.errors import UsageError

    try:
        return () if text is None else read(text)
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from None


def _algorithms(text: str) -> Sequence[HashAlgorithm]:
    from imafs.errors import UsageError
    from imafs.formats.algorithms import bank_named

    names = text.split(",")
    found = [bank_named(name).algorithm for name in names]
    if len(set(names)) < len(names):
        raise UsageError("a bank is named twice")
    return [algorithm for algorithm in found if algorithm is not None]


def size(text: str) -> int:
    """Bytes of ``64M`` and the like. Raises :class:`imafs.errors.UsageError`."""
    from imafs.errors import UsageError

    units = {"K": 10, "M": 20, "G": 30}
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not digits.isdigit() or (unit and unit not in units):
        raise UsageError(f"--cache {text}: a number of bytes, or with K, M or G")
    return int(digits) << units.get(unit, 0)
