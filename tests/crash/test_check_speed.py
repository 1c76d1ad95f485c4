# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``imafs check`` on a bundle, signature included, and ``evmctl ima_measurement`` on its list."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash.test_verify_speed import ROUNDS, Times, case, is_met, timed
from tests.mount.daemon import IMAFS
from tests.papertpm import NONCE, PaperTpm
from tests.support import require


def _bundle(directory: Path, records: int, banks: Sequence[str]) -> tuple[Path, list[str | Path]]:
    """A bundle's file, and the list with its PCRs as evmctl takes them."""
    path, files = case(directory, records)
    machine = PaperTpm(banks=banks)
    for bank in banks:
        line = files[bank].read_text().splitlines()[10]
        machine.pcrs[bank][10] = bytes.fromhex(line.partition(": ")[2])
    bundle = machine.bundle(manifest=False)
    target = directory / "bundle.tar"
    target.write_bytes(replace(bundle, records=path.read_bytes()).encode())
    (directory / "ak.pub").write_bytes(machine.area)
    options: list[str | Path] = []
    for bank in banks:
        options += ["--pcrs", f"{bank},{files[bank]}"]
    return target, [*options, path]


def _compare(
    directory: Path, bundle: Path, options: Sequence[str | Path], records: int
) -> tuple[Times, Times]:
    words: list[str | Path] = ["--nonce", NONCE.hex(), "--ak", directory / "ak.pub", "--json"]
    text, ours = timed([*IMAFS, "check", bundle, *words])
    verdict = json.loads(text)
    assert (verdict["verdict"], verdict["records"]) == ("ok", records)
    text, theirs = timed(["evmctl", "ima_measurement", *options])
    assert "Matched per TPM bank" in text
    print(f"{records} records: imafs check {ours}, evmctl {theirs}", end=" ")
    return ours, theirs


def test_both_accept_the_list_of_a_bundle(tmp_path: Path) -> None:
    require("evmctl")
    _compare(tmp_path, *_bundle(tmp_path, 2000, ("sha1", "sha256")), 2000)


@pytest.mark.nightly
@pytest.mark.parametrize("banks", [("sha1", "sha256"), ("sha256",)], ids=len)
def test_a_million_records_in_half_of_its_time(tmp_path: Path, banks: tuple[str, ...]) -> None:
    """As of `imafs verify`: two free processors, the best of a few rounds."""
    require("evmctl")
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor: imafs takes two")
    given = _bundle(tmp_path, 1_000_000, banks)
    rounds = [_compare(tmp_path, *given, 1_000_000)]
    while not is_met(rounds) and len(rounds) < ROUNDS:
        rounds.append(_compare(tmp_path, *given, 1_000_000))
    assert is_met(rounds), rounds
