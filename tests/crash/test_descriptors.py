# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A daemon that clients take all descriptors from: it goes on, and never says EPERM."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imafs.testing.mounted import children
from imafs.verbs.client import ControlClient
from tests.mount.daemon import Daemon
from tests.mount.fixtures import Starter

pytestmark = [pytest.mark.root, pytest.mark.mount]

CLIENTS = 1200


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """This process needs some itself."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 2 * CLIENTS:
        pytest.skip(f"{2 * CLIENTS} descriptors are needed, {before[1]} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def connect(daemon: Daemon, stack: ExitStack) -> None:
    connection = stack.enter_context(socket.socket(socket.AF_UNIX))
    connection.settimeout(60)
    connection.connect(str(daemon.control))


@pytest.mark.parametrize("limit", ["1024:1024", "1024:4000", "40:40"])
def test_idle_clients_cost_nobody_anything(start: Starter, limit: str) -> None:
    daemon = start("--tpm", "none", prefix=("prlimit", f"--nofile={limit}"))
    daemon.logs.allow("has 256 connections|no more clients")
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            connect(daemon, stack)
        with ControlClient(daemon.control) as client:
            assert client.measure("/etc/passwd")["measured"]
            Path(daemon.dir, "ascii_runtime_measurements_staged").write_text("A\n")
            records = client.status()["records"]
            assert isinstance(records, dict)
            assert records["staged"] == 2
    assert daemon.log().count("idle longest") == 1


def test_a_program_that_is_started_has_the_usual_limit(start: Starter) -> None:
    daemon = start("--tpm", "swtpm", prefix=("prlimit", "--nofile=1000:4000"))
    limits = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
    assert limits == (4000, 4000)
    with ControlClient(daemon.control) as client:
        assert client.status()["tcti"]
    (swtpm,) = children(daemon.process.pid)
    assert resource.prlimit(swtpm, resource.RLIMIT_NOFILE) == (1000, 4000)
