# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The agents under test, and a verifier who believes nothing but quotes."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from imafs.testing import Ima, ListRecord
from imafs.testing.ima import parse

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

        ``ok``, ``kexec``, ``reboot``: `imafs check` accepts what was sent; another of its words: it
        does not.
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
        """What `imafs check` says to the newest that was sent, knowing all before it."""
        (newest,) = self._places()[-1:]
        state = self.sent.parent / "verifier"
        bundle = newest if newest.is_file() else newest / "bundle.tar"
        found = self._ima.check(bundle, bytes.fromhex(NONCE), state=state, new=not state.exists())
        claim = newest / "value"
        if found.kind.accepted and claim.exists():
            if found.excess:
                return f"{found.kind.word}, but it claims more than is proven"
            values = replay(parse((newest / "records.bin").read_bytes(), "sha1"))
            if bytes.fromhex(claim.read_text()) != values[-1]:
                return f"{found.kind.word}, but it claims another value"
        return found.kind.word

    def kept(self) -> bytes:
        """All records of the present boot, as they lie on the agent's disk."""
        stores = sorted(self.store.glob("boot-*/records"), key=lambda p: p.stat().st_mtime_ns)
        return stores[-1].read_bytes() if stores else b""


def replay(records: Sequence[ListRecord]) -> list[bytes]:
    """PCR 10 of the SHA-1 bank before the first record, and after each."""
    values = [bytes(20)]
    for record in records:
        digest = b"\xff" * 20 if record.violation else record.template_digest
        values.append(hashlib.sha1(values[-1] + digest).digest())
    return values


@pytest.fixture
def agent(ima: Ima, tmp_path: Path) -> Agent:
    """The agent that does it right."""
    return Agent(ima, "agent.py", tmp_path)


@pytest.fixture
def naive(ima: Ima, tmp_path: Path) -> Agent:
    """The agent that does not."""
    return Agent(ima, "naive_agent.py", tmp_path)
