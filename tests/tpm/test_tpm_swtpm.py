# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Our own swtpm, in good health: extends, banks, other clients, state."""

from __future__ import annotations

import os
import re
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imafs.errors import TpmError, UsageError
from imafs.formats.algorithms import by_name
from imafs.tpm import ExtendError, commands, open_device, swtpm_process
from imafs.tpm.swtpm import SwtpmDevice
from tests.support import require, run, wait_for
from tests.tpm.tools import packed, pcr10, replayed, state_of

pytestmark = pytest.mark.swtpm

FOUR = ["sha1", "sha256", "sha384", "sha512"]
Opener = Callable[..., SwtpmDevice]


@pytest.fixture
def own() -> Iterator[Opener]:
    devices: list[SwtpmDevice] = []

    def opener(*banks: str, state_dir: Path | None = None) -> SwtpmDevice:
        chosen = [by_name(name) for name in banks] or None
        devices.append(SwtpmDevice(state_dir=state_dir, banks=chosen))
        return devices[-1]

    yield opener
    for device in devices:
        device.close()


@pytest.mark.parametrize("banks", [["sha256"], ["sha1", "sha256"], FOUR])
def test_a_thousand_extends_come_to_the_replayed_value(own: Opener, banks: list[str]) -> None:
    device = own(*banks)
    assert [bank.name for bank in device.banks] == banks
    assert device.entry_size == 4 + sum(by_name(name).digest_size for name in banks)
    device.extend(packed(device.banks, range(1000)))
    assert pcr10(device) == replayed(device.banks, range(1000))


def test_a_new_tpm_has_four_banks_in_its_own_order(own: Opener) -> None:
    assert [bank.name for bank in own().banks] == FOUR
    assert [bank.name for bank in own("sha512", "sha1").banks] == ["sha1", "sha512"]


def test_many_pcrs_are_read_in_all_banks(own: Opener) -> None:
    device = own()
    device.extend(packed(device.banks, [1], pcr=9) + packed(device.banks, [2], pcr=14))
    values = device.read_pcrs(range(24))
    assert list(values) == FOUR
    for bank in device.banks:
        assert sorted(values[bank.name]) == list(range(24))
        assert values[bank.name][9] == replayed([bank], [1])[bank.name]
        assert values[bank.name][14] == replayed([bank], [2])[bank.name]
        assert values[bank.name][10] == bytes(bank.digest_size)
    assert device.read_pcrs([]) == {name: {} for name in FOUR}


def test_an_empty_extend_is_nothing(own: Opener) -> None:
    device = own("sha256")
    device.extend(b"")
    assert pcr10(device) == {"sha256": bytes(32)}


def test_a_pcr_that_does_not_exist_is_refused_and_counted(own: Opener) -> None:
    device = own("sha256")
    entries = packed(device.banks, range(3)) + packed(device.banks, [3], pcr=200)
    with pytest.raises(ExtendError, match="TPM_RC_VALUE") as caught:
        device.extend(entries)
    assert (caught.value.done, caught.value.uncertain) == (3, False)
    assert pcr10(device) == replayed(device.banks, range(3))


def test_reset_is_a_reboot(own: Opener) -> None:
    device = own()
    device.extend(packed(device.banks, range(5)))
    device.reset()
    assert pcr10(device) == {bank.name: bytes(bank.digest_size) for bank in device.banks}
    device.extend(packed(device.banks, range(3)))
    assert pcr10(device) == replayed(device.banks, range(3))


def test_others_read_while_we_extend(own: Opener) -> None:
    require("tpm2_pcrread", "tsspcrread")
    device = own("sha1", "sha256")
    stop = threading.Event()
    batches = 0

    def extend() -> None:
        nonlocal batches
        while not stop.is_set():
            device.extend(packed(device.banks, range(1000)))
            batches += 1

    def tpm2() -> str:
        out = run(["tpm2_pcrread", "sha256:10"], env=device.environment()).stdout
        found = re.search(r"0x([0-9A-F]{64})", out)
        assert found, out
        return found[1].lower()

    def ibm() -> str:
        command = ["tsspcrread", "-ha", "10", "-halg", "sha256", "-ns"]
        return run(command, env=device.environment()).stdout.strip().lower()

    thread = threading.Thread(target=extend)
    thread.start()
    try:
        seen = [tpm2(), ibm()]
        wait_for(lambda: tpm2() != seen[0], 60, "somebody extends")
        seen.append(ibm())
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert batches > 0
    assert seen[-1] != seen[0]
    value = pcr10(device)["sha256"]
    assert (
        value == replayed(device.banks, [n for _ in range(batches) for n in range(1000)])["sha256"]
    )
    assert tpm2() == ibm() == value.hex()


