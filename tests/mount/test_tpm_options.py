# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The options that say which TPM is extended."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imafs.testing.mounted import Home
from imafs.tpm import channel
from tests.mount.daemon import ASCII, BINARY, Daemon, imafs, layers
from tests.mount.fixtures import Starter
from tests.property.reference import replay
from tests.support import run, stopped, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


def test_tpm_none(start: Starter) -> None:
    """TPM-bypass: the SHA-1 files only, boot_aggregate zero."""
    daemon = start("--tpm", "none")
    assert daemon.tcti == "none"
    lists = {name for name in os.listdir(daemon.dir) if "measurements_" in name}
    assert {name for name in lists if "sha" in name} == {
        f"{form}_sha1{staged}" for form in (ASCII, BINARY) for staged in ("", "_staged")
    }
    assert daemon.read(ASCII).split()[3] == b"sha256:" + b"00" * 32
    daemon.generate(3)
    assert daemon.count() == 4
    assert daemon.call("status")["pcrs"] == []
    assert daemon.environment() == {}


@pytest.fixture
def foreign(start: Starter) -> Iterator[str]:
    """TCTI string of a swtpm that is not the daemon's, on unix sockets."""
    place = start.place()
    with ExitStack() as stack:
        yield _swtpm(place, stack)


def _swtpm(place: Home, stack: ExitStack) -> str:
    state = place.base / "state"
    state.mkdir()
    socket = place.base / "s"
    process = subprocess.Popen(
        [
            *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}"),
            *("--server", f"type=unixio,path={socket}"),
            *("--ctrl", f"type=unixio,path={socket}.ctrl"),
            *("--flags", "not-need-init,startup-clear"),
        ]
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    wait_for(Path(f"{socket}.ctrl").exists, 60, "swtpm listens")
    return f"swtpm:path={socket}"


def extend(tcti: str, pcr: int = 10) -> None:
    run(["tpm2_pcrextend", f"{pcr}:sha256={'11' * 32}"], env={"TPM2TOOLS_TCTI": tcti})


def test_a_foreign_tpm(start: Starter, foreign: str) -> None:
    daemon = start("--tpm", foreign)
    assert daemon.tcti == foreign
    daemon.generate(10)
    banks = daemon.call("status")["banks"]
    assert isinstance(banks, list)
    assert "sha256" in banks
    for bank in banks:
        assert replay(daemon.read(f"{ASCII}_{bank}"), bank) == daemon.pcr(bank)
    assert daemon.stop() == 0
    run(["tpm2_pcrread", "sha256:10"], env={"TPM2TOOLS_TCTI": foreign})  # lives on


def test_boot_aggregate_of_a_foreign_tpm(start: Starter, foreign: str) -> None:
    """PCR 0 to 9 as they are; evmctl computes the same."""
    for pcr in (0, 3, 8, 9):
        extend(foreign, pcr)
    empty = start("--tpm", "swtpm")
    daemon = start("--tpm", foreign)
    assert daemon.read(ASCII) != empty.read(ASCII)
    daemon.assert_replays()


def test_a_pcr_that_is_not_zero_is_refused(start: Starter, foreign: str) -> None:
    extend(foreign)
    place = start.place()
    status, log = start.refused("--tpm", foreign, place=place)
    assert status == 4
    assert "sha256:10" in log
    assert "--adopt" in log
    assert layers(place.dir) == 0


def test_a_pcr_that_is_not_zero_is_adopted(start: Starter, foreign: str) -> None:
    extend(foreign)
    daemon = start("--tpm", foreign, "--adopt")
    before = bytes.fromhex("00" * 32)
    assert daemon.pcr("sha256") != replay(daemon.read(f"{ASCII}_sha256"), "sha256")
    assert daemon.pcr("sha256") != before
    daemon.generate(5)
    daemon.assert_replays()
    adopted = "all records since boot replay to it from the value that was adopted"
    assert daemon.ctl("status").count(adopted) == 1  # only one bank was extended
    said = "The emulator has adopted a value that no record explains (--adopt)"
    done = imafs("verify", daemon.path(BINARY), "--control", daemon.control, check=False)
    assert done.returncode == 8
    assert said in done.stdout
    assert "deleted" not in done.stdout
    target = daemon.place.base / "case.tar"
    done = imafs("record", daemon.dir, "-o", target, "--control", daemon.control, check=False)
    assert done.returncode == 8
    assert said in done.stderr
    assert not target.exists()


