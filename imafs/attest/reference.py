# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which files a list may have: a reference, and what a list has beside it.

Read: Keylime's runtime policy and its older allow list (JSON), lines of digest and path as
``sha256sum`` prints them, and the list of a golden machine (binary or ASCII).

A record is judged by its template data alone: the name of a template is in no digest, so that
who holds a list may turn it into another one of as many fields. Patterns are tried on the paths
that nothing else says anything good of, all at the end: :mod:`imafs.attest.excludes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from imafs.attest.excludes import Excludes, compiled
from imafs.attest.explain import BOOT, is_boot, records
from imafs.attest.lanes import HASHES
from imafs.attest.walking import Part, proven
from imafs.errors import FormatError
from imafs.formats import list_file
from imafs.formats.algorithms import ALGORITHMS, Bank
from imafs.formats.binary import Record

_LINE = re.compile(
    rb"\\?(?:(?P<name>[A-Za-z0-9][\w-]*):)?(?P<digest>(?:[0-9A-Fa-f]{2}){16,64})"
    rb"[ \t]+\*?(?P<path>.+)"
)
_SIZES = frozenset(a.digest_size for a in ALGORITHMS)
#: Paths of each kind that a verdict names.
NAMED = 1000


@dataclass(frozen=True, slots=True)
class Reference:
    """Digests by path, and patterns of paths that may be anything."""

    digests: Mapping[bytes, frozenset[bytes]]
    excludes: Excludes = field(default_factory=Excludes)


@dataclass(slots=True)
class Files:
    """What the records of a list are to a reference; paths as the list has them.

    ``other`` records are of no file: boot_aggregate, critical data, keys.
    """

    known: int = 0
    excluded: int = 0
    violations: int = 0
    other: int = 0
    unknown: dict[bytes, int] = field(default_factory=dict)
    changed: dict[bytes, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether nothing is unknown or changed."""
        return not self.unknown and not self.changed


def read(data: bytes, source: str) -> Reference:
    """A reference of any form. Raises :class:`FormatError`."""
    if data.lstrip()[:1] == b"{":
        return _json(data, source)
    text = data.lstrip()
    if _LINE.match(text.split(b"\n", 1)[0]) or text[:1] == b"#":
        return _lines(data, source)
    return _golden(data, source)


def _json(data: bytes, source: str) -> Reference:
    try:
        policy = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"no JSON: {error}", source=source) from None
    digests = policy.get("digests", policy.get("hashes"))
    if not isinstance(digests, dict):
        raise FormatError("no runtime policy: it has no digests", source=source)
    found: dict[bytes, set[bytes]] = {}
    for path, values in digests.items():
        if not isinstance(values, list):
            raise FormatError(f"the digests of {path[:60]!r} are no list", source=source)
        for value in values:
            _add(found, path.encode("utf-8", "surrogatepass"), value, source)
    excludes = policy.get("excludes", policy.get("exclude", []))
    if not isinstance(excludes, list):
        raise FormatError("excludes is no list", source=source)
    patterns = tuple(compiled(text, source) for text in excludes if text)
    return Reference(_frozen(found), Excludes(patterns))


def _add(found: dict[bytes, set[bytes]], path: bytes, value: object, source: str) -> None:
    try:
        digest = bytes.fromhex(str(value).rpartition(":")[2])
    except ValueError:
        digest = b""
    if len(digest) not in _SIZES:
        raise FormatError(f"{str(value)[:80]!r} is no digest", source=source)
    found.setdefault(as_listed(path), set()).add(digest)


def as_listed(path: bytes) -> bytes:
    """A path as a record has it: a kernel stores underscores for spaces."""
    return path.replace(b" ", b"_")


def _frozen(found: Mapping[bytes, Iterable[bytes]]) -> dict[bytes, frozenset[bytes]]:
    return {path: frozenset(digests) for path, digests in found.items()}


def _lines(data: bytes, source: str) -> Reference:
    found: dict[bytes, set[bytes]] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        line = line.rstrip(b"\r")
        if not line or line.startswith(b"#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise FormatError("no digest and path", source=source, line=number)
        path = match["path"]
        if line.startswith(b"\\"):  # sha256sum's escapes of a name with a line end
            path = path.replace(b"\\\\", b"\0").replace(b"\\n", b"\n").replace(b"\0", b"\\")
        try:
            _add(found, path, match["digest"].decode(), source)
        except FormatError as error:
            raise FormatError(error.reason, source=source, line=number) from None
    return Reference(_frozen(found))


def _golden(data: bytes, source: str) -> Reference:
    found: dict[bytes, set[bytes]] = {}
    try:
        for item in list_file.parse(data).items():
            if isinstance(item, list_file.Fault):
                raise item.error()
            measured = _measured(item.record)
            if measured is not None and any(measured[1]):
                found.setdefault(measured[0], set()).add(measured[1])
    except FormatError as error:
        raise error.at(source) from None
    if not found:
        raise FormatError("names no file and its digest", source=source)
    return Reference(_frozen(found))


def _measured(record: Record) -> tuple[bytes, bytes] | None:
    """Path and digest of a record of a file; None of one that is proven to be of a buffer.

    What is neither is of a file without a path, which no reference knows.
    """
    fields = proven(record)
    if len(fields) < 2:
        return b"", b""
    name = fields[1].split(b"\0", 1)[0]
    # "sha256:", NUL, digest; d-ngv2 puts "ima:" or "verity:" in front.
    prefix, colon, digest = fields[0].partition(b":\0")
    if not colon:
        return name, fields[0]
    # A file may have no slash in its name either: in a mount that was detached.
    if len(fields) > 2 and not name.startswith(b"/"):
        algorithm = HASHES.get(prefix.rpartition(b":")[2].decode("latin-1"))
        if algorithm is not None and any(algorithm.digest(f) == digest for f in fields[2:]):
            return None
    return name, digest


def judge(
    reference: Reference,
    parts: Sequence[Part],
    own: Bank,
    explained: Callable[[bytes], bool] = lambda digest: False,
    *,
    begins: bool = True,
) -> Files:
    """Every record of a list that is known to be sound.

    A file may be called boot_aggregate as well. The record of that name is one where it
    ``begins`` a list, where its digest is that of the one there, or it is ``explained``.
    Raises :class:`OutOfTimeError` where a pattern of the reference comes to no end.
    """
    files = Files()
    first: bytes | None = None
    for number, parsed in enumerate(records(parts, own.digest_size)):
        boot = is_boot(parsed.record) and BOOT not in reference.digests
        if boot:
            digest = proven(parsed.record)[0]
            if begins and number == 0:
                first = digest
            boot = digest == first or explained(digest)
        if boot:
            files.other += 1
        else:
            _one(reference, files, parsed.record)
    _exclude(reference.excludes, files)
    return files


def _one(reference: Reference, files: Files, record: Record) -> None:
    if record.violation:
        files.violations += 1
        return
    measured = _measured(record)
    if measured is None:
        files.other += 1
        return
    path, digest = measured
    known = reference.digests.get(as_listed(path))
    if known is not None and digest in known:
        files.known += 1
    else:
        wrong = files.unknown if known is None else files.changed
        wrong[path] = wrong.get(path, 0) + 1


def _exclude(excludes: Excludes, files: Files) -> None:
    """Takes what a pattern matches from what is unknown or changed."""
    found = excludes.matched(dict.fromkeys((*files.unknown, *files.changed)))
    for wrong in (files.unknown, files.changed):
        for path in found & wrong.keys():
            files.excluded += wrong.pop(path)


def named(paths: Mapping[bytes, int]) -> Iterator[bytes]:
    """The first paths of a kind, no more than a verdict shows."""
    return (path for path, _ in zip(paths, range(NAMED), strict=False))
