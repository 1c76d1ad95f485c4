# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a command sees inside ``imafs run``, and what it gives back."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.mount.daemon import Daemon, alive
from tests.property.reference import replay
from tests.run.runs import (
    CLASS,
    IMA,
    LIST,
    SECURITY,
    WITHOUT_ADMIN,
    StartRun,
    Traces,
    family,
    imafs_run,
    in_shell,
    path_with_imafs,
    words_for,
)
from tests.support import ROOT, require, run, stopped, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

WHO = pytest.mark.parametrize("who", ["root", "namespace", "user"])


def hash_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@WHO
def test_a_measured_file_and_the_tpm(who: str) -> None:
    """The list has ls with its hash, and PCR 10 is what the list replays to."""
    require("tpm2_pcrread")
    script = f"ls / >&2; cat {LIST}_sha256; echo; tpm2_pcrread sha256:10"
    out = in_shell(script, "--measure", "/usr/bin/ls", who=who)
    lines, _, pcr = out.partition("\n\n")
    assert lines.splitlines()[-1].split()[3:] == [f"sha256:{hash_of('/usr/bin/ls')}", "/usr/bin/ls"]
    value = replay(lines.encode(), "sha256").hex().upper()
    assert f"0x{value}" in pcr


def test_the_tpm_has_room_for_three_objects() -> None:
    """No resource manager: what docs/run.md says of it, with the commands it names."""
    require("tpm2_createprimary", "tpm2_create", "tpm2_load", "tpm2_flushcontext")
    script = """
        cd /sys/fs/imafs
        tpm2_createprimary -Q -c primary && tpm2_create -Q -C primary -u public -r private
        load="tpm2_load -Q -C primary -u public -r private -c key"
        $load 2>&1 | grep -o "out of memory for object contexts"
        tpm2_flushcontext -t
        $load && tpm2_flushcontext -t && tpm2_quote -Q -c key -l sha256:10 && echo quoted
    """
    assert in_shell(script) == "out of memory for object contexts\nquoted\n"


def test_the_agent_as_its_document_calls_it(tmp_path: Path) -> None:
    require("tpm2_quote")
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/scenarios.md").read_text(), re.DOTALL)
    (called,) = [block for block in blocks if "examples/agent.py" in block]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = run(["sh", "-c", called], cwd=tmp_path, env=path_with_imafs(), deadline=60)
    assert done.stdout.splitlines() == [
        "1 record attested: evidence/boot-1-000000000.tar",
        "added: 5",
        "6 records attested: evidence/boot-2-000000000.tar",
    ]


def test_a_watched_file(tmp_path: Path) -> None:
    """What the command executes is measured by itself, and the PCR is what the list replays to."""
    tool = tmp_path / "ls"
    shutil.copy("/usr/bin/ls", tool)
    out = in_shell(
        f"{tool} / >&2; cat {LIST}_sha256; imafs verify {IMA}/binary_runtime_measurements",
        *("--watch", str(tmp_path)),
    )
    assert f"sha256:{hash_of(str(tool))} {tool}\n" in out
    assert "match after record 2" in out


def test_watching_needs_the_initial_user_namespace(tmp_path: Path) -> None:
    traces = Traces()
    done = imafs_run("--watch", tmp_path, "--", "true", who="namespace", check=False)
    assert done.returncode != 0
    assert "CAP_SYS_ADMIN" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    traces.assert_none(set())


@WHO
def test_staging(who: str) -> None:
    """The document's workflow by one descriptor; the writer is admitted by its capability."""
    out = in_shell(
        f"exec 3<>{IMA}/ascii_runtime_measurements_staged; echo A >&3; cat <&3; echo D >&3;"
        f" exec 3>&-; cat {IMA}/runtime_measurements_count",
        who=who,
    )
    assert out.splitlines()[0].endswith("boot_aggregate")
    assert out.splitlines()[1] == "0"


@pytest.mark.parametrize(("who", "root_is"), [("root", 0), ("namespace", 0), ("user", 12345)])
def test_who_the_command_is(who: str, root_is: int) -> None:
    """root, and outside of a user namespace only where that is refused."""
    out = in_shell("id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user", who=who)
    uid, mapped, namespace = out.splitlines()
    assert (uid, mapped.split()[:2]) == ("0", ["0", str(root_is)])
    assert (namespace == os.readlink("/proc/self/ns/user")) == (who == "root")


