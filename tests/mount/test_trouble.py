# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Bad days on demand through a mount: faults, a TPM in trouble, another agent, scenarios."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imafs.emulator.emulator import EXTEND_WAIT
from tests.mount.daemon import ASCII, BINARY, COUNT, IMAFS, Daemon, imafs, patched, read_to_end
from tests.mount.fixtures import Starter
from tests.mount.fixtures import booted as booted
from tests.support import ROOT, run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

STAGED = f"{BINARY}_staged"


def ctl(daemon: Daemon, *arguments: str) -> str:
    return daemon.ctl(*arguments).rstrip("\n")


def refused(daemon: Daemon, *arguments: str) -> tuple[int, str]:
    done = imafs("ctl", "--control", daemon.control, *arguments, check=False)
    return done.returncode, done.stderr


@contextmanager
def opened(daemon: Daemon, name: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(daemon.path(name), flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def errno_of(daemon: Daemon, name: str, flags: int = os.O_RDONLY) -> int:
    """Of an open, 0 where it succeeds."""
    try:
        os.close(os.open(daemon.path(name), flags))
    except OSError as error:
        return error.errno or 0
    return 0


def steps(daemon: Daemon) -> list[tuple[int, int, list[str]]]:
    """Of the scenario that is on: due, done, errors of each."""
    told = daemon.call("status")["scenario"]
    assert isinstance(told, dict)
    return [(step["due"], step["done"], step["errors"]) for step in told["steps"]]


def scenario(tmp_path: Path, text: str) -> str:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return str(file)


# Faults


def test_opens_fail_as_often_as_asked_for(start: Starter) -> None:
    daemon = start()  # its faults are counted
    assert ctl(daemon, "fault", "open", "EBUSY", "--files", STAGED, "--next", "2") == "fault: 1"
    assert errno_of(daemon, BINARY) == 0
    # By the name of the link although the file behind it is opened.
    assert [errno_of(daemon, STAGED) for _ in range(3)] == [errno.EBUSY, errno.EBUSY, 0]
    assert "fault 1, operation open, errno EBUSY" in ctl(daemon, "fault-list")
    assert "failed 2" in ctl(daemon, "status")
    assert ctl(daemon, "fault-clear", "1") == "cleared: 1"
    assert "fault" not in ctl(daemon, "status")
    assert refused(daemon, "fault-clear", "1") == (2, "imafs: there is no fault 1\n")


def test_a_failed_open_is_not_counted(daemon: Daemon) -> None:
    ctl(daemon, "fault", "open", "ENOMEM", "--writing", "--next", "1")
    assert errno_of(daemon, STAGED, os.O_RDWR) == errno.ENOMEM
    assert daemon.call("status")["writer"] is None
    assert errno_of(daemon, STAGED, os.O_RDWR) == 0


def test_a_failed_read_loses_nothing(daemon: Daemon) -> None:
    daemon.generate(100)
    whole = daemon.read()
    ctl(daemon, "fault", "read", "EIO", "--every", "2")
    got, failures = b"", []
    with opened(daemon, BINARY) as descriptor:
        while True:
            try:
                piece = os.read(descriptor, 1000)
            except OSError as error:
                failures.append(error.errno)
                continue
            if not piece:
                break
            got += piece
    assert got == whole
    assert len(failures) >= 4
    assert set(failures) == {errno.EIO}


def test_a_failed_write_does_nothing(daemon: Daemon) -> None:
    with opened(daemon, STAGED, os.O_RDWR) as descriptor:
        ctl(daemon, "fault", "write", "ESTALE", "--next", "1")
        with pytest.raises(OSError, match="Stale"):
            os.write(descriptor, b"A\n")
        assert daemon.count() == 1
        os.write(descriptor, b"A\n")
        assert len(read_to_end(descriptor)) > 0
        os.write(descriptor, b"D\n")
    assert daemon.count() == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["stat", "EIO"], "'stat' cannot fail"),
        (["open", "EFOO"], "'EFOO' is no errno"),
        (["read", "EIO", "--writing"], "only an open"),
        (["open", "EIO", "--writing", "--reading"], "of --writing and --reading give one"),
        (["open", "EIO", "--percent", "101"], "percent: not within 1 and 100"),
    ],
)
def test_faults_that_make_no_sense(daemon: Daemon, arguments: list[str], text: str) -> None:
    status, err = refused(daemon, "fault", *arguments)
    assert status == 2
    assert text in err
    assert daemon.call("fault_list") == {"faults": []}


