# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""TPM commands as bytes, without a TPM."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imafs.errors import TpmError
from imafs.tpm import commands

BANKS = [(0x4, 20), (0xB, 32), (0xC, 48), (0xD, 64)]


def response(code: int, body: bytes = b"") -> bytes:
    return struct.pack(">HII", 0x8001, 10 + len(body), code) + body


def test_extend_has_the_layout_of_the_specification() -> None:
    command = commands.build_extend(10, [(0xB, b"\x11" * 32)])
    assert command.hex() == (
        "80020000004100000182" + "0000000a" + "00000009" + "400000090000000000"
        "00000001" + "000b" + "11" * 32
    )


@given(
    pcr=st.integers(0, 0xFFFFFFFF),
    layout=st.lists(st.sampled_from(BANKS), min_size=1, max_size=4, unique=True),
    data=st.data(),
)
def test_template_fills_in_what_build_extend_builds(
    pcr: int, layout: list[tuple[int, int]], data: st.DataObject
) -> None:
    digests = [data.draw(st.binary(min_size=size, max_size=size)) for _, size in layout]
    template = commands.ExtendTemplate(layout)
    other = b"\xee" * template.entry_size
    packed = other + pcr.to_bytes(4, "little") + b"".join(digests)
    template.fill(memoryview(packed), 0)
    filled = template.fill(memoryview(packed), template.entry_size)
    expected = commands.build_extend(
        pcr, [(tpm_id, d) for (tpm_id, _), d in zip(layout, digests, strict=True)]
    )
    assert bytes(filled) == expected


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0x100, "TPM_RC_INITIALIZE (0x100)"),
        (0x922, "TPM_RC_RETRY (0x922)"),
        (0x1C4, "TPM_RC_VALUE (0x1c4, parameter 1)"),
        (0x184, "TPM_RC_VALUE (0x184, handle 1)"),
        (0x98E, "TPM_RC_AUTH_FAIL (0x98e, session 1)"),
        (0x5551234, "TPM_RC (0x5551234)"),
    ],
)
def test_rc_names(code: int, text: str) -> None:
    assert commands.rc_name(code) == text
    with pytest.raises(TpmError, match="TPM2_X: the TPM answered TPM_RC"):
        commands.check(response(code), "TPM2_X")


def test_pcr_banks() -> None:
    body = b"\0" + struct.pack(">II", 5, 2) + b"\0\x04\3\0\0\0" + b"\0\x0b\3\1\4\x80"
    assert commands.parse_pcr_banks(response(0, body)) == [(4, []), (0xB, [0, 10, 23])]


def test_pcr_read() -> None:
    body = struct.pack(">II", 7, 1) + b"\0\x04\3\0\4\0" + struct.pack(">IH", 1, 20) + b"\x22" * 20
    assert commands.parse_pcr_read(response(0, body)) == (7, {(4, 10): b"\x22" * 20})


@given(cut=st.integers(0, 50))
def test_no_cut_response_is_taken_for_a_whole_one(cut: int) -> None:
    body = struct.pack(">II", 7, 1) + b"\0\x04\3\0\4\0" + struct.pack(">IH", 1, 20) + b"\x22" * 20
    whole = response(0, body)
    short = whole[: min(cut, len(whole) - 1)]
    with pytest.raises(TpmError):
        commands.parse_pcr_read(short)
    if len(short) >= 10:
        # The same with a size that claims to be right.
        lying = short[:2] + len(short).to_bytes(4, "big") + short[6:]
        with pytest.raises(TpmError):
            commands.parse_pcr_read(lying)


@given(body=st.binary(max_size=80))
def test_nonsense_is_a_tpm_error_and_nothing_else(body: bytes) -> None:
    for parse in (commands.parse_pcr_read, commands.parse_pcr_banks, commands.parse_properties):
        try:
            parse(response(0, body))
        except TpmError:
            continue


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0x101, r"the TPM is in failure mode \(0x101\): nothing but a reset helps"),
        (0x130, r"the TPM wants to be reset before it goes on \(0x130\)"),
        (0x902, r"the TPM has no memory left for objects \(0x902\): flush"),
        (0x921, r"the TPM is locked after too many wrong passwords \(0x921\)"),
        (0xB0904, r"the TPM has no memory left \(0xb0904\)"),
        (0x12D, r"the TPM waits for a firmware upgrade \(0x12d\)"),
    ],
)
def test_a_code_of_the_tpms_state_is_told_as_such(code: int, said: str) -> None:
    with pytest.raises(TpmError, match=f"TPM2_X: {said}"):
        commands.check(response(code), "TPM2_X")


def test_a_tpm_1_2_is_told_as_such() -> None:
    with pytest.raises(TpmError, match=r"this is a TPM 1.2 \(0x1e\)"):
        commands.check(struct.pack(">HII", 0xC4, 10, 0x1E), "TPM2_X")


def test_what_was_left_in_a_tpm_is_asked_for_and_flushed() -> None:
    asked = commands.build_get_handles(commands.TRANSIENT_FIRST)
    assert asked.hex() == "8001000000160000017a" + "00000001" + "80000000" + "000000fe"
    assert commands.build_flush_context(0x80000001).hex() == "80010000000e00000165" + "80000001"
    body = struct.pack(">BIIII", 0, 1, 2, 0x80000000, 0x80000001)
    assert commands.parse_handles(response(0, body)) == (0x80000000, 0x80000001)
    assert commands.parse_handles(response(0, struct.pack(">BII", 0, 1, 0))) == ()
    for count in (3, 1 << 32 - 1):
        cut = struct.pack(">BIII", 0, 1, count % (1 << 32), 0x80000000)
        with pytest.raises(TpmError, match="cut short"):
            commands.parse_handles(response(0, cut))