#: Hides a part of each whole /proc: one that is left, such as that of a chroot, is enough for
#: another one to be allowed (``mount_too_revealing``).
_HIDE_PROC = (
    "findmnt -rnt proc -o FSROOT,TARGET | "
    "while read -r root at; do [ $root != / ] || mount --bind /proc/version $at/uptime; done"
)


@pytest.mark.parametrize(
    ("before", "text"),
    [
        ("echo 0 >/proc/sys/user/max_user_namespaces", "too many user namespaces"),
        (_HIDE_PROC, "/proc cannot be mounted"),
    ],
)
def test_where_namespaces_are_refused(before: str, text: str) -> None:
    """One line that says what is missing, exit code 5, nothing left."""
    traces = Traces()
    words = [*WITHOUT_ADMIN, sys.executable, "-P", "-m", "imafs", "run", "--", "true"]
    # A user namespace of its own, whose limit and whose /proc may be changed.
    script = f"{before} && exec {shlex.join(words)}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = run(command, check=False, cwd=ROOT)
    assert done.returncode == 5, done.stderr
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
    traces.assert_none(set())


@WHO
def test_sysfs(who: str) -> None:
    """/sys/class/tpm is that of the swtpm, as a kernel shows it."""
    out = in_shell(
        f"imafs ctl generate 3; imafs ctl wait --extended; cd {CLASS}/tpm0; ls | tr '\\n' ' ';"
        " echo; cat tpm_version_major; cat pcr-sha256/10; stat -c '%a %s' pcr-sha256/10;"
        f" ls pcr-sha1 | wc -l; cat {LIST}_sha256",
        who=who,
    )
    lines = out.splitlines()
    at = lines.index("pcr-sha1 pcr-sha256 pcr-sha384 pcr-sha512 tpm_version_major ")
    assert lines[at + 1] == "2"
    assert lines[at + 2] == replay("\n".join(lines[at + 5 :]).encode(), "sha256").hex().upper()
    assert lines[at + 3 : at + 5] == ["444 4096", "24"]


def test_the_rest_of_sys_is_there() -> None:
    """Links of the covered directories lead where they led."""
    look = "ls /sys/class /sys/fs; cat /sys/class/net/lo/mtu; ls /sys/fs/cgroup"
    inside = set(in_shell(look).splitlines())
    outside = {name for place in ("/sys/class", "/sys/fs") for name in os.listdir(place)}
    assert outside <= inside
    assert Path("/sys/class/net/lo/mtu").read_text().strip() in inside
    assert set(os.listdir("/sys/fs/cgroup")) <= inside


def test_securityfs_is_found_where_clients_look(daemon: Daemon) -> None:
    """The first line of /proc/mounts that begins with securityfs, whatever is mounted outside."""
    script = f"grep -m1 ^securityfs /proc/mounts; ls {SECURITY}; cat {SECURITY}/ima/violations"
    lines = in_shell(script).splitlines()
    assert lines[0].split()[:2] == ["securityfs", SECURITY]
    assert lines[1:] == ["ima", "integrity", "0"]
    assert daemon.count() == 1  # untouched


@pytest.mark.parametrize("who", ["root", "namespace"])
def test_proc_names_one_securityfs(who: str) -> None:
    """What the kernel's own selftests look for; root's session takes the machine's out."""
    words, environment = words_for(who)
    look = ["sh", "-c", f"grep securityfs /proc/mounts; cat {CLASS}/tpm0/tpm_version_major"]
    inner = [*words, "run", "--", *look]
    if who == "root":  # in a user namespace nobody may
        mount = f"mount -t securityfs none {SECURITY} && exec {shlex.join(inner)}"
        inner = ["unshare", "--mount", "sh", "-c", mount]
        if run(
            ["unshare", "--mount", "mount", "-t", "securityfs", "none", SECURITY], check=False
        ).returncode:
            pytest.skip("this kernel has no securityfs to be mounted")
    done = run(inner, env={**environment, **path_with_imafs()}, cwd=ROOT, deadline=60)
    lines = done.stdout.splitlines()
    if who == "namespace":  # other emulators' stay in sight
        lines = [line for line in lines if "fuse.imafs" not in line or f" {SECURITY} " in line]
    assert [line.split()[:3] for line in lines[:-1]] == [["securityfs", SECURITY, "fuse.imafs"]]
    assert lines[-1] == "2"


