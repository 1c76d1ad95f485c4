# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""All profiles as state machines: any bytes to any writable file, against the reference.

A list changes only where the reference says so, and nothing but a refusal is ever raised.
"""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from imafs.emulator.config import EmulatorConfig
from imafs.emulator.requests import Requests
from imafs.errors import Refused
from imafs.formats.algorithms import SHA256, by_name
from imafs.formats.binary import Record
from imafs.formats.fields import Measurement
from imafs.formats.templates import TEMPLATES
from imafs.interface.profiles import PROFILES, ListFiles, Profile, RequestFile, Shown
from imafs.kernel.queue import Queue
from imafs.lists.banks import Layout
from tests.property.builders import banks, record
from tests.property.draftmodel import Draft
from tests.property.reference import Rec, ng, violation

WRITABLE = [p for p in PROFILES if not p.name.startswith("legacy")]
TPM = ("sha1", "sha256")

#: Requests and near misses of every proposal.
WORDS = [
    *(b"A\n", b"D\n", b"A", b"D", b"0\n", b"1\n", b"2\n", b"-1\n", b"-2\n", b"+1\n", b"3\n"),
    *(b"01", b"02", b"00", b"05", b"5", b"0x2\n", b"010\n", b"1\n\n", b"1\0x\n", b"A\nx", b"-5\n"),
    *(b"18446744073709551615\n", b"18446744073709551616\n", b"9223372036854775807\n"),
    *(b"-9223372036854775807\n", b"9223372036854775808\n", b"99999999999", b"/x\n", b"/etc/x", b""),
    *(b":1\n", b"0:18446744073709551615", b"0:18446744073709551585", b"0:-1\n", b"0:0\n", b"0x\n"),
    *(b"pcr10:sha1:" + bytes(20), b"pcr10:sha512:" + bytes(64), b"pcr11:sha1:" + bytes(20)),
    *(b"pcr10:sha1:" + bytes(20) + b"pcr10:sha1:" + bytes(20), b"pcr99:x:" + bytes(20)),
]

FORMS = [b"%d\n", b"%02d", b"-%d\n"]


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of a few dozen records then span several segments."""
    monkeypatch.setattr("imafs.lists.packed.SEGMENT", 4)


def name_of(line: bytes) -> object:
    """What the reference has for a line of the ASCII list: the number, or the file's name."""
    words = line.split(b" ")
    if words[4] != b"trim_ima_event_logs":
        return words[4]
    text = bytes.fromhex(words[5].decode())
    match = re.fullmatch(rb"time= ?\d+; (?:log trim this time=|number= )(\d+);", text)
    assert match is not None, text
    return int(match[1])


