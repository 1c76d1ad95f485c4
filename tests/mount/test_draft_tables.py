# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Every row of the tables that compare the proposals, through a mount of each profile."""

from __future__ import annotations

import errno
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imafs.interface.profiles import PROFILES, Profile, lookup
from imafs.verbs.client import ControlClient
from tests.mount.draftlanguage import Speaker
from tests.mount.draftrows import TABLES
from tests.mount.fixtures import Starter
from tests.property.draftmodel import Draft
from tests.property.reference import ng

pytestmark = [pytest.mark.mount, pytest.mark.root]

#: Variant of a profile -> options.
VARIANTS = {"flush": "--flush-htable", "bugs": "--draft-bugs", "off": "--no-staging"}


def rows() -> dict[str, list[tuple[str, str]]]:
    """Profile (and variant) -> its rows, each with its title and script."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for table, titled in TABLES.items():
        for title, scripts in titled:
            for where, script in scripts.items():
                for profile in dict.fromkeys(where.split()):
                    found[profile].append((f"{table}: {title}", script))
    return dict(found)


ROWS = rows()


def test_every_draft_has_rows() -> None:
    """And no row is lost: so many per table, and scripts in all."""
    played = {where.split("+")[0] for where in ROWS}
    assert played == {p.name for p in PROFILES if not p.name.startswith("legacy")}
    assert {table: len(titled) for table, titled in TABLES.items()} == {
        "parser": 32,
        "requests": 23,
        "trim requests": 15,
        "export requests": 5,
        "staging": 31,
        "trimming": 15,
        "exporting": 11,
    }


@pytest.fixture
def speaker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Speaker]:
    name, _, variant = request.param.partition("+")
    profile = lookup(name)
    with ExitStack() as stack:
        options = ["--no-boot-aggregate", "--profile", name]
        options += [VARIANTS[variant]] if variant else []
        # PCR values need a TPM; nothing else does.
        options += [] if any(file.needs_tpm for file in profile.requests) else ["--tpm", "none"]
        if profile.export is not None:
            options += ["--export-root", str(tmp_path)]
            options += ["--export-limit", "1000"] if profile.export.limit else []
        daemon = Starter(stack)(*options)
        control = stack.enter_context(ControlClient(daemon.control))
        yield Speaker(daemon, control, name)


@pytest.mark.parametrize("speaker", ROWS, indirect=True)
def test_rows(speaker: Speaker, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    wrong = []
    for title, script in ROWS[request.node.callspec.params["speaker"]]:
        script = script.replace("/{root}", str(tmp_path)).replace("{long}", "x" * 260)
        problem = speaker.row(script)
        if problem:
            wrong.append(f"{title}\n    {problem}")
    assert not wrong, "\n".join(wrong)


#: What random requests are made of, beside any bytes.
ALPHABETS = (bytes(range(256)), b"AD01\n", b"0123456789+-:x \n\0", b"pcr10:sha1:\n/")


@pytest.mark.swtpm
@pytest.mark.parametrize("name", [p.name for p in PROFILES if not p.name.startswith("legacy")])
def test_random_bytes_do_what_the_reference_says(start: Starter, tmp_path: Path, name: str) -> None:
    """To every writable file: the reference's answers and lengths, and the daemon lives."""
    profile = lookup(name)
    options = ["--export-root", str(tmp_path)] if profile.export is not None else []
    daemon = start("--profile", name, "--no-boot-aggregate", "--banks", "sha1,sha256", *options)
    daemon.generate(9)
    model = Draft(name, bugs=False, flush=False, table=False, default="sha256")
    model.start = {"sha1": bytes(20), "sha256": bytes(32)}
    model.current = [ng(10, b"/%d" % number) for number in range(9)]
    files = [("request", f"{f.directory}/{f.name}") for f in profile.requests]
    files.append(("original", profile.current.name.format(form="ascii", bank="sha256")))
    if profile.staged is not None:
        files.append(("staged", profile.staged.name.format(form="binary", bank="sha1")))
    chance = random.Random(20261126)
    for word, file in files:
        path = daemon.path(file.lstrip("/"))
        for _ in range(100):
            size = chance.choice((1, 2, 2, 3, 5, 21, 33))
            data = bytes(chance.choices(chance.choice(ALPHABETS), k=size))
            data = data[:-1] + b"\n" if chance.random() < 0.6 else data
            if profile.export is not None and data.startswith(b"/"):
                continue  # its answer depends on the path, see test_exports.py
            expected = model.write(word, data, 0) if writable(profile, word, file) else "EINVAL"
            assert tried(path, data) == expected, (file, data)
    records = daemon.group("records")
    assert (records["current"], records["staged"]) == (len(model.current), len(model.staged))
    assert "Traceback" not in daemon.log()
    daemon.assert_replays()


def writable(profile: Profile, word: str, file: str) -> bool:
    """Whether the file has a write method."""
    if word == "request":
        return any(f.grammar is not None and file.endswith(f.name) for f in profile.requests)
    files = profile.current if word == "original" else profile.staged
    return files is not None and files.grammar is not None


def tried(path: Path, data: bytes) -> str:
    """A write of root, who may open what is read-only: ok or the errno."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, data)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        os.close(descriptor)
    return "ok"


@pytest.mark.parametrize(("policy", "told"), [(None, 1), ("critical_data", 1), ("tcb", 0)])
def test_the_policy_decides_on_the_record_of_a_trim(
    start: Starter, policy: str | None, told: int
) -> None:
    options = [] if policy is None else ["--policy", policy]
    daemon = start("--profile", "trim-v2", "--tpm", "none", *options)
    daemon.call("generate", count=9)
    before = daemon.count()
    assert tried(daemon.path("ima_trim_log"), b"03") == "ok"
    assert daemon.count() == before - 3 + told