# The TPM


def test_the_list_ahead_of_the_tpm(daemon: Daemon) -> None:
    daemon.call("wait", extended=True)
    before = daemon.group("records")["since_boot"]
    ctl(daemon, "tpm", "--behind", "3")
    daemon.generate(10)
    assert daemon.group("records")["pending"] == 3
    assert before == 1
    saved = daemon.place.base / "list"
    saved.write_bytes(daemon.read())
    verdict = imafs("verify", saved, "--tcti", daemon.tcti, check=False)
    assert verdict.returncode == 0, verdict.stderr
    assert "3" in verdict.stdout
    begin, times = time.monotonic(), 12
    for number in range(times):
        daemon.call("measure", digest=f"sha256:{number:064x}", name="/late")
    whole = times * EXTEND_WAIT
    assert time.monotonic() - begin < whole / 2, "they waited for extends that do not come"
    assert "held up on purpose: behind 3" in ctl(daemon, "status")
    ctl(daemon, "tpm", "--work")
    daemon.assert_replays()
    assert "on purpose" not in ctl(daemon, "status")


def test_extends_that_fail(daemon: Daemon) -> None:
    daemon.call("wait", extended=True)
    ctl(daemon, "tpm", "--fail", "1")
    assert "not yet in the PCR" in ctl(
        daemon, "measure", "--digest", "sha256:" + "01" * 32, "--name", "/never"
    )
    daemon.generate(2)
    rows = daemon.call("status")["pcrs"]
    assert isinstance(rows, list)
    assert not any(row["equal"] for row in rows)
    saved = daemon.place.base / "list"
    saved.write_bytes(daemon.read())
    assert imafs("verify", saved, "--tcti", daemon.tcti, check=False).returncode == 8
    assert "skipped 1" in ctl(daemon, "status")
    ctl(daemon, "reboot")
    assert "skipped" not in ctl(daemon, "status")
    daemon.assert_replays()


