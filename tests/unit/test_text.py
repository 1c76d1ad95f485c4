# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Text from outside: nothing that it holds forges a line or speaks to a terminal."""

from __future__ import annotations

import errno
import logging
import os
import pty
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from imafs.cli import answers
from imafs.cli.main import main, show_bug
from imafs.control.ops import Kind, Operation
from imafs.errors import Refused
from imafs.host import logs
from imafs.host.sd_notify import notify
from imafs.text import lines_shown, quoted, shown
from imafs.verbs.table import TABLE
from tests.property.reference import binary_list, ng
from tests.support import require
from tests.unit.control_fake import handler, in_thread, serving

#: Ends a line and begins one of a log, clears the screen, sets a title, turns the direction.
FORGED = "imafs: ERROR: forged"
ATTACK = f"a\n{FORGED}\r\x1b[2J\x1b]0;t\x07\x9b1m\u202e\u2028\x7f\udcff\x85z"
SHOWN = (
    r"a\x0a"
    + FORGED
    + r"\x0d\x1b[2J\x1b]0;t\x07\xc2\x9b1m\xe2\x80\xae\xe2\x80\xa8\x7f\xff\xc2\x85z"
)


def is_clean(text: str) -> bool:
    """No line is one that the attacker chose, and all of it is printable."""
    lines = text.split("\n")
    return all(line.isprintable() and not line.startswith(FORGED) for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("größe 漢字", "größe 漢字"),
        (ATTACK, SHOWN),
        (SHOWN, SHOWN),
        (b"/\xff\xc3\xb6\n", "/\\xffö\\x0a"),
        ("\ud800", "\\xed\\xa0\\x80"),
        ("a\u00a0b\u200db\U000e0041", "a\\xc2\\xa0b\\xe2\\x80\\x8db\\xf3\\xa0\\x81\\x81"),
        (ValueError("x\ny"), "x\\x0ay"),
        (7, "7"),
        ("", ""),
    ],
)
def test_shown(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    "text",
    ["x" * 1000, "\n" * 1000, "\udcff" * 60 + "/end", ATTACK * 9],
    ids=["plain", "line ends", "bytes", "attack"],
)
@pytest.mark.parametrize("limit", [0, 1, 3, 4, 20, 50, 100])
def test_a_limit_holds_and_cuts_no_escape(text: str, limit: int) -> None:
    cut = shown(text, limit)
    assert len(cut) <= limit
    assert is_clean(cut)
    if limit > 3:
        head, _, tail = cut.partition("...")
        whole = shown(text)
        assert whole.startswith(head)
        assert whole.endswith(tail)
        # No escape is cut: what stands for a byte is four characters, or none.
        assert not head.endswith(("\\", "\\x", "\\x0", "\\xf"))
    assert shown("/a/b" + "x" * 100 + "/end", 30).endswith("/end")


def test_what_fits_is_not_cut() -> None:
    assert shown("x" * 10, 10) == "x" * 10
    assert shown("\n" * 10, 40) == "\\x0a" * 10


def test_lines_that_are_meant() -> None:
    assert lines_shown("a\n\x1b\n", "  ") == "  a\n  \\x1b\n  "


@pytest.mark.parametrize(
    "name", ["/a b", "/a'b", "/a\nb'\\c\td", "/\udcff1", "/\x1b[2J", "/a\u202e7", ATTACK]
)
def test_a_shell_reads_quoted_paths_back(name: str) -> None:
    word = quoted(name)
    assert word.isprintable()
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    done = subprocess.run(
        [bash, "-c", f"printf %s {word}"], stdout=subprocess.PIPE, check=True, env={"LC_ALL": "C"}
    )
    assert os.fsdecode(done.stdout) == name


# Logs


