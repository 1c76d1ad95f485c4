# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Ask a real kernel random questions, and the emulator the same.

    scripts/ask ORACLE SEED COUNT [--boot KIND] [--calls N] [--keep DIR]
    scripts/ask ORACLE SEED COUNT --store        # the scripts and answers for the tests

ORACLE as in :mod:`tests.conformance.oracle`. COUNT scripts, of the seeds from SEED on, are
played in one boot and on one emulator. Prints what no rule of ``explaining.py`` explains;
status 1 when there is something.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance import random_rules, recordings
from tests.conformance.explaining import Explainer
from tests.conformance.oracle import Oracle
from tests.conformance.random_scripts import script
from tests.conformance.runs import Run, play_all

NAME = "random-7.2.13"
#: Calls, or sessions of rules, per script.
CALLS = 100


@dataclass(frozen=True)
class Boot:
    """A way to boot: the kernel's words and the emulator's options.

    ``rules``: the scripts are random rules. By these a kernel measures also what its guest
    does, so that lists and PCRs are not compared.
    """

    command_line: str = ""
    options: tuple[str, ...] = ()
    algorithm: str = "sha256"
    rules: bool = False


#: The policy with which the kernel that is asked begins (oracle.py), and its configuration.
RULE = "measure func=FILE_CHECK mask=MAY_READ fowner=1234\n"
POLICY = ("--policy-release", "7.2", "--policy-without", "lsm,modsig,keys,appraise")

BOOTS = {
    "plain": Boot(),
    "flush-htable": Boot("ima_flush_htable", ("--flush-htable",)),
    "sha1": Boot("ima_hash=sha1", ("--hash", "sha1"), "sha1"),
    "ima-sig": Boot("ima_template=ima-sig", ("--template", "ima-sig")),
    "rules": Boot(options=POLICY, rules=True),
}
#: Seeds of the scripts that the tests keep: each rule of explaining.py explains something in them.
STORED = {
    "plain": (10026, 10046, 10069, 10080, 10092, 30009, 600018),
    "flush-htable": (20001, 20006, 20008),
    "sha1": (40010, 40012, 40035),
    "ima-sig": (50003, 50021, 50034),
    "rules": (1, 2, 1051),
}


@dataclass
class Verdict:
    """What came out of a comparison: complaints by script, explained lines by reason."""

    complaints: dict[str, list[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    lines: int = 0


def scripts(boot: Boot, seeds: Iterable[int], calls: int = CALLS) -> dict[str, str]:
    """Name -> script, in the order in which a guest's shell takes them."""
    found = {
        f"r{n}": random_rules.script(n, calls) if boot.rules else script(n, f"r{n}", calls)
        for n in seeds
    }
    return {name: found[name] for name in sorted(found, key=lambda name: f"{name}.script")}


def ours(asked: dict[str, str], start: bytes, boot: Boot) -> Run:
    """The emulator's answers."""
    with tempfile.TemporaryDirectory(prefix="imafs-ask-") as scratch:
        options = [*boot.options]
        if boot.rules:
            rules = Path(scratch) / "rules"
            rules.write_text(RULE)
            options += ["--policy", str(rules)]
        return play_all(asked, start, Path(scratch), options, algorithm=boot.algorithm)


def judge(boot: Boot, kernel: dict[str, bytes], run: Run) -> Verdict:
    """Compare a kernel's files (:meth:`Oracle.play`) with the emulator's."""
    verdict = Verdict()
    for name, answers in run.answers.items():
        explainer = Explainer()
        theirs = kernel[f"{name}.out"].decode("utf-8", "surrogateescape")
        complaints = explainer.compare(theirs, answers)
        pcr = run.pcr10.get(name, b"").hex().upper()
        if not boot.rules and pcr != kernel[f"{name}.pcr10"].decode().strip():
            complaints.append("PCR 10 is another one after it")
        verdict.reasons += explainer.reasons
        verdict.lines += theirs.count("\n")
        if complaints:
            verdict.complaints[name] = complaints
    for name, content in run.end.items() if not boot.rules else ():
        theirs_end = kernel[f"end.{name}"]
        if name.startswith("pcr10"):
            theirs_end = bytes.fromhex(theirs_end.decode())
        if content != theirs_end:
            verdict.complaints.setdefault("end", []).append(name)
    if run.broken:
        verdict.complaints["the run"] = [run.broken]
    return verdict


def store(oracle: Oracle, target: Path) -> None:
    """Ask what the tests keep, and store scripts and answers."""
    with tempfile.TemporaryDirectory(prefix="imafs-ask-") as scratch:
        top = Path(scratch) / NAME
        for kind, seeds in STORED.items():
            asked = scripts(BOOTS[kind], seeds)
            files = oracle.play(asked, BOOTS[kind].command_line)
            files |= {f"{name}.script": text.encode() for name, text in asked.items()}
            (top / kind).mkdir(parents=True)
            for name, content in files.items():
                (top / kind / name).write_bytes(content)
        shutil.copy(recordings.pack(top, Path(scratch) / "packed.tar.xz"), target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 1 when something is not explained."""
    parser = argparse.ArgumentParser(prog="ask", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("oracle", type=Path, help="a directory with ask-kernel")
    parser.add_argument("seed", type=int, nargs="?", default=1)
    parser.add_argument("count", type=int, nargs="?", default=20, help="number of scripts")
    parser.add_argument("--boot", choices=BOOTS, default="plain", help="how the kernel boots")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls or sessions per script")
    parser.add_argument("--keep", type=Path, help="leave scripts and both sides' answers there")
    parser.add_argument("--store", action="store_true", help="store what the tests keep")
    options = parser.parse_args(arguments)
    oracle = Oracle(options.oracle.resolve())
    if options.store:
        store(oracle, recordings.DATA / f"{NAME}.tar.xz")
        return 0
    boot = BOOTS[options.boot]
    seeds = range(options.seed, options.seed + options.count)
    asked = scripts(boot, seeds, options.calls)
    kernel = oracle.play(asked, boot.command_line)
    run = ours(asked, kernel["start.binary.sha1"], boot)
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        for name, text in asked.items():
            (options.keep / f"{name}.script").write_text(text)
            (options.keep / f"{name}.kernel").write_bytes(kernel[f"{name}.out"])
            answers = run.answers.get(name, "").encode("utf-8", "surrogateescape")
            (options.keep / f"{name}.emulator").write_bytes(answers)
    verdict = judge(boot, kernel, run)
    for name, complaints in verdict.complaints.items():
        print(f"== {name}", *complaints, sep="\n")
    for reason, times in verdict.reasons.most_common():
        print(f"{times:6} {reason}")
    bad = sum(map(len, verdict.complaints.values()))
    print(f"{len(asked)} scripts, {verdict.lines} lines, {bad} not explained")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