@WHO
def test_the_command_line_of_the_session(who: str) -> None:
    options = ("--policy", "tcb", "--template", "ima-sig", "--hash", "sha512", "--flush-htable")
    line = in_shell("cat /proc/cmdline", *options, who=who)
    asked = ["ima_policy=tcb", "ima_template=ima-sig", "ima_hash=sha512", "ima_flush_htable"]
    machine = [word for word in Path("/proc/cmdline").read_text().split() if word[:4] != "ima_"]
    assert [word for word in line.split() if word.startswith("ima_")] == asked
    assert [word for word in line.split() if word not in asked] == machine
    if len(machine) == len(Path("/proc/cmdline").read_text().split()):
        assert in_shell("cat /proc/cmdline") == Path("/proc/cmdline").read_text()


@WHO
def test_audit_records_where_programs_look_for_them(who: str) -> None:
    """In the session alone, beside the machine's own logs, which stay reachable."""
    logs = ("/var/log/messages", "/var/log/audit/audit.log")
    if any(map(os.path.lexists, logs)):
        pytest.skip("this machine has such a log of its own, which is left alone")
    before = sorted(os.listdir("/var/log"))
    script = f"""
        echo 'measure func=BPRM_CHECK' > {IMA}/policy
        until grep -q policy_update {logs[0]}; do :; done
        cmp {logs[0]} {logs[1]} && cat {logs[0]}; ls -A /var/log; ls -d /var/log/*/. >&2
    """
    out = in_shell(script, who=who).splitlines()
    assert re.fullmatch(
        r"audit: type=1807 audit\(\d+\.\d{3}:1\): action=measure func=BPRM_CHECK res=1", out[0]
    )
    assert re.search(r"type=1802 .* op=policy_update cause=completed .* res=1 errno=0$", out[1])
    assert sorted(out[2:]) == sorted([*before, "audit", "messages"])
    assert sorted(os.listdir("/var/log")) == before


def test_the_tpm_is_where_clients_look_by_default() -> None:
    """evmctl with tpm2-tss and tpm2-tools without environment; a second session says so."""
    require("tpm2_pcrread")
    unset = "env -u TPM2TOOLS_TCTI -u TCTI -u TPM_COMMAND_PORT"
    script = (
        f"{unset} tpm2_pcrread -T swtpm sha256:10; cat {CLASS}/tpm0/pcr-sha256/10; "
        "imafs run -- true; echo $TPM_COMMAND_PORT"
    )
    done = imafs_run("--", "sh", "-c", script, ports=True)
    port = done.stdout.split()[-1]
    if port != "2321":
        assert f"imafs: the TPM is at port {port}: 2321 or 2322 is taken" in done.stderr
        pytest.skip("somebody else has port 2321 of this machine")
    value = done.stdout.split()[-2]
    assert f"0x{value}" in done.stdout
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"imafs: the TPM is at port \d+: 2321 or 2322 is taken, and .*", line)


def test_the_pcrs_of_a_quote_confirm_the_list() -> None:
    """What tpm2_quote -o writes; tpm2_pcrread -o says of no value whose it is."""
    require("tpm2_createprimary", "tpm2_create", "tpm2_load", "tpm2_quote", "tpm2_pcrread")
    script = f"""
        cd /sys/fs/imafs
        tpm2_createprimary -Q -c primary; tpm2_create -Q -C primary -u public -r private
        tpm2_flushcontext -t; tpm2_load -Q -C primary -u public -r private -c key
        tpm2_flushcontext -t; tpm2_quote -Q -c key -l sha1:0,10+sha256:10 -o pcrs
        imafs verify {LIST} --pcrs pcrs; imafs verify {LIST} --pcrs - < pcrs
        tpm2_pcrread -Q -o values sha1:10+sha256:10; imafs verify {LIST} --pcrs values 2>&1
    """
    *verdicts, refused = in_shell(script, "--measure", "/usr/bin/ls", check=False).splitlines()
    assert verdicts == 2 * [
        "2 records of bank sha1, 0 violations; compared PCRs: sha1:10, sha256:10",
        "match after record 2",
    ]
    assert refused.startswith("imafs: values: is binary, such as tpm2_pcrread -o")


def test_audit_logs_where_a_user_may_not_look(tmp_path: Path) -> None:
    """auditd's directory is root's alone: it is left as it is, and the session starts."""
    words, environment = words_for("user")
    (tmp_path / "audit").mkdir(mode=0o700)
    (tmp_path / "audit" / "audit.log").touch()
    tmp_path.chmod(0o755)
    inner = "ls /var/log; ls /var/log/audit/; cat /var/log/messages"
    command = shlex.join([*words, "run", "--tpm", "none", "--", "sh", "-c", inner])
    script = f"mount --bind {tmp_path} /var/log && cd / && exec {command}"
    done = run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        check=False,
        env=environment,
    )
    assert done.stdout.splitlines() == ["audit", "messages"], done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "/var/log/audit/" in done.stderr
    assert "Permission denied" in done.stderr


