# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Planted bugs of a keeper, and the invariant of the walks that catches each.

A table: what is broken, where, and which of the invariants may be the first to say so. A bug that
no walk finds fails: then the walks prove nothing about that kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from imafs.keeper import evidence, facts, join, judge, reach
from imafs.keeper.facts import Found
from tests.property import keepermodel as model

#: Walks until a bug must have been found.
WALKS = 1_000

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """One planted bug."""

    what: str
    plant: Callable[[Patch], None]
    caught_by: frozenset[str]
    #: Whether it shows only where records come while the keeper looks.
    arriving: bool = False


def on(owner: object, name: str, made: Callable[[Any], Any]) -> Callable[[Patch], None]:
    """Puts ``made(original)`` in the place of ``owner.name``."""

    def plant(patch: Patch) -> None:
        patch.setattr(owner, name, made(getattr(owner, name)))

    return plant


def answers(change: Callable[[judge.Answer, judge.Judge], judge.Answer]) -> Callable[[Patch], None]:
    def made(original: Any) -> Any:
        return lambda self: change(original(self), self)

    return on(judge.Judge, "answer", made)


def without(kind: type) -> Callable[[Patch], None]:
    """Plans in which no such action stands."""

    def made(original: Any) -> Any:
        def plan(self: Any, answer: judge.Answer) -> facts.Plan:
            found: facts.Plan = original(self, answer)
            rest = tuple(a for a in found.actions if not isinstance(a, kind))
            return replace(found, actions=rest)

        return plan

    return on(join._Steps, "plan", made)


def deletes_first(original: Any) -> Any:
    def stores(self: Any, answer: judge.Answer) -> Iterator[facts.Action]:
        actions = list(original(self, answer))
        yield from sorted(actions, key=lambda a: not isinstance(a, facts.DeleteStaged))

    return stores


def one_too_many(original: Any) -> Any:
    def stores(self: Any, answer: judge.Answer) -> Iterator[facts.Action]:
        for action in original(self, answer):
            if isinstance(action, facts.Store) and action.count > 1:
                action = replace(action, place=action.place + 1, count=action.count - 1)
            yield action

    return stores


def drops_nothing(answer: judge.Answer, self: judge.Judge) -> judge.Answer:
    return replace(answer, skip=0) if answer.found is Found.SAME_LIFE else answer


def stores_again(answer: judge.Answer, self: judge.Judge) -> judge.Answer:
    return replace(answer, skip=0) if answer.found is Found.GAP else answer


def hides_gaps(answer: judge.Answer, self: judge.Judge) -> judge.Answer:
    if answer.found is not Found.GAP:
        return answer
    return replace(answer, found=Found.SAME_LIFE, gap=None)


def doubts_kexecs(answer: judge.Answer, self: judge.Judge) -> judge.Answer:
    if self.store.life is None or self.same_boot or answer.found is not Found.SAME_LIFE:
        return answer
    return replace(answer, found=Found.GAP, gap=self.store.end)


def forgets_the_lock(answer: judge.Answer, self: judge.Judge) -> judge.Answer:
    held = self.kernel.known is not None and answer.found is Found.DIVERGED
    return replace(answer, found=Found.GAP, gap=self.store.end) if held else answer


def by_boot_alone(answer: judge.Answer, self: judge.Judge) -> judge.Answer:
    if self.store.life is None or self.same_boot or answer.skip is None:
        return answer
    return replace(answer, found=Found.NEW_LIFE, skip=0, opens=True, gap=None, forks=None)


def whims(original: Any) -> Any:
    asked = [0]

    def answer(self: Any) -> judge.Answer:
        asked[0] += 1
        found: judge.Answer = original(self)
        return replace(found, why="otherwise") if asked[0] % 2 and found.skip is None else found

    return answer


