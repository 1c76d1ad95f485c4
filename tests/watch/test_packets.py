# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Packets of any size between watcher and listener, whatever the send buffer is."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from imafs.errors import FormatError
from imafs.sources.watch import packets
from imafs.sources.watch.packets import Channel

SIZES = (1, 4096, 100_000, 200 << 10, 300 << 10, 600 << 10, 1536 << 10, 20 << 20)


@pytest.fixture(params=[4608, 212_992])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Channel, Channel]]:
    """With the smallest send buffer that Linux gives, and with its default one."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, request.param // 2)
    one, other = map(Channel, ends)
    yield one, other
    one.close()
    other.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", SIZES)
def test_a_packet_of_any_size(pair: tuple[Channel, Channel], size: int) -> None:
    one, other = pair
    before = descriptors()
    packet = b"[" + os.urandom(size - 1)
    assert one.send(packet)
    assert other.receive() == packet
    assert other.receive() is None
    assert descriptors() == before


def test_in_their_order(pair: tuple[Channel, Channel]) -> None:
    """A long one is not overtaken."""
    one, other = pair
    packets = [b"[%d" % number + b" " * size for number, size in enumerate((9, 1 << 20, 9))]
    for packet in packets:
        assert one.send(packet)
    assert [other.receive() for _ in packets] == packets


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_no_room(pair: tuple[Channel, Channel], size: int) -> None:
    one, other = pair
    sent = 0
    while one.send(b"[" * size):
        sent += 1
    assert sent
    assert other.receive() == b"[" * size


def test_the_other_end_is_gone(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    other.close()
    assert one.receive() == b""
    for packet in (b"[]", b"[" * (1 << 20)):
        with pytest.raises(ConnectionError):
            one.send(packet)


def test_no_descriptor_is_left(pair: tuple[Channel, Channel]) -> None:
    """Said, not taken for an empty message."""
    one, other = pair
    assert one.send(b"[" * (1 << 20))
    with full_table(), pytest.raises(FormatError, match="no descriptor is left"):
        other.receive()


@contextmanager
def full_table() -> Iterator[None]:
    """No more descriptors for this process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_nonsense(pair: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair
    assert one.send(b"+")
    with pytest.raises(FormatError, match="without its content"):
        other.receive()
    monkeypatch.setattr(packets, "MOST", 1 << 16)
    assert one.send(b"[" * (1 << 17))
    with pytest.raises(FormatError, match="a packet of 131072 bytes"):
        other.receive()
