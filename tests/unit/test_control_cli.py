# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs ctl`` and the command line's frame, through main()."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import trio

from imafs import __version__
from imafs.cli import answers, ctl
from imafs.cli.main import main
from imafs.control.server import Handler, ProgressCallback
from imafs.errors import FormatError, ImafsError, Refused, UsageError
from imafs.formats.fields import MOST_FIELD
from imafs.verbs.table import TABLE
from tests.support import ROOT, run
from tests.unit.control_fake import handler, in_thread, serving

STATUS: dict[str, object] = {
    "records": {"current": 3, "staged": 2, "pending": 0, "since_boot": 5, "deleted": 0},
    "bytes": {"current": 300, "staged": 200},
    "violations": 1,
    "suspended": False,
    "pcrs": [
        {"bank": "sha1", "pcr": 10, "value": "aa", "replayed": "aa", "equal": True},
        {"bank": "sha256", "pcr": 10, "value": "bb", "replayed": "cc", "equal": False},
        {
            **{"bank": "sha384", "pcr": 11, "value": "dd", "replayed": "ee"},
            **{"equal": False, "pending": True},
        },
        {"bank": "sha512", "pcr": 10, "value": None, "replayed": "ff", "equal": False},
    ],
    "readers": [{"pid": 7, "name": "cat"}, {"pid": 8, "name": "a\x1bb"}],
    "writer": {"pid": 9, "name": "sh"},
    "failures": {"extend": 2, "last": "TPM gone"},
    **{"profile": "mainline", "mountpoint": "/mnt", "tcti": "swtpm:port=1", "template": "ima-ng"},
    **{"hash": "sha256", "version": "0.1.0"},
}

STATUS_TEXT = """\
imafs       0.1.0 on /mnt, profile mainline
template    ima-ng, hash sha256
TPM         swtpm:port=1
records     3 current, 2 staged, 0 pending, 5 since boot, 0 deleted
bytes       300 current, 200 staged
violations  1
suspended   no
PCR         10 sha1 aa: all records since boot replay to it
PCR         10 sha256 bb: DIFFERS, all records since boot replay to cc
PCR         11 sha384 dd: records are still to be extended
PCR         10 sha512: cannot be read, all records since boot replay to ff
readers     cat[7], a\\x1bb[8]
writer      sh[9]
failures    2 extends failed (last: TPM gone)
"""


def test_pcrs_with_records_pending() -> None:
    """What they replay to is not all that is in the list."""
    records = {"current": 3, "pending": 2}
    lines = answers.status_lines({**STATUS, "records": records})
    assert "PCR         10 sha1 aa: all records but the 2 pending replay to it" in lines


async def imafs(path: Path, handlers: Mapping[str, Handler], *words: str) -> int:
    """The exit code of ``imafs ctl`` with a server of these handlers."""
    async with serving(path, handlers):
        return await in_thread(lambda: main(["ctl", "--control", str(path), *words]))


COMMAND_LINES: list[tuple[list[str], str, dict[str, object]]] = [
    (["measure", "/a", "b"], "measure", {"paths": ["/a", "{cwd}/b"]}),
    (["measure", "--name", "n", "./b"], "measure", {"paths": ["{cwd}/b"], "name": "n"}),
    (["measure", "--", "-x"], "measure", {"paths": ["{cwd}/-x"]}),
    (
        ["measure", "--digest", "sha1:0", "--name", "n"],
        "measure",
        {"digest": "sha1:0", "name": "n"},
    ),
    (["violation", "n"], "violation", {"name": "n"}),
    (
        ["critical-data", "--label", "l", "--name", "n", "--file", "f"],
        "critical_data",
        {"label": "l", "name": "n", "file": "{cwd}/f"},
    ),
    (
        ["critical-data", "--label", "l", "--name", "n", "--data", "00"],
        "critical_data",
        {"label": "l", "name": "n", "data": "00"},
    ),
    (["generate", "5"], "generate", {"count": 5}),
    (["generate", "5", "--name", "p"], "generate", {"count": 5, "name": "p"}),
    (["repeat"], "repeat", {}),
    (["load", "f", "--bank", "sha256"], "load", {"file": "{cwd}/f", "bank": "sha256"}),
    (["wait"], "wait", {}),
    (
        ["wait", "--records", "3", "--extended", "--timeout", "9"],
        "wait",
        {"records": 3, "extended": True, "timeout": 9},
    ),
    (["watch", "/a", "b"], "watch", {"paths": ["/a", "{cwd}/b"]}),
    (["unwatch", "b"], "unwatch", {"paths": ["{cwd}/b"]}),
    (["suspend"], "suspend", {}),
    (["resume"], "resume", {}),
    (["kexec-load"], "kexec_load", {}),
    (["kexec-execute"], "kexec_execute", {}),
    (
        ["kexec-execute", "--profile", "legacy", "--no-carry", "--whole", "--hold"],
        "kexec_execute",
        {"profile": "legacy", "no_carry": True, "whole": True, "hold": True},
    ),
    (["kexec-finish"], "kexec_finish", {}),
    (["kexec-buffer", "-o", "f"], "kexec_buffer", {"file": "{cwd}/f"}),
    (["reboot"], "reboot", {}),
    (["reboot", "--profile", "legacy"], "reboot", {"profile": "legacy"}),
    (["reset"], "reset", {}),
    (["stop"], "stop", {}),
    (["status"], "status", {}),
    (
        ["fault", "open", "EBUSY", "--files", "*_staged", "--next", "3", "--writing"],
        "fault",
        {
            **{"operation": "open", "errno": "EBUSY", "files": "*_staged"},
            **{"next": 3, "writing": True},
        },
    ),
    (["fault-clear"], "fault_clear", {}),
    (["fault-clear", "2"], "fault_clear", {"fault": 2}),
    (["fault-list"], "fault_list", {}),
    (["tpm", "--behind", "3", "--hang"], "tpm", {"behind": 3, "hang": True}),
    (["agent", "stage"], "agent", {"action": "stage"}),
    (["agent", "trim", "4"], "agent", {"action": "trim", "count": 4}),
    (["scenario", "f.toml"], "scenario", {"file": "{cwd}/f.toml"}),
    (["scenario", "./f"], "scenario", {"file": "{cwd}/f"}),
    (["scenario", "reboot"], "scenario", {"name": "reboot"}),
    (["scenario", "--name", "reboot"], "scenario", {"name": "reboot"}),
    (["scenario-end"], "scenario_end", {}),
]


