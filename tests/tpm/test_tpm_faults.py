# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A TPM that dies, hangs or is replaced by a stranger; a daemon that is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imafs.errors import TpmError
from imafs.formats.algorithms import SHA256
from imafs.tpm import ExtendError, commands
from imafs.tpm.link import SocketLink
from imafs.tpm.swtpm import SwtpmDevice
from tests.support import ROOT, stop, wait_for
from tests.tpm.tools import Call, packed, pcr10, replayed, state_of

pytestmark = pytest.mark.swtpm


@pytest.fixture
def device() -> Iterator[SwtpmDevice]:
    own = SwtpmDevice(state_dir=None, banks=[SHA256])
    yield own
    own.close()


def endless(device: SwtpmDevice, failures: list[ExtendError], counted: list[int]) -> None:
    entries = packed(device.banks, range(500))
    while not failures:
        try:
            device.extend(entries)
            counted.append(500)
        except ExtendError as error:
            counted.append(error.done)
            failures.append(error)


def test_a_killed_swtpm_is_an_extend_error_at_once(device: SwtpmDevice) -> None:
    failures: list[ExtendError] = []
    counted: list[int] = []
    thread = threading.Thread(target=endless, args=(device, failures, counted))
    thread.start()
    wait_for(lambda: counted, 60, "extends go on")
    os.kill(device.process.pid, signal.SIGKILL)
    thread.join(60)
    assert not thread.is_alive()
    assert "swtpm has ended (killed by SIGKILL)" in str(failures[0])
    assert 0 <= failures[0].done < 500
    assert state_of(device.process.pid) == "", "a zombie is left"
    with pytest.raises(TpmError, match=r"swtpm has ended \(killed by SIGKILL\)"):
        device.reconnect()
    with pytest.raises(TpmError):
        device.read_pcrs([10])
    with pytest.raises(TpmError):
        device.reset()


def test_a_stranger_on_the_port_of_a_dead_swtpm_is_not_taken_for_it(device: SwtpmDevice) -> None:
    os.kill(device.process.pid, signal.SIGKILL)
    wait_for(lambda: state_of(device.process.pid) == "", 60, "swtpm is gone")
    yes = bytes.fromhex("80010000000a00000000")

    def answer(server: socket.socket) -> None:
        while True:
            try:
                with server.accept()[0] as client:
                    while client.recv(4096):
                        client.sendall(yes)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", device.process.port)) as stranger:
        thread = threading.Thread(target=answer, args=(stranger,))
        thread.start()
        try:
            with pytest.raises(ExtendError, match="swtpm has ended") as caught:
                device.extend(packed(device.banks, [1]))
            assert caught.value.done == 0
        finally:
            stranger.shutdown(socket.SHUT_RDWR)
            thread.join(60)


def test_a_hung_call_is_abandoned_and_sends_nothing_more(device: SwtpmDevice) -> None:
    device.extend(packed(device.banks, range(3)))
    stop(device.process.pid)
    hung = Call(lambda: device.extend(packed(device.banks, range(3, 100))))
    # Its command lies in the socket of the stopped swtpm.
    hung.join(0.2)
    assert not hung.ended()
    # A reconnect hangs as well, and is abandoned as well; the first call is freed by it.
    reconnect = Call(device.reconnect)
    wait_for(hung.ended, 60, "the abandoned call ends")
    assert isinstance(hung.error, ExtendError)
    assert (hung.error.done, hung.error.uncertain) == (0, True)
    os.kill(device.process.pid, signal.SIGCONT)
    device.reconnect()
    wait_for(reconnect.ended, 60, "the abandoned reconnect ends")
    # At most the one command that was under way has been carried out.
    value = pcr10(device)
    assert value in [replayed(device.banks, range(n)) for n in (3, 4)]
    reached = 3 if value == replayed(device.banks, range(3)) else 4
    device.extend(packed(device.banks, range(reached, 100)))
    assert pcr10(device) == replayed(device.banks, range(100))


def test_a_stopped_swtpm_is_closed_all_the_same(device: SwtpmDevice) -> None:
    stop(device.process.pid)
    device.close()
    assert state_of(device.process.pid) == ""


def test_a_client_that_holds_the_connection_delays_but_harms_nothing(device: SwtpmDevice) -> None:
    with socket.create_connection(("127.0.0.1", device.process.port)) as holder:
        # An answer shows that swtpm serves this client now.
        holder.sendall(bytes.fromhex("8001000000160000017a000000050000000000000001"))
        assert holder.recv(4096)
        waiting = Call(lambda: device.extend(packed(device.banks, range(50))))
        waiting.join(0.1)
        assert not waiting.ended()
    wait_for(waiting.ended, 60, "the extends end")
    assert waiting.error is None
    assert pcr10(device) == replayed(device.banks, range(50))


def test_connects_ignored_for_a_full_backlog_are_tried_again(device: SwtpmDevice) -> None:
    # swtpm listens with a backlog of one; the kernel's own next SYN would be a second away.
    address = ("127.0.0.1", device.process.port)
    clients = [socket.socket() for _ in range(4)]
    try:
        for client in clients:
            client.setblocking(False)
            client.connect_ex(address)
        waiting = Call(lambda: device.extend(packed(device.banks, range(50))))
        waiting.join(0.1)
        assert not waiting.ended()
    finally:
        for client in clients:
            client.close()
    wait_for(waiting.ended, 60, "the extends end")
    assert waiting.error is None
    assert pcr10(device) == replayed(device.banks, range(50))


def test_a_full_backlog_is_no_hang_where_there_is_a_deadline(device: SwtpmDevice) -> None:
    address = ("127.0.0.1", device.process.port)
    stop(device.process.pid)
    clients = [socket.socket() for _ in range(4)]
    try:
        for client in clients:
            client.setblocking(False)
            client.connect_ex(address)
        link = SocketLink(device.process.port, device.process.verify, timeout=0.3)
        with pytest.raises(TpmError, match="swtpm: timed out"):
            link.transact(commands.build_get_pcr_banks())
    finally:
        for client in clients:
            client.close()
        os.kill(device.process.pid, signal.SIGCONT)


CHILD = """
import os, sys, threading
from pathlib import Path
from imafs.tpm import open_device
opened = []
# From a thread that ends at once: swtpm must outlive it, and die with the process.
state = Path(sys.argv[1])
thread = threading.Thread(target=lambda: opened.append(open_device("swtpm", state_dir=state)))
thread.start(); thread.join()
opened[0].read_pcrs([10])
print(opened[0].process.pid, flush=True)
{then}
"""


@pytest.mark.parametrize(
    "then",
    ["sys.stdin.read()", "os._exit(0)", "pass", "os.abort()"],
    ids=["SIGKILL", "_exit", "end", "abort"],
)
def test_swtpm_dies_with_the_daemon_however_that_ends(tmp_path: Path, then: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD.format(then=then), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    ) as child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        if then.startswith("sys"):
            assert state_of(pid) in {"R", "S", "D"}
            child.kill()
        child.wait(60)
    wait_for(lambda: state_of(pid) in {"", "Z"}, 60, "swtpm is gone")
    # The pid file of the killed one stands in nobody's way.
    again = SwtpmDevice(state_dir=tmp_path, banks=None)
    try:
        assert set(pcr10(again)) == {"sha1", "sha256", "sha384", "sha512"}
    finally:
        again.close()
