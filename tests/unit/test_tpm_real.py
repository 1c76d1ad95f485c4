# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Extends, reads and retries over a TPM that is a script: errors no swtpm makes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from imafs.errors import TpmError, UsageError
from imafs.formats.algorithms import SHA1, Bank, bank_for, by_name
from imafs.tpm import ExtendError, ExtendRefused, commands, open_device, quoting, real
from imafs.tpm.environment import client_environment
from imafs.tpm.real import Identity, LinkedDevice

Answer = Callable[[bytes], bytes]


class ScriptedLink:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.sent: list[bytes] = []
        self.dropped = False
        self.holds = 0

    def transact(self, command: bytes | bytearray) -> bytes:
        self.sent.append(bytes(command))
        return self.answer(bytes(command))

    @contextmanager
    def hold(self) -> Iterator[None]:
        self.holds += 1
        yield

    def drop(self) -> None:
        self.dropped = True


class ScriptedDevice(LinkedDevice):
    kind = "scripted"

    def __init__(self, answer: Answer, banks: tuple[Bank, ...]) -> None:
        super().__init__("scripted:")
        self.links: list[ScriptedLink] = []
        self.answer = answer
        self._set_banks(banks)
        self._replace_link()

    def _make_link(self) -> ScriptedLink:
        self.links.append(ScriptedLink(self.answer))
        return self.links[-1]


def response(code: int = 0, body: bytes = b"") -> bytes:
    return struct.pack(">HII", 0x8001, 10 + len(body), code) + body


def entries(count: int) -> bytes:
    return b"".join((10).to_bytes(4, "little") + bytes([n]) * 20 for n in range(count))


SHA1_ONLY = (bank_for(SHA1),)


def test_extend_error_counts_what_certainly_arrived() -> None:
    answers = iter([response(), response(), response(0x101)])
    device = ScriptedDevice(lambda _: next(answers), SHA1_ONLY)
    with pytest.raises(ExtendRefused, match="TPM_RC_FAILURE") as caught:
        device.extend(entries(5))
    assert (caught.value.done, caught.value.uncertain) == (2, False)


def test_a_tpm_that_was_reset_has_refused_nothing() -> None:
    """It is started again, and where its PCRs stand is looked at."""
    device = ScriptedDevice(lambda _: response(commands.RC_INITIALIZE), SHA1_ONLY)
    with pytest.raises(ExtendError, match="TPM_RC_INITIALIZE") as caught:
        device.extend(entries(5))
    assert not isinstance(caught.value, ExtendRefused)


def test_extend_error_is_uncertain_where_no_answer_came() -> None:
    answers = iter([response(), b""])
    device = ScriptedDevice(lambda _: next(answers), SHA1_ONLY)
    with pytest.raises(ExtendError) as caught:
        device.extend(memoryview(entries(5)))
    assert (caught.value.done, caught.value.uncertain) == (1, True)


@pytest.mark.parametrize("code", sorted(commands.RETRYABLE))
def test_warnings_are_tried_again_until_they_pass(code: int) -> None:
    answers = iter([response(code), response(code), response(code), response()])
    device = ScriptedDevice(lambda _: next(answers), SHA1_ONLY)
    device.extend(entries(1))
    assert len(set(device.links[0].sent)) == 1
    assert len(device.links[0].sent) == 4


def test_a_warning_for_ever_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "_RETRY_LAST", 0.004)
    device = ScriptedDevice(lambda _: response(commands.RC_RETRY), SHA1_ONLY)
    with pytest.raises(ExtendError, match="TPM_RC_RETRY") as caught:
        device.extend(entries(1))
    assert caught.value.done == 0
    assert len(device.links[0].sent) < 10


def test_the_connection_is_given_back_after_each_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    device = ScriptedDevice(lambda _: response(), SHA1_ONLY)
    monkeypatch.setattr(real, "BURST", 3600)
    device.extend(entries(5))
    assert device.links[0].holds == 1
    monkeypatch.setattr(real, "BURST", 0)
    device.extend(entries(5))
    assert device.links[0].holds == 1 + 5
    assert len(device.links[0].sent) == 10


def test_extends_end_when_their_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def slow(_: bytes) -> bytes:
        clock[0] += 0.04
        return response()

    monkeypatch.setattr("imafs.tpm.real.time.monotonic", lambda: clock[0])
    device = ScriptedDevice(slow, SHA1_ONLY)
    assert device.extend(entries(100), longest=1.0) == 25
    assert device.extend(entries(100), longest=0.0) == 1
    assert device.extend(entries(100)) == 100
    assert device.extend(b"", longest=0.0) == 0
    assert len(device.links[0].sent) == 126


