# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The recorded steps of drafts, and the closed list of those that FUSE answers otherwise.

``drafts.tar.xz`` has one line of JSON per step: the file, what was done to it, the state
before and after, the answers. Keys that begin with ``_`` depend on that kernel's own list.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

from imafs.fuse.operations import HIDDEN
from tests.conformance import differences
from tests.conformance.recordings import load

Row = dict[str, Any]

#: Keys that say what a step is, not what came of it.
INPUTS = frozenset({"suite", "i", "step", "payload", "len", "op", "off", "seq", "cred", "before"})
#: Rows that belong to tests of their own: the policy file has its states.
_POLICY = "policy"


@cache
def rows(draft: str) -> tuple[Row, ...]:
    """The steps of v5, trimv2, trimv3 or trimtn, in order."""
    return tuple(json.loads(line) for line in load("drafts").text(f"{draft}.jsonl").splitlines())


def steps(draft: str, *suites: str) -> list[Row]:
    """The steps of these suites."""
    return [row for row in rows(draft) if row["suite"] in suites and row["step"] != _POLICY]


def answers(row: Row) -> Row:
    """What a step was answered, without what only its own kernel can say."""
    return {key: value for key, value in row.items() if key not in INPUTS and key[0] != "_"}


def payload(row: Row) -> bytes | None:
    """The bytes of a step; None is a bad pointer."""
    text: str = row["payload"]
    if text == "NULLPTR":
        return None
    data = text.encode("latin-1")
    size = row.get("len", len(data))
    # Long ones were recorded by their beginning.
    return data if len(data) == size else data[:1] * size


class Fuse:
    """Turns a recorded answer into what it is over FUSE; counts why."""

    def __init__(self, draft: str) -> None:
        self._plain = {
            (row["step"].split()[0], row["payload"]): row["write"]
            for row in reversed(steps(draft, "writes"))
            if row["step"].endswith("staged=0")
        }
        self.counts: Counter[str] = Counter()

    def answers(self, row: Row) -> Row:
        """What is expected of a mount."""
        expected = answers(row)
        for reason, change in self._changes(row):
            if reason and any(expected.get(k) != v for k, v in change.items() if v is not ...):
                self.counts[reason] += 1
            expected |= change
        return expected

    def _changes(self, row: Row) -> Iterator[tuple[str, Row]]:
        suite = row["suite"]
        if suite == "writes":
            yield from _of_write(row)
        elif suite == "offsets":
            yield from self._of_offset(row)
        elif suite == "fileops" and "open_rd" in row:
            yield from _of_file(row)
        elif suite == "reads":
            yield from _of_read(row)

    def _of_offset(self, row: Row) -> Iterator[tuple[str, Row]]:
        op = row["op"]
        if op == "pwrite":
            plain = self._plain.get((row["step"], row["payload"]), "EINVAL")
            yield differences.PWRITE, {"ret": "EINVAL" if row["off"] else plain, "delta": ...}
        elif op == "writev":
            joined = self._plain.get((row["step"], "".join(row["seq"])), "EINVAL")
            taken = int(joined) if joined.isdigit() else 0
            yield differences.GATHERED, {"ret": joined, "delta": ..., "pos": taken}
        elif op in ("write", "O_RDWR write"):
            moved = sum(int(answer) for answer in row["ret"] if answer.isdigit())
            yield differences.POSITION, {"pos": moved}


def _of_write(row: Row) -> Iterator[tuple[str, Row]]:
    if row["len"] == 0:
        yield differences.EMPTY_WRITE, {"write": "0"}
    elif row["payload"] == "NULLPTR":
        yield differences.COPIED, {"write": "EFAULT"}
    elif row["write"].isdigit():
        yield differences.POSITION, {"pos": int(row["write"])}


def _of_read(row: Row) -> Iterator[tuple[str, Row]]:
    # Recorded 0 where the text was shorter than a fixed offset: that script's own mistake.
    yield "", {"pread_ok": 1, "pread_bad": ...}


def _of_file(row: Row) -> Iterator[tuple[str, Row]]:
    yield differences.LEASE, {"setlease": "0"}
    yield differences.KEPT, {"ioctl_fionread": str(HIDDEN)}
    if row["lseek_end"] != "EINVAL":
        big = str(1 << 40)
        yield differences.FAR, {"lseek_big": big, "read_after_big": "0", "lseek_cur0": big}
    if row["read_null"] == "0":
        yield differences.COPIED, {"read_null": "EFAULT"}
