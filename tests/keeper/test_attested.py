# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs attest`` on a keeper's view, and ``imafs check``: what the keeper knows is told."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from imafs.attest.bundle import Bundle, decode
from imafs.attest.kinds import Kind
from imafs.keeper.facts import BEGAN_ANEW, BEHIND_A_GAP, CONFIRMED, Anchor, Gap
from imafs.keeper.ledger import Ledger
from imafs.keeper.status import marks
from tests.keeper.process import Keepers
from tests.mount.daemon import Daemon, imafs
from tests.mount.fixtures import Starter
from tests.support import require, run

WAIT = 60.0


@dataclass
class Verifier:
    """Somebody who asks the machine again and again, and remembers."""

    home: Path
    asked: int = 0
    found: dict[str, Any] = field(default_factory=dict)

    def attest(self, view: Path, since: int = 0, banks: str = "sha256") -> tuple[int, str]:
        """A bundle, made as users make it: the TPM is not named. Exit code and complaint."""
        self.asked += 1
        words: list[str | Path] = ["attest", view, "--create-ak", self.home / "ak.ctx"]
        words += ["--nonce", f"{self.asked:04x}", "--since", str(since), "--banks", banks]
        words += ["-o", self.path]
        done = imafs(*words, check=False, deadline=60)
        return done.returncode, done.stderr

    @property
    def path(self) -> Path:
        """The bundle."""
        return self.home / f"bundle-{self.asked}.tar"

    @property
    def bundle(self) -> Bundle:
        """The bundle, read."""
        return decode(self.path.read_bytes())

    def check(self) -> dict[str, Any]:
        """The verdict on it."""
        key = self.home / "ak.pub"
        if not key.exists():
            key.write_bytes(self.bundle.key or b"")
        words: list[str | Path] = ["check", self.path, "--nonce", f"{self.asked:04x}", "--json"]
        words += ["--ak", key, "--state", self.home / "state"]
        words += [] if (self.home / "state").exists() else ["--new"]
        found = json.loads(imafs(*words, check=False).stdout)
        assert isinstance(found, dict)
        return found

    def round(self, view: Path, since: int = 0) -> tuple[str, int]:
        """Verdict and number of records."""
        assert self.attest(view, since) == (0, "")
        self.found = self.check()
        return self.found["verdict"], self.found["records"]


def test_the_status_tells_divergence_and_resets_apart() -> None:
    ledger = Ledger()
    ledger.anchors = [
        Anchor(index, {}, why)
        for index, why in enumerate(
            (CONFIRMED, BEHIND_A_GAP, "an extend failed", BEGAN_ANEW, "bank sha1 does not"), 1
        )
    ]
    ledger.gaps = [Gap(2, "trimmed", 7)]
    assert marks(ledger) == {
        "gaps": [
            {"after": 2, "records": 7, "why": "trimmed", "verified": None, "verified_at": None}
        ],
        "diverged": [3, 5],
        "resets": [4],
    }


@pytest.fixture
def verifier(tmp_path: Path) -> Verifier:
    return Verifier(tmp_path)


def trimmed(kernel: Daemon) -> None:
    """Somebody else deletes what the kernel has."""
    kernel.take("binary_runtime_measurements_sha1_staged")


@pytest.mark.mount
@pytest.mark.swtpm
def test_records_that_the_kernel_has_no_more_are_attested(
    start: Starter, keepers: Keepers, verifier: Verifier
) -> None:
    kernel = start()
    keeper = keepers(kernel, records=5)
    kernel.generate(40)
    kernel.call("violation", name="/var/log/messages")
    keeper.emptied(kernel)
    assert verifier.round(keeper.view) == ("ok", 42)
    manifest = verifier.bundle.manifest
    assert manifest is not None
    boot = (kernel.dir / ".boot_id").read_text().strip()
    assert (manifest.life, manifest.boot_ids) == (f"000001-{boot}", (boot,))
    assert (manifest.gaps, manifest.diverged) == ((), ())
    kernel.generate(7)
    keeper.flush()
    assert verifier.round(keeper.view, since=42) == ("ok", 7)


