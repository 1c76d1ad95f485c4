# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The image that the Containerfile makes, and compose.yaml's services in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.containers import Pod, services
from tests.run.image import Builder
from tests.support import require, run

pytestmark = [
    pytest.mark.mount,
    pytest.mark.root,
    pytest.mark.nightly,
]


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    require("root", "runc", "debootstrap", "/dev/fuse")
    home = Path(tempfile.mkdtemp(prefix="image-"))
    try:
        yield Builder(home)
    finally:
        shutil.rmtree(home)


# A stage in each test: some minutes, and no test may take more than five.


def test_the_base(builder: Builder) -> None:
    assert "bookworm" in (builder.base() / "etc/os-release").read_text()


def test_the_wheels(builder: Builder) -> None:
    names = [path.name for path in (builder.stage("build") / "wheels").iterdir()]
    for package in ("imafs", "pyfuse3", "tpm2_pytss", "trio"):
        assert any(name.startswith(f"{package}-") for name in names), names


def test_imafs_is_in_the_image_and_no_compiler(builder: Builder) -> None:
    image = builder.stage("last")
    said = run(["chroot", image, "imafs", "--version"]).stdout
    assert said.startswith("imafs ")
    assert not (image / "usr/bin/gcc").exists()
    assert not (image / "wheels").exists()


def test_compose_with_the_image(builder: Builder) -> None:
    """The emulator becomes healthy, the agent prints a record and the PCR."""
    pod = Pod(builder.stage("last"))
    try:
        pod.start("pod", services()["pod"])
        emulator = pod.start("emulator", services()["emulator"])
        pod.healthy(emulator)
        agent = pod.start("agent", services()["agent"])
        agent.says("10: 0x")
        agent.says("boot_aggregate")
        assert "all records since boot replay" in emulator.execute("imafs", "status").stdout
    finally:
        pod.close()