def test_a_tpm_that_hangs_and_works_again(daemon: Daemon) -> None:
    # Its extends hang for longer than that where the machine is busy.
    daemon.logs.allow("did not answer within 20 s")
    daemon.call("wait", extended=True)
    ctl(daemon, "tpm", "--hang")
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(
            ["tpm2_pcrread", "sha256:10"],
            env={**os.environ, "TPM2TOOLS_TCTI": daemon.tcti},
            timeout=1,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    daemon.call("generate", count=5)
    assert daemon.count() == 6
    assert daemon.group("records")["pending"] == 5
    assert "on purpose: hang yes" in ctl(daemon, "status")
    words = ("verify", daemon.path(BINARY), "--control", daemon.control)
    impatient = patched("from imafs.cli import pcrsource", "pcrsource.DEADLINE = 2.0")
    done = run([*impatient, *IMAFS, *words], check=False, cwd=ROOT)
    said = f"imafs: the TPM {daemon.tcti} did not answer within 2 s\n"
    assert (done.returncode, done.stdout, done.stderr) == (4, "", said)
    ctl(daemon, "tpm", "--work")
    assert imafs(*words).stdout.endswith("match after record 6\n")
    daemon.assert_replays()


def test_only_a_swtpm_of_ours_hangs(start: Starter) -> None:
    daemon = start("--tpm", "none")
    assert refused(daemon, "tpm", "--hang") == (4, "imafs: without a TPM none can hang\n")
    assert refused(daemon, "tpm", "--work", "--behind", "1")[0] == 2


# Another agent


def test_another_agent_works_on_the_same_list(daemon: Daemon) -> None:
    daemon.generate(9)
    assert ctl(daemon, "agent", "trim", "3").splitlines() == [
        "current: 7",
        "staged: 0",
        "deleted: 3",
    ]
    assert ctl(daemon, "agent", "stage").splitlines()[:2] == ["current: 0", "staged: 7"]
    assert refused(daemon, "agent", "stage") == (7, "imafs: a list is staged already (EEXIST)\n")
    assert ctl(daemon, "agent", "read").splitlines() == ["current: 0", "staged: 7"]
    assert "deleted: 7" in ctl(daemon, "agent", "delete")
    assert refused(daemon, "agent", "trim", "1")[0] == 7


def test_another_agent_meets_the_locks_and_holds_them(daemon: Daemon) -> None:
    with opened(daemon, COUNT):
        ctl(daemon, "agent", "stage")
    with opened(daemon, ASCII):
        assert refused(daemon, "agent", "delete")[0] == 7
        assert ctl(daemon, "agent", "open-read") == "held: 1"
    assert errno_of(daemon, STAGED, os.O_RDWR) == errno.EBUSY
    assert ctl(daemon, "agent", "close") == "held: 0"
    assert ctl(daemon, "agent", "open-write") == "held: 1"
    assert errno_of(daemon, ASCII) == errno.EBUSY
    ctl(daemon, "agent", "close")
    assert errno_of(daemon, STAGED, os.O_RDWR) == 0
    # What it holds under one kernel is nothing to the next one.
    for end in ("kexec-execute", "reboot"):
        ctl(daemon, "agent", "open-read")
        ctl(daemon, end)
        assert errno_of(daemon, STAGED, os.O_RDWR) == 0
        assert ctl(daemon, "agent", "close") == "held: 0"


#: profile -> what the other agent does there with ten records, one act after the other:
#: its arguments and the records left in the current and the staged list, None: refused.
IN_OTHER_WORDS: list[tuple[str, list[tuple[str, tuple[int, int] | None]]]] = [
    ("v5", [("trim 3", (7, 0)), ("stage", (0, 7)), ("delete", (0, 0))]),
    ("rfc-v2", [("trim 3", (7, 0)), ("stage", (0, 7)), ("delete", (0, 0))]),
    ("rfc-v1", [("stage", (0, 10)), ("delete", (0, 0)), ("trim 1", None)]),
    ("snap", [("stage", (0, 10)), ("delete", (0, 0)), ("trim 1", None)]),
    ("trim-v1", [("trim 3", (7, 0)), ("stage", None)]),
    ("trim-v5", [("trim 3", (7, 0)), ("trim 4", (3, 0)), ("delete", None)]),
    ("legacy", [("stage", None), ("trim 1", None), ("read", (10, 0))]),
]


@pytest.mark.parametrize(("profile", "acts"), IN_OTHER_WORDS)
def test_another_agent_speaks_as_the_profile_does(
    start: Starter, profile: str, acts: list[tuple[str, tuple[int, int] | None]]
) -> None:
    daemon = start("--profile", profile, "--no-boot-aggregate")
    daemon.generate(10)
    for act, left in acts:
        if left is None:
            assert refused(daemon, "agent", *act.split())[0] == 7
            continue
        ctl(daemon, "agent", *act.split())
        records = daemon.group("records")
        added = 1 if profile.startswith("trim") else 0  # a trim's own critical data
        assert (records["current"], records["staged"]) <= (left[0] + 2 * added, left[1])
        assert (records["current"], records["staged"]) >= left


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["fly"], "'fly' is no action"),
        (["trim"], "a number goes with trim"),
        (["stage", "3"], "a number goes with trim"),
    ],
)
def test_acts_that_make_no_sense(daemon: Daemon, words: list[str], text: str) -> None:
    status, err = refused(daemon, "agent", *words)
    assert (status, text in err) == (2, True)


