# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The recorded steps of drafts, played through a mount: the same answers, step by step.

v5 and ``ima_trim_log`` v2, v3 and T:N were ports to Linux 7.3.4 (no TPM, SHA-1 files only).
T:N is what trim-v4 and trim-v5 have in common.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from imafs.verbs.client import ControlClient
from tests.conformance import draftfileops
from tests.conformance.differences import (
    COPIED,
    EMPTY_WRITE,
    FAR,
    GATHERED,
    KEPT,
    LEASE,
    POSITION,
    PWRITE,
)
from tests.conformance.draftplayer import BINARY, Player
from tests.conformance.draftsteps import Fuse, Row, answers, steps
from tests.mount.daemon import Daemon
from tests.mount.fixtures import Starter
from tests.support import run

pytestmark = [pytest.mark.mount, pytest.mark.root]

#: Profile -> recording.
DRAFTS = {
    "v5": "v5",
    "trim-v2": "trimv2",
    "trim-v3": "trimv3",
    "trim-v4": "trimtn",
    "trim-v5": "trimtn",
}
#: Steps of the suites below, counted: none gets lost on the way.
STEPS = {
    "v5": {
        **{"ls": 12, "fileops": 8, "reads": 10, "openmodes": 110, "writes": 996, "offsets": 102},
        **{"conc": 48, "flow": 44},
    },
    "trim": {
        **{"ls": 9, "fileops": 8, "reads": 7, "openmodes": 77, "writes": 362, "offsets": 102},
        **{"conc": 39, "flow": 9, "trimlog": 41},
    },
}
#: Steps that FUSE answers otherwise, by reason: the closed list.
_FILES = {LEASE: 5, KEPT: 5}
_TRIM = {FAR: 3, EMPTY_WRITE: 7, COPIED: 5, PWRITE: 30, **_FILES}
DIFFERENT = {
    "v5": {
        POSITION: 64,
        EMPTY_WRITE: 20,
        COPIED: 9,
        PWRITE: 30,
        GATHERED: 6,
        FAR: 2,
        **_FILES,
    },
    "trimv2": {**_TRIM, POSITION: 4},
    "trimv3": {**_TRIM, POSITION: 16, GATHERED: 2},
    "trimtn": {**_TRIM, POSITION: 1},
}


@dataclass
class Draft:
    profile: str
    recording: str
    daemon: Daemon
    player: Player
    fuse: Fuse

    def steps(self, suite: str) -> list[Row]:
        found = steps(self.recording, suite)
        assert len(found) == STEPS[self.profile.split("-")[0]][suite]
        return found


@pytest.fixture(scope="module", params=DRAFTS)
def draft(request: pytest.FixtureRequest) -> Iterator[Draft]:
    """One mount per draft. Its suites are played in the order of their recording."""
    with ExitStack() as stack:
        options = ("--tpm", "none", "--no-boot-aggregate")
        daemon = Starter(stack)("--profile", request.param, *options)
        control = stack.enter_context(ControlClient(daemon.control))
        recording = DRAFTS[request.param]
        yield Draft(request.param, recording, daemon, Player(daemon, control), Fuse(recording))


def same(found: Row, expected: Row) -> bool:
    """Equal in all that is expected; ``...`` stands for anything."""
    return all(value is ... or found.get(key) == value for key, value in expected.items())


def play(draft: Draft, suite: str, *, prepare: bool) -> None:
    method = getattr(draft.player, suite)
    stage = "binary_runtime_measurements" if draft.profile == "v5" else None
    wrong = []
    for row in draft.steps(suite):
        expected = draft.fuse.answers(row)
        if prepare and "before" in row:
            staged = row["before"]["staged"]
            draft.player.prepare(row["before"]["cur"], 0 if staged == "ENOENT" else staged, stage)
        found = method(row)
        if not same(found, expected):
            wrong.append(f"{row}\n  expected {expected}\n  found    {found}")
    assert not wrong, f"{len(wrong)} of {suite}:\n" + "\n".join(wrong[:20])


def test_names_modes_and_links(draft: Draft) -> None:
    listed = {row["step"]: row for row in draft.steps("ls")}
    directory = listed.pop("dir")
    assert f"{draft.daemon.dir.stat().st_mode:06o}" == directory["mode"]
    assert listed.pop("symlink-ima-parent")["target"] == "integrity/ima", "of --layout securityfs"
    assert sorted(os.listdir(draft.daemon.dir)) == sorted([*listed, "policy"])
    for name, row in listed.items():
        path = draft.daemon.path(name)
        seen = path.lstat()
        found = {
            "mode": f"{seen.st_mode:06o}",
            "uid": seen.st_uid,
            "gid": seen.st_gid,
            "size": seen.st_size,
            "nlink": seen.st_nlink,
            "blocks": seen.st_blocks,
        }
        if stat.S_ISLNK(seen.st_mode):
            found["target"] = os.readlink(path)
        assert found == answers(row), name


#: What is tried as each caller: prints JSON, a row per file.
_TRY = """
import errno, json, os, sys
def tried(path, flags):
    try:
        return os.open(path, flags)
    except OSError as error:
        return errno.errorcode[error.errno]
for row in json.loads(sys.argv[2]):
    found = {}
    for key in row["keys"]:
        flags = 3 if key == "accmode3" else 0
        if key != "accmode3":
            for word in key.split("|"):
                flags |= getattr(os, word)
        got = tried(os.path.join(sys.argv[1], row["step"]), flags)
        if isinstance(got, int):
            if key == "O_RDONLY":
                found["read1"] = str(len(os.read(got, 1)))
            os.close(got)
            got = "ok"
        found[key] = got
    print(json.dumps(found))
"""


