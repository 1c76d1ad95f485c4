# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What a test can do with the fixture ima: every method, against a real emulator."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from imafs.attest.kinds import Kind
from imafs.errors import ImafsError, MismatchError, Refused
from imafs.testing import Ima
from imafs.testing.mounted import Mounted
from tests.support import require

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

STAGED = "binary_runtime_measurements_staged"


def test_the_next_boot_waits_until_a_hung_tpm_answers(ima: Ima) -> None:
    """As after a test that left it hung: connections that hung with it are still to end."""
    ima.tpm(hang=True)
    # The first is given up, so the second connects anew, and hangs in that.
    for _ in range(2):
        assert "did not answer within" in str(ima.status()["failures"])
    failures: list[ImafsError] = []

    def boot() -> None:
        try:
            ima.call("reset")
        except ImafsError as error:
            failures.append(error)

    booting = threading.Thread(target=boot)
    booting.start()
    ima.status()  # waits its two seconds for the TPM, behind the boot
    ima.tpm_works()
    booting.join(60)
    assert (booting.is_alive(), failures) == (False, [])
    ima.wait()
    assert [record.name for record in ima.records()] == ["boot_aggregate"]


def test_where_it_is(ima: Ima) -> None:
    assert (ima.dir / "runtime_measurements_count").read_text() == "1\n"
    assert Path(ima.control).is_socket()
    assert ima.tcti == ima.environment["TPM2TOOLS_TCTI"]
    assert ima.call("hello")["protocol"] == 1
    assert "ERROR" not in ima.log()