def test_a_restart_on_the_same_tpm_loads_its_list(start: Starter, foreign: str) -> None:
    """The list that extended the PCRs explains them; a shorter one does not."""
    first = start("--tpm", foreign)
    first.generate(10)
    saved = first.place.base.parent / "saved-list"
    saved.write_bytes(first.read())
    assert first.stop() == 0
    try:
        second = start("--tpm", foreign, "--load", saved)
        assert second.read() == saved.read_bytes()
        second.generate(1, name="/more")
        second.assert_replays()
        longer = second.read()
        assert second.stop() == 0
        status, _ = start.refused("--tpm", foreign, "--load", saved)
        assert status == 4
        saved.write_bytes(longer)
        assert start("--tpm", foreign, "--load", saved).count() == 12
    finally:
        saved.unlink()


def test_a_tcti_that_nobody_answers(start: Starter, tmp_path: Path) -> None:
    place = start.place()
    status, log = start.refused("--tpm", f"swtpm:path={tmp_path}/none", place=place)
    assert status == 4
    assert "Traceback" not in log
    assert layers(place.dir) == 0


def test_tpm_state_is_kept(start: Starter, tmp_path: Path) -> None:
    """Keys survive, PCRs do not: a new swtpm is a reboot."""
    state = tmp_path / "state"
    handle = "0x81000001"
    first = start("--tpm-state", state)
    first.generate(5)
    tools = {"TPM2TOOLS_TCTI": first.tcti}
    context = str(tmp_path / "context")
    run(["tpm2_createprimary", "-Q", "-c", context], env=tools)
    run(["tpm2_evictcontrol", "-Q", "-c", context, handle], env=tools)
    busy = start.launch("--tpm-state", state)
    assert busy.wait() == 4
    assert str(state) in busy.log()
    assert first.stop() == 0
    second = start("--tpm-state", state)
    assert second.count() == 1
    second.assert_replays()
    listed = run(["tpm2_getcap", "handles-persistent"], env={"TPM2TOOLS_TCTI": second.tcti})
    assert handle in listed.stdout


def test_banks(start: Starter) -> None:
    daemon = start("--banks", "sha256")
    daemon.generate(3)
    banks = {name.removeprefix(f"{ASCII}_") for name in os.listdir(daemon.dir) if ASCII in name}
    # Without an SHA-1 bank there is an extra slot for it, and its files.
    assert banks == {ASCII, "staged", "sha1", "sha256", "sha1_staged", "sha256_staged"}
    assert replay(daemon.read(f"{ASCII}_sha256"), "sha256") == daemon.pcr("sha256")
    shown = run(["tpm2_pcrread"], env={"TPM2TOOLS_TCTI": daemon.tcti}).stdout
    assert "10: 0x" + daemon.pcr("sha256").hex().upper() in shown
    assert "10: 0x00" not in shown
    sha1 = [line.split()[1] for line in daemon.read(f"{ASCII}_sha1").splitlines()]
    assert all(len(digest) == 40 and set(digest) != {0x30} for digest in sha1)


# A TPM that hangs or dies


def test_a_hung_tpm_holds_nobody(daemon: Daemon) -> None:
    """No TPM call inside a handler: files, requests and status answer at once."""
    # Who waited for the TPM would be held up until its call is given up.
    soon = channel.DEADLINE - 2
    with stopped(daemon.swtpm()):
        daemon.call("generate", count=100)
        reads = run(["cat", str(daemon.path(ASCII))], deadline=soon).stdout
        assert len(reads.splitlines()) == 101
        script = 'echo A > "$1" && cat "$1" && echo D > "$1"'
        staged = str(daemon.path(f"{ASCII}_staged"))
        assert run(["sh", "-c", script, "sh", staged], deadline=soon).stdout == reads
        status = daemon.call("status")
        assert isinstance(status["records"], dict)
        assert status["records"]["pending"] >= 100
    wait_for(lambda: daemon.group("records")["pending"] == 0, 60, "all is extended after all")
    daemon.assert_replays()


def test_a_dead_tpm_keeps_the_records(daemon: Daemon) -> None:
    """Records stay and failures are counted; readers and writers go on."""
    daemon.logs.allow("TPM|swtpm|extend")
    daemon.generate(5)
    os.kill(daemon.swtpm(), 9)
    daemon.call("generate", count=20)
    assert daemon.count() == 26
    wait_for(lambda: daemon.group("failures")["last"], 60, "the failure shows")
    command = ("ctl", "--control", daemon.control)
    generated = imafs(*command, "generate", "1", "--json")
    assert json.loads(generated.stdout) == {"added": 1, "extended": False}
    measured = imafs(*command, "measure", "/bin/sh")
    for result in (generated, measured):
        assert result.stderr.startswith("imafs: records are in the list, but not yet in the PCRs: ")
        assert result.stderr.count("\n") == 1
    trim = ["sh", "-c", 'echo 6 > "$1"', "sh", str(daemon.path(BINARY))]
    run(trim, deadline=channel.DEADLINE - 2)
    assert daemon.count() == 22
