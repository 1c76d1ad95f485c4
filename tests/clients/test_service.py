# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What the tests of clients stand on: services end, whatever they do, and say why they ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import service
from tests.clients.service import Service
from tests.mount.daemon import alive
from tests.support import DeadlineError


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[list[Service]]:
    """A list to which a test appends services; those are stopped at the end."""
    started: list[Service] = []
    yield started
    for one in started:
        one.stop()


def start(script: str, directory: Path) -> Service:
    """A shell as a service."""
    return Service("shell", ["sh", "-c", script], directory / "log", env={}, cwd=directory)


def test_stop_ends_the_whole_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: list[Service]
) -> None:
    """Also a child that ignores SIGTERM and whose parent ends at once."""
    monkeypatch.setattr(service, "PARTING_SECONDS", 0.5)
    stubborn = "sh -c 'trap \"\" TERM; echo child $$; while :; do sleep 1000; done' & wait"
    shell.append(start(stubborn, tmp_path))
    shell[0].wait_for("child [0-9]+\n", 60)
    child = int(shell[0].log().split()[1])
    assert alive(child)
    shell[0].stop()
    assert not alive(child)
    shell[0].stop()


def test_a_service_that_ends_is_told_with_its_log(tmp_path: Path, shell: list[Service]) -> None:
    shell.append(start("echo no such option; exit 3", tmp_path))
    with pytest.raises(AssertionError, match=r"ended with status 3\nno such option"):
        shell[0].wait_for("ready", 60)


def test_a_service_that_says_nothing_is_told_with_its_log(
    tmp_path: Path, shell: list[Service]
) -> None:
    shell.append(start("echo waiting for something; exec sleep 1000", tmp_path))
    shell[0].wait_for("waiting", 60)
    with pytest.raises(DeadlineError, match="waiting for something"):
        shell[0].wait_for("ready", 0.1)
