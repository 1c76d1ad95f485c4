# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A TPM that somebody else started, through a TCTI string."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imafs.errors import TpmError
from imafs.formats.algorithms import SHA1, SHA256
from imafs.tpm import Device, ExtendError, ResetUnsupported, open_device, real
from imafs.tpm.swtpm import SwtpmDevice
from imafs.tpm.swtpm_process import reserve_ports
from imafs.tpm.tcti import TctiDevice, TctiLink
from tests.support import ROOT, run, stop, wait_for
from tests.tpm.tools import Call, packed, pcr10, replayed, state_of

pytestmark = pytest.mark.swtpm


@pytest.fixture
def theirs() -> Iterator[SwtpmDevice]:
    own = SwtpmDevice(state_dir=None, banks=[SHA1, SHA256])
    yield own
    own.close()


@pytest.fixture
def device(theirs: SwtpmDevice) -> Iterator[Device]:
    assert theirs.tcti is not None
    opened = open_device(theirs.tcti)
    yield opened
    opened.close()


def test_extends_and_reads(theirs: SwtpmDevice, device: Device) -> None:
    assert (device.kind, device.tcti) == ("tcti", theirs.tcti)
    assert device.banks == theirs.banks
    assert device.environment() == theirs.environment()
    device.extend(packed(device.banks, range(1000)))
    assert pcr10(theirs) == replayed(device.banks, range(1000))
    assert device.read_pcrs(range(24)) == theirs.read_pcrs(range(24))
    device.reconnect()
    assert device.read_pcrs([10]) == theirs.read_pcrs([10])


def test_it_is_not_ours_to_reset_or_to_allocate(theirs: SwtpmDevice, device: Device) -> None:
    assert theirs.tcti is not None
    with pytest.raises(ResetUnsupported, match="not started by imafs") as caught:
        device.reset()
    assert caught.value.errno == errno.EOPNOTSUPP
    with pytest.raises(TpmError, match="has the banks sha1,sha256, not sha256"):
        open_device(theirs.tcti, banks=[SHA256])
    open_device(theirs.tcti, banks=[SHA256, SHA1]).close()


def test_a_tpm_that_was_not_started_is_started(theirs: SwtpmDevice) -> None:
    assert theirs.tcti is not None
    theirs.process.power_cycle()
    opened = open_device(theirs.tcti)
    assert opened.read_pcrs([10])["sha1"][10] == bytes(20)
    opened.close()


def test_other_banks_after_a_reconnect_are_another_tpm(theirs: SwtpmDevice, device: Device) -> None:
    link = theirs._make_link()
    theirs._allocate(link, [SHA256.tpm_id or 0])
    assert [i for i, pcrs in real.allocation(link) if pcrs] == [SHA256.tpm_id]
    with pytest.raises(TpmError, match="another TPM"):
        device.reconnect()


def test_hardware_is_refused_unless_allowed(
    theirs: SwtpmDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert theirs.tcti is not None
    monkeypatch.setattr(real, "_SOFTWARE", set())
    with pytest.raises(TpmError, match=r"'IBM', vendor 'SW   TPM'.*--allow-hardware-tpm"):
        open_device(theirs.tcti)
    open_device(theirs.tcti, allow_hardware=True).close()


def test_a_killed_tpm_is_an_extend_error(theirs: SwtpmDevice, device: Device) -> None:
    os.kill(theirs.process.pid, signal.SIGKILL)
    wait_for(lambda: state_of(theirs.process.pid) == "", 60, "swtpm is gone")
    with pytest.raises(ExtendError) as caught:
        device.extend(packed(device.banks, range(3)))
    assert caught.value.done == 0
    with pytest.raises(TpmError, match="broken"):
        device.read_pcrs([10])
    with pytest.raises(TpmError, match="cannot open the TPM"):
        device.reconnect()
    with pytest.raises(TpmError, match="not connected"):
        device.read_pcrs([10])


def test_a_hung_call_is_abandoned_and_sends_nothing_more(
    theirs: SwtpmDevice, device: Device
) -> None:
    device.extend(packed(device.banks, range(3)))
    stop(theirs.process.pid)
    assert isinstance(device, TctiDevice)
    link = device._link
    assert isinstance(link, TctiLink)
    hung = Call(lambda: device.extend(packed(device.banks, range(3, 100))))
    hung.join(0.2)
    assert not hung.ended()
    # Hangs too (it asks the TPM), and marks the old context as given up first.
    reconnect = Call(device.reconnect)
    wait_for(lambda: link._dropped, 60, "the old one is given up")
    os.kill(theirs.process.pid, signal.SIGCONT)
    wait_for(hung.ended, 60, "the abandoned call ends")
    assert isinstance(hung.error, ExtendError)
    assert "given up" in str(hung.error)
    assert (hung.error.done, hung.error.uncertain) in [(0, True), (1, True)]
    wait_for(reconnect.ended, 60, "the abandoned reconnect ends")
    device.reconnect()
    value = pcr10(theirs)
    reached = 3 if value == replayed(device.banks, range(3)) else 4
    assert value == replayed(device.banks, range(reached))
    device.extend(packed(device.banks, range(reached, 100)))
    assert pcr10(theirs) == replayed(device.banks, range(100))


@pytest.mark.parametrize("spec", ["swtpm:host=127.0.0.1,port=1", "nonsense:x", "nonsense"])
def test_nobody_there_is_one_line(spec: str) -> None:
    code = (
        "import sys\nfrom imafs.errors import TpmError\nfrom imafs.tpm import open_device\n"
        "try:\n    open_device(sys.argv[1])\nexcept TpmError as error:\n    print(error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, spec], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"cannot open the TPM {spec}: ")
    assert (ended.stdout.count("\n"), ended.stderr) == (1, "")


def test_a_tpm_in_failure_mode(tmp_path: Path) -> None:
    """swtpm that cannot write its state: with -d it has changed to /, and its path is relative."""
    (tmp_path / "state").mkdir()
    with ExitStack() as reserved:
        port = reserve_ports(reserved)
        run(
            [
                *("swtpm", "socket", "--tpm2", "--tpmstate", "dir=state", "-d"),
                *("--server", f"type=tcp,port={port}", "--ctrl", f"type=tcp,port={port + 1}"),
                *("--flags", "not-need-init,startup-clear", "--pid", f"file={tmp_path}/pid"),
            ],
            cwd=tmp_path,
        )
    try:
        for hardware in (False, True):
            with pytest.raises(TpmError, match=r"the TPM is in failure mode \(0x101\)"):
                open_device(f"swtpm:host=127.0.0.1,port={port}", allow_hardware=hardware)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
