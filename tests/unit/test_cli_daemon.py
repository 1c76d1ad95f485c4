# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which processes the daemon excuses from measuring."""

from __future__ import annotations

import os

import pytest

from imafs.cli import daemon
from imafs.sources.watch.child import task
from imafs.tpm import NoTpm, open_device
from imafs.tpm.swtpm import SwtpmDevice


def test_without_a_tpm_the_daemon_alone_is_excused() -> None:
    began = task.began(os.getpid())
    assert daemon._own_processes(NoTpm()) == [(os.getpid(), began)]


@pytest.mark.swtpm
def test_a_swtpm_is_excused_until_it_has_ended() -> None:
    device = open_device("swtpm")
    assert isinstance(device, SwtpmDevice)
    try:
        pid = device.process.pid
        assert (pid, task.began(pid)) in daemon._own_processes(device)
        device.process.kill()
        assert pid not in dict(daemon._own_processes(device))
    finally:
        device.close()