# Scenarios


def test_a_step_is_done_before_the_call_goes_on(start: Starter) -> None:
    """No race: what is due before an open is there when the open is answered."""
    daemon = start()  # its scenarios are counted
    daemon.generate(9)
    assert ctl(daemon, "scenario", "other-agent-stages-first").splitlines() == [
        "scenario: other-agent-stages-first",
        "number: 1",
        "steps: 1",
    ]
    assert daemon.call("status")["scenario"] is not None
    with opened(daemon, STAGED, os.O_RDWR) as descriptor:
        with pytest.raises(FileExistsError):
            os.write(descriptor, b"A\n")
        os.write(descriptor, b"D\n")
        assert steps(daemon) == [(1, 1, [])]
    assert daemon.count() == 0
    assert "scenario" in ctl(daemon, "scenario-end")
    assert daemon.call("status")["scenario"] is None


def test_what_is_due_after_and_when_refused(daemon: Daemon, tmp_path: Path) -> None:
    text = """
    [[step]]
    when = "after stage"
    do = [{ op = "violation", name = "/after" }]
    [[step]]
    when = "refused stage"
    nth = 2
    do = [{ op = "violation", name = "/refused" }]
    [[step]]
    when = "after end"
    file = "binary_runtime_measurements_staged"
    do = [{ op = "generate", count = 3 }]
    [[step]]
    when = "after close"
    do = [{ op = "suspend" }]
    """
    ctl(daemon, "scenario", scenario(tmp_path, text))
    with opened(daemon, STAGED, os.O_RDWR) as descriptor:
        os.write(descriptor, b"A\n")
        assert daemon.call("status")["violations"] == 1
        for expected in (1, 2):
            with pytest.raises(FileExistsError):
                os.write(descriptor, b"A\n")
            assert daemon.call("status")["violations"] == expected
        while os.read(descriptor, 4096):
            assert daemon.group("records")["since_boot"] == 3
        assert daemon.group("records")["since_boot"] == 6
    wait_for(lambda: steps(daemon) == [(1, 1, [])] * 4, 60, "the close was noticed")
    assert daemon.call("status")["suspended"]


def test_steps_by_records_and_by_time(daemon: Daemon, tmp_path: Path) -> None:
    text = """
    [[step]]
    when = "records"
    records = 5
    do = [{ op = "violation", name = "/five" }]
    [[step]]
    when = "start"
    seconds = 0.05
    do = [{ op = "violation", name = "/later" }]
    """
    ctl(daemon, "scenario", scenario(tmp_path, text))
    wait_for(lambda: daemon.call("status")["violations"] == 1, 60, "the time has come")
    daemon.call("generate", count=3)
    wait_for(lambda: daemon.call("status")["violations"] == 2, 60, "the records are there")
    wait_for(lambda: steps(daemon) == [(1, 1, []), (1, 1, [])], 60, "both are done")
    ctl(daemon, "scenario", scenario(tmp_path, text))
    wait_for(lambda: steps(daemon)[0] == (1, 1, []), 60, "they were there from the start")


def test_a_step_that_fails_is_told(daemon: Daemon, tmp_path: Path) -> None:
    daemon.logs.expect("WARNING.*scenario mine, step 1: agent: ENOENT: nothing is staged")
    text = """
    [[step]]
    when = "before open"
    do = [{ op = "agent", action = "delete" }, { op = "generate", count = 9 }]
    """
    ctl(daemon, "scenario", scenario(tmp_path, text))
    assert errno_of(daemon, BINARY) == 0
    assert steps(daemon) == [(1, 0, ["agent: ENOENT: nothing is staged"])]
    assert daemon.count() == 1
    assert "failed: agent: ENOENT: nothing is staged" in ctl(daemon, "status")