@pytest.mark.parametrize(("words", "op", "options"), COMMAND_LINES)
async def test_command_lines_become_requests(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    op: str,
    options: dict[str, object],
) -> None:
    monkeypatch.chdir(tmp_path)
    where = words.index("--") if "--" in words else len(words)
    words = [*words[:where], "--json", *words[where:]]
    assert await imafs(tmp_path / "s", {op: handler()}, *words) == 0
    expected = json.loads(json.dumps(options).replace("{cwd}", str(tmp_path)))
    assert json.loads(capsys.readouterr().out) == {"options": expected}


def test_every_operation_has_a_command_line_above() -> None:
    assert {op for _, op, _ in COMMAND_LINES} == set(TABLE) - {"hello"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "required: VERB"),
        (["fly"], "invalid choice: 'fly' (choose from "),
        (["mesure"], "invalid choice: 'mesure' (did you mean measure?) (choose from "),
        (["Kexec-Lod"], "invalid choice: 'Kexec-Lod' (did you mean kexec-load?) (choose from "),
        (["generate"], "required: N"),
        (["watch"], "required: PATH"),
        (["generate", "x"], "argument N: 'x' is no number"),
        (["tpm", "--fail", "x"], "argument --fail: 'x' is no number"),
        (["generate", "-1"], "generate"),
        (["generate", "1000001"], "imafs: generate: N: not within 0 and 1000000"),
        (["measure"], "imafs: measure: give exactly one of PATH, --digest"),
        (["measure", "a", "b", "--name", "n"], "imafs: measure: --name: fits one path only"),
        (["measure", "--digest", "sha1:0"], "measure: --name: missing (--digest needs it)"),
        (["measure", ""], "imafs: PATH: an empty path"),
        (["scenario", ""], "imafs: NAME|FILE: an empty path"),
        (["scenario"], "imafs: scenario: give exactly one of NAME|FILE, --name"),
        (["scenario", "reboot", "--name", "reboot"], "imafs: scenario: give exactly one of"),
        (
            ["critical-data", "--label", "l", "--name", "n", "--data", "0"],
            "imafs: critical-data: --data: not pairs of hexadecimal digits",
        ),
    ],
)
def test_usage(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Before any connection: the socket does not exist.
    assert main(["ctl", "--control", "/nonexistent", *words]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (Refused(errno.ENOENT, "nothing is staged"), "nothing is staged (ENOENT)", 7),
        (Refused(errno.EBUSY, "EBUSY it is"), "EBUSY it is", 7),
        # Mistakes of whoever asks, not answers that an agent would get.
        (FormatError("short", record=4), "record 4: short", 3),
        (UsageError("no such thing"), "no such thing", 2),
    ],
)
async def test_refusal_is_one_line_and_a_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: ImafsError, line: str, code: int
) -> None:
    handlers = {"reset": handler(error=error)}
    assert await imafs(tmp_path / "s", handlers, "reset") == code
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"imafs: {line}\n")
    assert await imafs(tmp_path / "s", handlers, "reset", "--json") == code
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.count("\n") == 1
    assert json.loads(printed.out) == {
        **{"ok": False, "errno": error.errno_name, "error": str(error), "exit_code": code}
    }


