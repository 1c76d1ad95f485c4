# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The agents under test, and a verifier who believes nothing but quotes."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from imafs.testing import Ima, ListRecord
from imafs.testing.ima import parse
from imafs.testing.quoting import parse as parse_quote

#: Where the agents are: beside imafs' own tests, or what the environment says.
EXAMPLES = Path(os.environ.get("AGENT_DIRECTORY", Path(__file__).resolve().parents[2] / "examples"))
NONCE = "c0ffee"


class Agent:
    """One agent with a disk of its own: a store, and what it sent to the verifier."""

    def __init__(self, ima: Ima, program: str, home: Path) -> None:
        self._ima = ima
        self._program = EXAMPLES / program
        self.store = home / "store"
        self.sent = home / "sent"

    def round(self, *, timeout: float = 60) -> str:
        """One round: what came of it, in a word or two.

        ``attested``: the verifier accepts all that was sent. ``rejected, ...``: it does not.
        ``says N``: the agent ended with the exit code N and a line of its own.
        ``dies of ENAME``: by a traceback. ``hangs``.
        """
        before = self._newest()
        program = EXAMPLES / self._program
        command: list[str | Path] = [
            sys.executable,
            program,
            self._ima.dir,
            self.store,
            self.sent,
            NONCE,
        ]
        try:
            done = self._ima.run(command, timeout=timeout, AGENT_TPM_PATIENCE="3")
        except subprocess.TimeoutExpired:
            return "hangs"
        if "Traceback" in done.stderr:
            found = re.findall(r"\[Errno (\d+)\]", done.stderr)
            assert found, done.stderr
            return f"dies of {errno.errorcode[int(found[-1])]}"
        if done.returncode:
            assert len(done.stderr.strip().splitlines()) >= 1, "it fails and does not say why"
            return f"says {done.returncode}"
        assert self._newest() > before, "it reports success and has sent nothing"
        return self.verdict()

    def _places(self) -> list[Path]:
        if not self.sent.is_dir():
            return []
        return sorted(self.sent.iterdir(), key=lambda p: p.stat().st_mtime_ns)

    def _newest(self) -> int:
        return max((place.stat().st_mtime_ns for place in self._places()), default=0)

    def verdict(self) -> str:
        """What the verifier says to the newest that was sent, knowing all before it."""
        places = self._places()
        newest = places[-1]
        if shutil.which("tpm2_checkquote") is None:
            pytest.skip("tpm2-tools are not installed")
        check = ["tpm2_checkquote", "-u", "public", "-m", "message", "-s", "signature"]
        subprocess.run(
            [*check, "-q", NONCE, "-g", "sha256"],
            cwd=newest, check=True, timeout=20, capture_output=True,
        )  # fmt: skip
        _, quoted, boot = parse_quote((newest / "message").read_bytes())
        chain = [newest]
        if newest.name.startswith("boot-"):
            # Increments: those of this boot, one behind the other.
            chain = [p for p in places if p.name.startswith(f"boot-{boot}-")]
        data = b"".join((place / "records").read_bytes() for place in chain)
        values = list(replay(parse(data, "sha256")))
        matching = [hashlib.sha256(value).digest() == quoted for value in values]
        if not any(matching):
            return "rejected, the records do not lead to the quote"
        if not matching[-1]:
            return "rejected, there are records behind the quote"
        claim = newest / "value"
        if claim.exists() and bytes.fromhex(claim.read_text()) != values[-1]:
            return "rejected, the value is not the PCR's"
        return "attested"

    def kept(self) -> bytes:
        """All records of the present boot, as they lie on the agent's disk."""
        stores = sorted(self.store.glob("boot-*/records"), key=lambda p: p.stat().st_mtime_ns)
        return stores[-1].read_bytes() if stores else b""


def replay(records: Sequence[ListRecord]) -> list[bytes]:
    """PCR 10 of the SHA-256 bank before the first record, and after each."""
    values = [bytes(32)]
    for record in records:
        digest = b"\xff" * 32 if record.violation else record.template_digest
        values.append(hashlib.sha256(values[-1] + digest).digest())
    return values


@pytest.fixture
def agent(ima: Ima, tmp_path: Path) -> Agent:
    """The agent that does it right."""
    return Agent(ima, "agent.py", tmp_path)


@pytest.fixture
def naive(ima: Ima, tmp_path: Path) -> Agent:
    """The agent that does not."""
    return Agent(ima, "naive_agent.py", tmp_path)