@pytest.mark.parametrize(
    ("prepare", "seen"),
    [
        ("ln -s nowhere audit", ["audit", "messages"]),
        ("touch audit", ["audit", "messages"]),
        ("ln -s nowhere messages", ["audit", "messages"]),
    ],
)
def test_a_log_directory_with_something_in_the_way(
    tmp_path: Path, prepare: str, seen: list[str]
) -> None:
    """A link to nowhere and a file stay as they are; the session starts."""
    inner = "ls /var/log"
    command = shlex.join([*words_for("root")[0], "run", "--tpm", "none", "--", "sh", "-c", inner])
    script = f"(cd {tmp_path} && {prepare}) && mount --bind {tmp_path} /var/log && exec {command}"
    done = run(["unshare", "--mount", "--propagation", "private", "sh", "-c", script])
    assert done.stdout.splitlines() == seen
    assert done.stderr == ""


def test_audit_records_that_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "audit"
    script = f"imafs ctl violation '/a b'; until grep -c ToMToU {file}; do :; done"
    imafs_run("--audit-log", file, "--", "sh", "-c", script)
    (line,) = file.read_text().splitlines()
    assert line.endswith('op=invalid_pcr cause=ToMToU comm="imafs" name=2F612062 res=1 errno=0')
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/stderr", "/proc/self/fd/1", "/dev/fd/2"])
def test_audit_records_in_a_pipe(path: str) -> None:
    """They are for who reads it; there is no file to show where programs look."""
    had = os.path.lexists("/var/log/messages")
    done = imafs_run(
        *("--audit-log", path, "--", "sh", "-c"),
        "imafs ctl violation /v; ls /var/log/messages 2>&-; exit 7",
        check=False,
    )
    assert done.returncode == 7
    where = done.stdout if path in ("/dev/stdout", "/proc/self/fd/1") else done.stderr
    (line,) = [line for line in where.splitlines() if line.startswith("audit: type=1804 ")]
    assert line.endswith('op=invalid_pcr cause=ToMToU comm="imafs" name="/v" res=1 errno=0')
    assert ("/var/log/messages" in done.stdout.splitlines()) == had