class ProfileMachine(RuleBasedStateMachine):
    """Everything that user space may write; a subclass for each profile."""

    profile: Profile

    @initialize(
        bugs=st.booleans(),
        flush=st.booleans(),
        disable=st.sampled_from([False, False, True]),
        default=st.sampled_from(["sha1", "sha256", "sha512"]),
    )
    def boot(self, bugs: bool, flush: bool, disable: bool, default: str) -> None:
        profile = self.profile
        played = profile.with_bugs() if bugs else profile
        flush = flush and profile.flush_htable
        self.queue = Queue(
            Layout(banks(*TPM), by_name(default)),
            played.rules,
            flush_htable=flush,
            disable_htable=disable,
        )
        config = EmulatorConfig(profile=played)
        self.requests = Requests(self.queue, config, self._tell, lambda: (10,))
        flush = flush and not disable
        self.model = Draft(profile.name, bugs, flush, not disable, default)
        self.model.start = {"sha1": bytes(20), "sha256": bytes(32)}
        files: list[tuple[str, ListFiles | RequestFile | None]] = [
            ("original", profile.current),
            ("staged", profile.staged),
            *(("request", file) for file in profile.requests),
        ]
        self.files = [(word, f.grammar) for word, f in files if f is not None and f.grammar]
        self.number = 0

    def _tell(self, label: str, name: bytes, text: bytes) -> None:
        assert label == "ima_log_trim"
        template = TEMPLATES["ima-buf"]
        data = template.build(Measurement(name, SHA256, SHA256.digest(text), buf=text))
        # A kernel tells nobody of a failure, as while it is suspended.
        with suppress(Refused):
            self.queue.append(Record(10, template, data))

    def _add(self, rec: Rec) -> None:
        try:
            self.queue.append(record(rec))
        except Refused as refused:
            found = refused.errno_name
        else:
            found = "ok"
        assert found == self.model.add(rec)

    @rule(number=st.integers(1, 7))
    def add(self, number: int) -> None:
        for _ in range(number):
            self.number += 1
            self._add(ng(10, b"/%d" % self.number))

    @rule(data=st.data())
    @precondition(lambda self: self.number > 0)
    def again(self, data: st.DataObject) -> None:
        self._add(ng(10, b"/%d" % data.draw(st.integers(1, self.number))))

    @rule(pcr=st.sampled_from([10, 10, 11]))
    def violate(self, pcr: int) -> None:
        self._add(violation(10, b"/v") if pcr == 10 else ng(11, b"/other"))

    @rule(suspended=st.sampled_from([True, False, False]), copied=st.booleans())
    def suspend(self, suspended: bool, copied: bool) -> None:
        self.queue.suspended = suspended
        self.model.suspend(suspended)
        if suspended and copied:
            self.queue.note_copy()
            self.model.copy()

    def _write(self, at: int, data: bytes, position: int) -> None:
        word, grammar = self.files[at % len(self.files)]
        expected = self.model.write(word, data, position)
        try:
            taken = self.requests.write(grammar, data, position)
            found = "ok"
        except Refused as refused:
            taken, found = len(data), refused.errno_name
        assert found == expected, (self.profile.name, word, data)
        assert taken == len(data) or self.queue.rules.off_by_one

    @rule(at=st.integers(0, 3), data=st.sampled_from([b"A\n", b"D\n", b"0\n", b"1\n"]))
    def write_letter(self, at: int, data: bytes) -> None:
        self._write(at, data, 0)

    @rule(at=st.integers(0, 3), number=st.integers(0, 12), form=st.sampled_from(FORMS))
    def write_number(self, at: int, number: int, form: bytes) -> None:
        self._write(at, form % number, 0)

    @rule(at=st.integers(0, 3), data=st.sampled_from(WORDS), position=st.sampled_from([0, 0, 1]))
    def write_word(self, at: int, data: bytes, position: int) -> None:
        self._write(at, data, position)

    @rule(at=st.integers(0, 3), data=st.binary(max_size=40), position=st.sampled_from([0, 4096]))
    def write_anything(self, at: int, data: bytes, position: int) -> None:
        self._write(at, data, position)

    @rule(number=st.integers(0, 12))
    def write_total(self, number: int) -> None:
        self._write(0, b"%d:%d\n" % (self.model.trimmed, number), 0)

    @rule(data=st.data(), bank=st.sampled_from(TPM))
    @precondition(lambda self: self.model.name == "pcrs-2025")
    def write_value(self, data: st.DataObject, bank: str) -> None:
        value = self.model.start[bank]
        for rec in self.model.current[: data.draw(st.integers(0, len(self.model.current)))]:
            assert isinstance(rec, Rec)
            if rec.pcr == 10:
                value = self.model._extended(bank, value, rec)
        self._write(0, b"pcr10:%s:%s" % (bank.encode(), value), 0)

    @rule(
        before=st.integers(1, 9),
        after=st.integers(0, 4),
        number=st.integers(1, 9),
        word=st.sampled_from(WORDS),
        suspended=st.sampled_from([(False, False), (False, False), (True, False), (True, True)]),
    )
    def cycle(
        self, before: int, after: int, number: int, word: bytes, suspended: tuple[bool, bool]
    ) -> None:
        """What an agent does: records come, are staged, more come, some or all are deleted."""
        self.add(before)
        for at, letter in ((0, b"A\n"), (1, b"A\n"), (1, b"0\n")):
            self._write(at, letter, 0)
        self.add(after)
        self.suspend(*suspended)
        self._write(1, word, 0)
        self._add(ng(10, b"/%d" % (self.number - after)))
        for form in FORMS[:2]:
            self._write(1, form % number, 0)
            self._write(0, form % number, 0)
        self.write_total(number)
        for letter in (b"D\n", b"1\n"):
            self._write(1, letter, 0)
        self.suspend(False, False)
        self._add(ng(10, b"/%d" % (self.number - after)))
        self.lists_and_counts()

    @rule(most=st.integers(1, 4))
    def collect(self, most: int) -> None:
        self.queue.collect(most)

    @invariant()
    def lists_and_counts(self) -> None:
        if not hasattr(self, "queue"):
            return
        queue, model = self.queue, self.model
        for staged, expected in ((False, model.current), (True, model.staged)):
            text = b"".join(queue.list(staged).pieces(queue.sha1_view._replace(ascii=True)))
            found = [name_of(line) for line in text.splitlines()]
            assert found == [rec if isinstance(rec, int) else _shown(rec) for rec in expected]
        assert queue.count == model.count
        assert queue.totals.deleted == model.deleted
        for file in self.profile.requests:
            number = {Shown.LAST_TRIM: model.last, Shown.TOTAL_TRIMMED: model.trimmed}
            if file.shows in number:
                shown = self.requests.shown(file)
                assert shown == b"%d\n" % number[file.shows]


def _shown(rec: Rec) -> bytes:
    return rec.parts[1].rstrip(b"\0")


#: What one machine over all of them would try, shared among them.
SHARE = settings(max_examples=settings().max_examples // 5)

for _profile in WRITABLE:
    _name = _profile.name.replace("-", "_")
    _machine: type[ProfileMachine] = type(_name, (ProfileMachine,), {"profile": _profile})
    _case = _machine.TestCase
    _case.settings = SHARE
    globals()[f"Test_{_name}"] = _case