def test_a_reboot_at_a_clients_call(daemon: Daemon) -> None:
    daemon.generate(5)
    ctl(daemon, "scenario", "--name", "reboot")
    with opened(daemon, STAGED, os.O_RDWR) as descriptor:
        os.write(descriptor, b"A\n")
        os.write(descriptor, b"D\n")
    assert daemon.count() == 1
    assert steps(daemon) == [(1, 1, [])]
    daemon.assert_replays()


def test_a_scenario_from_the_start(start: Starter) -> None:
    daemon = start("--scenario", "violation-in-list")
    assert daemon.call("status")["violations"] == 1
    assert steps(daemon) == [(1, 1, [])]


def test_a_scenario_that_is_none(start: Starter, daemon: Daemon, tmp_path: Path) -> None:
    status, log = start.refused("--scenario", "no-such")
    assert status == 2
    assert "no ready scenario is called 'no-such'" in log
    file = scenario(tmp_path, "[[step]]\nwhen = 'start'\ndo = [{op = 'fly'}]\n")
    assert refused(daemon, "scenario", file) == (
        3,
        f"imafs: {file}: line 3: do: op: unknown operation 'fly'\n",
    )
    assert refused(daemon, "scenario", str(tmp_path / "none.toml"))[0] == 2
    status, said = refused(daemon, "scenario", "mine")
    assert status == 2
    assert "called 'mine'; there are: burst" in said
    assert said.endswith("(a file has a / in its name, or ends in .toml)\n")
    assert daemon.call("status")["scenario"] is None


#: profile -> what a client writes there with ten records, and what has happened then. The same
#: words stage in one draft, delete what is staged in another, and trim in a third.
EVENTS_OF_WRITES: list[tuple[str, list[tuple[str, bytes, bool, str]]]] = [
    (
        "v3",
        [
            (f"{BINARY}_staged", b"A\n", True, "after stage"),
            (f"{BINARY}_staged", b"3\n", True, "after delete"),
            (f"{BINARY}_staged", b"3\n", False, "refused delete"),
        ],
    ),
    (
        "rfc-v2",
        [
            (f"{BINARY}_staged", b"3\n", True, "after stage"),
            (f"{BINARY}_staged", b"D\n", True, "after delete"),
            (f"{BINARY}_staged", b"-2\n", True, "after trim"),
        ],
    ),
    ("rfc-v1", [(f"{BINARY}_staged", b"3\n", True, "after stage")]),
    (
        "snap",
        [
            (f"{BINARY}_snap", b"0\n", True, "after stage"),
            (f"{BINARY}_snap", b"1\n", True, "after delete"),
        ],
    ),
    ("trim-v5", [("ima_trim_log", b"7:1\n", False, "refused trim")]),
    ("export-2020", [("list_name", b"{root}/list\n", True, "after export")]),
]


@pytest.mark.parametrize(("profile", "writes"), EVENTS_OF_WRITES)
def test_a_write_is_told_as_what_it_asks_for_in_its_profile(
    start: Starter, tmp_path: Path, profile: str, writes: list[tuple[str, bytes, bool, str]]
) -> None:
    more = ("--export-root", str(tmp_path)) if profile.startswith("export") else ()
    daemon = start("--profile", profile, *more)
    daemon.generate(10)
    requests = ("stage", "delete", "trim", "export")
    events = [f"{phase} {what}" for phase in ("after", "refused") for what in requests]
    step = '[[step]]\nwhen = "{0}"\nevery = 1\ndo = [{{ op = "violation", name = "/{0}" }}]\n'
    text = "".join(step.format(event) for event in events)
    ctl(daemon, "scenario", scenario(tmp_path, text))
    for name, data, taken, event in writes:
        before = [due for due, _, _ in steps(daemon)]
        answer = daemon.write(name, data.replace(b"{root}", os.fsencode(tmp_path)))
        assert (answer == "ok") is taken, answer
        after = [due for due, _, _ in steps(daemon)]
        told = [e for e, now, then in zip(events, after, before, strict=True) if now != then]
        assert told == [event]


