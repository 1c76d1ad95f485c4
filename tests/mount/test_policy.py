# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The policy through a real mount: what it measures, its file, its options."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imafs.errors import Refused
from tests.conformance import recordings
from tests.mount.daemon import ASCII, COUNT, Daemon, imafs
from tests.mount.fixtures import Starter
from tests.mount.fixtures import booted as booted
from tests.property.reference import replay
from tests.support import run, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

SEVEN_THREE = recordings.load("7.3.4-critical")


def write(daemon: Daemon, *writes: bytes) -> list[str]:
    """One session; what became of each write, and the mount has seen the close."""
    outcomes = []
    descriptor = os.open(daemon.path("policy"), os.O_WRONLY)
    try:
        for data in writes:
            try:
                outcomes.append(str(os.write(descriptor, data)))
            except OSError as error:
                outcomes.append(errno.errorcode[error.errno or 0])
    finally:
        os.close(descriptor)
    daemon.path(COUNT).stat()  # RELEASE is before it in the queue
    return outcomes


def names(daemon: Daemon, list_name: str = ASCII) -> list[str]:
    """Names of the records, in order."""
    return [line.split()[4] for line in daemon.read(list_name).decode().splitlines()]


def row(daemon: Daemon, **options: object) -> dict[str, object]:
    """The one row of a measure."""
    rows = daemon.call("measure", **options)["measured"]
    assert isinstance(rows, list)
    assert len(rows) == 1
    found = rows[0]
    assert isinstance(found, dict)
    return found


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of its own."""
    place = tmp_path / "tmpfs"
    place.mkdir()
    run(["mount", "-t", "tmpfs", "none", str(place)])
    try:
        yield place
    finally:
        run(["umount", "-l", str(place)])


def test_without_a_policy_everything_is_measured(daemon: Daemon) -> None:
    assert daemon.read("policy") == b""
    assert daemon.call("status")["policy"] is None
    assert row(daemon, paths=["/proc/version"], explain=True)["why"] == "no policy is active"
    assert names(daemon) == ["boot_aggregate", "/proc/version"]


def test_tcb(start: Starter, tmpfs: Path) -> None:
    daemon = start("--policy", "tcb")
    file = tmpfs / "f"
    file.write_text("content\n")
    read = row(daemon, paths=[str(file)])
    assert read == {
        "path": str(file),
        "measured": False,
        "rule": 4,
        "why": "rule 4: dont_measure func=FILE_CHECK fsmagic=0x1021994",
    }
    executed = row(daemon, paths=[str(file)], func="BPRM_CHECK", uid=1000, explain=True)
    assert executed["why"] == "rule 16: measure func=BPRM_CHECK mask=MAY_EXEC"
    assert executed["number"] == 2
    env = row(daemon, paths=["/usr/bin/env"], uid=1000)
    assert (env["measured"], env["why"]) == (False, "no rule matches")
    assert row(daemon, paths=["/usr/bin/env"], uid=1000, euid=0)["number"] == 3
    assert names(daemon) == ["boot_aggregate", str(file), "/usr/bin/env"]
    shown = daemon.ctl("measure", "/proc/version", "/usr/bin/env", "--explain")
    assert "not measured  /proc/version (rule 1: dont_measure fsmagic=0x9fa0)\n" in shown
    assert "/usr/bin/env (already measured)\n  rule 17: measure func=FILE_CHECK" in shown
    assert "22 rules" not in daemon.ctl("status")
    assert "policy      21 rules: tcb\n" in daemon.ctl("status")


@pytest.mark.parametrize("wrong", [{"func": "FILECHECK"}, {"mask": "MAY_FLY"}, {"uid": 2**32}])
def test_a_use_that_there_is_not(daemon: Daemon, wrong: dict[str, object]) -> None:
    with pytest.raises(Refused) as caught:
        daemon.call("measure", paths=["/usr/bin/env"], **wrong)
    assert caught.value.errno == errno.EINVAL
    assert next(iter(wrong)) in str(caught.value)


def test_pcr_and_template_of_a_rule(start: Starter, tmp_path: Path) -> None:
    """The record, and PCR 11 of the TPM; violations stay at the default."""
    rules = tmp_path / "rules"
    rules.write_text(
        "measure func=FILE_CHECK fowner=1234 pcr=11 template=ima-sig\n"
        "measure func=FILE_CHECK fowner=1235 template=d|n\n"
        "measure func=CRITICAL_DATA label=here pcr=12\n"
        "measure func=FILE_CHECK fowner=1236 pcr=22\n"
    )
    daemon = start("--policy", str(rules), "--hash", "sha1")
    files = []
    for owner in (1234, 1235, 1236):
        file = tmp_path / f"owned-by-{owner}"
        file.write_text(f"{owner}\n")
        os.chown(file, owner, 0)
        files.append(str(file))
    daemon.call("measure", paths=files[:2])
    daemon.call("violation", name=files[0])
    daemon.call("critical_data", label="here", name="data", data="00")
    assert daemon.call("critical_data", label="there", name="data", data="01") == {
        "measured": False,
        "rule": 0,
        "why": "no rule matches",
    }
    daemon.logs.expect("PCR 22 is not extended, the record stays: .*TPM_RC_LOCALITY")
    daemon.call("measure", paths=[files[2]])
    lines = daemon.read(ASCII).decode().splitlines()
    words = [line.split(" ") for line in lines]
    assert [(w[0], w[2]) for w in words] == [
        ("10", "ima-ng"),
        ("11", "ima-sig"),
        ("10", "ima"),
        ("10", "ima-ng"),
        ("12", "ima-buf"),
        ("22", "ima-ng"),
    ]
    daemon.call("wait", extended=True)
    assert daemon.group("failures")["refused"] == 1
    for index in (10, 11, 12):
        for bank in ("sha1", "sha256"):
            shown = daemon.read(f"{ASCII}_{bank}")
            assert replay(shown, bank, index) == daemon.pcr(bank, index), (index, bank)


def test_records_of_7_3(start: Starter) -> None:
    """kernel_version and ima_policy_loaded are the recorded kernel's, digests included."""
    recorded = SEVEN_THREE.text("boot/ascii_runtime_measurements").splitlines()
    daemon = start("--policy", "critical_data")
    lines = daemon.read(ASCII).decode().splitlines()
    assert lines[1:] == recorded[1:2]
    policy = SEVEN_THREE.text("policy-loaded.txt").splitlines()
    write(daemon, *(f"{line}\n".encode() for line in policy))
    assert daemon.read("policy").decode() == SEVEN_THREE.text("boot/policy.txt")
    lines = daemon.read(ASCII).decode().splitlines()
    assert lines[1:] == recorded[1:3]
    # From now on POLICY_CHECK is active: what is written is measured, nonsense too.
    assert write(daemon, b"nonsense\n", b"# comment\n") == ["EINVAL", "10"]
    written = [line.split() for line in daemon.read(ASCII).decode().splitlines()[3:]]
    assert [(w[2], w[4], bytes.fromhex(w[5])) for w in written] == [
        ("ima-buf", "ima_policy_written", b"nonsense\n"),
        ("ima-buf", "ima_policy_written", b"# comment\n"),
    ]


