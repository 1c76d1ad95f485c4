# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Audit records: the text that Linux 7.2.13 logged, and a file that may fail."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path

import pytest
import trio

from imafs.emulator import audit_log
from imafs.emulator.audit_log import Audit, open_log
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.emulator import Emulator
from imafs.emulator.policy_writer import PolicyWriter
from imafs.errors import Refused, UsageError
from imafs.host.ratelimit import BURST
from imafs.kernel.audit import File, Task, message
from imafs.kernel.policy.language import Words
from imafs.kernel.policy.policy_file import PolicyConfig
from tests.support import ExpectedLogs
from tests.unit.emulator_fake import DEADLINE, FakeDevice, until

ROWS = [json.loads(line) for line in Path("tests/data/audit-7.2.13.jsonl").read_text().splitlines()]
WRITES = [row for row in ROWS if "written" in row]
VIOLATIONS = [row["violation"] for row in ROWS if "violation" in row]
#: Who wrote the rules there.
SHELL = Task(40, 0, b"sh")
#: That kernel's, without LSMs, modsig and keys.
CONFIG = PolicyConfig(words=Words(lsm=False, modsig=False, keys=False))
LINE = re.compile(r"audit: type=(\d+) audit\(\d+\.\d{3}:(\d+)\): (.*)")


async def written(path: Path, count: int) -> list[tuple[int, str]]:
    """Type and text of the file's lines, once there are ``count``."""
    await until(lambda: path.read_text().count("\n") >= count)
    found = [LINE.fullmatch(line) for line in path.read_text().splitlines()]
    assert [int(match[2]) for match in found if match] == list(range(1, len(found) + 1))
    return [(int(match[1]), match[3]) for match in found if match]


async def test_policies_are_audited_as_a_kernel_does(tmp_path: Path) -> None:
    """In the name of who writes; what the last close says, in that of who closes."""
    path = tmp_path / "audit"
    log = Audit()
    emulator = Emulator(EmulatorConfig(policy_config=CONFIG), FakeDevice(), log)
    first = PolicyWriter(emulator)  # that kernel had a custom policy already
    await first.write(b"measure fowner=1\n", 0)
    first.close()
    log.begin(open_log(str(path), "--audit-log"))
    # A byte that is no text is shown as /dev/kmsg shows it.
    expected = [
        (kind, text.replace("\xff", r"\xff")) for row in WRITES for kind, text in row["audit"]
    ]
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            closer: tuple[Task, ...] = ()
            for row in WRITES:
                writer = PolicyWriter(emulator)
                data = row["written"].encode("latin-1")
                at = 0
                while at < len(data):
                    try:
                        at += await writer.write(data[at:], 0, SHELL)
                    except Refused:
                        break
                writer.close(*closer)
                closer = (SHELL,) if not closer else ()  # a RELEASE without FLUSH tells none
            found = await written(path, len(expected))
            nursery.cancel_scope.cancel()
    log.close()
    assert found == expected


@pytest.mark.parametrize("text", VIOLATIONS)
def test_violations_are_audited_as_a_kernel_does(text: str) -> None:
    words = dict(word.partition("=")[::2] for word in text.split())

    def raw(word: str) -> bytes:
        return word.strip('"').encode() if word[0] == '"' else bytes.fromhex(word)

    task = Task(int(words["pid"]), int(words["uid"]), raw(words["comm"]))
    file = File(raw(words["name"]), raw(words["dev"]), int(words["ino"]))
    assert message(task, "invalid_pcr", words["cause"], file) == text


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"", '""'), (b"a b", "612062"), (b'"', "22"), (b"\x7f", "7F"), (b"\xc3\xa4", "C3A4")],
)
def test_a_name_forges_no_record(name: bytes, shown: str) -> None:
    assert f" name={shown} res=1" in message(SHELL, "invalid_pcr", "ToMToU", File(name))


async def test_a_full_disk_hurts_nobody(expected_logs: ExpectedLogs) -> None:
    """Said once; what comes once there is room again is written."""
    expected_logs.expect(r"audit log: No space left on device: lines are lost \(1 so far\)")
    log = Audit()
    log.begin(os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC))
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            for number in range(3):
                log.violation("ToMToU", File(b"/v"))
                await until(lambda number=number: log.lost == number + 1)  # type: ignore[misc]
            nursery.cancel_scope.cancel()
    log.close()


