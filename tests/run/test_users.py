# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Ordinary users without a runtime directory, on a machine on which root uses imafs too."""

from __future__ import annotations

from pathlib import Path

import pytest

from imafs.testing.mounted import Home
from tests.mount.fixtures import Starter
from tests.run.runs import AS_USER, imafs_for
from tests.support import ROOT, require, run

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

_SESSION = """
set -u
cd "$1"; shift
"$@" mount ima --background
cleanup() { [ ! -S ima.sock ] || "$@" ctl --control "$PWD/ima.sock" stop; }
trap 'cleanup "$@"' EXIT
for verb in "ctl status" "status" "verify ima/binary_runtime_measurements" \
    "record ima -o case.tar" "umount --stale" "umount ima" "ctl status"; do
    echo "@$verb"
    # shellcheck disable=SC2086
    "$@" $verb 2>&1 || echo "status $?"
done
"""


@pytest.fixture
def place(start: Starter) -> Home:
    place = start.place()
    place.base.chmod(0o1777)
    place.dir.chmod(0o777)
    return place


def test_root_of_a_user_namespace(place: Home) -> None:
    """Uid 0, but /run/imafs is not its own: neither used nor in the way."""
    require("unshare")
    Path("/run/imafs").mkdir(mode=0o700, exist_ok=True)
    before = (*AS_USER, "unshare", "--user", "--map-root-user", "--mount")
    words, environment = imafs_for(before)
    shell = (*before, "sh", "-c", _SESSION, "sh", str(place.base), *words)
    done = run(
        ["env", "-u", "XDG_RUNTIME_DIR", *shell],
        check=False,
        env=environment,
        cwd=ROOT,
        deadline=60,
    )
    parts = [part.partition("\n") for part in done.stdout.split("@")]
    said = [(verb, text) for verb, _, text in parts[1:]]
    assert "Traceback" not in done.stdout + done.stderr
    assert f"control={place.dir}.sock " in done.stdout
    statuses = [text for verb, text in said if verb.endswith("status")]
    assert f"on {place.dir}, profile mainline" in statuses[0]
    assert f"on {place.dir}, profile mainline" in statuses[1]
    assert "no imafs listens beside a mount of this user" in statuses[2]
    told = dict(said)
    assert "match after record 1\n" in told["verify ima/binary_runtime_measurements"]
    assert "which the PCRs confirm" in told["record ima -o case.tar"]
    assert told["umount ima"] == ""
    assert done.stdout.count("status 6") == 1, done.stdout


def test_watching_is_refused_before_anything_is_mounted(place: Home) -> None:
    """In one line: nothing is logged of a mount that will not be."""
    before = (*AS_USER, "unshare", "--user", "--map-root-user", "--mount")
    words, environment = imafs_for(before)
    command = [*before, *words, "mount", str(place.dir), "--watch", str(place.base)]
    done = run(command, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 7
    assert done.stdout == ""
    assert done.stderr == (
        "imafs: watching needs CAP_SYS_ADMIN in the initial user namespace (fanotify)\n"
    )