def test_7_2_does_not_measure_its_policy(start: Starter) -> None:
    daemon = start("--policy", "tcb,critical_data", "--policy-release", "7.2")
    assert names(daemon) == ["boot_aggregate", "kernel_version"]
    assert b"0x62656570" not in daemon.read("policy")
    assert write(daemon, b"measure func=CRITICAL_DATA\n") == ["27"]
    assert names(daemon) == ["boot_aggregate", "kernel_version"]


def test_a_policy_file_is_measured(start: Starter, tmp_path: Path) -> None:
    """On every release, by POLICY_CHECK, under its path."""
    file = tmp_path / "rules"
    file.write_bytes(b"measure func=POLICY_CHECK fowner=77\nmeasure func=CRITICAL_DATA\n")
    daemon = start("--policy", "tcb")
    path = os.fsencode(file) + b"\n"
    assert write(daemon, path) == [str(len(path))]
    lines = [line.split() for line in daemon.read(ASCII).decode().splitlines()]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert [(w[3], w[4]) for w in lines[1:2]] == [(f"sha256:{digest}", str(file))]
    assert lines[2][4] == "ima_policy_loaded"
    file.write_bytes(file.read_bytes() + b"# more\n")
    write(daemon, path)
    assert len(daemon.read(ASCII).splitlines()) == 4, "its owner is another: text alone"


def test_the_file_goes_where_kconfig_says(start: Starter) -> None:
    rule = b"measure fowner=1\n"
    for read, write_, mode, after in (
        ("--policy-read", "--policy-write", 0o600, 0o600),
        ("--policy-read", "--no-policy-write", 0o600, 0o400),
        ("--no-policy-read", "--policy-write", 0o200, 0o200),
        ("--no-policy-read", "--no-policy-write", 0o200, None),
    ):
        daemon = start(read, write_)
        policy = daemon.path("policy")
        assert stat.S_IMODE(policy.stat().st_mode) == mode
        assert write(daemon, b"bogus\n") == ["EINVAL"]
        assert write(daemon, rule) == [str(len(rule))]
        if after is None:
            assert not policy.exists()
            assert "policy" not in os.listdir(daemon.dir)
            assert COUNT in os.listdir(daemon.dir)
        else:
            assert stat.S_IMODE(policy.stat().st_mode) == after
        if read == "--no-policy-read" and after is not None:
            with pytest.raises(PermissionError):
                policy.read_bytes()
        if write_ == "--no-policy-write" and after is not None:
            with pytest.raises(OSError, match="busy"):
                policy.open("wb")
        assert daemon.group("policy") == {"rules": 1, "without_effect": 0, "source": "written"}
        daemon.call("reset")
        assert stat.S_IMODE(policy.stat().st_mode) == mode
        assert daemon.call("status")["policy"] is None
        daemon.stop()