def test_half_an_entry_is_refused_before_anything_is_sent() -> None:
    device = ScriptedDevice(lambda _: response(), SHA1_ONLY)
    with pytest.raises(ValueError, match="no whole number"):
        device.extend(entries(2)[:-1])
    assert device.links[0].sent == []


def pcr_answer(counter: int, pcrs: dict[int, bytes]) -> bytes:
    bits = sum(1 << n for n in pcrs).to_bytes(3, "little")
    body = struct.pack(">II", counter, 1) + b"\0\x04\3" + bits + struct.pack(">I", len(pcrs))
    for n in sorted(pcrs):
        body += struct.pack(">H", 20) + pcrs[n]
    return response(0, body)


def test_reads_begin_anew_when_an_extend_came_between_two_answers() -> None:
    old, new = b"\1" * 20, b"\2" * 20
    answers = iter(
        [
            pcr_answer(1, {1: old}),
            pcr_answer(2, {2: new}),  # somebody extended in between
            pcr_answer(2, {1: new}),
            pcr_answer(2, {2: new}),
        ]
    )
    device = ScriptedDevice(lambda _: next(answers), SHA1_ONLY)
    assert device.read_pcrs([1, 2]) == {"sha1": {1: new, 2: new}}


def test_reads_give_up_on_a_tpm_that_never_stands_still() -> None:
    count = iter(range(10_000))

    def answer(command: bytes) -> bytes:
        wanted = int.from_bytes(command[-3:], "little")
        pcr = (wanted & -wanted).bit_length() - 1
        return pcr_answer(next(count), {pcr: bytes(20)})

    device = ScriptedDevice(answer, SHA1_ONLY)
    with pytest.raises(TpmError, match="faster than they can be read"):
        device.read_pcrs([1, 2])


def test_a_pcr_that_the_tpm_lacks_is_an_error() -> None:
    device = ScriptedDevice(lambda _: pcr_answer(1, {}), SHA1_ONLY)
    with pytest.raises(TpmError, match="no PCR 3 in the bank 0x4"):
        device.read_pcrs([3])
    with pytest.raises(ValueError, match="PCR 24"):
        device.read_pcrs([24])


def test_a_tpm_that_answers_with_other_pcrs_for_ever_is_an_error() -> None:
    asked = 0

    def answer(_: bytes) -> bytes:
        nonlocal asked
        asked += 1
        assert asked < 100, "it is asked for ever"
        return pcr_answer(1, {5: bytes(20)})

    device = ScriptedDevice(answer, SHA1_ONLY)
    with pytest.raises(TpmError, match="no PCR 3 in the bank 0x4"):
        device.read_pcrs([3])


def test_a_value_of_another_size_is_an_error() -> None:
    def answer(_: bytes) -> bytes:
        body = struct.pack(">II", 1, 1) + b"\0\x04\3\x08\0\0" + struct.pack(">IH", 1, 3) + bytes(3)
        return response(0, body)

    device = ScriptedDevice(answer, SHA1_ONLY)
    with pytest.raises(TpmError, match="3 bytes in PCR 3 of the bank sha1"):
        device.read_pcrs([3])


@pytest.mark.parametrize(
    ("selected", "digests", "why"),
    [(5, 1, "no PCR 3 in the bank 0x4"), (3, 2, "2 digests for 1 PCRs"), (3, 0, "0 digests")],
)
def test_a_quote_of_a_tpm_that_answers_anything(selected: int, digests: int, why: str) -> None:
    """Through tpm2-tss, which checks its structures and not what is in them."""
    asked = 0

    class Esapi:
        def pcr_read(self, _: object) -> tuple[int, list[SimpleNamespace], list[bytes]]:
            nonlocal asked
            asked += 1
            assert asked < 100, "it is asked for ever"
            row = SimpleNamespace(hash=4, sizeofSelect=3, pcrSelect=[1 << selected, 0, 0])
            return 1, [row], [bytes(20)] * digests

    with pytest.raises(TpmError, match=why):
        quoting._Tpm(Esapi())._read([(4, [3])])