def _caps(*names: str) -> tuple[str, ...]:
    caps = ",".join(["-all", *(f"+{name}" for name in names)])
    return (f"--bounding-set={caps}", f"--inh-caps={caps}", f"--ambient-caps={caps}")


def _user(gid: int, *names: str) -> tuple[str, ...]:
    return ("setpriv", "--reuid=1000", f"--regid={gid}", "--clear-groups", *_caps(*names))


CALLERS: dict[str, tuple[str, ...]] = {
    "root": (),
    "root-nocaps": ("setpriv", *_caps()),
    "root-all-but-SYS_ADMIN": ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"),
    "root-only-SYS_ADMIN": ("setpriv", *_caps("sys_admin")),
    "uid1000-gid1000-nocaps": _user(1000),
    "uid1000-gid0-nocaps": _user(0),
    "uid1000-gid0+SYS_ADMIN": _user(0, "sys_admin"),
    "uid1000-gid1000+SYS_ADMIN": _user(1000, "sys_admin"),
    "uid1000-gid1000+DAC_OVERRIDE": _user(1000, "dac_override"),
    "uid1000-gid1000+DAC_READ_SEARCH": _user(1000, "dac_read_search"),
    "userns-root-from-root": ("unshare", "--user", "--map-root-user"),
}


def test_who_may_open_what(draft: Draft) -> None:
    draft.player.prepare(5, 0, None)
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable
    recorded = draft.steps("openmodes")
    assert {row["cred"] for row in recorded} == set(CALLERS)
    for caller, prefix in CALLERS.items():
        rows = [row for row in recorded if row["cred"] == caller]
        asked = [
            {"step": row["step"], "keys": [key for key in answers(row) if key != "read1"]}
            for row in rows
        ]
        command = [*prefix, python, "-c", _TRY, str(draft.daemon.dir), json.dumps(asked)]
        found = [json.loads(line) for line in run(command, cwd="/").stdout.splitlines()]
        assert found == [answers(row) for row in rows], caller


def test_other_calls(draft: Draft) -> None:
    """truncate, xattrs, mmap, poll, seeks, locks, what a directory refuses."""
    draft.player.prepare(5, 0, None)
    wrong = []
    for row in draft.steps("fileops"):
        step = row["step"]
        path = draft.daemon.path(step)
        if step == "dirops":
            found = draftfileops.in_directory(draft.daemon.dir, "violations")
        elif step == "chmod-chown-restore":
            found = draftfileops.modes(draft.daemon.path("violations"))
        elif step == "unlink-nothing":
            continue
        else:
            found = draftfileops.on_path(path) | draftfileops.on_descriptor(path)
        for key, value in draft.fuse.answers(row).items():
            if found.get(key) != value:
                wrong.append(f"{step} {key}: {found.get(key)}, not {value}")
    assert not wrong, "\n".join(wrong)


def test_reads(draft: Draft) -> None:
    wrong = []
    for row in draft.steps("reads"):
        staged = "staged" in row["step"]
        # Two digits in the count, as recorded.
        draft.player.prepare(12, 5 if staged else 0, BINARY if draft.profile == "v5" else None)
        grows = "eof_then_append_visible" in row
        found = draftfileops.reads(
            draft.daemon.path(row["step"]), partial(draft.player.add, 1) if grows else None
        )
        for key, value in draft.fuse.answers(row).items():
            if value is not ... and found.get(key) != value:
                wrong.append(f"{row['step']} {key}: {found.get(key)}, not {value}")
    assert not wrong, "\n".join(wrong)


def test_writes(draft: Draft) -> None:
    play(draft, "writes", prepare=True)


def test_writes_at_positions(draft: Draft) -> None:
    """Prepared here: these lines have no state, but v5's answers tell it."""
    wrong = []
    for row in draft.steps("offsets"):
        if draft.profile == "v5":
            current = row["after"]["cur"] if "after" in row else 5
            staged = row["after"]["staged"] if "after" in row else 0
            draft.player.prepare(current, staged, "binary_runtime_measurements")
        expected = draft.fuse.answers(row)
        found = draft.player.offsets(row)
        if not same(found, expected):
            wrong.append(f"{row}\n  expected {expected}\n  found    {found}")
    assert not wrong, "\n".join(wrong[:20])


def test_opens_that_meet(draft: Draft) -> None:
    play(draft, "conc", prepare=False)


def test_flow(draft: Draft) -> None:
    play(draft, "flow", prepare=True)


def test_trim_log(draft: Draft) -> None:
    if draft.profile == "v5":
        assert draft.player.staged_file, "only the trim series has it"
        return
    play(draft, "trimlog", prepare=True)


def test_the_differences_are_these(draft: Draft) -> None:
    """How many steps FUSE answers otherwise, and why; the rest is equal."""
    fuse = Fuse(draft.recording)
    for suite in STEPS[draft.profile.split("-")[0]]:
        for row in steps(draft.recording, suite):
            fuse.answers(row)
    assert fuse.counts == Counter(DIFFERENT[draft.recording]), fuse.counts