def test_reset_is_a_boot(start: Starter, tmp_path: Path) -> None:
    """The policy of the boot is back, and who holds the file open holds an old one."""
    rules = tmp_path / "rules"
    rules.write_text("measure func=CRITICAL_DATA\n")
    daemon = start("--policy", str(rules))
    before = daemon.read(ASCII)
    assert names(daemon) == ["boot_aggregate", "ima_policy_loaded"]
    write(daemon, b"audit\n")
    descriptor = os.open(daemon.path("policy"), os.O_WRONLY)
    os.write(descriptor, b"measure\n")
    daemon.call("reset")
    assert daemon.read("policy") == b"measure func=CRITICAL_DATA \n"
    os.close(descriptor)
    assert write(daemon, b"hash\n") == ["5"]
    assert daemon.read("policy") == b"measure func=CRITICAL_DATA \nhash \n"
    assert daemon.group("policy")["source"] == f"{rules}, written"
    assert daemon.group("policy")["without_effect"] == 1
    assert daemon.read(ASCII).startswith(before.splitlines(keepends=True)[0])
    assert "policy rule 2 (hash) has no effect: hash is not emulated" in daemon.log()


def test_a_policy_is_audited_in_the_name_of_its_writer(start: Starter, tmp_path: Path) -> None:
    """By a rule, by a path, by a thread, and by who closes what another one has written."""
    log, rules = tmp_path / "audit.log", tmp_path / "rules"
    rules.write_text("measure fowner=1\n")
    daemon = start("--audit-log", str(log))
    policy = daemon.path("policy")

    def written(command: str, *arguments: object) -> tuple[str, list[str]]:
        """The writer's pid, and pid, uid and comm of the new records that name a task."""
        before = len(log.read_text().splitlines())
        with subprocess.Popen([*command.split(), *map(str, arguments)]) as process:
            process.wait(60)
        wait_for(
            lambda: "op=policy_update" in "".join(log.read_text().splitlines()[before:]),
            *(60, "what became of the policy is audited"),
        )
        task = r"pid=(\d+) uid=(\d+) auid=\d+ ses=\d+ op=\S+ cause=\S+ comm=(\S+) "
        new = "\n".join(log.read_text().splitlines()[before:])
        return str(process.pid), [" ".join(found) for found in re.findall(task, new)]

    pid, tasks = written("/bin/sh -c", f"echo 'measure fowner=2' >{policy}")
    assert tasks == [f'{pid} 0 "sh"']
    pid, tasks = written("/bin/sh -c", f"echo 'nonsense' >{policy} 2>&-")
    assert tasks == [f'{pid} 0 "sh"'] * 2
    pid, tasks = written("/bin/sh -c", f"printf {rules} >{policy}")
    assert tasks == [f'{pid} 0 "sh"']
    # A child writes, its parent is the last to close.
    pid, tasks = written("/bin/bash -c", f"exec 5>{policy}; (echo nonsense >&5) 2>&-; exec 5>&-")
    (writer, *first), (closer, *last) = (task.split() for task in tasks)
    assert first == last == ["0", '"bash"']
    assert writer != closer == pid


def test_writing_while_measurements_are_suspended(start: Starter) -> None:
    daemon = start("--policy", "tcb,critical_data")
    daemon.call("suspend")
    assert write(daemon, b"measure func=CRITICAL_DATA\n") == ["27"]
    assert daemon.read("policy") == b"measure func=CRITICAL_DATA \n"
    assert "ima_policy_loaded" not in names(daemon)