def test_banks_without_a_kernel_hash_take_their_size_from_the_tpm() -> None:
    def answer(command: bytes) -> bytes:
        if command == commands.build_get_pcr_banks():
            body = b"\0" + struct.pack(">II", 5, 3)
            body += b"\0\x0b\3\0\0\0" + b"\0\x27\3\xff\xff\xff" + b"\0\x04\3\xff\xff\xff"
            return response(0, body)
        body = struct.pack(">II", 1, 1) + b"\0\x27\3\1\0\0" + struct.pack(">IH", 1, 32) + bytes(32)
        return response(0, body)

    banks = real.read_banks(ScriptedLink(answer))
    assert [(b.name, b.digest_size, b.is_padded) for b in banks] == [
        ("tpm_alg_27", 32, True),
        ("sha1", 20, False),
    ]


def test_an_abandoned_reconnect_does_not_replace_a_newer_link() -> None:
    overtaken: list[ScriptedLink] = []

    class Hanging(ScriptedDevice):
        def _make_link(self) -> ScriptedLink:
            link = super()._make_link()
            if len(self.links) == 2:  # while this one hangs, another thread reconnects
                overtaken.append(link)
                self._replace_link()
            return link

    device = Hanging(lambda _: response(), SHA1_ONLY)
    with pytest.raises(TpmError, match="given up"):
        device._replace_link()
    assert overtaken[0].dropped
    device.extend(entries(1))
    assert len(device.links[2].sent) == 1


@pytest.mark.parametrize(
    ("identity", "software"),
    [
        (Identity("IBM", "SW   TPM"), True),
        (Identity("MSFT", "xCG fTPM"), True),
        (Identity("INTC", "Intel"), False),
        (Identity("IFX", "SLB9670"), False),
        (Identity("MSFT", "Hyper-V"), False),
        (Identity("", ""), False),
    ],
)
def test_what_counts_as_software(identity: Identity, software: bool) -> None:
    assert identity.is_software is software


def test_no_tpm() -> None:
    device = open_device("none")
    assert (device.kind, device.tcti, device.banks, device.entry_size) == ("none", None, (), 4)
    device.extend(b"anything")
    assert device.read_pcrs([10]) == {}
    assert device.environment() == {}
    device.reset()
    device.reconnect()
    device.close()
    with pytest.raises(UsageError, match="no PCR banks"):
        open_device("none", banks=[SHA1])


@pytest.mark.parametrize("spec", ["", ":port=1"])
def test_no_spec(spec: str) -> None:
    with pytest.raises(UsageError, match="TCTI string"):
        open_device(spec)


def test_a_bank_that_no_tpm_has_is_refused() -> None:
    with pytest.raises(UsageError, match="md5"):
        open_device("swtpm", banks=[by_name("md5")])
    with pytest.raises(UsageError, match="at least one"):
        open_device("swtpm", banks=[])


@pytest.mark.parametrize(
    ("tcti", "expected"),
    [
        (
            "swtpm:host=h,port=7",
            {
                "TPM_INTERFACE_TYPE": "socsim",
                "TPM_SERVER_TYPE": "raw",
                "TPM_SERVER_NAME": "h",
                "TPM_COMMAND_PORT": "7",
                "TPM_PLATFORM_PORT": "8",
            },
        ),
        (
            "mssim",
            {
                "TPM_INTERFACE_TYPE": "socsim",
                "TPM_SERVER_TYPE": "mssim",
                "TPM_SERVER_NAME": "localhost",
                "TPM_COMMAND_PORT": "2321",
                "TPM_PLATFORM_PORT": "2322",
            },
        ),
        ("swtpm:path=/run/s", {}),
        ("device:/dev/tpmrm0", {"TPM_INTERFACE_TYPE": "dev", "TPM_DEVICE": "/dev/tpmrm0"}),
        ("tabrmd", {}),
    ],
)
def test_environment_for_other_clients(tcti: str, expected: dict[str, str]) -> None:
    assert client_environment(tcti) == {"TPM2TOOLS_TCTI": tcti, "TCTI": tcti} | expected


@pytest.mark.parametrize("code", [0x101, 0x904, 0x921, 0x143])
@pytest.mark.parametrize("after_startup", [False, True])
def test_a_tpm_that_cannot_start_says_why(code: int, after_startup: bool) -> None:
    """Whoever made it: in failure mode that is the only thing that a TPM still answers."""
    answers = iter([commands.RC_INITIALIZE, 0, code] if after_startup else [code])
    with pytest.raises(TpmError, match=f"{code:#x}"):
        real.ensure_started(ScriptedLink(lambda command: response(next(answers))))
