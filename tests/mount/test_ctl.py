# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs ctl``: every verb against a mounted daemon."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from imafs.verbs.table import TABLE
from tests.mount.daemon import ASCII, BINARY, IMAFS, Daemon, imafs
from tests.mount.fixtures import Starter
from tests.mount.fixtures import booted as booted
from tests.support import ROOT, run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


def ctl(daemon: Daemon, *arguments: str) -> tuple[int, str, str]:
    """Status, stdout, stderr."""
    done = imafs("ctl", "--control", daemon.control, *arguments, check=False)
    return done.returncode, done.stdout, done.stderr


def last(daemon: Daemon) -> list[str]:
    return daemon.read(ASCII).decode().splitlines()[-1].split(" ")


def test_every_verb_is_tested_in_this_room() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    missing = [op.verb for op in TABLE.values() if f'"{op.verb}"' not in text]
    assert missing == []


def test_measure(daemon: Daemon, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "with space"
    one.write_text("1")
    two.write_text("2")
    status, out, err = ctl(daemon, "measure", str(one), str(two))
    assert (status, err) == (0, "")
    assert [line.split("  ")[1] for line in out.splitlines()] == [str(one), str(two)]
    # The kernel records a blank as "_" (ima_template_lib.c, ima_write_template_field_data).
    assert last(daemon)[4:] == [str(two).replace(" ", "_")]
    assert "already measured" in ctl(daemon, "measure", str(one))[1]
    assert ctl(daemon, "measure", str(one), "--name", "/other")[0] == 0
    assert last(daemon)[4] == "/other"
    digest = "sha512:" + "cd" * 64
    assert ctl(daemon, "measure", "--digest", digest, "--name", "/digest")[0] == 0
    assert last(daemon)[3:] == [digest, "/digest"]
    assert daemon.count() == 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["measure"], 2),
        (["measure", "--digest", "sha256:00", "--name", "x"], 3),
        (["measure", "--digest", "sha256:zz", "--name", "x"], 3),
        (["measure", "--digest", "none:00", "--name", "x"], 3),
        (["measure", "--digest", "sha256:" + "00" * 32], 2),
        (["measure", "/does/not/exist"], 7),
        (["generate", "-1"], 2),
        (["generate", "many"], 2),
        (["load", "/does/not/exist"], 2),
        (["critical-data", "--name", "n", "--data", "00"], 2),
        (["critical-data", "--label", "l", "--name", "n", "--data", "0"], 2),
        (["critical-data", "--label", "l", "--name", "n", "--file", "/does/not/exist"], 2),
        (["wait", "--records", "100", "--timeout", "0"], 9),
        (["fault-clear", "9"], 2),
        (["no-such-verb"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refusals(daemon: Daemon, arguments: list[str], expected: int) -> None:
    """The exit status says whose fault it is; nothing is added; no traceback."""
    status, out, err = ctl(daemon, *arguments)
    assert (status, out) == (expected, "")
    assert err
    assert "Traceback" not in err
    assert daemon.count() == 1


def test_violation(daemon: Daemon) -> None:
    assert ctl(daemon, "violation", "/violated") == (0, "violation  /violated\n", "")
    assert last(daemon)[1:] == ["0" * 40, "ima-ng", "sha256:" + "0" * 64, "/violated"]
    assert daemon.read("violations") == b"1\n"
    daemon.assert_replays()


def test_critical_data(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"\0\1\2")
    named = ("critical-data", "--label", "label", "--name", "name")
    assert ctl(daemon, *named, "--file", str(file)) == (0, "critical data  name\n", "")
    assert last(daemon)[2] == "ima-buf"
    assert last(daemon)[4:] == ["name", "000102"]
    assert ctl(daemon, *named, "--data", "ffee")[0] == 0
    assert last(daemon)[4:] == ["name", "ffee"]
    command = [*IMAFS, "ctl", "--control", str(daemon.control), *named]
    run(command, stdin="from stdin", cwd=ROOT)
    assert last(daemon)[4:] == ["name", b"from stdin".hex()]


def test_critical_data_of_no_bytes_makes_no_record(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    before = daemon.read(ASCII)
    named = ("critical-data", "--label", "label", "--name", "name")
    for given in (("--data", ""), ("--file", str(tmp_path / "empty"))):
        status, _, said = ctl(daemon, *named, *given)
        assert (status, "0 bytes" in said) == (7, True)
    assert daemon.read(ASCII) == before


def test_generate_and_repeat(daemon: Daemon) -> None:
    assert ctl(daemon, "generate", "10")[1] == "added: 10\n"
    assert ctl(daemon, "generate", "5", "--name", "/prefix/")[1] == "added: 5\n"
    assert last(daemon)[4].startswith("/prefix/")
    assert daemon.count() == 16
    assert ctl(daemon, "repeat")[1] == "repeat  of the newest record (already measured)\n"
    assert daemon.count() == 16


def test_load_verb(daemon: Daemon, tmp_path: Path) -> None:
    daemon.generate(5)
    saved = tmp_path / "list"
    saved.write_bytes(daemon.read(f"{BINARY}_sha256"))
    daemon.call("reset")
    assert ctl(daemon, "load", str(saved), "--bank", "sha256")[0] == 0
    assert daemon.count() == 7
    daemon.assert_replays()


def test_wait(daemon: Daemon) -> None:
    assert ctl(daemon, "wait", "--extended")[1].splitlines()[-1] == "extended: 1"
    command = [*IMAFS, "ctl", "--control", str(daemon.control)]
    waiting = subprocess.Popen([*command, "wait", "--records", "4", "--extended"], cwd=ROOT)
    daemon.call("generate", count=2)
    assert waiting.poll() is None
    daemon.call("generate", count=1)
    assert waiting.wait(60) == 0
    assert ctl(daemon, "wait", "--records", "4", "--extended", "--timeout", "60")[0] == 0


def test_suspend_resume_reset_hello_stop(daemon: Daemon) -> None:
    assert ctl(daemon, "suspend") == (0, "", "")
    assert ctl(daemon, "generate", "1")[0] == 7
    assert "suspended   yes" in ctl(daemon, "status")[1]
    assert ctl(daemon, "resume") == (0, "", "")
    assert ctl(daemon, "generate", "1")[0] == 0
    assert ctl(daemon, "reset") == (0, "", "")
    assert daemon.count() == 1
    assert "protocol" in ctl(daemon, "hello")[1]
    assert ctl(daemon, "stop") == (0, "the daemon unmounts and ends\n", "")
    assert daemon.wait() == 0
    assert ctl(daemon, "status")[0] == 6


@pytest.mark.root
def test_watch_and_unwatch(daemon: Daemon, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.write_text("used")
    status, out, err = ctl(daemon, "watch", str(tmp_path))
    assert (status, out, err) == (0, f"watched: {tmp_path}\n", "")
    assert used.read_text() == "used"
    # tcb says nothing of a tmpfs: whichever it is, a use was seen.
    assert "listener    1 use, " in ctl(daemon, "status")[1]
    assert ctl(daemon, "unwatch", str(tmp_path)) == (0, "watched: nothing\n", "")
    assert ctl(daemon, "unwatch", str(tmp_path))[0] == 2


def test_kexec_and_reboot(start: Starter, tmp_path: Path) -> None:
    daemon = start()  # its boots are counted
    buffer = tmp_path / "buffer"
    assert ctl(daemon, "kexec-buffer", "-o", str(buffer)) == (0, "125 bytes, 1 record\n", "")
    assert buffer.read_bytes()[24:] == daemon.read()
    assert ctl(daemon, "kexec-load") == (0, "a segment of 4096 bytes is reserved\n", "")
    assert "number 1; a kernel is loaded for kexec" in ctl(daemon, "status")[1]
    held = "held: suspended until imafs ctl kexec-finish\n"
    assert ctl(daemon, "kexec-execute", "--hold") == (0, held, "")
    assert (
        "boot        number 1; a kexec is held: imafs ctl kexec-finish"
        in (ctl(daemon, "status")[1])
    )
    for verb in ("kexec-load", "kexec-execute", "resume"):
        assert ctl(daemon, verb)[::2] == (
            7,
            "imafs: a kexec is held: end it with kexec-finish (EBUSY)\n",
        )
    done = "mainline runs, with 3 of 3 records carried over\n"
    assert ctl(daemon, "kexec-finish") == (0, done, "")
    assert daemon.count() == 4
    assert "boot        number 1, 1 kexec, 3 records carried over\n" in ctl(daemon, "status")[1]
    assert ctl(daemon, "kexec-finish")[::2] == (
        *(7, "imafs: no kexec is held: see kexec-execute --hold (EINVAL)\n"),
    )
    done = "mainline runs, with 0 of 6 records carried over\n"
    why = "the next kernel restores nothing (--no-carry)"
    lost = f"imafs: 6 records in PCRs and in no list: {why}\n"
    daemon.logs.expect("6 of 6 records were not carried over")
    assert ctl(daemon, "kexec-execute", "--no-carry") == (0, done, lost)
    assert daemon.count() == 1
    daemon.assert_replays()
    assert ctl(daemon, "reboot", "--profile", "legacy") == (0, "legacy runs\n", "")
    assert "boot        number 2\n" in ctl(daemon, "status")[1]
    assert ctl(daemon, "reboot") == (0, "mainline runs\n", "")
    for verb in ("reboot", "kexec-execute"):
        assert ctl(daemon, verb, "--profile", "none")[0] == 2
    assert ctl(daemon, "kexec-buffer", "-o", "/dev/null")[0] == 2
    assert ctl(daemon, "kexec-buffer", "-o", str(tmp_path / "no" / "file"))[0] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["buffer"]


def test_status_text(daemon: Daemon) -> None:
    daemon.generate(3)
    text = ctl(daemon, "status")[1]
    assert f"on {daemon.dir}, profile mainline" in text
    assert "4 current, 0 staged, 0 pending, 4 since boot" in text
    assert text.count("all records since boot replay to it") == 4
    assert "readers     none" in text
    assert "writer      none" in text


def test_status_numbers(daemon: Daemon) -> None:
    daemon.generate(4)
    writer = os.open(daemon.path(f"{BINARY}_staged"), os.O_RDWR)
    os.write(writer, b"A\n")
    daemon.generate(2)
    os.close(writer)
    status = json.loads(ctl(daemon, "status", "--json")[1])
    assert status["records"] == {
        "current": 2,
        "staged": 5,
        "pending": 0,
        "since_boot": 7,
        "deleted": 0,
        "duplicates": 0,
        "unsound": 0,
    }
    sizes = [len(daemon.read(name)) for name in (BINARY, f"{BINARY}_staged")]
    assert status["bytes"] == {"current": sizes[0], "staged": sizes[1]}
    assert {row["value"] for row in status["pcrs"] if row["bank"] == "sha1"} == {
        daemon.pcr("sha1").hex()
    }


#: A process that holds a file open, under a name of its own, until its stdin ends.
HOLD = 'exec {}"$1"; echo open; read -r line; exit 0'


def hold(daemon: Daemon, how: str, tmp_path: Path, name: str) -> subprocess.Popen[str]:
    program = tmp_path / name
    program.symlink_to("/bin/sh")
    process = subprocess.Popen(
        [str(program), "-c", HOLD.format(how), name, str(daemon.path(BINARY))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=60)


def test_status_shows_readers_and_writer(daemon: Daemon, tmp_path: Path) -> None:
    readers = [hold(daemon, "3<", tmp_path, f"reader-{i}") for i in range(2)]
    shown = daemon.call("status")["readers"]
    assert shown == [{"pid": p.pid, "name": f"reader-{i}"} for i, p in enumerate(readers)]
    text = ctl(daemon, "status")[1]
    assert f"reader-0[{readers[0].pid}], reader-1[{readers[1].pid}]" in text
    let_go(readers[0])
    wait_for(lambda: daemon.call("status")["readers"] == shown[1:], 60, "the first one is gone")
    let_go(readers[1])
    writer = hold(daemon, "3>", tmp_path, "writer")
    status = daemon.call("status")
    assert (status["writer"], status["readers"]) == ({"pid": writer.pid, "name": "writer"}, [])
    assert f"writer      writer[{writer.pid}]" in ctl(daemon, "status")[1]
    let_go(writer)
    wait_for(lambda: daemon.call("status")["writer"] is None, 60, "the writer is gone")


def test_status_does_not_disturb(daemon: Daemon) -> None:
    """ctl takes no lock of the files."""
    with daemon.path(BINARY).open("rb+", buffering=0) as file:
        ctl(daemon, "status")
        ctl(daemon, "generate", "3")
        assert file.write(b"4\n") == 2
    assert daemon.count() == 0


@pytest.mark.parametrize(
    "words", [("critical-data", "--label", "l", "--name", "n", "--file"), ("load",), ("scenario",)]
)
def test_a_fifo_does_not_hold_the_daemon_up(
    daemon: Daemon, tmp_path: Path, words: tuple[str, ...]
) -> None:
    fifo = tmp_path / "fifo.toml"
    os.mkfifo(fifo)
    said = f"imafs: {fifo}: is not a regular file\n"
    assert ctl(daemon, *words, str(fifo)) == (2, "", said)
    assert daemon.stop() == 0
