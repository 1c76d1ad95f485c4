# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What ``imafs verify`` says happened to a list, where the bytes tell; and what it does not say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from imafs.attest.lanes import Lane
from imafs.cli.main import main
from tests.property.reference import WIDTHS, Rec, binary_list, extend, ng, violation
from tests.support import processor_time

Output = pytest.CaptureFixture[str]
BANKS = ("sha1", "sha256")
BOOT = ng(10, b"boot_aggregate", b"PCRs 0 to 9")
FILES = [ng(10, b"/%d" % number, b"%d" % number) for number in range(6)]
LIST = [BOOT, *FILES[:3], violation(10, b"/v"), *FILES[3:]]


def value(recs: Sequence[Rec], bank: str) -> bytes:
    now = bytes(WIDTHS[bank])
    for rec in recs:
        digest = b"\xff" * WIDTHS[bank] if rec.violation else rec.digest(bank)
        now = extend(now, digest, bank)
    return now


class Case:
    def __init__(self, directory: Path, output: Output) -> None:
        self._directory = directory
        self._output = output

    def verify(
        self, lists: Sequence[Sequence[Rec]], truth: Sequence[Rec], *words: str, extra: str = ""
    ) -> tuple[int, dict[str, str] | None]:
        """Exit code and explanation of lists whose PCRs are those after ``truth``."""
        pcrs = self._directory / "pcrs"
        lines = [f"{bank} 10 {value(truth, bank).hex()}\n" for bank in BANKS]
        pcrs.write_text("".join(lines) + extra)
        paths = []
        for number, recs in enumerate(lists):
            path = self._directory / f"list{number}"
            path.write_bytes(binary_list(list(recs), "sha1"))
            paths.append(str(path))
        command = ["verify", *paths, "--pcrs", str(pcrs), *words]
        code = main(command)
        said = self._output.readouterr().out
        assert main([*command, "--json"]) == code
        why = json.loads(self._output.readouterr().out)["why"]
        assert why is None or f"  {why['said']}\n" in said
        assert ("were records deleted?" in said) == (code == 8 and why is None)
        return code, why


@pytest.fixture
def case(tmp_path: Path, capsys: Output) -> Case:
    return Case(tmp_path, capsys)


def of(answer: tuple[int, dict[str, str] | None], kind: str, code: int = 8) -> str:
    assert answer[0] == code
    assert answer[1] is not None
    assert answer[1]["kind"] == kind, answer[1]
    return answer[1]["said"]


@pytest.mark.parametrize("before", [1, 3])
@pytest.mark.parametrize("excess", [0, 2])
def test_a_reboot(case: Case, before: int, excess: int) -> None:
    """A file to which the lists of two boots were appended."""
    later = [BOOT, *FILES[::-1]]
    truth = later[: len(later) - excess]
    said = of(case.verify([[*LIST[:before], *later]], truth), "reboot")
    assert said.startswith(f"record {before} is a boot_aggregate again")
    assert f"matches after record {before + len(truth)}:" in said


@pytest.mark.parametrize("again", [1, 2])
def test_a_kexec_that_kept_the_list(case: Case, again: int) -> None:
    recs = [*LIST, *[BOOT, FILES[0]] * again]
    assert "kexec" in of(case.verify([recs], recs), "kexec", 0)
    assert case.verify([LIST], LIST) == (0, None)


@pytest.mark.parametrize("missing", [1, 4])
def test_records_that_are_missing_in_front(case: Case, missing: int) -> None:
    said = of(case.verify([LIST[missing:]], LIST), "head")
    assert "does not begin with boot_aggregate" in said
    for bank in BANKS:
        before = value(LIST[:missing], bank).hex()
        words = ["--from", before, "--banks", bank]
        assert case.verify([LIST[missing:]], LIST, *words) == (0, None)
        assert case.verify([LIST[missing:]], LIST, "--from", f"{bank}:{before}", *words[2:])[0] == 0
    both = [word for bank in BANKS for word in ("--from", value(LIST[:missing], bank).hex())]
    assert case.verify([LIST[missing:]], LIST, *both) == (0, None)


@pytest.mark.parametrize(("first", "next_"), [(1, 2), (2, 6)])
@pytest.mark.parametrize("files", [1, 2])
def test_records_that_are_missing_in_the_middle(
    case: Case, first: int, next_: int, files: int
) -> None:
    kept = [LIST[:first], LIST[next_:]]
    lists = kept if files == 2 else [[*kept[0], *kept[1]]]
    of(case.verify(lists, LIST), "incomplete")
    words = [word for bank in BANKS for word in ("--from", value(LIST[:next_], bank).hex())]
    said = of(case.verify(lists, LIST, *words), "missing")
    assert said.endswith(f"missing in front of record {first}")


