# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""How the answers of kexec and reboot read on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from imafs.cli.counted import counted


def show(op: str, answer: Mapping[str, object]) -> bool:
    """Prints the answer to ``op``; False where it is none of these operations."""
    match op:
        case "kexec_load":
            print(f"a segment of {answer.get('segment_size', '-')} bytes is reserved")
        case "kexec_execute" | "kexec_finish" if answer.get("held") is True:
            print("held: suspended until imafs ctl kexec-finish")
        case "kexec_execute" | "kexec_finish":
            print(
                f"{answer.get('profile', '-')} runs, with {answer.get('carried', '-')} of "
                f"{counted(answer.get('records', '-'), 'record')} carried over"
            )
            if answer.get("lost"):
                lost, why = counted(answer["lost"], "record"), answer.get("why")
                print(f"imafs: {lost} in PCRs and in no list: {why}", file=sys.stderr)
        case "kexec_buffer":
            size, records = answer.get("bytes", "-"), answer.get("records", "-")
            print(f"{counted(size, 'byte')}, {counted(records, 'record')}")
        case "reboot":
            print(f"{answer.get('profile', '-')} runs")
        case _:
            return False
    return True


def boot(group: Mapping[str, object]) -> str:
    """The line ``boot`` of the status; ``group`` is the status' own."""
    text = f"number {group.get('number', '-')}"
    if group.get("kexecs"):
        text += f", {counted(group['kexecs'], 'kexec')}, "
        text += f"{counted(group.get('carried', '-'), 'record')} carried over"
    if group.get("lost"):
        text += f", {group['lost']} LOST"
    if group.get("kexec_held"):
        return f"{text}; a kexec is held: imafs ctl kexec-finish"
    return f"{text}; a kernel is loaded for kexec" if group.get("kexec_loaded") else text
