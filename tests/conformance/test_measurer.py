# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The prober on the emulator: what is measured for it, and what it says when that fails."""

from __future__ import annotations

import pytest

from tests.conformance.playing import play
from tests.mount.daemon import Daemon

pytestmark = [pytest.mark.root, pytest.mark.mount]

LONG = "measurelong /q/l 4095 text\n"


def test_what_the_script_does_is_measured_under_its_names() -> None:
    with Daemon("--tpm", "none") as emulator:
        script = (
            f"measure /q/a b\nfork {{\nmeasuren /q/n 3 tag\n}}\n{LONG}#emulator: violation /v\n"
        )
        said = play(emulator, script)
        assert said.splitlines()[0] == "measure /q/a b -> 0"
        assert "done 3 bad 0" in said
        rows = emulator.read("ascii_runtime_measurements").decode().splitlines()
        names = [row.split(" ", 4)[4] for row in rows[1:]]
        assert (names[0], names[1:4], names[5]) == ("/q/a", ["/q/n"] * 3, "/v")
        assert names[4].startswith("/q/l/nnn")


def test_a_measurement_that_is_refused_ends_the_play() -> None:
    wrong = pytest.raises(AssertionError, match=r"not measured: /x(.|\n)*blake2s")
    with Daemon("--tpm", "none") as emulator, wrong:
        play(emulator, "measure /x y\n", algorithm="blake2s")