class Full:
    """Writes to the disk until ``room`` bytes are used; the call that fills it is a short one."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._write = os.write

    def write(self, descriptor: int, data: bytes) -> int:
        written = self._write(descriptor, data[: self.room]) if self.room else 0
        self.room -= written
        if data and not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    disk = Full(300)  # two lines, and half of a third one
    monkeypatch.setattr("imafs.disk.os.write", disk.write)
    return disk


async def test_a_line_after_a_full_disk_is_whole(
    tmp_path: Path, full: Full, expected_logs: ExpectedLogs
) -> None:
    """The half of one that a full disk left stays alone; how many are lost is told behind it."""
    expected_logs.expect(r"audit log: No space left on device: lines are lost \(1 so far\)")
    path = tmp_path / "audit"
    log = Audit()
    log.begin(open_log(str(path), "--audit-log"))
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            for _ in range(3):
                log.violation("ToMToU", File(b"/v"), SHELL)
            await until(lambda: log.lost == 1)
            full.room = 10**6
            log.violation("ToMToU", File(b"/after"), SHELL)
            await until(lambda: "/after" in path.read_text())
            # Written behind it: by then it is known that how many were lost has been told.
            log.violation("ToMToU", File(b"/last"), SHELL)
            await until(lambda: "/last" in path.read_text())
            nursery.cancel_scope.cancel()
    log.close()
    first, second, half, told, after, _ = path.read_text().splitlines()
    assert all(map(LINE.fullmatch, (first, second)))
    assert first.replace(":1): ", ":3): ")[40:].startswith(half[40:])
    assert told == f"audit: audit_lost=1 audit_rate_limit=0 audit_backlog_limit={audit_log.BACKLOG}"
    assert (LINE.fullmatch(after) or "")[2] == "4"


async def test_what_is_lost_at_the_end_is_told(
    tmp_path: Path, full: Full, expected_logs: ExpectedLogs
) -> None:
    expected_logs.expect(r"audit log: No space left on device: lines are lost \(2 so far\)")
    log = Audit()
    log.begin(open_log(str(tmp_path / "audit"), "--audit-log"))
    for _ in range(4):
        log.violation("ToMToU", File(b"/v"), SHELL)
    log.close()
    assert log.lost == 2


async def test_nobody_waits_at_the_end_for_who_reads_no_more(expected_logs: ExpectedLogs) -> None:
    """A full pipe: a daemon that is told to end does."""
    expected_logs.expect(r"audit log: Resource temporarily unavailable: lines are lost")
    reader, writer = os.pipe()
    log = Audit()
    log.begin(writer)
    for _ in range(2000):
        log.violation("ToMToU", File(b"/v"), SHELL)
    log.close()
    assert log.lost > 0
    os.set_blocking(reader, False)
    whole = os.read(reader, 1 << 20).count(b"\n")
    os.close(reader)
    assert whole + log.lost == 2000


async def test_a_disk_that_is_full_now_and_then_fills_no_log(
    tmp_path: Path, full: Full, expected_logs: ExpectedLogs, caplog: pytest.LogCaptureFixture
) -> None:
    expected_logs.expect("audit log: .*lines are lost")
    expected_logs.expect("further lines of this kind")
    log = Audit()
    log.begin(open_log(str(tmp_path / "audit"), "--audit-log"))
    with trio.fail_after(DEADLINE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            for number in range(1, 21):
                full.room = 0
                log.violation("ToMToU", File(b"/v"), SHELL)
                await until(lambda number=number: log.lost == number)  # type: ignore[misc]
                full.room = 10**6
                log.violation("ToMToU", File(b"/v"), SHELL)
                await until(lambda: not log._trouble)
            nursery.cancel_scope.cancel()
    log.close()
    assert 1 < len(caplog.records) <= BURST + 1


def test_a_torn_line_of_an_earlier_daemon_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    path.write_text("audit: type=1804 aud")
    for number in (1, 2):
        log = Audit()
        log.begin(open_log(str(path), "--audit-log"))
        log.violation("ToMToU", File(b"/%d" % number), SHELL)
        log.close()
    half, *lines = path.read_text().splitlines()
    assert half == "audit: type=1804 aud"
    assert len(lines) == 2
    assert all(map(LINE.fullmatch, lines))


async def test_too_many_lines_are_lost_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_logs: ExpectedLogs
) -> None:
    monkeypatch.setattr(audit_log, "BACKLOG", 3)
    expected_logs.expect("audit log: .*lines are lost")
    log = Audit()
    log.begin(open_log(str(tmp_path / "audit"), "--audit-log"))
    for _ in range(5):
        log.violation("ToMToU", File(b"/v"))
    assert log.lost == 2
    log.close()
    told, *lines = (tmp_path / "audit").read_text().splitlines()
    assert told == "audit: audit_lost=2 audit_rate_limit=0 audit_backlog_limit=3"
    assert [int(match[2]) for line in lines if (match := LINE.fullmatch(line))] == [1, 2, 3]


async def test_without_a_file_nothing_is_kept() -> None:
    log = Audit()
    log.violation("ToMToU", File(b"/v"))
    await log.run()
    assert not log._lines
    log.close()


async def test_a_signed_policy_is_required(tmp_path: Path) -> None:
    """``ima_write_policy`` audits that as well, before it refuses a written rule."""
    path = tmp_path / "audit"
    log = Audit()
    emulator = Emulator(EmulatorConfig(policy_config=CONFIG), FakeDevice(), log)
    first = PolicyWriter(emulator)
    await first.write(b"appraise func=POLICY_CHECK appraise_type=imasig\n", 0)
    first.close()
    log.begin(open_log(str(path), "--audit-log"))
    second = PolicyWriter(emulator)
    with pytest.raises(Refused):
        await second.write(b"measure fowner=1\n", 0, SHELL)
    second.close(Task(41, 7, b"other"))
    log.close()
    causes = re.findall(r"pid=(\d+) .* (op=\S+ cause=.*) comm=.* res=0 errno=0", path.read_text())
    assert causes == [
        ("40", "op=policy_update cause=signed policy required"),
        ("41", "op=policy_update cause=failed"),
    ]


@pytest.mark.parametrize("kind", ["hard link", "fifo", "directory", "missing"])
def test_the_file_must_be_ours_and_a_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "audit"
    other = tmp_path / "other"
    other.write_text("precious\n")
    match kind:
        case "hard link":
            path.hardlink_to(other)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case _:
            path = tmp_path / "no" / "such"
    with pytest.raises(UsageError, match=f"--audit-log {path}: ") as caught:
        open_log(str(path), "--audit-log")
    assert caught.value.errno in (errno.EINVAL, errno.EACCES)
    assert other.read_text() == "precious\n"


def test_a_link_of_ours_is_followed_and_a_new_file_is_ours_alone(tmp_path: Path) -> None:
    """As with --log-file; nobody else reads names of files in it."""
    path = tmp_path / "audit"
    path.symlink_to(tmp_path / "log")
    os.close(open_log(str(path), "--audit-log"))
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600
