# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Attest and check from end to end: an emulated kernel, its TPM, and a verifier with a state."""

from __future__ import annotations

import io
import re
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imafs.attest import api
from imafs.attest import state as states
from imafs.attest.kinds import Kind
from imafs.attest.signatures import read_key
from imafs.errors import FileError, ImafsError, MismatchError, TpmError
from imafs.scenarios import library
from imafs.testing import Ima
from imafs.testing.ima import parse
from imafs.tpm import quoting
from imafs.tpm.quoting import KINDS
from tests.support import ROOT, require

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

ROUNDS = 50


def test_fifty_rounds_while_records_are_added(
    ima: Ima, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records come before, while and after each quote; all rounds' records are the whole list."""
    go = threading.Semaphore(0)
    failures: list[ImafsError] = []

    def add() -> None:
        try:
            for number in range(ROUNDS):
                assert go.acquire(timeout=60)
                for part in range(4):
                    ima.call("generate", count=10, name=f"/burst/{number}/{part}/")
                ima.violation(f"/log/{number}")
        except ImafsError as error:
            failures.append(error)

    def quote_and_add(*words: Any) -> object:
        answer = quote(*words)
        ima.call("generate", count=3, name=f"/after/{len(got)}/")
        return answer

    quote = quoting.quote
    monkeypatch.setattr(quoting, "quote", quote_and_add)
    adding = threading.Thread(target=add)
    adding.start()
    index = 0
    got: list[bytes] = []
    for number in range(ROUNDS):
        nonce = b"round %d" % number
        go.release()
        bundle = ima.attest(nonce, since=index)
        found = ima.check(bundle, nonce, state=tmp_path / "state", new=not number)
        assert (found.kind, found.first) == (Kind.OK, index), found.said
        assert bundle.manifest is not None
        assert bundle.manifest.excess >= 3
        index += found.records
        got.append(bundle.records)
    adding.join(60)
    assert failures == []
    state = states.load(tmp_path / "state")
    assert state is not None
    assert (state.index, state.sequence) == (index, ROUNDS)
    whole = ima.read_list()
    assert whole.startswith(b"".join(got))
    ima.wait()
    found = ima.check(ima.attest(b"all"), b"all", state=tmp_path / "state")
    assert found.kind is Kind.OK


def verdict(ima: Ima, tmp_path: Path, nonce: bytes) -> str:
    """What comes of one round of attest and check, in a word."""
    try:
        bundle = ima.attest(nonce)
    except MismatchError:
        return "no bundle"
    except TpmError:
        return "no TPM"
    except FileError:
        return "no list"
    file = tmp_path / "state"
    return ima.check(bundle, nonce, state=file, new=not file.exists()).kind.word


#: scenario -> verdicts on the day before, on the bad day, and on the day after. What a scenario
#: does to those who stage does not come about: attest only reads. See HAPPENINGS.
DAYS: dict[str, tuple[str, str, str]] = {
    "burst-while-reading": ("ok", "ok", "ok"),
    "busy-reader": ("ok", "ok", "ok"),
    # A record is in the list and in no PCR, until the next reboot.
    "extend-fails": ("ok", "no bundle", "no bundle"),
    "kexec-before-stage": ("ok", "ok", "ok"),
    "kexec-between-read-and-delete": ("ok", "ok", "ok"),
    "kexec-between-stage-and-delete": ("ok", "ok", "ok"),
    "other-agent-stages-first": ("ok", "ok", "ok"),
    "other-agent-trims-first": ("ok", "ok", "ok"),
    "quote-behind-list": ("ok", "ok", "ok"),
    "read-fails": ("ok", "no list", "ok"),
    "reboot": ("ok", "ok", "ok"),
    "short-reads": ("ok", "ok", "ok"),
    "tpm-hangs": ("ok", "no TPM", "ok"),
    "violation-in-list": ("ok", "ok", "ok"),
}


@pytest.mark.parametrize("scenario", DAYS)
def test_bad_days(ima: Ima, tmp_path: Path, scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ima.generate(20)
    before = verdict(ima, tmp_path, b"before")
    ima.scenario(scenario, must_happen=False)
    with monkeypatch.context() as patch:
        if scenario == "tpm-hangs":
            for name in ("DEADLINE", "CREATION"):
                patch.setattr(f"imafs.tpm.quoting.{name}", 3.0)
        bad = verdict(ima, tmp_path, b"bad")
    ima.tpm_works()
    ima.generate(5, "/usr/bin/the-day-after-")
    after = verdict(ima, tmp_path, b"after")
    assert (before, bad, after) == DAYS[scenario]


def extend_by_hand(ima: Ima) -> None:
    require("tpm2_pcrextend")
    ima.run(["tpm2_pcrextend", f"10:sha256={'5' * 64}"]).check_returncode()


def delete_all(ima: Ima) -> None:
    ima.other_agent.stage()
    ima.other_agent.delete()


#: What happens to the machine between two rounds -> the verdict on the next one.
HAPPENINGS: dict[str, tuple[Callable[[Ima], object], str]] = {
    "nothing": (lambda ima: None, "ok"),
    "reboot": (lambda ima: ima.reboot(), "reboot"),
    "kexec": (lambda ima: ima.kexec(), "kexec"),
    "kexec that loses the list": (lambda ima: ima.kexec(carry=False), "no bundle"),
    "another agent stages": (lambda ima: ima.other_agent.stage(), "ok"),
    "another agent trims": (lambda ima: ima.other_agent.trim(3), "no bundle"),
    "another agent deletes all": (delete_all, "no bundle"),
    "the list is ahead of the PCR": (lambda ima: ima.tpm(behind=3), "ok"),
    "an extend fails": (lambda ima: ima.tpm(fail=1), "no bundle"),
    "somebody else extends": (extend_by_hand, "no bundle"),
    "violation": (lambda ima: ima.violation("/var/log/x"), "ok"),
}


@pytest.mark.parametrize("happening", HAPPENINGS)
def test_what_happens_between_two_bundles(ima: Ima, tmp_path: Path, happening: str) -> None:
    happens, expected = HAPPENINGS[happening]
    ima.generate(20)
    assert verdict(ima, tmp_path, b"before") == "ok"
    happens(ima)
    ima.call("generate", count=5, name="/later/")
    assert verdict(ima, tmp_path, b"after") == expected


@pytest.mark.parametrize("staged", [False, True])
def test_a_kexec_of_a_list_that_nobody_trims(ima: Ima, tmp_path: Path, staged: bool) -> None:
    """Of the kernel's own directory, without a keeper: kexec, once, and every record once."""
    ima.generate(20, "/before/")
    ima.violation("/var/log/messages")
    ima.wait()
    state = tmp_path / "state"
    first = ima.attest(b"1")
    assert ima.check(first, b"1", state=state, new=True).kind is Kind.OK
    if staged:  # what is staged is carried in front of what is not
        ima.other_agent.stage()
        ima.generate(3, "/staged/")
    ima.kexec()
    ima.generate(5, "/later/")
    bundle = ima.attest(b"2")
    found = ima.check(bundle, b"2", state=state)
    assert (found.kind, found.boots) == (Kind.KEXEC, 1), found.said
    assert bundle.records.startswith(first.records)
    names = [record.name for record in parse(bundle.records, "sha1")]
    assert names.count("boot_aggregate") == 2
    files = [name for name in names if name.startswith("/")]
    assert len(set(files)) == len(files) == 20 + 1 + 3 * staged + 5
    again = ima.attest(b"3")
    told = ima.check(again, b"3", state=state)
    assert (told.kind, told.boots, again.records) == (Kind.OK, 1, bundle.records)
    # The same over another kexec, asked for the new records alone.
    ima.kexec()
    rest = ima.attest(b"4", since=found.records)
    last = ima.check(rest, b"4", state=state)
    assert (last.kind, last.boots, last.first) == (Kind.KEXEC, 1, found.records), last.said


@pytest.mark.parametrize("kind", KINDS)
def test_tpm2_tools_judge_the_quote_of_a_bundle(ima: Ima, tmp_path: Path, kind: str) -> None:
    require("tpm2_checkquote", "tpm2_getcap")
    ima.generate(5)
    key = api.create_key(ima.tcti, kind)
    bundle = api.attest(ima.dir, tcti=ima.tcti, key=key, nonce=b"\5\6", banks=("sha1", "sha256"))
    assert key.public is not None
    keys = (read_key(key.public, "key"),)
    found = ima.check(bundle, b"\5\6", keys=keys)
    assert (found.kind, found.proven) == (Kind.OK, (("sha1", 10), ("sha256", 10)))
    with tarfile.open(fileobj=io.BytesIO(bundle.encode())) as tar:
        tar.extractall(tmp_path, filter="data")
    algorithm = kind.rpartition("-")[2]
    commands = [
        f"tpm2_checkquote -u ak.pub -m quote.msg -s quote.sig -f quote.pcrs -q 0506 -g {algorithm}"
    ]
    if kind.startswith("rsapss"):  # of which tpm2_checkquote 5.4 knows nothing: a TPM does
        commands = [
            "tpm2_loadexternal -C n -u ak.pub -c key",
            f"tpm2_verifysignature -c key -g {algorithm} -m quote.msg -s quote.sig",
            "tpm2_flushcontext -t",
        ]
    script = " && ".join([f"cd {tmp_path}", *commands])
    done = ima.run(["sh", "-c", script])
    assert done.returncode == 0, done.stderr
    # Nothing is left in a TPM that has room for three.
    left = ima.run(["tpm2_getcap", "handles-transient"])
    assert (left.returncode, left.stdout) == (0, "")


def test_a_bundle_that_tpm2_tools_cat_and_tar_made(ima: Ima, tmp_path: Path) -> None:
    """As docs/attest.md has it, with a key below the endorsement key."""
    require("tpm2_createak", "tpm2_quote", "tar")
    document = (ROOT / "docs" / "attest.md").read_text()
    (commands,) = re.findall(r"^```sh\n(tpm2_quote .*?)^```$", document, flags=re.S | re.M)
    commands = commands.replace("/sys/kernel/security/ima", str(ima.dir))
    ima.generate(5)
    script = f"""
        set -e; cd {tmp_path}
        tpm2_createek -Q -c ek.ctx -G ecc -u ek.pub
        tpm2_createak -Q -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pub
        tpm2_flushcontext -t
        {commands}
        tpm2_flushcontext -t
    """
    done = ima.run(["sh", "-c", script])
    assert done.returncode == 0, done.stderr
    keys = api.keys(tmp_path / "ak.pub")
    found = ima.check(tmp_path / "bundle.tar", b"\x5e\xed", keys=keys)
    assert (found.kind, found.records, found.excess) == (Kind.OK, 6, 0), found.said
    # The same key by attest: a context of tpm2-tools, and a persistent handle.
    made = api.attest(
        ima.dir, tcti=ima.tcti, key=api.context(tmp_path / "ak.ctx"), nonce=b"2", since=6
    )
    assert ima.check(made, b"2", keys=keys).kind is Kind.STALE
    done = ima.run(["tpm2_evictcontrol", "-c", tmp_path / "ak.ctx", "0x81010002"])
    assert done.returncode == 0, done.stderr
    try:
        key = api.persistent(0x81010002)
        whole = api.attest(ima.dir, tcti=ima.tcti, key=key, nonce=b"3")
        assert ima.check(whole, b"3", keys=keys).kind is Kind.OK
    finally:
        ima.run(["tpm2_evictcontrol", "-c", "0x81010002"]).check_returncode()


def test_evmctl_reads_the_records_of_a_bundle(ima: Ima, tmp_path: Path) -> None:
    require("evmctl")
    ima.generate(5)
    (tmp_path / "records.bin").write_bytes(ima.attest(b"1").records)
    pcrs = [ima.pcr(bank="sha256") if n == 10 else bytes(32) for n in range(24)]
    lines = "".join(f"PCR-{n:02d}: {value.hex()}\n" for n, value in enumerate(pcrs))
    (tmp_path / "pcrs").write_text(lines)
    done = ima.run(
        ["evmctl", "ima_measurement", "--pcrs", f"sha256,{tmp_path}/pcrs", tmp_path / "records.bin"]
    )
    assert (done.returncode, "Matched" in done.stdout + done.stderr) == (0, True)


def test_a_small_verifier(ima: Ima, tmp_path: Path) -> None:
    ima.generate(3)
    (tmp_path / "b.tar").write_bytes(ima.attest(b"1").encode())
    words: list[str | Path] = [sys.executable, ROOT / "examples" / "verifier.py"]
    words.append(tmp_path / "state")
    done = ima.run([*words, tmp_path / "b.tar", "31"])
    assert (done.returncode, done.stdout.split(":")[0]) == (Kind.STALE.code, "stale")
    done = ima.run([*words, tmp_path / "b.tar", "31", "--enrol"])
    assert (done.returncode, done.stdout.split("\n")[0]) == (0, "ok: records 0 to 3")
    done = ima.run([*words, tmp_path / "b.tar", "31"])
    assert (done.returncode, done.stdout.split(":")[0]) == (Kind.REPLAYED.code, "replayed")


def test_every_scenario_has_its_row() -> None:
    assert list(DAYS) == library.names()
