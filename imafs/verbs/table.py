# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The operations of the emulator on its control socket, in groups as their handlers are.

Data only, so that a client loads no emulator: :mod:`imafs.verbs.compose` puts the handlers to
it, ``imafs ctl`` builds its command line from it, and ``python -m imafs.verbs.table`` prints it
as Markdown for docs/ctl.md.
"""

from __future__ import annotations

from imafs.control.ops import Kind, Operation, Option, Options, Table
from imafs.errors import UsageError
from imafs.scenarios import faults

#: Some 350 bytes each, and a minute in all: what is more was hardly meant.
GENERATE_MAX = 1_000_000
_ID_MAX = 2**32 - 2  # one more is INVALID_UID

#: What the other agent can do.
ACTIONS = ("stage", "delete", "trim", "read", "open-read", "open-write", "close")


def _one_name(options: Options) -> str | None:
    count = len(options.paths("paths")) if "paths" in options else 1
    if count == 1 or "name" not in options:
        return None
    return f"{{name}}: fits one path only, not {count}"


def _work_alone(options: Options) -> str | None:
    return "{work} stands alone" if options.flag("work") and len(options) > 1 else None


def _wrong_action(value: str) -> str | None:
    known = ", ".join(ACTIONS)
    return None if value in ACTIONS else f"{value!r} is no action; there are: {known}"


def _trims_a_number(options: Options) -> str | None:
    fits = (options.text("action") == "trim") == ("count" in options)
    return None if fits else "a number goes with trim, and with nothing else"


def _wrong_profile(value: str) -> str | None:
    # Not above: most verbs need no profile.
    from imafs.interface import profiles

    try:
        profiles.lookup(value)
    except UsageError as error:
        return str(error)
    return None


_PROFILE = Option(
    "profile", Kind.STR, "profile of the next kernel", "--profile", check=_wrong_profile
)

MEASURING = (
    Operation(
        "measure",
        "measure files, or a digest without its file, as the policy says",
        (
            Option("paths", Kind.PATHS, "files to measure", "PATH"),
            Option("digest", Kind.STR, "measure this file digest, ALG:HEX; needs name", "--digest"),
            Option("name", Kind.STR, "name in the record instead of the path", "--name"),
            Option("func", Kind.STR, "hook that the policy judges by (FILE_CHECK)", "--func"),
            Option(
                "mask", Kind.STR, "MAY_READ, MAY_EXEC or several with commas (the hook's)", "--mask"
            ),
            *(
                Option(name, Kind.INT, help, f"--{name}", maximum=_ID_MAX)
                for name, help in (
                    ("uid", "who uses the file (0)"),
                    ("euid", "effective user (uid)"),
                    ("gid", "group of who uses it (0)"),
                    ("egid", "effective group (gid)"),
                    ("fowner", "owner of the file (the true one)"),
                    ("fgroup", "group of the file (the true one)"),
                )
            ),
            Option("explain", Kind.BOOL, "name the rule that decided", "--explain"),
        ),
        exactly_one=("paths", "digest"),
        needs=(("digest", "name"),),
        check=_one_name,
        lengthy=True,
        abandonable=True,
        shows_progress=True,
    ),
    Operation(
        "violation",
        "add a violation: a record whose digests are zero",
        (Option("name", Kind.STR, "name in the record", "NAME", required=True),),
    ),
    Operation(
        "critical_data",
        "measure critical data as a kernel subsystem would (the CLI reads stdin without --file)",
        (
            Option("label", Kind.STR, "label of the data source", "--label", required=True),
            Option("name", Kind.STR, "name in the record", "--name", required=True),
            Option("file", Kind.PATH, "file that holds the data", "--file"),
            Option("data", Kind.HEX, "the data itself", "--data"),
        ),
        exactly_one=("file", "data"),
        abandonable=True,
    ),
    Operation(
        "generate",
        "add generated records, each of its own digest",
        (
            Option(
                "count",
                Kind.INT,
                f"number of records, at most {GENERATE_MAX}",
                "N",
                required=True,
                maximum=GENERATE_MAX,
            ),
            Option("name", Kind.STR, "prefix of the records' names", "--name"),
        ),
        lengthy=True,
        abandonable=True,
        shows_progress=True,
    ),
    Operation("repeat", "measure the newest record again: a duplicate", lengthy=True),
    Operation(
        "load",
        "append a recorded measurement list; refused whole when malformed",
        (
            Option("file", Kind.PATH, "list, recording or IMA directory", "FILE", required=True),
            Option("bank", Kind.STR, "PCR bank of that list's digests", "--bank"),
            Option("moment", Kind.STR, "which one, of a recording of several", "--moment"),
            Option("as_is", Kind.BOOL, "records with a wrong template digest too", "--as-is"),
        ),
        lengthy=True,
        abandonable=True,
        shows_progress=True,
    ),
    Operation(
        "wait",
        "wait until a number of records is there, or all are extended into the TPM",
        (
            Option("records", Kind.INT, "records since boot to wait for", "--records"),
            Option("extended", Kind.BOOL, "wait for the TPM too", "--extended"),
            Option("timeout", Kind.INT, "give up after so many seconds", "--timeout"),
        ),
        lengthy=True,
        abandonable=True,
    ),
)

WATCHING = (
    Operation(
        "watch",
        "measure files below these paths when they are really executed or read",
        (Option("paths", Kind.PATHS, "files and directories to watch", "PATH", required=True),),
        lengthy=True,
    ),
    Operation(
        "unwatch",
        "watch these paths no more",
        (Option("paths", Kind.PATHS, "watched files and directories", "PATH", required=True),),
        lengthy=True,
    ),
)

RESTART = (
    Operation("suspend", "stop adding records, as a kernel before kexec does"),
    Operation("resume", "add records again"),
    Operation(
        "kexec_load",
        "load a kernel for kexec: reserves the segment for the lists",
        (
            Option(
                "cmdline",
                Kind.STR,
                "its command line, measured by a rule for KEXEC_CMDLINE",
                "--cmdline",
            ),
        ),
    ),
    Operation(
        "kexec_execute",
        "start the next kernel by kexec: lists carried over, PCRs kept (loads first if needed)",
        (
            _PROFILE,
            Option("no_carry", Kind.BOOL, "the next kernel does not restore them", "--no-carry"),
            Option("whole", Kind.BOOL, "refuse to cut lists longer than the segment", "--whole"),
            Option("hold", Kind.BOOL, "stand still, suspended, until kexec-finish", "--hold"),
        ),
        lengthy=True,
    ),
    Operation("kexec_finish", "start the next kernel of a kexec that is held", lengthy=True),
    Operation(
        "kexec_buffer",
        "write the kexec buffer as it would be handed over now",
        (Option("file", Kind.PATH, "file to write", "-o", required=True),),
        lengthy=True,
        abandonable=True,
    ),
    Operation(
        "reboot",
        "reboot: suspended on the way down, then empty lists, PCRs reset",
        (_PROFILE,),
        lengthy=True,
    ),
    Operation("reset", "power off and on: as reboot, without a way down", lengthy=True),
)

BAD_DAYS = (
    Operation(
        "fault",
        "let calls of clients fail: all that fit, or those that the options choose",
        faults.OPTIONS,
        check=faults.check,
    ),
    Operation(
        "fault_clear",
        "drop one fault, or all",
        (Option("fault", Kind.INT, "number of the fault", "N", minimum=1),),
    ),
    Operation("fault_list", "list the faults in force"),
    Operation(
        "tpm",
        "hold the TPM up: extends that come late or fail, a TPM that hangs",
        (
            Option("behind", Kind.INT, "never extend the newest so many records", "--behind"),
            Option("delay", Kind.INT, "milliseconds between a record and its extend", "--delay"),
            Option("fail", Kind.INT, "the next so many extends fail, for good", "--fail"),
            Option("hang", Kind.BOOL, "it answers nobody any more (swtpm only)", "--hang"),
            Option("work", Kind.BOOL, "no more of all this", "--work"),
        ),
        check=_work_alone,
    ),
    Operation(
        "agent",
        "act as another agent on the same list, through the same locks",
        (
            Option(
                "action",
                Kind.STR,
                "stage, delete, trim, read; open-read or open-write to hold a file, then close",
                "ACTION",
                required=True,
                check=_wrong_action,
            ),
            Option("count", Kind.INT, "number of records to trim", "N", minimum=1),
        ),
        check=_trims_a_number,
    ),
)

SCENARIO = (
    Operation(
        "scenario",
        "begin a scenario, from a file or a ready one by its name (imafs scenarios)",
        (
            Option(
                "file",
                Kind.PATH,
                "scenario file (TOML); on the command line a ready scenario's name as well",
                "NAME|FILE",
            ),
            Option("name", Kind.STR, "name of a ready scenario", "--name"),
        ),
        exactly_one=("file", "name"),
        lengthy=True,
        abandonable=True,
    ),
    Operation("scenario_end", "end the scenario: no more of its steps are due"),
)

DAEMON = (
    Operation("status", "show lists, PCRs, readers and failures"),
    Operation("stop", "unmount and end the daemon"),
)

TABLE = Table(*MEASURING, *WATCHING, *RESTART, *BAD_DAYS, *SCENARIO, *DAEMON)

if __name__ == "__main__":
    print(TABLE.markdown())