def test_measure_at_the_start_follows_the_policy(start: Starter, tmpfs: Path) -> None:
    (tmpfs / "f").write_text("x\n")
    daemon = start("--policy", "tcb", "--measure", "/usr/bin/env", str(tmpfs))
    assert names(daemon) == ["boot_aggregate", "/usr/bin/env"]
    assert "measured 1 file of 2" in daemon.log()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"measure\n\n# c\nmeasure func=X\n", "line 4: func=X: no such hook"),
        (b"measure fsmagic=0x10000000000000000\n", "line 1: "),
        (b"measure", "line 1: the file does not end with a complete line: without a newline"),
        (b"measure\n\0\n", "behind a NUL"),
        (
            b"measure mask=MAY_EXEC\r\n",
            r"line 1: mask=MAY_EXEC\x0d: no such mask (Windows line ends",
        ),
        (b"measure uid=0\n\r\n", r"line 2: \x0d: no such word (Windows line ends"),
        (b"\xef\xbb\xbfmeasure\n", r"line 1: \xef\xbb\xbfmeasure: no such word (a byte order mark"),
        (b"\xff\xfem\0e\0", r"line 1: \xff\xfem: no such word (UTF-16"),
        (b"measure func=\xc3\xa4\x07\n", "line 1: func=\u00e4\\x07: no such hook"),
        (b"# nothing\n", "no rule"),
    ],
)
def test_a_bad_file_of_rules(
    start: Starter, tmp_path: Path, content: bytes, complaint: str
) -> None:
    file = tmp_path / "rules"
    file.write_bytes(content)
    status, log = start.refused("--policy", str(file))
    assert status == Refused.exit_code
    assert complaint in log
    assert str(file) in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--policy", "tbc"], "tcb, ima_tcb"),
        (["--policy", "tcb,tbc"], "tbc"),
        (["--policy", "/no/such/file"], "No such file"),
        (["--policy-release", "7.1"], "7.1"),
        (["--policy-without", "lsm,acl"], "acl"),
    ],
)
def test_options_that_make_no_sense(start: Starter, options: list[str], complaint: str) -> None:
    status, log = start.refused(*options)
    assert status == 2
    assert complaint in log


def test_a_write_without_newline_and_a_stranger(start: Starter) -> None:
    """What FUSE cannot answer is clamped; a reader without the capability gets EPERM."""
    daemon = start("--policy", "tcb")
    assert write(daemon, b"measure fowner=3") == ["16"]
    assert daemon.read("policy") == b"measure fowner=3 \n"
    shell = f"cat {daemon.path('policy')}"
    done = run(
        ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", "sh", "-c", shell], check=False
    )
    assert "Operation not permitted" in done.stderr


def test_critical_data_is_told_apart(start: Starter) -> None:
    daemon = start("--policy", "tcb")
    said = daemon.ctl("critical-data", "--label", "l", "--name", "n", "--data", "00")
    assert said == "not measured  n (no rule matches)\n"
    help_text = imafs("mount", "--help").stdout
    assert "--no-policy-write" in help_text


def test_kexec_and_reboot_begin_with_the_policy_of_the_boot(start: Starter) -> None:
    """The recorded kernels have boot_aggregate and kernel_version behind kexec_execute."""
    daemon = start("--policy", "tcb,critical_data")
    daemon.call("kexec_load")
    write(daemon, b"measure func=CRITICAL_DATA label=none\n")
    descriptor = os.open(daemon.path("policy"), os.O_WRONLY)
    daemon.call("kexec_execute")
    with pytest.raises(OSError, match="No such device"):
        os.write(descriptor, b"measure\n")
    os.close(descriptor)
    first = ["boot_aggregate", "kernel_version"]
    assert names(daemon) == [*first, "kexec_load", "ima_policy_written", *first]
    assert daemon.group("policy") == {
        "rules": 22,
        "without_effect": 0,
        "source": "tcb,critical_data",
    }
    assert write(daemon, b"measure\n") == ["8"], "the old kernel's writer does not block it"
    daemon.call("reboot")
    assert daemon.group("policy")["rules"] == 22
    assert names(daemon) == first


def test_a_fault_on_the_policy(daemon: Daemon) -> None:
    """A fault that was asked for meets the session as an error of the kernel would."""
    daemon.call("fault", files="policy", operation="write", errno="ENOMEM", next=1)
    assert write(daemon, b"measure\n", b"measure fowner=1\n") == ["ENOMEM", "17"]
    assert daemon.read("policy") == b"", "the session is invalid"
    assert write(daemon, b"measure fowner=1\n") == ["17"]
    assert daemon.read("policy") == b"measure fowner=1 \n"


@pytest.mark.parametrize("to_file", [True, False])
def test_odd_bytes_in_the_log(start: Starter, tmp_path: Path, to_file: bool) -> None:
    log = tmp_path / "log"
    daemon = start(*(("--log-file", log) if to_file else ()))
    assert write(daemon, b"measure func=\xff\x1b[31m\n", b"/\xff\x1b\n") == ["EINVAL", "ENOENT"]
    text = log.read_text() if to_file else daemon.log()
    assert "policy: EINVAL: func=\\xff\\x1b[31m: no such hook\n" in text
    assert "policy: ENOENT: /\\xff\\x1b: No such file or directory\n" in text