@pytest.mark.parametrize("order", [(1, 0), (2, 0, 1), (2, 1, 0)])
def test_lists_in_another_order(case: Case, order: tuple[int, ...]) -> None:
    size = 8 // len(order)
    pieces = [LIST[at * size : (at + 1) * size] for at in range(len(order) - 1)]
    pieces.append(LIST[(len(order) - 1) * size :])
    said = of(case.verify([pieces[place] for place in order], LIST), "order")
    names = [f"list{order.index(place)}" for place in range(len(order))]
    assert [name.rsplit("/", 1)[-1] for name in said.split(": ")[1].split(", ")] == names


def test_an_order_within_a_list(case: Case) -> None:
    turned = of(case.verify([[*LIST[3:], *LIST[:3]]], LIST), "order")
    assert "from 5 on, which begin with boot_aggregate, come first" in turned
    assert "reverse order" in of(case.verify([LIST[::-1]], LIST), "order")
    swapped = [*LIST[:2], LIST[3], LIST[2], *LIST[4:]]
    said = of(case.verify([swapped], LIST), "order")
    assert said.startswith("records 2 and 3 (/2, /1) changed places")


@pytest.mark.parametrize("size", [1, 5, 7])
def test_a_list_that_is_given_twice(case: Case, size: int) -> None:
    """The older one in front of the newer one, which has its records too."""
    said = of(case.verify([LIST[:size], LIST], LIST), "twice")
    again = f"records {size} to {2 * size - 1} are those from 0 on again: "
    assert said.startswith(again if size > 1 else "record 1 is record 0 again: ")
    assert "matches after record 8" in said


def test_records_in_excess_that_are_the_first_ones(case: Case) -> None:
    said = of(case.verify([LIST, LIST], LIST), "twice", 0)
    assert said == "the 8 records in excess are the first ones again"
    of(case.verify([[*LIST, *LIST[:3]]], LIST), "twice", 0)
    said = of(case.verify([[*LIST, BOOT, *FILES[3:]]], LIST), "reboot", 0)
    assert said.startswith("record 8 is a boot_aggregate again: the records in excess are of a ")


def test_lists_that_overlap(case: Case) -> None:
    """The staged list read once more with the current one."""
    said = of(case.verify([LIST[:6], LIST[3:]], LIST), "twice")
    assert said.startswith("records 6 to 8 are those from 3 on again: ")


@pytest.mark.parametrize("place", [1, 4, 7])
def test_a_record_that_the_pcr_does_not_know_of(case: Case, place: int) -> None:
    recs = [*LIST[:place], ng(10, b"/evil", b"x"), *LIST[place:]]
    said = of(case.verify([recs], [*recs[:place], *recs[place + 1 :]]), "extra")
    assert said.startswith(f"without record {place} (/evil) the list matches")


@pytest.mark.parametrize("place", [2, 6])
def test_a_record_that_was_changed_is_not_explained(case: Case, place: int) -> None:
    recs = list(LIST)
    recs[place] = ng(10, b"/other", b"y")
    of(case.verify([recs], LIST), "incomplete")
    of(case.verify([LIST[:place] + LIST[place + 1 :]], LIST), "incomplete")


def test_the_boot_aggregate(case: Case) -> None:
    """Of this machine, or not: PCR 0 to 7 in SHA-1."""
    firmware = [hashlib.sha1(b"%d" % pcr).digest() for pcr in range(8)]
    extra = "".join(f"sha1 {pcr} {value.hex()}\n" for pcr, value in enumerate(firmware))
    aggregate = hashlib.sha1(b"".join(firmware)).digest()
    mine = Rec(10, "ima-ng", (b"sha1:\0" + aggregate, b"boot_aggregate\0"))
    said = of(case.verify([[mine, *FILES[:3]]], [mine, *FILES[1:5]], extra=extra), "boot_aggregate")
    assert "list and PCRs are of one machine" in said
    other = Rec(10, "ima-ng", (b"sha1:\0" + aggregate[::-1], b"boot_aggregate\0"))
    truth = [mine, *FILES[1:5]]
    said = of(case.verify([[other, *FILES[:3]]], truth, extra=extra), "boot_aggregate")
    assert "of different machines or boots?" in said


def test_a_list_whose_end_is_missing(case: Case) -> None:
    """The PCRs were read after it: not what was deleted before its first record."""
    said = of(case.verify([LIST[:5]], LIST), "incomplete")
    assert "begins with boot_aggregate, so none is missing in front of it" in said
    assert "missing at the end (were the PCRs read after the list?)" in said