def test_two_side_by_side(own: Opener) -> None:
    one, two = own("sha256"), own("sha256")
    one.extend(packed(one.banks, range(10)))
    two.extend(packed(two.banks, range(20)))
    assert one.tcti != two.tcti
    assert pcr10(one) == replayed(one.banks, range(10))
    assert pcr10(two) == replayed(two.banks, range(20))


def test_many_opened_at_once_never_share_a_port(own: Opener) -> None:
    found: list[SwtpmDevice] = []
    threads = [threading.Thread(target=lambda: found.append(own())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({device.process.port for device in found}) == len(threads)
    for device in found:
        device.extend(packed(device.banks, [device.process.port]))
        assert pcr10(device) == replayed(device.banks, [device.process.port])


def test_close_leaves_no_process_no_zombie_and_no_directory(own: Opener) -> None:
    device = own("sha256")
    pid, log = device.process.pid, device.process.log
    assert state_of(pid) in {"S", "R", "D"}
    descriptors = len(os.listdir("/proc/self/fd"))
    device.close()
    assert state_of(pid) == ""
    assert not log.parent.exists()
    assert len(os.listdir("/proc/self/fd")) < descriptors
    device.close()
    with pytest.raises(ExtendError, match="not connected") as caught:
        device.extend(packed(device.banks, [1]))
    assert caught.value.done == 0
    with pytest.raises(TpmError, match="has ended"):
        device.reconnect()


def test_a_state_directory_is_kept_and_its_banks_with_it(own: Opener, tmp_path: Path) -> None:
    require("tpm2_nvdefine", "tpm2_nvreadpublic")
    state = tmp_path / "not-there"
    first = own("sha256", "sha384", state_dir=state)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert (state / "swtpm.pid").read_text().strip() == str(first.process.pid)
    first.extend(packed(first.banks, range(3)))
    run(["tpm2_nvdefine", "0x1500001", "-s", "8"], env=first.environment())
    first.close()
    assert not (state / "swtpm.pid").exists()

    second = own(state_dir=state)
    assert [bank.name for bank in second.banks] == ["sha256", "sha384"]
    assert "0x1500001" in run(["tpm2_nvreadpublic"], env=second.environment()).stdout
    # A new swtpm is a reboot.
    assert pcr10(second) == {"sha256": bytes(32), "sha384": bytes(48)}
    second.close()
    third = own("sha1", state_dir=state)
    assert [bank.name for bank in third.banks] == ["sha1"]


def test_a_kept_state_is_closed_in_an_orderly_way(own: Opener, tmp_path: Path) -> None:
    startup_clear, orderly = 0x201, 1 << 31

    def flags(device: SwtpmDevice) -> int:
        command = commands.build_get_properties(startup_clear, 1)
        return commands.parse_properties(device._make_link().transact(command))[startup_clear]

    first = own("sha256", state_dir=tmp_path)
    first.process.kill()
    first.close()
    second = own(state_dir=tmp_path)
    assert not flags(second) & orderly
    second.close()
    assert flags(own(state_dir=tmp_path)) & orderly


def test_a_state_directory_in_use_is_refused(
    own: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = own("sha256", state_dir=tmp_path)
    monkeypatch.setattr("imafs.tpm.swtpm._LOCK_DEADLINE", 0.1)
    with pytest.raises(TpmError, match=f"in use by swtpm process {first.process.pid}$"):
        own(state_dir=tmp_path)
    first.extend(packed(first.banks, [1]))


def test_a_ruined_state_quotes_the_log_of_swtpm(own: Opener, tmp_path: Path) -> None:
    own("sha256", state_dir=tmp_path).close()
    (tmp_path / "tpm2-00.permall").write_bytes(b"nonsense" * 20)
    with pytest.raises(TpmError, match=r"swtpm did not start( \(exit code 1\))?: .*swtpm"):
        own(state_dir=tmp_path)


def test_a_state_directory_that_cannot_be_one(own: Opener, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TpmError, match="state directory"):
        own(state_dir=tmp_path / "file")
    with pytest.raises(UsageError, match="comma"):
        own(state_dir=tmp_path / "a,b")
    with pytest.raises(UsageError, match=rf"--tpm-state .*: there is no directory {tmp_path}/a;"):
        own(state_dir=tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_a_port_that_is_taken_is_not_used(own: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        taken = foreign.getsockname()[1]
        real = swtpm_process.reserve_ports
        tries = iter([taken, taken - 1])
        monkeypatch.setattr(
            swtpm_process, "reserve_ports", lambda s, _: next(tries, None) or real(s)
        )
        device = own("sha256")
        assert not {device.process.port, device.process.port + 1} & {taken}
        assert next(tries, None) is None
        device.extend(packed(device.banks, [1]))


def test_pairs_are_outside_of_the_range_for_connects_where_there_is_room() -> None:
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    low, high = (int(limit) for limit in limits)
    if low < 20_000:
        pytest.skip("this machine's range for connects leaves no room")
    with ExitStack() as stack:
        ports = [swtpm_process.reserve_ports(stack) for _ in range(50)]
        assert not [port for port in ports if low <= port + 1 and port <= high]
        assert len({*ports, *(port + 1 for port in ports)}) == 100
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", ports[0] + 1))


def test_without_such_a_room_the_kernel_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swtpm_process, "_LOWEST_PORT", 65535)
    with ExitStack() as stack:
        assert swtpm_process.reserve_ports(stack) > 0


def test_listeners_of_another_process_are_told_from_ours(own: Opener) -> None:
    device = own("sha256")
    port = device.process.port
    assert swtpm_process.owns_listeners(device.process.pid, (port, port + 1))
    assert not swtpm_process.owns_listeners(os.getpid(), (port, port + 1))
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        taken = foreign.getsockname()[1]
        assert swtpm_process.owns_listeners(os.getpid(), (taken,))
        assert not swtpm_process.owns_listeners(device.process.pid, (taken,))


def test_a_stranger_who_listens_in_place_of_swtpm_is_not_taken_for_it(
    own: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = tmp_path / "swtpm"
    idle.write_text("#!/bin/sh\necho never listens\nexec sleep 60\n")
    idle.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(swtpm_process, "START_DEADLINE", 0.3)
    with ExitStack() as stack:
        port = swtpm_process.reserve_ports(stack)
        monkeypatch.setattr(swtpm_process, "reserve_ports", lambda *_: port)
        for number in (port, port + 1):
            # SO_REUSEADDR, as the reservation is still there.
            stack.enter_context(socket.create_server(("127.0.0.1", number)))
        with pytest.raises(TpmError, match=r"did not listen within 0.3 s: never listens$"):
            own()


def test_swtpm_has_a_session_of_its_own_and_keeps_the_lock(own: Opener) -> None:
    device = own("sha256")
    assert os.getsid(device.process.pid) == device.process.pid
    descriptors = Path(f"/proc/{device.process.pid}/fd").iterdir()
    assert "imafs.lock" in {Path(os.readlink(entry)).name for entry in descriptors}


@pytest.mark.parametrize("tool", ["swtpm", "setpriv"])
def test_a_missing_program_names_its_package(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tool == "swtpm":
        (tmp_path / "setpriv").symlink_to("/usr/bin/setpriv")
    monkeypatch.setenv("PATH", str(tmp_path))
    package = {"swtpm": "swtpm", "setpriv": "util-linux"}[tool]
    with pytest.raises(TpmError, match=f"^{tool} is not installed: apt-get install {package}$"):
        open_device("swtpm")


def test_the_control_channel_and_others_stay_usable_after_many_resets(own: Opener) -> None:
    device = own("sha256")
    for number in range(20):
        device.extend(packed(device.banks, [number]))
        device.reset()
    wait_for(lambda: pcr10(device) == {"sha256": bytes(32)}, 60, "PCR 10 is zero")


def test_a_fixed_port_is_free_again_at_once(own: Opener) -> None:
    """As a container that was killed and comes back: clients keep their TCTI."""
    with ExitStack() as stack:
        port = swtpm_process.reserve_ports(stack)
    first = SwtpmDevice(state_dir=None, banks=None, port=port)
    try:
        assert first.tcti == f"swtpm:host=127.0.0.1,port={port}"
        with socket.create_connection(("127.0.0.1", port)):
            # Its end of the connection closes first and stays in TIME_WAIT.
            first.process.kill()
    finally:
        first.close()
    second = SwtpmDevice(state_dir=None, banks=None, port=port)
    try:
        assert second.process.port == port
        with pytest.raises(TpmError, match=f"{port} and {port + 1} on 127.0.0.1 are not free"):
            SwtpmDevice(state_dir=None, banks=None, port=port)
    finally:
        second.close()
