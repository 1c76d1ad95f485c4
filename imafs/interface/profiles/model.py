# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The parts of a profile, and the directory that they make.

Source: Linux 7.3 ima_fs.c:632-849, 7.1.13, Debian's 6.1; the order of :func:`directory` is
the order of creation, which readdir shows reversed (observed).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from imafs.formats.algorithms import Bank
from imafs.interface.behaviour import CARRIES_BOTH, MAINLINE, KexecRules, Rules
from imafs.interface.grammar import Grammar
from imafs.interface.opens import COUNTED, FREE, Opening
from imafs.lists.banks import View


class Kind(Enum):
    """The kind of file that stands behind a name of the IMA directory."""

    LIST = "list"
    LINK = "link"
    COUNT = "count"
    VIOLATIONS = "violations"
    POLICY = "policy"
    REQUEST = "request"


class Source(Enum):
    """How we know what a profile answers."""

    RECORDED = "recorded from kernels"
    PORT = "recorded from a port of the draft to Linux 7.3.4"
    SPECIFICATION = "by specification only"


class Shown(Enum):
    """The content of a request file for readers."""

    LAST_TRIM = "records of the last trim"
    TOTAL_TRIMMED = "records trimmed since boot"
    PCRS = "PCR values"
    PCRS_ASCII = "PCR values in hexadecimal"


@dataclass(frozen=True, slots=True)
class ListFiles:
    """A family of list files: current or staged, one per form and bank.

    ``name`` takes ``{form}`` (ascii, binary) and ``{bank}``; ``link`` is the name of
    the link to the SHA-1 file (``{form}``), None where there is none. ``grammar`` None:
    no write method (EINVAL). ``per_bank`` False: one file per form, ``name`` without a bank.
    ``empty``: the errno of reading an empty list, None: the end of the file.
    """

    staged: bool
    name: str
    mode: int
    grammar: Grammar | None
    link: str | None
    per_bank: bool = True
    opening: Opening = COUNTED
    empty: int | None = None


@dataclass(frozen=True, slots=True)
class RequestFile:
    """A file that takes requests and is no list.

    ``shows`` None: no read method (EINVAL). ``room`` is the size of the kernel's buffer for
    the text, a NUL included; ``directory`` is a path from the mount's root, "" the IMA
    directory; ``needs_tpm``: not there without one.
    """

    name: str
    mode: int
    grammar: Grammar | None
    opening: Opening
    shows: Shown | None = None
    room: int = 4096
    directory: str = ""
    needs_tpm: bool = False


@dataclass(frozen=True, slots=True)
class Export:
    """How a list is written to the file that ``list_name`` was given.

    Below ``limit`` records a request does nothing; ``automatic``: so does the list itself when
    it grows above it. ``exclusive``: the target must not exist. ``name_once``: the first name
    stays. ``failure``: the errno of any failure, None its own.
    """

    mode: int
    limit: int = 0
    automatic: bool = False
    exclusive: bool = False
    name_once: bool = False
    failure: int | None = None


@dataclass(frozen=True, slots=True)
class Bug:
    """A known bug of a draft: what it did, and what is served instead.

    ``played``: ``--draft-bugs`` brings it back.
    """

    what: str
    instead: str
    played: bool = True


@dataclass(frozen=True, slots=True)
class Profile:
    """One interface.

    ``option`` is the Kconfig symbol that ``--no-staging`` sets to n (``option_default`` what it
    is by itself). ``same_writer``: the
    writer's own thread may open more writers; ``reader_limit``: ENFILE exists.
    ``policy_release``: the :class:`imafs.kernel.policy.builtin.Release` of its policy.
    ``flush_htable``: the kernel knows ``ima_flush_htable``. ``kexec``: how the list
    reaches the next kernel. ``draft_rules`` replace ``rules`` with ``--draft-bugs``.
    """

    name: str
    summary: str
    current: ListFiles
    staged: ListFiles | None = None
    requests: tuple[RequestFile, ...] = ()
    rules: Rules = MAINLINE
    same_writer: bool = False
    reader_limit: bool = False
    policy_mode: int = 0o600
    policy_release: str = "7.2"
    option: str | None = None
    option_default: bool = False
    flush_htable: bool = True
    kexec: KexecRules = CARRIES_BOTH
    export: Export | None = None
    aliases: tuple[str, ...] = ()
    source: Source = Source.SPECIFICATION
    origin: str = ""
    bugs: tuple[Bug, ...] = ()
    draft_rules: Rules | None = None

    def with_bugs(self) -> Profile:
        """This profile as the draft really behaved, as far as that can be played."""
        return replace(self, rules=self.draft_rules or self.rules)


#: The names of every version.
ORIGINAL = "{form}_runtime_measurements_{bank}"
LINK = "{form}_runtime_measurements"

#: The lists before 7.2: nothing can be written. Counted or not, as the version says.
READ_ONLY = ListFiles(staged=False, name=ORIGINAL, mode=0o440, grammar=None, link=LINK)
READ_ONLY_FREE = replace(READ_ONLY, opening=FREE)
#: Before 6.10: one SHA-1 file per form, and no links (observed on Debian's 6.1).
READ_ONLY_SINGLE = replace(READ_ONLY_FREE, name=LINK, link=None, per_bank=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name. ``view`` and ``files`` only for lists, ``request`` for request files.

    ``directory`` is a path from the mount's root, "" the IMA directory.
    """

    name: str
    kind: Kind
    mode: int
    view: View | None = None
    files: ListFiles | None = None
    target: str | None = None
    request: RequestFile | None = None
    directory: str = ""


def directory(
    profile: Profile, lists: tuple[Bank, ...], *, staging: bool = True, tpm: bool = True
) -> list[Entry]:
    """All files in order of creation; ``lists`` are the banks that have files.

    ``staging`` False: the profile's Kconfig option is n. ``tpm`` False: there is none.
    """
    optional = staging or profile.option is None
    families = [profile.current]
    if profile.staged is not None and optional:
        families.append(profile.staged)
    entries = [entry for files in families for entry in _list_files(files, lists)]
    # Staged links first, binary before ascii (ima_fs.c:800-830).
    for files in reversed(families):
        if files.link is not None:
            entries += [_link(files, files.link, form) for form in ("binary", "ascii")]
    entries.append(Entry("runtime_measurements_count", Kind.COUNT, 0o440))
    entries.append(Entry("violations", Kind.VIOLATIONS, 0o440))
    entries += [
        Entry(file.name, Kind.REQUEST, file.mode, request=file, directory=file.directory)
        for file in profile.requests
        if optional and (tpm or not file.needs_tpm)
    ]
    entries.append(Entry("policy", Kind.POLICY, profile.policy_mode))
    return entries


def _list_files(files: ListFiles, lists: tuple[Bank, ...]) -> Iterator[Entry]:
    for number, bank in enumerate(lists):
        if not files.per_bank and bank.name != "sha1":
            continue
        for form in ("ascii", "binary"):
            name = files.name.format(form=form, bank=bank.name)
            yield Entry(name, Kind.LIST, files.mode, View(form == "ascii", number), files)


def _link(files: ListFiles, name: str, form: str) -> Entry:
    target = files.name.format(form=form, bank="sha1")
    return Entry(name.format(form=form), Kind.LINK, 0o444, target=target)
