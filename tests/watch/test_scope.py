# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Names below watched paths, and directories that may be ignored."""

from __future__ import annotations

import pytest

from imafs.host.mount_table import rows
from imafs.sources.watch.scope import Places, below, holding, submounts

MOUNTINFO = rb"""21 1 8:1 / / rw - ext4 /dev/sda1 rw
22 21 0:20 / /proc rw - proc proc rw
30 21 8:2 / /srv rw shared:1 - ext4 /dev/sdb1 rw
31 30 8:3 / /srv/in/data rw - xfs /dev/sdc1 rw
32 21 8:2 /in/sub /mnt/bind rw - ext4 /dev/sdb1 rw
33 21 8:2 / /mnt/all rw - ext4 /dev/sdb1 rw
34 21 0:40 / /with\040space\134 rw - tmpfs none rw
35 21 0:50 / /mnt/fuse rw - fuse.thing thing rw
36 30 8:9 / /srv rw - ext4 /dev/sdz rw
"""
# The last line lies on top of /srv; the tests below are about what is under it.
MOUNTS = MOUNTINFO[: MOUNTINFO.index(b"36 ")]


@pytest.fixture
def places() -> Places:
    """``/srv/in`` and the file ``/srv/lone/file`` are watched."""
    made = Places()
    made.update([b"/srv/in", b"/srv/lone/file"], MOUNTS, {b"/srv/lone/file"})
    return made


@pytest.mark.parametrize(
    ("path", "root", "answer"),
    [
        (b"/a/b", b"/a", True),
        (b"/a", b"/a", True),
        (b"/ab", b"/a", False),
        (b"/", b"/a", False),
        (b"/a", b"/", True),
    ],
)
def test_below(path: bytes, root: bytes, answer: bool) -> None:
    assert below(path, root) is answer


def test_holding() -> None:
    mounts = list(rows(MOUNTINFO))
    for path, number in ((b"/x", 21), (b"/srv/in/data/x", 31), (b"/srv", 36), (b"/srvx", 21)):
        found = holding(mounts, path)
        assert found is not None
        assert found.number == number
    assert [mount.number for mount in submounts(mounts, b"/srv")] == [31]


def test_watched(places: Places) -> None:
    assert places.watched(b"/srv/in/file")
    assert places.watched(b"/srv/lone/file")
    assert not places.watched(b"/srv/inner")
    assert not places.watched(b"/srv/lone/other")
    # Another name of the same file is not watched.
    assert not places.watched(b"/mnt/bind/file")


@pytest.mark.parametrize(
    ("directory", "mount", "answer"),
    [
        (b"/srv/out", 30, True),
        (b"/srv", 30, True),
        (b"/usr/bin", 21, True),
        (b"/srv/in", 30, False),
        (b"/srv/in/deep", 30, False),
        (b"/srv/in/data", 31, False),  # of a file system mounted below
        (b"/mnt/bind", 32, False),  # the same directory as /srv/in/sub
        (b"/mnt/all/out", 33, True),
        (b"/mnt/all/in/sub", 33, False),
        (b"/srv/lone", 30, False),  # holds a watched file
        (b"/mnt/all/lone", 33, False),
        (b"/srv/out", 77, False),  # of another mount namespace
        (b"/elsewhere", 30, False),  # not on that mount at all
    ],
)
def test_may_ignore(places: Places, directory: bytes, mount: int, answer: bool) -> None:
    assert places.may_ignore(directory, mount) is answer


def test_whole_file_system_watched() -> None:
    places = Places()
    places.update([b"/"], MOUNTS)
    assert places.watched(b"/any")
    assert not places.may_ignore(b"/usr", 21)
    assert not places.may_ignore(b"/srv/in/data", 31)
