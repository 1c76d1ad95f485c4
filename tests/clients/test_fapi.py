# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""tpm2-tss' FAPI quotes and verifies with the list: that of Debian 13, older ones ignore it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imafs.attest import api
from tests.clients.environments import trixie
from tests.keeper.process import Keepers
from tests.mount.daemon import ASCII, BINARY, Daemon, imafs
from tests.mount.fixtures import Starter
from tests.support import require, run

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm, pytest.mark.nightly]

PROFILE = "P_ECCP256SHA256"
#: Both are bound into the root file system, for the time of one command.
_ENTER = (
    'mount --bind "$1" "$0/mnt" && mount --bind "$2" "$0/srv" && shift 2 && exec chroot "$0" "$@"'
)


@pytest.fixture(autouse=True)
def _installed() -> None:
    trixie()


class Fapi:
    """A FAPI with a key store in ``work`` (/mnt inside) and the lists of ``daemon`` (/srv)."""

    def __init__(self, daemon: Daemon, work: Path, lists: Path | None = None) -> None:
        require("unshare", "chroot")
        self.lists = daemon.dir if lists is None else lists
        self.daemon = daemon
        self.work = work
        self._root = trixie()
        profiles = self._root / "etc/tpm2-tss/fapi-profiles"
        profile = json.loads((profiles / f"{PROFILE}.json").read_text())
        # IMA's PCR in the bank of the list that FAPI reads. In no other: an event of that list
        # has no digest for a second one.
        profile["pcr_selection"] = [
            {"hash": "TPM2_ALG_SHA1", "pcrSelect": [10]},
            {"hash": "TPM2_ALG_SHA256", "pcrSelect": [n for n in range(24) if n != 10]},
        ]
        (work / f"{PROFILE}.json").write_text(json.dumps(profile))
        configuration = {
            "profile_name": PROFILE,
            "profile_dir": "/mnt/",
            "user_dir": "/mnt/user",
            "system_dir": "/mnt/system",
            "log_dir": "/mnt/log",
            "tcti": daemon.tcti,
            "system_pcrs": [],
            "ek_cert_less": "yes",
            "firmware_log_file": "/dev/null",
            "ima_log_file": "/srv/binary_runtime_measurements",
        }
        (work / "fapi.json").write_text(json.dumps(configuration))

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one of its commands in the root file system, /mnt being the current directory."""
        places = (self._root, self.work, self.lists)
        enter = ["unshare", "--mount", "sh", "-c", _ENTER, *map(str, places)]
        inside = ["sh", "-c", 'cd /mnt && exec "$0" "$@"', *words]
        return run(
            [*enter, *inside], env={"TSS2_FAPICONF": "/mnt/fapi.json"}, check=check, deadline=60
        )

    def quote(self, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Quote PCR 10, the list converted to ``pcrlog``."""
        return self(
            *("tss2_quote", "--keyPath=/HS/SRK/ak", "--pcrList=10", "--qualifyingData=nonce"),
            *("--signature=sig", "--quoteInfo=info", "--pcrLog=pcrlog", "--force"),
            check=check,
        )

    def verify(self, log: str = "pcrlog", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Verify that quote with a log."""
        return self(
            *("tss2_verifyquote", "--publicKeyPath=/ext/ak", "--qualifyingData=nonce"),
            *("--signature=sig", "--quoteInfo=info", f"--pcrLog={log}"),
            check=check,
        )


@pytest.fixture(params=["ima", "ima-ng", "ima-sig"])
def fapi(start: Starter, tmp_path: Path, request: pytest.FixtureRequest) -> Fapi:
    """Provisioned, with an attestation key; the verifier has its public part."""
    tool = Fapi(start("--template", request.param), tmp_path)
    provisioned(tool)
    tool.daemon.generate(50)
    return tool


def provisioned(tool: Fapi) -> None:
    (tool.work / "nonce").write_bytes(os.urandom(20))
    tool("tss2_provision")
    tool("tss2_createkey", "--path=/HS/SRK/ak", "--type=noDa,restricted,sign", "--authValue=")
    tool("tss2_exportkey", "--pathOfKeyToDuplicate=/HS/SRK/ak", "--exportedData=ak.json")
    tool("tss2_import", "--path=/ext/ak", "--importData=ak.json")


def log(fapi: Fapi) -> list[dict[str, Any]]:
    """The events of the last quote."""
    found: list[dict[str, Any]] = json.loads((fapi.work / "pcrlog").read_text())
    return found


def test_quote_with_the_list(fapi: Fapi) -> None:
    """The whole list is in the log, violations too, and the quote verifies with it."""
    fapi.daemon.call("violation", name="/violated")
    fapi.daemon.generate(5)
    fapi.quote()
    events = [event["digests"][0]["digest"] for event in log(fapi)]
    lines = [line.split()[1] for line in fapi.daemon.read(ASCII).decode().splitlines()]
    assert lines[51] == "0" * 40
    lines[51] = "f" * 40
    assert events == lines
    assert len(lines) == 57
    fapi.verify()


def test_quote_with_an_export_of_the_list(fapi: Fapi) -> None:
    """`imafs list --format cel-json` is what FAPI makes of the list, and verifies the quote."""
    fapi.daemon.call("violation", name="/violated")
    fapi.daemon.generate(5)
    fapi.daemon.call("wait", extended=True)
    fapi.quote()
    exported = imafs("list", fapi.daemon.path(BINARY), "--format", "cel-json").stdout
    (fapi.work / "exported").write_text(exported)
    assert json.loads(exported) == log(fapi)
    fapi.verify("exported")
    events = json.loads(exported)
    del events[3]
    (fapi.work / "short").write_text(json.dumps(events))
    assert fapi.verify("short", check=False).returncode == 1


def test_quote_with_the_records_of_a_bundle(fapi: Fapi, tmp_path: Path) -> None:
    """The records that `imafs attest` gives lead to the PCR for FAPI's verifier too; with one less
    they do not."""
    fapi.daemon.call("violation", name="/violated")
    fapi.daemon.call("wait", extended=True)
    tcti = fapi.daemon.tcti
    made = api.attest(fapi.daemon.dir, tcti=tcti, key=api.create_key(tcti), nonce=b"1")
    fapi.daemon.generate(3)
    rest = api.attest(fapi.daemon.dir, tcti=tcti, key=api.create_key(tcti), nonce=b"2", since=52)
    fapi.quote()
    for name, records in (("whole", made.records + rest.records), ("short", made.records)):
        (tmp_path / "records.bin").write_bytes(records)
        exported = imafs("list", tmp_path / "records.bin", "--format", "cel-json").stdout
        (fapi.work / name).write_text(exported)
    fapi.verify("whole")
    assert fapi.verify("short", check=False).returncode == 1


@pytest.mark.parametrize("dropped", [0, 7, 50])
def test_dropped_record(fapi: Fapi, dropped: int) -> None:
    """A verifier that is given one record less refuses the quote."""
    fapi.quote()
    events = log(fapi)
    del events[dropped]
    (fapi.work / "short").write_text(json.dumps(events))
    refused = fapi.verify("short", check=False)
    assert refused.returncode == 1
    assert "Signature verification failed" in refused.stderr
    fapi.verify()


def test_deleted_record(fapi: Fapi) -> None:
    """After delete N it does not even quote: the list that is left does not lead to the PCR."""
    fapi.daemon.path(ASCII).write_text("1\n")
    refused = fapi.quote(check=False)
    assert refused.returncode == 1
    assert "Fapi_Quote(0x60021)" in refused.stderr


def test_other_templates(fapi: Fapi) -> None:
    """One record of a template that it does not know, and it quotes no longer."""
    fapi.quote()
    fapi.daemon.call("critical_data", label="label", name="name", data="00ff10")
    fapi.daemon.call("wait", extended=True)
    refused = fapi.quote(check=False)
    assert refused.returncode == 1
    assert "Fapi_Quote(0x6000B)" in refused.stderr


def test_quote_with_a_keepers_view(start: Starter, keepers: Keepers, tmp_path: Path) -> None:
    """FAPI reads the view; what was deleted in the kernel is in its log, and the quote verifies."""
    kernel = start("--banks", "sha1,sha256")
    keeper = keepers(kernel, records=10)
    tool = Fapi(kernel, tmp_path, keeper.view)
    provisioned(tool)
    for number in range(5):
        kernel.generate(20)
        kernel.call("violation", name=f"/violated/{number}")
        keeper.flush()
        kernel.call("wait", extended=True)
        tool.quote()
        assert len(log(tool)) == 1 + 21 * (number + 1)
        tool.verify()
    assert kernel.count() < 21
