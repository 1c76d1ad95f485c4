# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The one table of operations of the control socket.

The server validates requests with it, ``imafs ctl`` builds its command line from
it, and ``python -m imafs.control.ops`` prints it as Markdown for docs/ctl.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from imafs.errors import UsageError

# Keys of a request that are no option of any operation.
RESERVED = frozenset({"op", "id", "progress"})
INT_MAX = 2**63 - 1
#: Some 350 bytes each, and a minute in all: what is more was hardly meant.
GENERATE_MAX = 1_000_000
_ID_MAX = 2**32 - 2  # one more is INVALID_UID
#: Characters of a text; hexadecimal digits may be more.
_TEXT_MAX = 1 << 20


class Kind(Enum):
    """Type of an option; the value is what people read."""

    STR = "str"
    INT = "int"
    BOOL = "bool"
    PATH = "path"  # absolute: the daemon's working directory is not the caller's
    PATHS = "list of paths"  # not empty, each absolute
    HEX = "hex str"  # stays a str: the handler decodes it


@dataclass(frozen=True, slots=True)
class Option:
    """One option; ``cli`` is its form on the command line, ``NAME`` or ``--name``.

    A positional (no leading dashes) of an option that is not required may be left out.
    ``minimum`` and ``maximum`` bound integers.
    """

    name: str
    kind: Kind
    help: str
    cli: str
    required: bool = False
    minimum: int = 0
    maximum: int = INT_MAX


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    ``exactly_one``: of these options a request has exactly one. ``needs``: pairs
    (a, b): with option a, b is required. ``lengthy``: may take long, so clients
    set no deadline of their own. ``abandonable``: ends when its client hangs up.
    ``shows_progress``: sends progress lines when asked to.
    """

    name: str
    help: str
    options: tuple[Option, ...] = ()
    exactly_one: tuple[str, ...] = ()
    needs: tuple[tuple[str, str], ...] = ()
    lengthy: bool = False
    abandonable: bool = False
    shows_progress: bool = False

    @property
    def verb(self) -> str:
        """The name on the command line: ``critical-data``."""
        return self.name.replace("_", "-")

    def describe(self) -> dict[str, object]:
        """What ``hello`` tells of this operation, JSON types only."""
        options = {
            o.name: {"type": o.kind.value, "required": o.required, "help": o.help}
            for o in self.options
        }
        return {"help": self.help, "options": options}


_TABLE = (
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
    Operation("status", "show lists, PCRs, readers and failures"),
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
            Option("profile", Kind.STR, "profile of the next kernel", "--profile"),
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
        (Option("profile", Kind.STR, "profile of the next kernel", "--profile"),),
        lengthy=True,
    ),
    Operation("reset", "power off and on: as reboot, without a way down", lengthy=True),
    Operation(
        "fault",
        "let calls of clients fail: all that fit, or those that the options choose",
        (
            Option("operation", Kind.STR, "open, read or write", "CALL", required=True),
            Option("errno", Kind.STR, "name of the errno, such as EBUSY", "ERRNO", required=True),
            Option("files", Kind.STR, "shell pattern of names in the IMA directory", "--files"),
            Option("next", Kind.INT, "only the next so many calls", "--next", minimum=1),
            Option("every", Kind.INT, "one call in so many", "--every", minimum=1),
            Option(
                "percent",
                Kind.INT,
                "so many of a hundred calls, by chance",
                "--percent",
                minimum=1,
                maximum=100,
            ),
            Option("seed", Kind.INT, "of that chance", "--seed"),
            Option("writing", Kind.BOOL, "only opens for writing", "--writing"),
            Option("reading", Kind.BOOL, "only opens for reading", "--reading"),
        ),
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
            ),
            Option("count", Kind.INT, "number of records to trim", "N", minimum=1),
        ),
    ),
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
    Operation("stop", "unmount and end the daemon"),
    Operation("hello", "tell version, protocol and operations"),
)

OPERATIONS: Mapping[str, Operation] = {operation.name: operation for operation in _TABLE}


def validate(op: str, options: Mapping[str, object], *, spoken: bool = False) -> dict[str, object]:
    """The options of a request for ``op``, checked; :class:`UsageError` names the wrong one.

    An option that is ``None`` (JSON null) counts as left out. ``spoken``: they are named as
    the command line does, not by their keys.
    """
    operation = OPERATIONS.get(op)
    if operation is None:
        raise UsageError(f"op: unknown operation {op!r}")
    known = {option.name: option for option in operation.options}
    # What it is called by whoever reads the mistake.
    called = {name: option.cli if spoken else name for name, option in known.items()}
    verb = operation.verb if spoken else op
    given = {name: value for name, value in options.items() if value is not None}
    for name in options:
        if name not in known:
            raise UsageError(f"{op}: unknown option {name!r}")
    for name, value in given.items():
        problem = _problem(known[name], value)
        if problem is not None:
            raise UsageError(f"{verb}: {called[name]}: {problem}")
    for option in operation.options:
        if option.required and option.name not in given:
            raise UsageError(f"{verb}: {called[option.name]}: missing")
    if operation.exactly_one and sum(name in given for name in operation.exactly_one) != 1:
        names = ", ".join(called[name] for name in operation.exactly_one)
        raise UsageError(f"{verb}: give exactly one of {names}")
    for name, needed in operation.needs:
        if name in given and needed not in given:
            raise UsageError(f"{verb}: {called[needed]}: missing ({called[name]} needs it)")
    paths = given.get("paths")
    if isinstance(paths, list) and len(paths) > 1 and "name" in given:
        raise UsageError(f"{verb}: {called['name']}: fits one path only, not {len(paths)}")
    return given


def _problem(option: Option, value: object) -> str | None:
    """Why ``value`` is not one for ``option``, or None."""
    if option.kind is Kind.BOOL:
        return None if isinstance(value, bool) else _expected("true or false", value)
    if option.kind is Kind.INT:
        if not isinstance(value, int) or isinstance(value, bool):
            return _expected("an integer", value)
        if not option.minimum <= value <= option.maximum:
            return f"not within {option.minimum} and {option.maximum}"
        return None
    if option.kind is Kind.PATHS:
        if not isinstance(value, list):
            return _expected("a list of paths", value)
        if not value:
            return "the list is empty"
        for index, item in enumerate(value):
            problem = _text_problem(Kind.PATH, item)
            if problem is not None:
                return f"item {index}: {problem}"
        return None
    return _text_problem(option.kind, value)


def _text_problem(kind: Kind, value: object) -> str | None:
    if not isinstance(value, str):
        return _expected("a string", value)
    if "\0" in value:  # a C string in every place where the kernel has one
        return "contains a NUL character"
    try:
        # File names travel as Python has them: other bytes than UTF-8 are U+DC80..U+DCFF.
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        return f"character {error.start} is a surrogate that stands for no byte"
    if kind is Kind.PATH and not value.startswith("/"):
        return "not an absolute path"
    if kind is Kind.HEX:
        return None if _is_hex(value) else "not pairs of hexadecimal digits"
    if len(value) > _TEXT_MAX:
        return f"longer than {_TEXT_MAX} characters"
    return None


def _is_hex(value: str) -> bool:
    # No regular expression: it takes a second for the megabytes that this does in milliseconds.
    try:
        return len(bytes.fromhex(value)) * 2 == len(value)  # no spaces between them
    except ValueError:
        return False


def _expected(what: str, value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string"}
    names.update({list: "a list", dict: "an object"})
    return f"expected {what}, got {names.get(type(value), type(value).__name__)}"


def synopsis(operation: Operation) -> str:
    """One line of usage: ``generate N [--name STR]``."""
    words = [operation.verb]
    for option in operation.options:
        word = option.cli
        if option.cli.startswith("-") and option.kind is not Kind.BOOL:
            word += f" {metavar(option)}"
        if option.kind is Kind.PATHS:
            word += "..."
        words.append(word if option.required else f"[{word}]")
    return " ".join(words)


def metavar(option: Option) -> str:
    """The word that stands for the value of a ``--option``."""
    names = {Kind.INT: "N", Kind.HEX: "HEX", Kind.PATH: "FILE"}
    return names.get(option.kind, option.name.upper())


def markdown() -> str:
    """The table of operations for docs/ctl.md."""
    lines = ["| `imafs ctl` | request keys | what it does |", "|---|---|---|"]
    for operation in OPERATIONS.values():
        keys = [
            f"`{o.name}` {o.kind.value}{' (required)' if o.required else ''}: {o.help}"
            for o in operation.options
        ]
        cells = (f"`{synopsis(operation)}`", "<br>".join(keys), operation.help)
        row = [cell.replace("|", r"\|") for cell in cells]  # else it would end the cell
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
