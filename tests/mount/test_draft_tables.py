# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Every row of the tables that compare the proposals, through a mount of each profile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imafs.control.client import ControlClient
from imafs.kernel.profiles import PROFILES, lookup
from tests.mount.draftlanguage import Speaker
from tests.mount.draftrows import TABLES
from tests.mount.fixtures import Starter

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
        "requests": 22,
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