def test_an_audit_log_that_is_no_file(tmp_path: Path) -> None:
    """One line before anything is started; a device takes the records."""
    os.mkfifo(tmp_path / "fifo")
    done = imafs_run("--audit-log", tmp_path / "fifo", "--", "true", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"imafs: --audit-log {tmp_path}/fifo: is not a regular file\n"
    assert imafs_run("--audit-log", "/dev/null", "--", "true").stderr == ""


def test_a_log_in_a_pipe() -> None:
    """The daemon's own stdout is another one."""
    done = imafs_run("--log-file", "/dev/stdout", "--", "true")
    assert "imafs: INFO: SIGTERM: unmounting" in done.stdout


def test_covered_mounts_outside(daemon: Daemon) -> None:
    """Another file system lies on the mount, or on a directory above: it cannot be taken out."""
    for place in (daemon.dir, daemon.place.base):
        run(["mount", "-t", "tmpfs", "cover", str(place)])
        assert in_shell(f"ls {SECURITY}") == "ima\nintegrity\n"
    run(["umount", str(daemon.place.base)])
    run(["umount", str(daemon.dir)])
    assert daemon.count() == 1


def test_boot_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(os.urandom(10000))
    place = f"{SECURITY}/tpm0"
    out = in_shell(
        f"ls {SECURITY} {place}; sha256sum <{place}/binary_bios_measurements;"
        f" stat -c %a {place}/binary_bios_measurements",
        *("--bios-log", str(log)),
    )
    assert hash_of(str(log)) in out
    assert "tpm0" in out.split()
    assert out.endswith("440\n")


def test_evmctl() -> None:
    require("evmctl", "tsspcrread")
    out = in_shell(
        "imafs ctl generate 20; imafs ctl wait --extended; "
        f"evmctl ima_measurement {IMA}/binary_runtime_measurements 2>&1"
    )
    assert "Matched per TPM bank calculated digest(s)" in out


def test_quote(tmp_path: Path) -> None:
    require("tpm2_quote", "tpm2_checkquote")
    script = f"""set -e
    cd {tmp_path}
    tpm2_createek -c ek.ctx -G ecc -u ek.pub
    tpm2_createak -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pub -f pem -n ak.name
    tpm2_flushcontext -t
    tpm2_quote -c ak.ctx -l sha256:10 -q abcdef12 -g sha256 -m q.msg -s q.sig -o q.pcrs
    echo checked
    tpm2_checkquote -u ak.pub -m q.msg -s q.sig -f q.pcrs -q abcdef12 -g sha256
    cat {LIST}_sha256 >list
    """
    out = in_shell(script)
    value = replay((tmp_path / "list").read_bytes(), "sha256").hex()
    assert value in out.partition("checked\n")[2].lower()


def test_fapi() -> None:
    """FAPI finds the TPM and keeps its keys in the session."""
    require("tss2_provision", "/etc/tpm2-tss/fapi-profiles")
    done = imafs_run(
        "--", "sh", "-c", "tss2_provision && tss2_getrandom --numBytes 4 --data - --hex"
    )
    assert re.fullmatch(r"[0-9a-f]{8}", done.stdout.strip())
    assert "WARNING" not in done.stderr


def test_imafs_inside() -> None:
    """ctl, status, verify and record find the session without a word."""
    script = (
        "set -e; imafs ctl measure /usr/bin/env; imafs status | head -n1;"
        f" imafs verify {IMA}/binary_runtime_measurements; imafs record {IMA} -o $OUT; rm $OUT"
    )
    out = imafs_run("--", "sh", "-c", script, env={"OUT": "/dev/shm/imafs-case.tar"}).stdout
    assert f"on {SECURITY}" in out


def test_an_emulator_inside(tmp_path: Path) -> None:
    """A second one, by `imafs mount`, has its socket in the session as well."""
    traces = Traces()
    place = tmp_path / "second"
    place.mkdir()
    out = in_shell(
        f"imafs mount {place} --background --tpm none && ls {place} && imafs umount {place}",
        who="namespace",
    )
    assert "runtime_measurements_count" in out
    # In quotes where the name is one that a shell would take apart.
    assert re.search("control='?/sys/fs/imafs/control/", out)
    traces.assert_none(set())


def test_a_session_in_a_session() -> None:
    script = "imafs ctl generate 1; imafs run -- imafs status | grep records; imafs status"
    out = in_shell(script)
    assert re.findall(r"(\d+) since boot", out) == ["1", "2"]


def test_side_by_side(start_run: StartRun) -> None:
    script = f"imafs ctl generate $N; echo ready; read x; cat {IMA}/runtime_measurements_count"
    runs = [start_run(f"N={n}; {script}") for n in (2, 3)]
    for one in runs:
        while one.line() != "ready":
            pass
    for one in runs:
        one.type("")
    assert [one.line() for one in runs] == ["3", "4"]
    assert [one.wait() for one in runs] == [0, 0]


def test_without_a_tpm() -> None:
    out = in_shell(f"ls {CLASS}; echo ${{TPM2TOOLS_TCTI-none}}", "--tpm", "none")
    assert out.split() == ["none"]


# What it gives back


@WHO
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 3"), 3),
        (("sh", "-c", "kill -TERM $$"), 143),
        (("sh", "-c", "kill -KILL $$"), 137),
        (("/nonexistent",), 127),
        (("/etc/passwd",), 126),
    ],
)
def test_exit_code(command: tuple[str, ...], code: int, who: str) -> None:
    assert imafs_run("--tpm", "none", "--", *command, who=who, check=False).returncode == code


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ((), 2, "what is to be run?"),
        (("--",), 2, "what is to be run?"),
        (("--hash", "rot13", "--", "true"), 2, "rot13"),
        (("--load", "/nonexistent", "--", "true"), 2, "/nonexistent"),
        (("--bios-log", "/nonexistent", "--", "true"), 2, "/nonexistent"),
        (("--tpm", "swtpm:port=1", "--", "true"), 4, ""),
    ],
)
def test_refused_start(options: tuple[str, ...], code: int, text: str) -> None:
    """The daemon's own words and its exit code; the command is not started."""
    traces = Traces()
    done = imafs_run(*options, check=False)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    traces.assert_none(set())


def test_files_environment_and_directory() -> None:
    """stdin and stdout are the command's own; what Python had changed is changed back."""
    script = "cat; pwd; echo $IMAFS_WORD; grep -E '^Sig(Blk|Ign)' /proc/self/status; exit 0"
    done = imafs_run("--", "sh", "-c", script, stdin="typed\n", env={"IMAFS_WORD": "said"})
    typed, here, word, blocked, ignored = done.stdout.splitlines()
    assert (typed, here, word) == ("typed", os.getcwd(), "said")
    assert int(blocked.split()[1], 16) == 0
    assert int(ignored.split()[1], 16) == 0
    assert done.stderr == ""