def test_a_step_watches_files(start: Starter, tmp_path: Path) -> None:
    """Every operation that a scenario may name is carried out, those of watched files too."""
    watched = tmp_path / "watched"
    watched.mkdir()
    program = watched / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    daemon = start()
    text = "".join(
        f'[[step]]\nwhen = "{when}"\ndo = [{{ op = "{op}", paths = ["{watched}"] }}]\n'
        for when, op in (("after stage", "watch"), ("after delete", "unwatch"))
    )
    ctl(daemon, "scenario", scenario(tmp_path, text))
    assert daemon.write(STAGED, b"A\n") == "ok"
    run([str(program)])
    assert str(program).encode() in daemon.read(ASCII), "the step was done before the write"
    assert daemon.write(STAGED, b"D\n") == "ok"
    assert steps(daemon) == [(1, 1, []), (1, 1, [])]
    assert daemon.group("watch")["paths"] == []


def test_opens_and_closes_in_turn_stay_in_order(daemon: Daemon, tmp_path: Path) -> None:
    """A listener that has nothing to do costs no EBUSY: no turn is given away."""
    text = '[[step]]\nwhen = "after trim"\ndo = [{ op = "repeat" }]\n'
    ctl(daemon, "scenario", scenario(tmp_path, text))
    program = (
        "import os, sys\n"
        "for _ in range(2000):\n"
        "    for flags in (os.O_RDWR, os.O_RDONLY):\n"
        "        os.close(os.open(sys.argv[1], flags))\n"
    )
    run(["python3", "-c", program, str(daemon.path(STAGED))], deadline=60)


# The policy file, whose writes take their time


def policy_write(daemon: Daemon, data: bytes) -> int:
    """The errno of one write, 0 where it succeeds."""
    with opened(daemon, "policy", os.O_WRONLY) as descriptor:
        try:
            os.write(descriptor, data)
        except OSError as error:
            return error.errno or 0
    return 0


@pytest.mark.parametrize("data", [b"measure func=CRITICAL_DATA\n", b"FILE\n"])
def test_a_policy_of_a_kernel_that_is_gone(start: Starter, tmp_path: Path, data: bytes) -> None:
    """The write that came before the kexec changes nothing of the next kernel."""
    rules = tmp_path / "rules"
    rules.write_bytes(b"measure func=CRITICAL_DATA\n")
    daemon = start("--policy", "tcb,critical_data")
    before = daemon.read(ASCII)
    text = '[[step]]\nwhen = "before write"\ndo = [{ op = "kexec_execute" }]\n'
    ctl(daemon, "scenario", scenario(tmp_path, text))
    assert policy_write(daemon, data.replace(b"FILE", os.fsencode(rules))) == errno.ENODEV
    assert steps(daemon) == [(1, 1, [])]
    names = [line.split()[4] for line in daemon.read(ASCII).decode().splitlines()]
    assert daemon.read(ASCII).startswith(before)
    assert not {"ima_policy_written", "ima_policy_loaded", str(rules)} & set(names)
    assert daemon.group("policy")["source"] == "tcb,critical_data"


def test_events_of_a_policy_write(start: Starter, tmp_path: Path) -> None:
    """``after`` when the rule is taken, ``refused`` when it is not."""
    daemon = start("--policy", "critical_data")
    text = "".join(
        f'[[step]]\nwhen = "{phase} write"\nevery = 1\n'
        f'do = [{{ op = "violation", name = "/{phase}" }}]\n'
        for phase in ("before", "after", "refused")
    )
    ctl(daemon, "scenario", scenario(tmp_path, text))
    assert policy_write(daemon, b"nonsense\n") == errno.EINVAL
    assert [due for due, _, _ in steps(daemon)] == [1, 0, 1]
    assert policy_write(daemon, b"measure func=CRITICAL_DATA\n") == 0
    assert [due for due, _, _ in steps(daemon)] == [2, 1, 1]
