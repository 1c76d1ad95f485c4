# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Evidence of a real kernel and its TPM, made there and judged here: before and after a kexec that
carried the kernel's own list, through a keeper's view behind deletions and another kexec, and of a
list that was trimmed.

One machine answers (tests/machine.py): minutes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from imafs.attest.bundle import Bundle, decode
from imafs.attest.kinds import Kind
from tests import machine as machines
from tests.mount.daemon import imafs

pytestmark = [pytest.mark.nightly, pytest.mark.root]

_FILES = 50
_TAGS = ("plain", "carried", "kept", "late")

#: Runs once under each of three kernels.
_RUN = """
boot=$(cat /host/boots 2>/dev/null || echo 0)
echo $((boot + 1)) > /host/boots
mkdir -p /root/files
measure() {  # NAME
    for n in $(seq FILES); do echo $1 $n > /root/files/$1.$n; done
    cat /root/files/$1.* > /dev/null
}
evidence() {  # NAME OPTION... DIR: a bundle for the nonce NAME
    name=$1
    shift
    imafs attest --tcti device:/dev/tpmrm0 --nonce $name -o /host/$name.tar "$@"
    echo "evidence $name $?"
}
ak="--ak /root/ak.ctx"

case $boot in
0)
    measure plain
    evidence a0 --create-ak /root/ak.ctx $ima
    next_kernel ;;
1)
    measure carried
    evidence b0 $ak $ima
    evidence b1 $ak $ima
    keeping --mount $view
    measure kept
    imafs keep flush
    imafs keep status --json | grep batches_deleted
    evidence a1 $ak $view
    evidence a2 $ak --since FILES $view
    evidence fa11 $ak $ima
    next_kernel ;;
2)
    evidence dead $ak $ima
    keeping --mount $view
    measure late
    evidence a3 $ak $view
    evidence a4 $ak $view
    keeper_ends TERM
    echo "violations $(cat $ima/violations)" ;;
esac
"""

#: The bundles that are made, in their order; options of `check`; its verdict. a2 begins with a
#: record that is not the first one behind those that the verifier knows.
_JUDGED = (
    *(("a0", ("--new",), Kind.OK), ("b0", (), Kind.KEXEC), ("b1", (), Kind.OK)),
    *(("a1", (), Kind.OK), ("a2", (), Kind.START), ("a3", (), Kind.KEXEC), ("a4", (), Kind.OK)),
)


def test_bundles_of_a_real_machine(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """kexec, told once, with and without a keeper; ok through the view; what leads to no quote
    says why."""
    machine = machines.found(request)
    host = tmp_path / "host"
    host.mkdir()
    machines.pack(host)
    (host / "run.sh").write_text(machines.HEAD + _RUN.replace("FILES", str(_FILES)))
    out = machines.ask(machine, host)
    lines = out.splitlines()
    bundles = {name: decode((host / f"{name}.tar").read_bytes()) for name, _, _ in _JUDGED}
    key = tmp_path / "ak.pub"
    key.write_bytes(bundles["a0"].key or b"")
    for name, options, kind in _JUDGED:
        assert f"evidence {name} 0" in lines, out
        words = ["check", host / f"{name}.tar", "--nonce", name, "--ak", key, *options]
        done = imafs(*words, "--state", tmp_path / "state", check=False)
        print(done.stdout)
        assert done.returncode == kind.code, (done.stdout, done.stderr, out)
    # Behind a kexec alone the kernel has every record of two, once: nobody has trimmed it.
    assert_once(bundles["b0"], _TAGS[:2])
    before = bundles["a0"].records
    assert bundles["b0"].records[: len(before)] == before
    # The last one has every record of three kernels, two of whose lists were trimmed.
    last = bundles["a4"]
    assert_once(last, _TAGS)
    assert last.manifest is not None
    assert len(last.manifest.boot_ids) == 2
    # The kernel's own list: a keeper has it; it was trimmed.
    assert re.search(r'"batches_deleted": [1-9]', out), out
    assert "evidence fa11 7" in lines, out
    assert "the whole list is in /run/imafs/ima" in out
    assert "evidence dead 8" in lines, out
    assert "records were deleted by somebody" in out
    assert "violations 0" in lines, out


def assert_once(bundle: Bundle, tags: Sequence[str]) -> None:
    """A bundle has a record of every file, one, and a boot_aggregate of each kernel."""
    names = machines.names(bundle.records)
    wanted = [f"/root/files/{tag}.{n}" for tag in tags for n in range(1, _FILES + 1)]
    assert sorted(name for name in names if name.startswith("/root/files/")) == sorted(wanted)
    assert names.count("boot_aggregate") == (3 if "late" in tags else 2)