def ends_at_random(original: Any) -> Any:
    """The end of K is taken for exact where it was not."""

    def look(self: Any, **kinds: bool) -> tuple[facts.KernelFacts, facts.TpmFacts]:
        kernel, tpm = original(self, **kinds)
        return replace(kernel, pinned=not kernel.part), tpm

    return look


def loses_its_frame(original: Any) -> Any:
    """Nothing was synced: the last frame goes with the power."""

    def lose_cache(self: Any) -> None:
        original(self)
        life = self.lives[-1] if self.lives else None
        if life is not None and life.frames:
            frame = life.frames.pop()
            del life.records[frame.first :]
            life.checked = min(life.checked, len(life.frames))

    return lose_cache


def leaves_holes(original: Any) -> Any:
    def commit(self: Any, *args: Any) -> None:
        original(self, *args)
        life = self.lives[-1]
        last = life.frames[-1]
        life.frames[-1] = replace(last, n=last.n + (last.n > 2))

    return commit


def stored_twice(original: Any) -> Any:
    """A, and again A, with nothing confirmed."""

    def act(self: Any, action: facts.Action, k: list[model.Rec]) -> None:
        if not isinstance(action, facts.MarkDone):
            original(self, action, k)

    return act


def forgets_what_is_deleted(original: Any) -> Any:
    """The frame is in the store until D has been answered."""

    def delete(self: Any, recs: Any, request: Any) -> None:
        original(self, recs, request)
        life = self.disk.lives[-1]
        last = life.frames[-1] if len(life.frames) > 1 else None
        if recs and last is not None and last.count and not life.anchors:
            life.frames.pop()
            del life.records[last.first :]
            life.seals = [seal for seal in life.seals if seal.index <= last.first]
            life.unsynced = life.synced = min(life.unsynced, last.n - 1)
            life.checked = min(life.checked, last.n)

    return delete


def takes_one_more(original: Any) -> Any:
    """N of a record more than are stored."""

    def stores(self: Any, answer: judge.Answer) -> Iterator[facts.Action]:
        for action in original(self, answer):
            more = isinstance(action, facts.DeleteFirst)
            yield replace(action, count=action.count + 1) if more else action

    return stores


def goes_back(original: Any) -> Any:
    """A record less than was shown before."""

    def view(self: Any, life: model.Life) -> list[model.Rec]:
        shown: list[model.Rec] = original(self, life)
        number, before = self.served
        return shown[: len(before) - 1] if number == life.about.number and before else shown

    return view


def shows_this_boot(original: Any) -> Any:
    def view(self: Any, life: model.Life) -> list[model.Rec]:
        shown: list[model.Rec] = original(self, life)
        starts = [n for n, rec in enumerate(shown) if rec.name == "boot_aggregate"]
        return shown[starts[-1] :] if starts else shown

    return view


def early(original: Any) -> Any:
    def stores(self: Any, answer: judge.Answer) -> Iterator[facts.Action]:
        for action in original(self, answer):
            if isinstance(action, facts.TakeAnchor):
                anchor = replace(action.anchor, index=self.store.end)
                action = facts.TakeAnchor(anchor)
            yield action

    return stores


def unconfirmed(original: Any) -> Any:
    """No line says that a batch was deleted, and A is sent all the same."""

    def commit(self: Any, *args: Any) -> None:
        original(self, *args)
        self.lives[-1].unsynced = self.lives[-1].synced = -1

    return commit