@pytest.mark.parametrize("files", [1, 2])
def test_a_later_boot_whose_end_is_missing(case: Case, files: int) -> None:
    """The lists of two boots; where the PCRs 0 to 9 are known they say whose the last one is."""
    later = [BOOT, *FILES[::-1]]
    lists = [LIST[:3], later[:-2]] if files == 2 else [[*LIST[:3], *later[:-2]]]
    said = of(case.verify(lists, later), "incomplete")
    assert said.startswith("record 3 is a boot_aggregate again, and neither the whole list nor ")
    assert "missing at the end (were the PCRs read after the list?)" in said
    firmware = [hashlib.sha1(b"%d" % pcr).digest() for pcr in range(8)]
    extra = "".join(f"sha1 {pcr} {value.hex()}\n" for pcr, value in enumerate(firmware))
    aggregate = hashlib.sha1(b"".join(firmware)).digest()
    mine = Rec(10, "ima-ng", (b"sha1:\0" + aggregate, b"boot_aggregate\0"))
    later = [mine, *later[1:]]
    lists = [LIST[:3], later[:-2]] if files == 2 else [[*LIST[:3], *later[:-2]]]
    said = of(case.verify(lists, later, extra=extra), "boot_aggregate")
    assert said.startswith("boot_aggregate of record 3 is that of the PCRs 0 to 9: ")
    assert "missing at the end" in said


@pytest.mark.parametrize("text", ["", "00", "xy" * 20, "sha1:" + "00" * 32, "no:" + "00" * 20])
def test_a_value_that_is_none(case: Case, text: str, capsys: Output) -> None:
    assert main(["verify", "list", "--from", text]) == 2
    assert "--from" in capsys.readouterr().err


def test_what_would_take_for_ever_is_not_tried(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is near the end is, where a try costs least."""
    monkeypatch.setattr("imafs.attest.explain.EFFORT", 10)
    monkeypatch.setattr("imafs.attest.explain._PER_RECORD", 3)
    late = [*LIST[:-1], ng(10, b"/evil", b"x"), LIST[-1]]
    assert "(/evil)" in of(case.verify([late], LIST), "extra")
    early = [LIST[0], ng(10, b"/evil", b"x"), *LIST[1:]]
    of(case.verify([early], LIST), "incomplete")


def test_a_hostile_list_is_looked_at_for_a_while_only(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every record of it begins another supposition."""
    spent = 0
    real = Lane.moved

    def counting(lane: Lane, number: int, value: bytes) -> None:
        nonlocal spent
        spent += 1
        real(lane, number, value)

    monkeypatch.setattr(Lane, "moved", counting)
    monkeypatch.setattr("imafs.attest.explain.EFFORT", 1000)
    count = 300
    recs = [ng(10, b"boot_aggregate", b"%d" % n) for n in range(count)]
    assert case.verify([recs], LIST)[0] == 8
    # Two runs of the command; some suppositions are under way when the effort is spent.
    assert spent < 2 * (1000 + 8 * count * 2 + 4 * count)


def test_a_list_of_one_boot_again_and_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may begin the list, or a repetition: looking at that took minutes beside the hashes."""
    monkeypatch.setattr("imafs.attest.explain.EFFORT", 1000)
    with processor_time(10):
        said = of(case.verify([[BOOT] * 5000], LIST), "incomplete")
    assert said.startswith(
        "records 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 4989 more are a boot_aggregate again, and "
    )


def test_a_very_long_list_is_not_searched(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imafs.attest.explain.MOST_RECORDS", 7)
    of(case.verify([LIST[::-1]], LIST), "head")  # its first record tells without a search
    of(case.verify([[*LIST[:2], *LIST]], LIST), "incomplete")


def test_a_bank_that_something_else_extended_is_no_missing_head(case: Case) -> None:
    """The list begins with no boot_aggregate, and leads to the other banks all the same."""
    other = f"sha384 10 {'ff' * 48}\n"
    code, why = case.verify([FILES], FILES, extra=other)
    assert code == 8
    assert why is not None
    assert why["kind"] == "bank"
    assert "leads to sha1, sha256, so no record is missing" in why["said"]
    assert "something else extended sha384 or set it" in why["said"]
    assert case.verify([FILES], FILES, "--banks", "sha1,sha256", extra=other) == (0, None)


def test_a_start_that_was_given_for_one_bank_alone_is_said(case: Case) -> None:
    start = {bank: value(LIST[:3], bank).hex() for bank in BANKS}
    code, why = case.verify([LIST[3:]], LIST, "--from", start["sha256"])
    assert code == 8
    assert why is not None
    assert why["kind"] == "from"
    assert "--from was given for sha256 and not for sha1" in why["said"]
    assert "--from sha1:VALUE" in why["said"]
    both = [word for bank in BANKS for word in ("--from", f"{bank}:{start[bank]}")]
    assert case.verify([LIST[3:]], LIST, *both) == (0, None)