@pytest.mark.mount
@pytest.mark.swtpm
@pytest.mark.root
def test_a_view_over_the_directory_that_it_is_made_of(
    start: Starter, keepers: Keepers, verifier: Verifier
) -> None:
    kernel = start()
    keeper = keepers(kernel, cover=True)
    keeper.logs.allow("will be covered")
    kernel.generate(5)
    keeper.flush()
    assert verifier.round(kernel.dir) == ("ok", 6)
    manifest = verifier.bundle.manifest
    assert manifest is not None
    assert list(manifest.boot_ids) == keeper.status()["boots"]


@pytest.mark.mount
@pytest.mark.swtpm
def test_a_kexec_and_a_reboot(start: Starter, keepers: Keepers, verifier: Verifier) -> None:
    kernel = start()
    keeper = keepers(kernel)
    kernel.generate(5)
    assert verifier.round(keeper.view) == ("ok", 6)
    kernel.call("kexec_execute")
    kernel.generate(3)
    kept = keeper.until("the next kernel is kept", lambda so: len(so["boots"]) == 2, state="idle")
    word, records = verifier.round(keeper.view)
    assert word == "kexec"
    assert records == int(keeper.read("runtime_measurements_count"))
    manifest = verifier.bundle.manifest
    assert manifest is not None
    assert list(manifest.boot_ids) == kept["boots"]
    before = manifest.life
    kernel.call("reset")
    keeper.until("the next life has begun", life=2)
    assert verifier.round(keeper.view) == ("reboot", 1)
    manifest = verifier.bundle.manifest
    assert manifest is not None
    assert len(manifest.boot_ids) == 1
    assert manifest.life != before


@pytest.mark.mount
@pytest.mark.swtpm
@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--accept-gap"], Kind.MISMATCH.code, "records are missing behind record 11 of this life"),
        ([], 10, "the keeper refuses its view: records may be missing"),
    ],
    ids=["serve", "refuse"],
)
def test_a_gap_is_told(
    start: Starter,
    keepers: Keepers,
    verifier: Verifier,
    options: list[str],
    code: int,
    says: str,
) -> None:
    kernel = start()
    keeper = keepers(kernel)
    kernel.generate(10)
    keeper.flush()
    keeper.stop()
    kernel.generate(10)
    trimmed(kernel)
    kernel.generate(1)
    again = keepers(kernel, *options, of=keeper, allow="gap|gets EIO")
    done, complaint = verifier.attest(again.view)
    assert (done, says in complaint) == (code, True), complaint
    assert complaint.count("\n") == 1
    assert not verifier.path.exists()
    gaps = again.status()["gaps"]
    assert isinstance(gaps, list)
    assert [gap["after"] for gap in gaps] == [11]


@pytest.mark.mount
@pytest.mark.swtpm
def test_a_diverged_pcr_is_told(start: Starter, keepers: Keepers, verifier: Verifier) -> None:
    """Also by a keeper that has begun since: the journal tells. The other bank is whole."""
    require("tpm2_pcrextend")
    kernel = start("--banks", "sha1,sha256")
    keeper = keepers(kernel)
    kernel.generate(4)
    keeper.flush()
    keeper.stop()
    environment = {**os.environ, **kernel.environment()}
    run(["tpm2_pcrextend", f"10:sha1={'5' * 40}"], env=environment)
    for _ in range(2):
        keeper = keepers(kernel, of=keeper, allow="diverged")
        done, complaint = verifier.attest(keeper.view, banks="sha1")
        assert done == Kind.MISMATCH.code
        assert "the PCR diverged at record 5 of this life (the keeper says so)" in complaint
        keeper.stop()
    keeper = keepers(kernel, of=keeper, allow="diverged")
    assert verifier.round(keeper.view) == ("ok", 5)
    assert any("diverged at [5]" in note for note in verifier.found["notes"])