async def test_the_socket_may_stand_behind_the_verb(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", {"reset": handler()}):
        for words in (
            ["reset", "--control", str(tmp_path / "s")],
            ["--control", "/nonexistent", "reset", "--control", str(tmp_path / "s")],
        ):
            assert await in_thread(partial(main, ["ctl", *words])) == 0


async def test_the_only_socket_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imafs.control.paths.socket_directory", lambda: tmp_path)
    # Whatever else this machine has mounted.
    monkeypatch.setattr("imafs.cli.find_daemon._own_mounts", lambda: iter(()))
    assert main(["ctl", "status"]) == 6
    assert capsys.readouterr().err.startswith(f"imafs: no imafs listens in {tmp_path}")
    async with serving(tmp_path / "mnt-a.sock", {"status": handler(STATUS)}):
        assert await in_thread(lambda: main(["ctl", "status"])) == 0
        assert capsys.readouterr().out == STATUS_TEXT
        async with serving(tmp_path / "mnt-b.sock", {"status": handler(STATUS)}):
            assert await in_thread(lambda: main(["ctl", "status"])) == 6
    assert "/mnt/a (" in capsys.readouterr().err


# What people read.


async def test_measure_prints_a_line_per_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[dict[str, object]] = [
        {"name": "/a", "digest": "sha256:01", "duplicate": False},
        {"name": "/b\n\udcff", "digest": "sha256:02", "duplicate": True},
        {"name": "/c", "errno": "ENOENT", "error": "No such file"},
        {"path": "/d", "errno": "ENOENT", "error": "/d: No such file"},
    ]
    handlers = {"measure": handler({"measured": measured})}
    assert await imafs(tmp_path / "s", handlers, "measure", "/a", "/b", "/c") == 7
    printed = capsys.readouterr()
    assert printed.out == "sha256:01  /a\nsha256:02  /b\\x0a\\xff (already measured)\n"
    assert printed.err == "imafs: /c: No such file (ENOENT)\nimafs: /d: No such file (ENOENT)\n"


async def test_measure_answer_without_a_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = {"measure": handler({"duplicate": True})}
    assert await imafs(tmp_path / "s", handlers, "measure", "/a") == 0
    assert capsys.readouterr().out == "-  - (already measured)\n"


@pytest.mark.parametrize("size", [MOST_FIELD, MOST_FIELD + 1])
async def test_critical_data_from_standard_input_of_any_size(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As much as a record can hold, in one request; more is told before anything is sent."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(size))))
    told: list[int] = []

    async def measure(
        options: Mapping[str, object], progress: ProgressCallback
    ) -> dict[str, object]:
        told.append(len(str(options["data"])))
        return {"duplicate": False, "number": 1, "extended": True}

    words = ("critical-data", "--label", "l", "--name", "n")
    code = await imafs(tmp_path / "s", {"critical_data": measure}, *words)
    if size > MOST_FIELD:
        assert (code, told) == (7, [])
        assert "standard input: more than 4194304 bytes" in capsys.readouterr().err
    else:
        assert (code, told) == (0, [2 * size])


async def test_other_answers_are_keys_and_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result: dict[str, object] = {"options": None, "count": 5, "slow": True, "names": ["x"]}
    assert await imafs(tmp_path / "s", {"generate": handler(result)}, "generate", "5") == 0
    assert capsys.readouterr().out == 'options: none\ncount: 5\nslow: yes\nnames: ["x"]\n'


PENDING = "(in the list, not yet in the PCR: see imafs ctl status)"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["violation", "/a b"], "violation  /a b"),
        (
            ["critical-data", "--label", "l", "--name", "n\n", "--data", "00"],
            "critical data  n\\x0a",
        ),
        (["repeat"], "repeat  of the newest record"),
    ],
)
@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ({"duplicate": False, "number": 5, "extended": True}, ""),
        ({"duplicate": True, "extended": True}, " (already measured)"),
        ({"duplicate": False, "number": 5, "extended": False}, f" {PENDING}"),
        ({}, ""),
    ],
)
async def test_single_records_are_a_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    line: str,
    answer: dict[str, object],
    note: str,
) -> None:
    handlers = {words[0].replace("-", "_"): handler(answer)}
    assert await imafs(tmp_path / "s", handlers, *words) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{line}{note}\n"
    assert ("not yet in the PCRs" in printed.err) == (note == f" {PENDING}")


