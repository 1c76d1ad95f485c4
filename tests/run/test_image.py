# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The image that the Containerfile makes, and compose.yaml's services in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.containers import Pod, services
from tests.run.image import build
from tests.support import require, run, wait_for

pytestmark = [
    pytest.mark.mount,
    pytest.mark.root,
    pytest.mark.nightly,
]


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    require("root", "runc", "debootstrap", "/dev/fuse")
    home = Path(tempfile.mkdtemp(prefix="image-"))
    try:
        yield build(home)
    finally:
        shutil.rmtree(home)


def test_imafs_is_in_it_and_no_compiler(image: Path) -> None:
    said = run(["chroot", image, "imafs", "--version"]).stdout
    assert said.startswith("imafs ")
    assert not (image / "usr/bin/gcc").exists()
    assert not (image / "wheels").exists()


def test_compose_with_the_image(image: Path) -> None:
    """The emulator becomes healthy, the agent prints a record and the PCR."""
    pod = Pod(image)
    try:
        pod.start("pod", services()["pod"])
        emulator = pod.start("emulator", services()["emulator"])
        pod.healthy(emulator)
        agent = pod.start("agent", services()["agent"])
        wait_for(lambda: "10: 0x" in agent.output(), 30, f"a PCR: {agent.output()}")
        assert "boot_aggregate" in agent.output()
        assert "all records since boot replay" in emulator.execute("imafs", "status").stdout
    finally:
        pod.close()
