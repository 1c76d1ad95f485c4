# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""One emulator's way through scripts that a kernel played in one boot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.oracle import BANKS, EMPTY
from tests.conformance.playing import directory_for, play
from tests.mount.daemon import Daemon


@dataclass
class Run:
    """By script its answers and then PCR 10 (sha256); all lists and PCRs at the end.

    ``broken`` says why it ended early.
    """

    answers: dict[str, str] = field(default_factory=dict)
    pcr10: dict[str, bytes] = field(default_factory=dict)
    end: dict[str, bytes] = field(default_factory=dict)
    broken: str = ""


def play_all(
    scripts: Mapping[str, str],
    start: bytes,
    directory: Path,
    options: Sequence[str] = (),
    *,
    algorithm: str = "sha256",
) -> Run:
    """Play ``scripts`` on one emulator that begins with the list ``start``.

    ``algorithm`` is what ima_hash= is; ``directory`` is a scratch directory.
    """
    file = directory / "start.binary"
    file.write_bytes(start)
    run = Run()
    try:
        with Daemon("--load", str(file), *options) as emulator:
            for name, script in scripts.items():
                directory_for(emulator, f"/q/{name}")
                play(emulator, EMPTY)
                run.answers[name] = play(emulator, script, algorithm=algorithm)
                run.pcr10[name] = emulator.pcr("sha256")
            for bank in BANKS:
                for kind in ("ascii", "binary"):
                    content = emulator.read(f"{kind}_runtime_measurements_{bank}")
                    run.end[f"{kind}.{bank}"] = content
                run.end[f"pcr10.{bank}"] = emulator.pcr(bank)
    except (AssertionError, OSError) as error:
        # What was answered until then is compared; the rest and the end fail with this.
        run.broken = f"the run ended here: {error}"
    return run