@pytest.mark.parametrize("in_time", [True, False])
async def test_bulk_operations_say_that_the_pcr_is_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_time: bool
) -> None:
    """The TPM gets some seconds; then a line on stderr, and the word in the JSON."""
    late = Refused(errno.ETIMEDOUT, "not reached within 5 s")
    handlers = {
        "generate": handler({"added": 5, "extended": False}),
        "wait": handler({"records": 5}) if in_time else handler(error=late),
    }
    assert await imafs(tmp_path / "s", handlers, "generate", "5") == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("\nadded: 5\n")
    assert (
        printed.err.startswith("imafs: records are in the list, but not yet in the PCRs: ")
        != in_time
    )
    assert printed.err.count("\n") == (not in_time)
    assert await imafs(tmp_path / "s", handlers, "generate", "5", "--json") == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert (answer["added"], answer["extended"]) == (5, in_time)
    assert bool(printed.err) != in_time


async def test_hello(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await imafs(tmp_path / "s", {}, "hello") == 0
    assert capsys.readouterr().out == f"imafs {__version__}, protocol 1\n"


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"records": 3, "pcrs": {"x": 1}, "readers": ["x"], "writer": None, "failures": None},
        {"records": {}, "pcrs": [{}, 3], "readers": [{}], "writer": "x", "failures": {"last": 1}},
    ],
)
def test_status_of_another_version_is_shown(status: dict[str, object]) -> None:
    lines = answers.status_lines(status)
    assert lines[0] == "imafs       - on -, profile -"
    assert all(line.isprintable() for line in lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
async def test_progress_bar_only_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    async def load(options: Mapping[str, object], progress: ProgressCallback) -> dict[str, object]:
        progress(1, 4)
        await trio.lowlevel.checkpoint()
        return {}

    stderr = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert await imafs(tmp_path / "s", {"load": load}, "load", "/f") == 0
    bar = "\r[" + "#" * 10 + "." * 30 + "]  25% 1/4\n"
    assert stderr.getvalue() == (bar if terminal else "")


@pytest.mark.parametrize(
    ("words", "answer", "text"),
    [
        (["watch", "/a"], {"watched": ["/a", "/b\x1b"]}, "watched: /a, /b\\x1b\n"),
        (["unwatch", "/a"], {"watched": []}, "watched: nothing\n"),
        (["stop"], {}, "the daemon unmounts and ends\n"),
    ],
)
async def test_what_is_printed(
    tmp_path: Path,
    words: list[str],
    answer: dict[str, object],
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers_ = {words[0]: handler(answer)}
    assert await imafs(tmp_path / "s", answers_, *words) == 0
    assert capsys.readouterr().out == text


def test_status_without_a_tpm_that_answers() -> None:
    """What the TPM says is no failure of an extend; one is not several."""
    lines = answers.status_lines({"failures": {"extend": 0, "last": "it hangs"}, "pid": 7})
    assert "failures    0 extends failed; the TPM: it hangs" in lines
    assert "process     7" in lines
    (last,) = (x for x in answers.status_lines({"failures": {"extend": 1}}) if "failures" in x)
    assert last == "failures    1 extend failed"
    records = answers.status_lines({"records": {"current": 1, "duplicates": 1}})
    assert "records     1 current, 1 duplicate" in records
    steps = [{"when": "after read", "done": done} for done in (1, 2)]
    told = answers.status_lines({"scenario": {"name": "x", "steps": steps}, "policy": {"rules": 1}})
    assert "  step      after read: 1 time done" in told
    assert "  step      after read: 2 times done" in told
    assert "policy      1 rule: -" in told


# The frame.


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"imafs {__version__}\n"
    assert main(["ctl", "--help"]) == 0
    out = capsys.readouterr().out
    for operation in TABLE.values():
        assert f" {operation.verb} " in out
    assert main([]) == 2


def test_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(ctl, "run", interrupted)
    assert main(["ctl", "status"]) == 130


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: argparse.Namespace) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ctl, "run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["ctl", "status"])


def test_closed_stdout_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "imafs", "ctl", "--help"],
            cwd=ROOT,
            # Unbuffered, a newer argparse swallows the error of its own write.
            env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("words", [["--help"], ["ctl", "--control", "/nonexistent", "status"]])
def test_ctl_loads_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys; from imafs.cli.main import main; main(sys.argv[1:]);"
        "print([m for m in ('trio', 'pyfuse3', 'tpm2_pytss', 'cryptography') if m in sys.modules])"
    )
    done = run([sys.executable, "-c", program, *words], cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_critical_data_comes_from_stdin_without_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parser = argparse.ArgumentParser()
    ctl.add_parser(parser.add_subparsers())
    args = parser.parse_args(["ctl", "critical-data", "--label", "l", "--name", "n"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\0state\n")))
    options = ctl._options(TABLE["critical_data"], args)
    assert options == {"label": "l", "name": "n", "data": b"\0state\n".hex()}