def test_measuring(ima: Ima, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    row = ima.measure(file)[0]
    assert row["digest"] == "sha256:" + hashlib.sha256(b"content").hexdigest()
    ima.measure(digest="sha256:" + "ab" * 32, name="/by/digest")
    ima.generate(2, "/generated-")
    ima.violation("/changed")
    ima.critical_data("label", "event", b"data")
    records = ima.records()
    assert [record.name for record in records] == [
        *("boot_aggregate", str(file), "/by/digest"),
        *("/generated-00000000", "/generated-00000001", "/changed", "event"),
    ]
    assert records[1].fields["d-ng"] == row["digest"]
    assert [record.violation for record in records].count(True) == 1
    assert records[-1].template == "ima-buf"
    assert records[-1].fields["buf"] == b"data".hex()
    assert {record.pcr for record in records} == {10}
    assert ima.status()["violations"] == 1


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha512"])
def test_lists_lead_to_the_pcrs(ima: Ima, bank: str) -> None:
    ima.generate(30)
    ima.violation("/changed")
    data = ima.read_list(bank)
    verdict = ima.verify(data)
    assert (verdict.records, verdict.matched, verdict.violations) == (32, 32, 1)
    value = bytes(hashlib.new(bank).digest_size)
    for record in ima.records(bank):
        digest = b"\xff" * len(value) if record.violation else record.template_digest
        value = hashlib.new(bank, value + digest).digest()
    assert ima.pcr(bank=bank) == value
    ima.other_agent.stage()
    assert (ima.read_list(bank), ima.read_list(bank, staged=True)) == (b"", data)
    assert len(ima.records(staged=True)) == 32


def test_waiting(ima: Ima) -> None:
    with pytest.raises(Refused) as caught:
        ima.wait(records=99, timeout=0)
    assert caught.value.errno == errno.ETIMEDOUT
    ima.wait(records=1)


def test_quotes(ima: Ima) -> None:
    ima.generate(3)
    one = ima.quote(b"\1\2\3")
    assert one.nonce == b"\1\2\3"
    assert one.pcr_digest == hashlib.sha256(ima.pcr()).digest()
    two = ima.quote(b"x", bank="sha1", pcrs=(10, 11))
    assert two.pcr_digest == hashlib.sha256(ima.pcr(bank="sha1") + bytes(20)).digest()
    assert two.reset_count == one.reset_count
    for _ in range(4):  # no object stays in the TPM, which has room for three
        ima.quote()
    ima.reboot()
    assert ima.quote().reset_count == one.reset_count + 1
    ima.kexec()
    assert ima.quote().reset_count == one.reset_count + 1


def test_tools_take_the_quote(ima: Ima, tmp_path: Path) -> None:
    require("tpm2_checkquote")
    one = ima.quote(b"\1\2")
    for name in ("message", "signature", "public", "values"):
        (tmp_path / name).write_bytes(getattr(one, name))
    words = ["tpm2_checkquote", "-u", "public", "-m", "message", "-s", "signature"]
    words += ["-f", "values", "-q", "0102", "-g", "sha256"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)


def test_evidence(ima: Ima, tmp_path: Path) -> None:
    ima.generate(3)
    bundle = ima.attest(b"1")
    found = ima.check(bundle, b"1", state=tmp_path / "state", new=True)
    assert (found.kind, found.records) == (Kind.OK, 4)
    assert ima.check(bundle.encode(), b"2").kind is Kind.NONCE
    ima.generate(2)
    found = ima.check(ima.attest(b"2", since=4), b"2", state=tmp_path / "state")
    assert (found.kind, found.first, found.records) == (Kind.OK, 4, 2)
    ima.other_agent.trim(1)
    with pytest.raises(MismatchError, match="boot_aggregate"):
        ima.attest(b"3")


def test_programs_find_the_tpm(ima: Ima) -> None:
    require("tpm2_pcrread")
    done = ima.run(["tpm2_pcrread", "sha256:10"])
    assert ima.pcr().hex().upper() in done.stdout
    done = ima.run([sys.executable, "-c", "import os; print(os.environ['MINE'])"], MINE="yes")
    assert done.stdout == "yes\n"
    with pytest.raises(subprocess.TimeoutExpired):
        ima.run(["tail", "-f", "/dev/null"], timeout=0.3)


def test_the_other_agent(ima: Ima) -> None:
    other = ima.other_agent
    ima.generate(9)
    assert other.trim(3) == 3
    other.stage()
    assert other.read() == (0, 7)
    with pytest.raises(Refused) as caught:
        other.stage()
    assert caught.value.errno == errno.EEXIST
    assert other.delete() == 7
    other.open(write=True)
    with pytest.raises(OSError, match="busy"):
        os.open(ima.dir / STAGED, os.O_RDONLY)
    other.close()
    os.close(os.open(ima.dir / STAGED, os.O_RDWR))


def test_faults(ima: Ima) -> None:
    fault = ima.fault("open", errno.ENOMEM, "*_staged", next=2, writing=True)
    os.close(os.open(ima.dir / STAGED, os.O_RDONLY))
    for _ in range(2):
        with pytest.raises(OSError, match="memory"):
            os.open(ima.dir / STAGED, os.O_RDWR)
    os.close(os.open(ima.dir / STAGED, os.O_RDWR))
    assert fault.failed == 2
    fault.clear()
    assert fault.failed == 0
    forever = ima.fault("open", "EACCES", writing=False)
    with pytest.raises(PermissionError):
        ima.read_list()
    forever.clear()
    assert ima.read_list()


def test_a_tpm_in_trouble(ima: Ima) -> None:
    ima.tpm(behind=2)
    ima.generate(10)
    data = ima.read_list()
    assert ima.verify(data).records == 11
    ima.tpm_works()
    ima.wait()
    assert ima.verify(data).matched == 11
    ima.tpm(fail=1)
    ima.generate(2)
    ima.tpm_works()
    assert ima.verify(ima.read_list()).matched is None


def test_scenarios(ima: Ima, tmp_path: Path) -> None:
    ready = ima.scenario("other-agent-stages-first")
    assert not ready.happened
    os.close(os.open(ima.dir / STAGED, os.O_RDWR))
    assert ready.happened
    assert ready.steps()[0]["when"] == "before open"
    ready.end()
    assert ready.happened
    file = tmp_path / "mine.toml"
    file.write_text('[[step]]\nwhen = "start"\ndo = [{ op = "violation", name = "/v" }]\n')
    mine = ima.scenario(file)
    assert (mine.name, mine.happened) == ("mine", True)


def test_what_a_scenario_did_is_its_own(ima: Ima) -> None:
    """Ended, replaced, or followed by one of its name: nobody else's steps, and none is not all."""
    one = ima.scenario("reboot", must_happen=False)
    assert not one.happened
    one.end()
    assert not one.happened
    assert [step["done"] for step in one.steps()] == [0]
    assert ima.complaints() == []
    two = ima.scenario("reboot")
    ima.generate(2)
    with open(ima.dir / STAGED, "r+b", buffering=0) as file:
        file.write(b"A\n")
        file.write(b"D\n")
    assert two.happened
    three = ima.scenario("reboot", must_happen=False)
    four = ima.scenario("violation-in-list")
    assert [s.happened for s in (one, two, three, four)] == [False, True, False, True]
    three.end()  # is over: the one that is on goes on
    scenario = ima.status()["scenario"]
    assert isinstance(scenario, dict)
    assert (scenario["name"], scenario["number"]) == ("violation-in-list", four.number)
    four.end()
    assert (ima.status()["scenario"], four.happened) == (None, True)
    assert ima.complaints() == []


def test_what_no_client_waits_for_gets_a_moment(ima: Ima, tmp_path: Path) -> None:
    file = tmp_path / "later.toml"
    step = '[[step]]\nwhen = "start"\nseconds = 0.3\ndo = [{ op = "violation", name = "/v" }]\n'
    file.write_text(step)
    later = ima.scenario(file)
    assert not later.happened
    assert ima.complaints() == []
    assert later.happened


def test_what_a_test_watched_is_not_watched_in_the_next(tmp_path: Path) -> None:
    require("cap_sys_admin")
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    place = Mounted(["--tpm", "none", "--watch", str(own)]).start()
    try:
        ima = Ima(place, ())

        def watched() -> object:
            watch = ima.status()["watch"]
            assert isinstance(watch, dict)
            return watch["paths"]

        ima.call("watch", paths=[str(other)])
        assert watched() == [str(own), str(other)]
        ima.boot_anew()
        assert watched() == [str(own)]
        ima.call("watch", paths=[str(other)])
        ima.call("unwatch", paths=[str(own)])
        ima.boot_anew("legacy")
        assert watched() == [str(own)]
        assert [record.name for record in ima.records()] == ["boot_aggregate"]
        # Tests share daemons: the log of one has nothing that an earlier one caused.
        assert place.log() != ""
        assert ima.log() == ""
        ima.kexec(carry=False)
        assert "were not carried over" in ima.log()
    finally:
        assert place.close() is None


def test_the_end_of_a_kernel(ima: Ima) -> None:
    ima.generate(4)
    ima.suspend()
    with pytest.raises(Refused) as caught:
        ima.other_agent.stage()
    assert caught.value.errno == errno.EACCES
    ima.resume()
    names = [record.name for record in ima.records()]
    assert ima.kexec(hold=True)["held"]
    ima.kexec_finish()
    after = [record.name for record in ima.records()]
    assert after[: len(names)] == names
    assert after[-1] == "boot_aggregate"
    assert ima.verify(ima.read_list()).matched == len(after)
    ima.kexec(carry=False)
    assert [record.name for record in ima.records()] == ["boot_aggregate"]
    ima.reboot(profile="legacy")
    assert not (ima.dir / STAGED).exists()
