# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Profiles: which interface is played, as data.

A profile says which files exist, their names, modes and links, which requests each
takes and who may open them. Engine and FUSE shell ask this table and have no branch
of their own. Source: Linux 7.3 ima_fs.c:632-849, 7.1.13, Debian's 6.1; the order of
:func:`directory` is the order of creation, which readdir shows reversed (observed).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from imafs.errors import UsageError
from imafs.formats.algorithms import Bank
from imafs.kernel.layout import View
from imafs.kernel.requests import Grammar, Operation


class Kind(Enum):
    """What stands behind a name of the IMA directory."""

    LIST = "list"
    LINK = "link"
    COUNT = "count"
    VIOLATIONS = "violations"
    POLICY = "policy"


@dataclass(frozen=True, slots=True)
class ListFiles:
    """A family of list files: current or staged, one per form and bank.

    ``name`` takes ``{form}`` (ascii, binary) and ``{bank}``; ``link`` is the name of
    the link to the SHA-1 file (``{form}``), None where there is none. ``grammar`` None:
    no write method (EINVAL). ``per_bank`` False: one file per form, ``name`` without a bank.
    """

    staged: bool
    name: str
    mode: int
    grammar: Grammar | None
    link: str | None
    per_bank: bool = True


@dataclass(frozen=True, slots=True)
class Profile:
    """One interface.

    ``locked``: opens of list files are counted (one writer or many readers);
    ``writer_needs_admin``: opening one for writing takes CAP_SYS_ADMIN.
    """

    name: str
    summary: str
    current: ListFiles
    staged: ListFiles | None
    locked: bool
    writer_needs_admin: bool
    policy_mode: int
    aliases: tuple[str, ...] = ()


_ORIGINAL = "{form}_runtime_measurements_{bank}"
_LINK = "{form}_runtime_measurements"

PROFILES: tuple[Profile, ...] = (
    Profile(
        name="mainline",
        aliases=("7.2", "7.3", "v7", "v6"),
        summary="Linux 7.2 on: A and D on _staged, N on the original files",
        current=ListFiles(
            staged=False,
            name=_ORIGINAL,
            mode=0o660,
            # With CONFIG_IMA_STAGING=n too (observed on Debian's 7.3.4).
            grammar=Grammar(number=Operation.DELETE_FIRST),
            link=_LINK,
        ),
        staged=ListFiles(
            staged=True,
            name=_ORIGINAL + "_staged",
            mode=0o660,
            grammar=Grammar(letters=((b"A", Operation.STAGE), (b"D", Operation.DELETE_STAGED))),
            link=_LINK + "_staged",
        ),
        locked=True,
        writer_needs_admin=True,
        policy_mode=0o600,
    ),
    Profile(
        name="legacy",
        aliases=("7.1",),
        summary="before 7.2: nothing can be written, opens are not counted",
        current=ListFiles(staged=False, name=_ORIGINAL, mode=0o440, grammar=None, link=_LINK),
        staged=None,
        locked=False,
        writer_needs_admin=False,
        policy_mode=0o600,
    ),
    Profile(
        name="legacy-single",
        aliases=("6.1",),
        summary="before 6.10: as legacy, one SHA-1 file per form and no links",
        current=ListFiles(
            staged=False, name=_LINK, mode=0o440, grammar=None, link=None, per_bank=False
        ),
        staged=None,
        locked=False,
        writer_needs_admin=False,
        policy_mode=0o200,
    ),
)


def lookup(name: str) -> Profile:
    """The profile with this name or alias; :class:`UsageError` lists them all."""
    for profile in PROFILES:
        if name == profile.name or name in profile.aliases:
            return profile
    known = ", ".join(" = ".join((p.name, *p.aliases)) for p in PROFILES)
    raise UsageError(f"unknown profile {name!r}; there are: {known}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of the IMA directory. ``view`` and ``files`` only for lists."""

    name: str
    kind: Kind
    mode: int
    view: View | None = None
    files: ListFiles | None = None
    target: str | None = None


def directory(profile: Profile, lists: tuple[Bank, ...], *, staging: bool = True) -> list[Entry]:
    """The IMA directory in order of creation; ``lists`` are the banks that have files."""
    families = [profile.current]
    if staging and profile.staged is not None:
        families.append(profile.staged)
    entries = [entry for files in families for entry in _list_files(files, lists)]
    # Staged links first, binary before ascii (ima_fs.c:800-830).
    for files in reversed(families):
        if files.link is not None:
            entries += [_link(files, files.link, form) for form in ("binary", "ascii")]
    entries.append(Entry("runtime_measurements_count", Kind.COUNT, 0o440))
    entries.append(Entry("violations", Kind.VIOLATIONS, 0o440))
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