@pytest.mark.parametrize("journal", [False, True])
def test_no_message_forges_a_line_of_the_log(
    journal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one of a place that does not know :func:`shown`; a traceback stays readable."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    path = tmp_path / "log"
    closing = ExitStack()
    try:
        if journal:
            monkeypatch.setenv("JOURNAL_STREAM", "1:1")
            stream = closing.enter_context(path.open("w", encoding="utf-8"))
            monkeypatch.setattr(sys, "stderr", stream)
            logs.configure(None)
        else:
            logs.configure(str(path))
        log = logging.getLogger("anybody")
        log.warning("%s is not watched", ATTACK)
        log.info("long: %s", "\n" * 1_000_000)
        try:
            raise ValueError(ATTACK)
        except ValueError:
            log.exception("failed at %s", ATTACK)
        root.handlers[0].flush()
        root.handlers[0].close()
    finally:
        closing.close()
        root.handlers[:] = before
        root.setLevel(level)
    text = path.read_text()
    if journal:
        lines = text.splitlines()
        assert all(line[0] == "<" and line[2] == ">" for line in lines)
        text = "\n".join(line[3:] for line in lines)
    assert is_clean(text)
    lines = text.splitlines()
    assert lines[0].endswith(f"{SHOWN} is not watched")
    assert len(lines[1]) < 10_000
    assert lines[3] == "  Traceback (most recent call last):"
    forgery, *rest = SHOWN.split("\\x0a")
    assert lines[-2:] == [f"  ValueError: {forgery}", f"  {rest[0]}"]


def test_a_bug_s_traceback_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError(ATTACK)
    except ValueError as error:
        show_bug(type(error), error, error.__traceback__)
    text = capsys.readouterr().err
    assert is_clean(text)
    assert text.endswith(SHOWN.partition("\\x0a")[2] + "\n")
    assert "\n    File " in text


def test_a_mountpoint_is_one_assignment_to_the_service_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify("READY=1", "STATUS=mounted /a\nMAINPID=1\udcff")
        assert manager.recv(4096) == b"READY=1\nSTATUS=mounted /a\\x0aMAINPID=1\\xff"


# Answers of a daemon


def words_of(operation: Operation) -> list[str]:
    words = [operation.verb]
    chosen = operation.exactly_one[:1]
    for option in operation.options:
        if option.required or option.name in chosen:
            value = {Kind.INT: "3", Kind.HEX: "00"}.get(option.kind, f"/{ATTACK}")
            words += [option.cli, value] if option.cli.startswith("-") else [value]
    return words


def forged(like: object) -> object:
    """An answer of the same form whose every text, and every number too, is the attack."""
    if isinstance(like, dict):
        return {key: forged(value) for key, value in like.items()}
    if isinstance(like, list):
        return [forged(value) for value in like]
    return like if isinstance(like, bool) else ATTACK


ANSWERS: tuple[dict[str, object], ...] = (
    {},
    {ATTACK: ATTACK, "x": [ATTACK], "y": [{ATTACK: ATTACK}], "z": {ATTACK: ATTACK}},
    {"measured": [{"name": "x", "digest": "x", "why": "x"}, {"path": "x", "measured": False}]},
    {"measured": [{"path": "x", "error": "x", "errno": "x"}], "extended": False},
    {"measured": False, "why": "x"},
    {"imafs": "x", "protocol": "x", "watched": ["x"], "held": True, "segment_size": "x"},
    {"profile": "x", "carried": "x", "records": "x", "lost": "x", "why": "x", "bytes": "x"},
    {
        **{"version": "x", "mountpoint": "x", "profile": "x", "template": "x", "hash": "x"},
        **{"pid": "x", "tcti": "x", "records": {"current": "x", "pending": "x"}},
        **{"bytes": {"x": "x"}, "violations": "x", "suspended": "x"},
        "policy": {"rules": "x", "source": "x", "without_effect": "x"},
        "boot": {"number": "x", "kexecs": "x", "carried": "x", "lost": "x"},
        "pcrs": [{"bank": "x", "pcr": "x", "value": "x", "replayed": "x", "equal": False}],
        "readers": [{"pid": "x", "name": "x"}],
        "writer": {"pid": "x", "name": "x"},
        "watch": {"paths": ["x"], "policy": "x", "left_out": ["x"], "trouble": "x", "late": "x"},
        "failures": {"extend": "x", "last": "x", "mismatch": "x", "skipped": "x"},
        "faults": [{"x": "x"}],
        "pace": {"x": "x"},
        "scenario": {"name": "x", "steps": [{"when": "x", "done": "x", "errors": ["x"]}]},
    },
)


@pytest.mark.parametrize("operation", TABLE.values(), ids=lambda operation: operation.name)
def test_no_answer_speaks_to_the_terminal(
    operation: Operation, capsys: pytest.CaptureFixture[str]
) -> None:
    for answer in ANSWERS:
        told = forged(answer)
        assert isinstance(told, dict)
        for as_json in (False, True):
            for asked in ({}, {"name": ATTACK}):
                answers.show(operation.name, told, asked, as_json=as_json)
    printed = capsys.readouterr()
    assert FORGED in printed.out
    assert is_clean(printed.out)
    assert is_clean(printed.err)


@pytest.mark.parametrize("operation", TABLE.values(), ids=lambda operation: operation.name)
async def test_no_refusal_speaks_to_the_terminal(
    operation: Operation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s"
    handlers = {} if operation.name == "hello" else {operation.name: handler(error=REFUSED)}
    async with serving(path, handlers, {"mountpoint": ATTACK}):
        words = ["ctl", "--control", str(path), *words_of(operation)]
        code = await in_thread(lambda: main(words))
    printed = capsys.readouterr()
    assert is_clean(printed.out)
    if operation.name != "hello":
        assert printed.err.count("\n") == 1
        assert is_clean(printed.err)
        assert code in (2, 7)


REFUSED = Refused(errno.EIO, f"{ATTACK}: no")


async def test_status_again_and_again_on_a_terminal(tmp_path: Path) -> None:
    """Only what redraws the block is an escape sequence, and East Asian names are measured."""
    path = tmp_path / "s"
    answer = forged(ANSWERS[-1])
    assert isinstance(answer, dict)
    answer["writer"] = {"name": "漢" * 60, "pid": 1}
    reading, writing = pty.openpty()

    def look() -> bytes:
        words = ["status", "--control", str(path), "--watch", "0.01"]
        command = [sys.executable, "-P", "-m", "imafs", *words]
        size = {"COLUMNS": "100", "LINES": "200"}
        process = subprocess.Popen(
            command, stdout=writing, stderr=subprocess.DEVNULL, env={**os.environ, **size}
        )
        os.close(writing)
        text = b""
        try:
            while text.count(b"\x1b[J") < 2:
                text += os.read(reading, 65536)
        finally:
            process.kill()
            process.wait()
            os.close(reading)
        return text

    async with serving(path, {"status": handler(answer)}):
        text = await in_thread(look)
    blocks = text.split(b"\r\x1b[")
    assert len(blocks) >= 3
    for block in blocks[1:-1]:
        up, _, rest = block.partition(b"A\x1b[J")
        lines = rest.decode().replace("\r\n", "\n").split("\n")
        assert all(line.isprintable() for line in lines)
        (wide,) = (line for line in lines if "漢" in line)
        narrow = sum(-(-len(line) // 100) for line in lines[:-1] if line is not wide)
        assert int(up) == narrow + -(-(len(wide) + 60) // 100)


# Every command with a name from outside


COMMANDS: Mapping[str, Callable[[Path], list[str]]] = {
    "list": lambda home: ["list", str(home / ATTACK)],
    "list of a malformed file": lambda home: ["list", str(malformed(home))],
    "verify": lambda home: ["verify", str(home / ATTACK), "--pcrs", str(malformed(home))],
    "verify of a malformed file": lambda home: [
        *("verify", str(malformed(home)), "--pcrs", str(malformed(home)))
    ],
    "record": lambda home: ["record", str(home / ATTACK), "-o", str(home / "o.tar")],
    "mount": lambda home: ["mount", str(home / ATTACK), "--control", str(home / "c")],
    "mount of a name in the way": lambda home: ["mount", str(full(home))],
    "mount --load": lambda home: ["mount", str(empty(home)), "--load", str(home / ATTACK)],
    "mount --log-file": lambda home: [
        *("mount", str(empty(home)), "--log-file", str(home / ATTACK / "x"))
    ],
    "mount --policy": lambda home: ["mount", str(empty(home)), "--policy", str(home / ATTACK)],
    "umount": lambda home: ["umount", str(home / ATTACK)],
    "status": lambda home: ["status", str(home / ATTACK)],
    "status --control": lambda home: ["status", "--control", str(home / ATTACK)],
    "ctl": lambda home: ["ctl", "--control", str(home / ATTACK), "status"],
    "scenarios": lambda home: ["scenarios", ATTACK],
    "scenarios --check": lambda home: ["scenarios", "--check", str(malformed(home))],
    "profiles": lambda home: ["profiles", ATTACK],
    "a command": lambda home: [ATTACK],
    "an option": lambda home: ["list", f"--{ATTACK}"],
    "a value": lambda home: ["list", "x", "--bank", ATTACK],
    "a number": lambda home: ["list", "x", "--pcr", ATTACK],
    "a verb": lambda home: ["ctl", ATTACK],
}


def malformed(home: Path) -> Path:
    path = home / f"list{ATTACK}"
    path.write_bytes(b"\x0a\0\0\0" + bytes(20) + b"\x05\0\0\0\x1b[2J\n" + b"\xff" * 40)
    return path


def full(home: Path) -> Path:
    directory = home / "full"
    directory.mkdir()
    (directory / ATTACK).touch()
    return directory


def empty(home: Path) -> Path:
    directory = home / f"empty{ATTACK}"
    directory.mkdir()
    return directory


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_speaks_to_the_terminal(name: str, tmp_path: Path) -> None:
    if name.startswith("mount"):
        require("/dev/fuse")
    words = COMMANDS[name](tmp_path)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "imafs", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode in (2, 3, 5, 6), said
    assert "Traceback" not in said
    assert "a\\x0a" in said or "a\\n" in said
    assert is_clean(said)


def test_list_on_a_terminal_and_in_a_file(tmp_path: Path) -> None:
    """A pipe gets the kernel's bytes as ever; a terminal what it can show."""
    name = b"/a\n\x1b[2J\xff"
    path = tmp_path / "list"
    path.write_bytes(binary_list([ng(10, name)], "sha256"))
    command = [sys.executable, "-P", "-m", "imafs", "list", str(path)]
    piped = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    assert piped.endswith(b" " + name + b"\n")
    reading, writing = pty.openpty()
    subprocess.run(command, stdout=writing, check=True)
    os.close(writing)
    on_terminal = os.read(reading, 65536).decode()
    os.close(reading)
    assert on_terminal.endswith(" /a\\x0a\\x1b[2J\\xff\r\n")