def test_arguments_after_the_command_are_the_commands() -> None:
    done = imafs_run("--tpm", "none", "--", "echo", "--", "--profile", "x")
    assert done.stdout == "-- --profile x\n"


def test_nothing_is_left(start_run: StartRun) -> None:
    """Background processes of the command end with it."""
    traces = Traces()
    one = start_run("sleep 1000 & setsid sleep 1000 & echo up; read x; exit 7")
    one.line()
    processes = family(one.pid)
    assert len(processes) > 6
    one.type("")
    assert one.wait() == 7
    traces.assert_none(processes)


# When something dies


def test_a_tpm_that_hangs(start_run: StartRun) -> None:
    """A PCR's file fails within its deadline and never shows an old value."""
    file = f"{CLASS}/tpm0/pcr-sha256/10"
    one = start_run(
        f"cat {file}; while read x; do if cat {file}; then :; else echo failed; fi; done 2>&1"
    )
    first = one.line()
    assert len(first) == 64
    with stopped(one.named("swtpm")):
        one.type("")
        assert "Input/output error" in one.line()
        assert one.line() == "failed"

    def value() -> str:
        one.type("")
        line = one.line()
        if "Input/output error" in line:
            assert one.line() == "failed"
            return ""
        return line

    assert wait_for(value, 60, "the TPM answers again") == first


@pytest.mark.parametrize("where", [f"--pcrs {CLASS}/tpm0", ""], ids=["named", "found"])
def test_verify_while_the_tpm_hangs(where: str) -> None:
    """Of a copy of the list, whose TPM is the one of sysfs; the scenario is undone."""
    script = (
        f"cat {IMA}/binary_runtime_measurements >/sys/fs/imafs/list; "
        f"imafs verify /sys/fs/imafs/list {where} 2>&1; echo $?; imafs ctl tpm --work"
    )
    said, code = in_shell(script, "--scenario", "tpm-hangs").splitlines()[:2]
    assert said.startswith(f"imafs: {CLASS}/tpm0/pcr-")
    assert said.endswith(": the TPM does not answer (Input/output error)")
    assert code == "4"


def test_a_daemon_that_dies(start_run: StartRun) -> None:
    """ENOTCONN for the command, a line on stderr, and the command's own exit code."""
    one = start_run(f"pgrep -o swtpm; read x; cat {LIST} 2>&1; exit 9")
    one.line()
    daemon = next(
        pid
        for pid in family(one.pid)
        if one.named("swtpm") in family(pid) and pid != one.pid and pid != one.named("swtpm")
    )
    os.kill(daemon, 9)
    wait_for(lambda: not alive(daemon), 60, "the daemon is dead")
    one.type("")
    assert "Transport endpoint is not connected" in one.line()
    assert one.wait() == 9
    said = one.stderr()
    assert "the emulator has ended (exit code 137)" in said
    assert "--log-file FILE keeps its log" in said
    assert "/sys/fs/imafs" not in said, "which is gone when it is read"


# Scenarios


def test_a_bad_day_that_did_not_come_about_is_told() -> None:
    """The exit code is the command's; stderr says that it has met no bad day."""
    done = imafs_run("--scenario", "reboot", "--", "true")
    assert done.stderr == (
        "imafs: scenario reboot: never done: step 1 (after delete); a bad day that did not come "
        "about proves nothing\n"
    )


def test_a_step_that_failed_is_told(tmp_path: Path) -> None:
    step = '[[step]]\nwhen = "start"\ndo = [{ op = "agent", action = "delete" }]\n'
    (tmp_path / "day.toml").write_text(f'summary = "a day"\n\n{step}')
    done = imafs_run(
        "--scenario", str(tmp_path / "day.toml"), "--", "sh", "-c", "exit 3", check=False
    )
    assert done.returncode == 3
    assert "imafs: scenario day: agent: ENOENT: nothing is staged" in done.stderr


def test_a_bad_day_on_a_fresh_list() -> None:
    script = "exec 3<>/sys/kernel/security/ima/binary_runtime_measurements_staged; echo A >&3"
    done = imafs_run("--scenario", "other-agent-trims-first", "--", "bash", "-c", script)
    assert done.stderr == ""
