# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""How the answers of kexec and reboot read on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from imafs.cli.counted import counted
from imafs.text import shown


def show(op: str, answer: Mapping[str, object]) -> bool:
    """Prints the answer to ``op``; False where it is none of these operations."""
    match op:
        case "kexec_load":
            _say(f"a segment of {answer.get('segment_size', '-')} bytes is reserved")
        case "kexec_execute" | "kexec_finish" if answer.get("held") is True:
            print("held: suspended until imafs ctl kexec-finish")
        case "kexec_execute" | "kexec_finish":
            _say(
                f"{answer.get('profile', '-')} runs, with {answer.get('carried', '-')} of "
                f"{counted(answer.get('records', '-'), 'record')} carried over"
            )
            if answer.get("lost"):
                lost, why = counted(answer["lost"], "record"), answer.get("why")
                print(shown(f"imafs: {lost} in PCRs and in no list: {why}"), file=sys.stderr)
        case "kexec_buffer":
            size, records = answer.get("bytes", "-"), answer.get("records", "-")
            _say(f"{counted(size, 'byte')}, {counted(records, 'record')}")
        case "reboot":
            _say(f"{answer.get('profile', '-')} runs")
        case _:
            return False
    return True


def _say(line: str) -> None:
    """What a daemon answered, whatever is in it."""
    print(shown(line))


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