LOSES = frozenset({"I1", "I2", "I4"})
MUTANTS = (
    # One invariant alone catches each of the first.
    Mutant(
        "the store forgets what the kernel has deleted",
        on(model.Keeper, "delete", forgets_what_is_deleted),
        frozenset({"I1"}),
    ),
    Mutant("nothing is known to be stored", answers(drops_nothing), frozenset({"I2"})),
    Mutant("an older list is shown", on(model.Walk, "view", goes_back), frozenset({"I3"})),
    Mutant(
        "N of a record more than is stored",
        on(join._Steps, "_stores", takes_one_more),
        frozenset({"I4"}),
    ),
    Mutant(
        "A though nothing is confirmed", on(model.Disk, "commit", unconfirmed), frozenset({"I5"})
    ),
    Mutant("D before the store", on(join._Steps, "_stores", deletes_first), LOSES),
    Mutant("one record less is stored", on(join._Steps, "_stores", one_too_many), LOSES),
    Mutant(
        "the intent alone decides",
        on(judge.Judge, "_by_pcrs", lambda _: judge.Judge._by_intent),
        LOSES | {"I7"},
    ),
    Mutant("gaps are kept silent", answers(hides_gaps), LOSES),
    Mutant("behind a gap all is stored again", answers(stores_again), frozenset({"I3"})),
    Mutant("a kexec is a gap", answers(doubts_kexecs), frozenset({"I7"})),
    Mutant("a PCR that diverged is a gap", answers(forgets_the_lock), frozenset({"I7"})),
    Mutant("another boot_id is another life", answers(by_boot_alone), LOSES | {"I7"}),
    Mutant(
        "PCRs alone, no bytes",
        on(reach.Stored, "may_be", lambda _: lambda self, place: True),
        LOSES | {"I7"},
    ),
    Mutant(
        "no place but the likely ones",
        on(evidence.Evidence, "unlikely", lambda _: lambda self: ()),
        frozenset({"I7"}),
    ),
    Mutant(
        "modes of this kernel for all records",
        on(evidence.Evidence, "parts", lambda _: lambda self, place, starts: ()),
        frozenset({"I7", "I10"}),
    ),
    Mutant("no anchor", without(facts.TakeAnchor), frozenset({"I7"})),
    Mutant(
        "an anchor in front of its records", on(join._Steps, "_stores", early), frozenset({"I10"})
    ),
    Mutant(
        "a torn line stays",
        on(model.Disk, "cut", lambda _: lambda self: None),
        frozenset({"I6"}),
    ),
    Mutant("gaps are not written down", without(facts.RecordGap), LOSES | {"I7"}),
    Mutant("other answers to the same facts", on(judge.Judge, "answer", whims), frozenset({"I8"})),
    Mutant("an end that was not exact", on(model.Keeper, "look", ends_at_random), LOSES | {"I7"}),
    Mutant("no sync before D", on(model.Disk, "lose_cache", loses_its_frame), LOSES | {"I7"}),
    Mutant(
        "an end of the list that the PCRs do not tell",
        on(judge.Judge, "_is_last", lambda _: lambda self, end: True),
        LOSES | {"I3"},
        arriving=True,
    ),
    Mutant("frames with a hole", on(model.Disk, "commit", leaves_holes), frozenset({"I6"})),
    Mutant("no batch is confirmed", on(model.Keeper, "act", stored_twice), frozenset({"I5", "I7"})),
    Mutant(
        "the view begins with the boot",
        on(model.Walk, "view", shows_this_boot),
        frozenset({"I2", "I3"}),
    ),
    Mutant(
        "PCRs of a frame from zero",
        on(model, "before", lambda _: lambda life, index: {}),
        frozenset({"I10"}),
    ),
)


def walk(*, arriving: bool) -> None:
    for seed in range(WALKS):
        model.Walk(seed, replace(model.setting(seed), arriving=arriving)).run()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_planted_bug_is_caught(mutant: Mutant, monkeypatch: Patch) -> None:
    mutant.plant(monkeypatch)
    with pytest.raises(model.Broken) as caught:
        walk(arriving=mutant.arriving)
    assert caught.value.invariant in mutant.caught_by


def test_every_invariant_of_the_core_catches_a_bug_of_its_own() -> None:
    """I9 and I13: tests/keeper/test_bounds.py."""
    own = {name for mutant in MUTANTS if len(mutant.caught_by) == 1 for name in mutant.caught_by}
    assert own == {"I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I10"}
