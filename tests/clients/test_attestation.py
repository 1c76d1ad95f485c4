# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Attestation tools of others against the list and the TPM."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.environments import ibm_tss
from tests.mount.daemon import ASCII, BINARY, Daemon
from tests.mount.fixtures import Starter
from tests.mount.fixtures import booted as booted
from tests.property.reference import replay
from tests.support import require, run

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

MATCHED = "Matched per TPM bank calculated digest(s)"


def evmctl(daemon: Daemon, *arguments: str, list_file: str = BINARY) -> tuple[int, str]:
    """``evmctl ima_measurement`` with its reader of PCRs (IBM's TSS); status and output."""
    require("evmctl")
    ibm_tss("tsspcrread")
    command = ["evmctl", "ima_measurement", *arguments, str(daemon.path(list_file))]
    done = run(command, env=daemon.environment(), check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("template", ["ima-ng", "ima-sig", "ima-ngv2"])
def test_evmctl_ima_measurement(start: Starter, template: str) -> None:
    daemon = start("--template", template)
    daemon.generate(500)
    status, text = evmctl(daemon)
    assert status == 0, text
    assert MATCHED in text


def test_evmctl_sees_a_deleted_record(daemon: Daemon) -> None:
    """After delete N the rest does not replay: the very reason to keep the records."""
    daemon.generate(50)
    run(["sh", "-c", 'echo 3 > "$1"', "sh", str(daemon.path(BINARY))])
    status, text = evmctl(daemon)
    assert status == 1
    assert MATCHED not in text


def test_evmctl_refuses_template_ima_among_others(start: Starter) -> None:
    """A limit of evmctl 1.4: critical data is always in template ima-buf."""
    daemon = start("--template", "ima")
    daemon.generate(5)
    assert evmctl(daemon)[0] == 0
    daemon.call("critical_data", label="label", name="name", data="00ff10")
    status, text = evmctl(daemon)
    assert status == 1
    assert "Mixed measurement list" in text


def test_evmctl_with_violations(daemon: Daemon) -> None:
    daemon.generate(5)
    daemon.call("violation", name="/violated")
    daemon.generate(5)
    status, text = evmctl(daemon, "--ignore-violations")
    assert status == 0, text
    assert MATCHED in text
    assert evmctl(daemon)[0] != 0


def test_evmctl_with_pcrs_from_a_file(daemon: Daemon, tmp_path: Path) -> None:
    daemon.generate(20)
    options = []
    for bank in ("sha1", "sha256"):
        file = tmp_path / bank
        value = daemon.pcr(bank)
        # All 24 lines: evmctl 1.4 does not find a lone SHA-256 one.
        pcrs = [value if number == 10 else bytes(len(value)) for number in range(24)]
        file.write_text("".join(f"PCR-{n:02d}: {v.hex().upper()}\n" for n, v in enumerate(pcrs)))
        options += ["--pcrs", f"{bank},{file}"]
    status, text = evmctl(daemon, *options)
    assert status == 0, text


def test_evmctl_boot_aggregate(daemon: Daemon) -> None:
    """Computed from the TPM it is the first record's digest."""
    require("evmctl")
    ibm_tss("tsspcrread")
    done = run(["evmctl", "ima_boot_aggregate", "-v"], env=daemon.environment(), check=False)
    first = daemon.read("ascii_runtime_measurements").split()[3].decode()
    assert first in done.stdout + done.stderr


def test_tsspcrread(daemon: Daemon) -> None:
    ibm_tss("tsspcrread")
    daemon.generate(3)
    done = run(["tsspcrread", "-halg", "sha256", "-ha", "10", "-ns"], env=daemon.environment())
    assert done.stdout.split()[0] == daemon.pcr("sha256").hex()


def test_quote(daemon: Daemon, tmp_path: Path) -> None:
    """tpm2_quote and tpm2_checkquote on PCR 10, and the PCR is what the list replays to."""
    daemon.generate(20)
    environment = daemon.environment()

    def tool(*words: str) -> str:
        return run(words, env=environment, cwd=tmp_path).stdout

    tool("tpm2_createek", "-c", "ek.ctx", "-G", "ecc", "-u", "ek.pub")
    tool(
        *("tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", "ecc", "-g", "sha256"),
        *("-s", "ecdsa", "-u", "ak.pub", "-f", "pem", "-n", "ak.name"),
    )
    tool("tpm2_flushcontext", "-t")
    nonce = "abcdef12"
    tool(
        *("tpm2_quote", "-c", "ak.ctx", "-l", "sha256:10", "-q", nonce, "-g", "sha256"),
        *("-m", "q.msg", "-s", "q.sig", "-o", "q.pcrs"),
    )
    check = ("tpm2_checkquote", "-u", "ak.pub", "-m", "q.msg", "-s", "q.sig", "-f", "q.pcrs")
    shown = tool(*check, "-q", nonce, "-g", "sha256")
    assert daemon.pcr("sha256").hex() in shown.lower()
    wrong = run([*check, "-q", "00000000", "-g", "sha256"], check=False, cwd=tmp_path)
    assert wrong.returncode != 0


def test_quote_while_records_are_added(daemon: Daemon) -> None:
    """The TPM serves other clients while the daemon extends it."""
    daemon.call("generate", count=3000)
    for _ in range(10):
        run(["tpm2_pcrread", "sha256:10"], env=daemon.environment())
    daemon.call("wait", extended=True)
    daemon.assert_replays()
    assert evmctl(daemon)[0] == 0


def tssimaextend(daemon: Daemon, other: Daemon) -> None:
    """Replay the list of ``daemon`` into the TPM of ``other``."""
    ibm_tss("tssimaextend")
    daemon.call("wait", extended=True)
    run(["tssimaextend", "-if", daemon.path(BINARY), "-le"], env=other.environment())


@pytest.mark.parametrize("template", ["ima-ng", "ima-sig", "ima-modsig", "ima-ngv2"])
def test_tssimaextend_replays_the_list(start: Starter, template: str) -> None:
    """IBM's TSS pads SHA-1 for the SHA-256 bank, as kernels do that cannot hash for it."""
    daemon = start("--template", template, "--padded-banks", "sha256")
    other = start("--no-boot-aggregate")
    daemon.generate(300)
    daemon.call("critical_data", label="label", name="name", data="00ff10")
    tssimaextend(daemon, other)
    assert other.pcr("sha1") == daemon.pcr("sha1")
    assert other.pcr("sha256") == daemon.pcr("sha256")


def test_tssimaextend_with_violations(start: Starter) -> None:
    """For the SHA-256 bank it pads the 20 ones of a violation too; kernels extend 32."""
    daemon = start("--padded-banks", "sha256")
    other = start("--no-boot-aggregate")
    daemon.call("violation", name="/violated")
    tssimaextend(daemon, other)
    assert other.pcr("sha1") == daemon.pcr("sha1")
    assert other.pcr("sha256") != daemon.pcr("sha256")


def test_tssimaextend_after_a_trim(start: Starter) -> None:
    """It replays what is left and has nothing to compare with."""
    daemon, other = start(), start("--no-boot-aggregate")
    daemon.generate(5)
    daemon.path(BINARY).write_text("1\n")
    tssimaextend(daemon, other)
    assert other.pcr("sha1") == replay(daemon.read(ASCII), "sha1") != daemon.pcr("sha1")


def test_tssimaextend_cannot_read_template_ima(start: Starter) -> None:
    """It wants a data length, which kernels leave out there."""
    ibm_tss("tssimaextend")
    daemon = start("--template", "ima")
    done = run(
        ["tssimaextend", "-if", daemon.path(BINARY), "-le"], env=daemon.environment(), check=False
    )
    assert done.returncode == 1
    assert "template data length too big" in done.stdout + done.stderr
