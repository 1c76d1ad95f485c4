# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""tests/example_project as its users run it, and the documents that speak of it."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
from tpm2_pytss import ESAPI, ESYS_TR, TPM2_ALG, TPM2_SE, TPMT_SYM_DEF

from imafs.scenarios import library
from imafs.testing import Ima
from tests.run.runs import imafs_as_user
from tests.support import ROOT, require, run, wait_for

PROJECT = ROOT / "tests" / "example_project"
AGENT = ROOT / "examples" / "agent.py"
needs_mount = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]


#: What is passed: both agents in every scenario, and both on quiet days.
PASSED = f"{2 * len(library.names()) + 1} passed"
PYTEST = ("-P", "-m", "pytest", "-p", "no:cacheprovider", "-q", "--ima-require")


#: For anybody: a day of each kind, a burst, a kexec, a reboot, a TPM in trouble.
KINDS_OF_DAYS = ("burst-while-reading", "kexec-before-stage", "reboot", "tpm-hangs")


@pytest.mark.long
class TestExample:
    pytestmark = needs_mount

    def test_as_root(self) -> None:
        require("tpm2_quote", "tpm2_checkquote")
        done = run([sys.executable, *PYTEST], cwd=PROJECT, deadline=240)
        assert PASSED in done.stdout, done.stdout

    @pytest.mark.parametrize(
        ("chosen", "passed"),
        [
            (["-k", f"test_the_agent and ({' or '.join(KINDS_OF_DAYS)})"], "4 passed"),
            pytest.param([], PASSED, marks=pytest.mark.nightly),
        ],
        ids=["agent", "all"],
    )
    def test_as_anybody_inside_of_imafs_run(self, chosen: list[str], passed: str) -> None:
        require("tpm2_quote", "tpm2_checkquote")
        words, environment = imafs_as_user()
        with tempfile.TemporaryDirectory(prefix="imafs-user-") as home:
            os.chown(home, 12345, 12345)
            environment |= {"TMPDIR": home, "PYTHONDONTWRITEBYTECODE": "1"}
            inside = partial(run, env=environment, cwd=home, deadline=240)
            # Ours may lie where only root may go.
            commands = [
                [*words, "run", "--", python] for python in (sys.executable, "/usr/bin/python3")
            ]
            look = ("-c", "import pytest")
            able = [c for c in commands if inside([*c, *look], check=False).returncode == 0]
            done = inside([*able[0], *PYTEST, *chosen, str(PROJECT)])
        assert passed in done.stdout, done.stdout


def test_every_scenario_is_played_and_documented() -> None:
    played = (PROJECT / "test_scenarios.py").read_text()
    document = (ROOT / "docs" / "scenarios.md").read_text()
    sections = re.split(r"^### ", document, flags=re.M)[1:]
    documented = {section.splitlines()[0].strip("`"): section for section in sections}
    assert list(documented) == library.names()
    for name, section in documented.items():
        assert f'"{name}": (' in played
        text = " ".join(section.split())
        assert "A correct agent" in text, name
        assert "The naive agent" in text, name


def test_the_agent_is_short() -> None:
    lines = AGENT.read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.strip().startswith(("#", '"""'))]
    assert len(lines) < 220
    assert len(code) < 170


@pytest.mark.parametrize("program", ["agent.py", "naive_agent.py"])
def test_the_agents_say_how_to_call_them(program: str) -> None:
    command = [sys.executable, str(AGENT.with_name(program))]
    usage = f"usage: {program} [-h] IMA_DIR STORE EVIDENCE [NONCE]"
    told = run([*command, "--help"])
    assert told.stdout.startswith(usage)
    told = run(command, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(usage)


class TestCalled:
    pytestmark = needs_mount

    @pytest.mark.parametrize(
        ("program", "says"), [("agent.py", "attested"), ("naive_agent.py", "sent")]
    )
    def test_one_line_says_what_came_of_it(
        self, ima: Ima, tmp_path: Path, program: str, says: str
    ) -> None:
        require("tpm2_quote")
        ima.generate(3)
        done = ima.run(
            [sys.executable, AGENT.with_name(program), ima.dir, tmp_path / "s", tmp_path / "e"]
        )
        place = next((tmp_path / "e").iterdir())
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"4 records {says}: {place}\n"


class TestKilled:
    pytestmark = needs_mount

    @pytest.mark.parametrize(("sessions", "objects"), [(3, 0), (0, 3), (3, 3)])
    def test_what_killed_tools_left_in_the_tpm(
        self, ima: Ima, tmp_path: Path, sessions: int, objects: int
    ) -> None:
        """There is room for three sessions and three objects; who is killed leaves his there."""
        require("tpm2_quote")
        symmetric = TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL)
        with ESAPI(ima.tcti) as tpm:
            for _ in range(sessions):
                tpm.start_auth_session(
                    ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.HMAC, symmetric, TPM2_ALG.SHA256
                )
            for _ in range(objects):
                tpm.create_primary(None, "ecc256")
        ima.generate(3)
        command: list[str | Path] = [sys.executable, AGENT, ima.dir]
        command += [tmp_path / "s", tmp_path / "e"]
        for _ in range(2):
            done = ima.run(command)
            assert (done.returncode, done.stderr) == (0, "")

    def test_an_agent_that_is_killed_at_any_moment_loses_nothing(
        self, ima: Ima, tmp_path: Path
    ) -> None:
        """kill -9 at 15 moments of rounds; then what it has stored leads to the PCR."""
        require("tpm2_quote")
        seeds = random.Random(15)
        command = [sys.executable, str(AGENT), str(ima.dir), str(tmp_path / "store")]
        command.append(str(tmp_path / "sent"))
        began = time.monotonic()
        ima.run(command).check_returncode()
        whole = time.monotonic() - began
        kills = 0
        for number in range(15):
            ima.generate(40, f"/usr/bin/{number}-")
            if number % 4 == 0:
                ima.violation(f"/var/log/{number}")
            process = subprocess.Popen(
                command,
                env={**os.environ, **ima.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                process.wait(whole * seeds.uniform(0.05, 0.8))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(60)
                kills += 1
            wait_for(lambda: ima.status()["writer"] is None, 60, "its descriptor is closed")
        assert kills > 3
        done = ima.run(command)
        assert done.returncode == 0, done.stderr
        ima.wait()
        stored = (next((tmp_path / "store").iterdir()) / "records").read_bytes()
        verdict = ima.verify(stored + ima.read_list())
        assert verdict.matched == verdict.records == 1 + 15 * 40 + 4
