# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Forged and broken bundles, one change each: every one is refused, and for its own reason."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from imafs.attest.bundle import Bundle, Manifest, decode
from imafs.attest.evidence import check, judge_bundle
from imafs.attest.judgement import Demand, Judgement
from imafs.attest.kinds import Kind
from imafs.attest.state import State
from imafs.errors import FormatError
from imafs.formats.binary import Reader
from tests.papertpm import NONCE, PaperTpm
from tests.property.reference import binary_list, ng, violation


@dataclass
class World:
    """A machine whose first four records were verified, and its evidence of now."""

    machine: PaperTpm
    state: State
    whole: Bundle
    part: Bundle
    demand: Demand

    @property
    def manifest(self) -> Manifest:
        assert self.whole.manifest is not None
        return self.whole.manifest

    def records(self, *numbers: int) -> Bundle:
        """The whole list, with these records only, and a manifest that says so."""
        chosen = [self.machine.records[n] for n in numbers]
        manifest = replace(self.manifest, count=len(chosen))
        return replace(self.whole, records=binary_list(chosen, "sha1"), manifest=manifest)

    def claiming(self, **claims: object) -> Bundle:
        """The whole list with another manifest."""
        return replace(self.whole, manifest=replace(self.manifest, **claims))  # type: ignore[arg-type]


NOW = b"now"


@pytest.fixture
def world() -> World:
    machine = PaperTpm()
    machine.files(b"/a", b"/b", b"/c")
    first = check(machine.bundle(), machine.demand())
    assert first.state is not None
    machine.files(b"/d", b"/e")
    machine.measure(violation(10, b"/log"))
    machine.files(b"/f")
    return World(
        machine,
        first.state,
        machine.bundle(NOW),
        machine.bundle(NOW, first=4),
        machine.demand(nonce=NOW),
    )


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


def other_values(world: World) -> bytes:
    """quote.pcrs of a list with one record less."""
    machine = PaperTpm()
    machine.measure(*world.machine.records[1:-1])
    return machine.values(machine.selection())


def signed_anew(world: World, **changes: object) -> Bundle:
    """By a key of the attacker's own, which stands in the bundle too."""
    thief = PaperTpm(number=1)
    thief.clock = world.machine.clock
    thief.pcrs = world.machine.pcrs
    message = thief.message(NOW, thief.selection())
    return replace(world.whole, message=message, signature=thief.sign(message), key=thief.area)


def other_digest(world: World) -> Bundle:
    """A quote over other PCRs than those beside it, by the right key: its TPM lies."""
    machine = world.machine
    message = machine.message(NOW, machine.selection(), digest=b"\x55" * 32)
    return replace(world.whole, message=message, signature=machine.sign(message))


def of_type(world: World, kind: bytes) -> Bundle:
    """Something else that the key has signed: a certification, or bytes from outside."""
    message = kind + world.whole.message[len(kind) :]
    return replace(world.whole, message=message, signature=world.machine.sign(message))


def turned(world: World, number: int) -> Bundle:
    """A record made a violation, or a violation made a record."""
    records = list(world.machine.records)
    records[number] = replace(records[number], violation=not records[number].violation)
    return replace(world.whole, records=binary_list(records, "sha1"))


def with_record(world: World, number: int, name: bytes = b"/new") -> Bundle:
    records = list(world.machine.records)
    records.insert(number, ng(10, name))
    manifest = replace(world.manifest, count=len(records))
    return replace(world.whole, records=binary_list(records, "sha1"), manifest=manifest)


def other_pcr(world: World, number: int) -> Bundle:
    records = list(world.machine.records)
    records[number] = replace(records[number], pcr=11)
    return replace(world.whole, records=binary_list(records, "sha1"))


def starting(world: World, **claims: object) -> Bundle:
    assert world.part.manifest is not None
    return replace(world.part, manifest=replace(world.part.manifest, **claims))  # type: ignore[arg-type]


def size_of(world: World, digits: bytes) -> bytes:
    """The archive with another size of its last member."""
    data = bytearray(world.whole.encode())
    at = data.rindex(b"records.bin\0")
    data[at + 124 : at + 136] = digits
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def named(world: World, name: bytes, kind: bytes = b"0") -> bytes:
    """The archive with another name or kind of its last member."""
    data = bytearray(world.whole.encode())
    at = data.rindex(b"records.bin\0")
    data[at : at + 100] = name.ljust(100, b"\0")
    data[at + 156 : at + 157] = kind
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def huge(world: World) -> Bundle:
    """A record of four GiB."""
    at = 4 + 20 + 4 + len("ima-ng")
    data = world.whole.records
    return replace(world.whole, records=data[:at] + b"\xff" * 4 + data[at + 4 :])


Forgery = Callable[[World], Bundle | bytes]
FORGERIES: dict[str, tuple[Forgery, Kind, str]] = {
    # The quote
    "signature": (
        lambda w: replace(w.whole, signature=flipped(w.whole.signature, -1)),
        *(Kind.SIGNATURE, "the signature is not that of"),
    ),
    "message": (
        lambda w: replace(w.whole, message=flipped(w.whole.message, -1)),
        *(Kind.SIGNATURE, "the signature is not that of"),
    ),
    "clock of the message": (
        lambda w: replace(w.whole, message=flipped(w.whole.message, 60)),
        *(Kind.SIGNATURE, "the signature is not that of"),
    ),
    "key alone": (
        lambda w: replace(w.whole, key=PaperTpm(number=1).area),
        *(Kind.SIGNATURE, "the signature is not that of"),
    ),
    "key of another kind": (
        lambda w: replace(w.whole, key=PaperTpm("rsassa").area),
        *(Kind.SIGNATURE, "is no signature of an RSA"),
    ),
    "key and signature": (signed_anew, Kind.MACHINE, "the state is of the machine"),
    "signature over SHA-1": (
        lambda w: replace(w.whole, signature=b"\0\x18\0\x04" + w.whole.signature[4:]),
        *(Kind.SIGNATURE, "over sha1 proves nothing"),
    ),
    "scheme": (
        lambda w: replace(w.whole, signature=b"\0\x1a" + w.whole.signature[2:]),
        *(Kind.MALFORMED, "quote.sig: byte 0: signature scheme"),
    ),
    "no TPM's magic": (
        lambda w: of_type(w, b"\xffTCH"),
        *(Kind.MALFORMED, "quote.msg: byte 0: no TPM made this"),
    ),
    "certification": (
        lambda w: of_type(w, b"\xffTCG\x80\x17"),
        *(Kind.MALFORMED, "quote.msg: byte 4: attests something else"),
    ),
    "message cut": (
        lambda w: replace(w.whole, message=w.whole.message[:-1]),
        *(Kind.MALFORMED, "quote.msg: byte"),
    ),
    "message longer": (
        lambda w: replace(w.whole, message=w.whole.message + b"\0"),
        *(Kind.MALFORMED, "1 bytes are left over"),
    ),
    "nonce": (
        lambda w: w.machine.bundle(b"was"),
        Kind.NONCE,
        "the nonce 776173, not the nonce 6e6f77",
    ),
    "nonce of none": (lambda w: w.machine.bundle(b""), Kind.NONCE, "no nonce"),
    "replayed": (
        lambda w: replace(w.whole, message=old(w).message, signature=old(w).signature),
        *(Kind.REPLAYED, "somebody sends a bundle of the past"),
    ),
    "PCR values": (
        lambda w: replace(w.whole, pcrs=other_values(w)),
        *(Kind.PCRS, "is not the digest in the quote"),
    ),
    "PCR selection": (
        lambda w: replace(w.whole, pcrs=w.machine.values({"sha256": (10,)})),
        *(Kind.PCRS, "are of other PCRs"),
    ),
    "PCR file cut": (
        lambda w: replace(w.whole, pcrs=w.whole.pcrs[:-1]),
        *(Kind.MALFORMED, "quote.pcrs: byte"),
    ),
    "PCR digest": (other_digest, Kind.PCRS, "is not the digest in the quote"),
    "other PCRs": (
        lambda w: w.machine.bundle(NOW, selection={"sha256": (16, 23)}),
        *(Kind.UNPROVEN, "PCR 10 is in no bank"),
    ),
    # The records
    "a record's data": (
        lambda w: replace(w.whole, records=w.whole.records.replace(b"/e\0", b"/x\0")),
        *(Kind.MALFORMED, "records.bin: record 5, byte"),
    ),
    "a record's data and digest": (
        lambda w: replace(
            w.whole,
            records=binary_list(
                [r if r.parts[1] != b"/e\0" else ng(10, b"/x") for r in w.machine.records], "sha1"
            ),
        ),
        *(Kind.MISMATCH, ""),
    ),
    "a record's digest": (
        lambda w: replace(w.whole, records=flipped(w.whole.records, 10)),
        *(Kind.MALFORMED, "records.bin: record 0, byte 4"),
    ),
    "order": (lambda w: w.records(0, 1, 2, 3, 5, 4, 6, 7), Kind.MISMATCH, "changed places"),
    "order reversed": (lambda w: w.records(*range(7, -1, -1)), Kind.HEAD, "boot_aggregate"),
    "a violation made": (lambda w: turned(w, 5), Kind.MISMATCH, ""),
    "a violation unmade": (lambda w: turned(w, 6), Kind.MISMATCH, ""),
    "head dropped": (lambda w: w.records(*range(1, 8)), Kind.HEAD, "boot_aggregate"),
    "what was verified dropped": (
        lambda w: w.records(*range(4, 8)),
        *(Kind.HEAD, "the first 4 records are missing"),
    ),
    "middle dropped": (lambda w: w.records(0, 1, 2, 3, 5, 6, 7), Kind.MISMATCH, ""),
    "tail dropped": (lambda w: w.records(*range(7)), Kind.MISMATCH, ""),
    "all dropped": (lambda w: w.records(), Kind.MISMATCH, ""),
    "a record added": (lambda w: with_record(w, 5), Kind.MISMATCH, "was added to the list"),
    "a record behind": (lambda w: with_record(w, 8), Kind.UNPROVEN, "1 records stand behind"),
    "a record twice": (
        lambda w: w.records(0, 1, 2, 3, 4, 4, 5, 6, 7),
        *(Kind.MISMATCH, ""),
    ),
    "the list twice": (lambda w: w.records(*range(8), *range(8)), Kind.UNPROVEN, "8 records"),
    "a record's PCR": (lambda w: other_pcr(w, 5), Kind.MISMATCH, ""),
    "a record cut": (
        lambda w: replace(w.whole, records=w.whole.records[:-1]),
        *(Kind.MALFORMED, "records.bin: record 7"),
    ),
    "a record of four GiB": (huge, Kind.MALFORMED, "template data of 4294967295 bytes"),
    "byte order": (lambda w: w.claiming(order="big"), Kind.MALFORMED, "records.bin: record 0"),
    "no list": (
        lambda w: replace(w.whole, records=b"not a list at all" * 10),
        *(Kind.MALFORMED, "records.bin: record 0"),
    ),
    # What the machine claims
    "start values": (
        lambda w: starting(w, start={"sha256": {10: b"\1" * 32}}),
        *(Kind.START, "is not the value that was verified"),
    ),
    "start later": (lambda w: starting(w, first=5), Kind.STALE, "Ask for --since 4"),
    "start earlier": (lambda w: starting(w, first=3), Kind.START, "ask for --since 4"),
    "end values": (
        lambda w: w.claiming(end={"sha256": {10: b"\1" * 32}}),
        *(Kind.MANIFEST, "is not the value that was quoted"),
    ),
    "count": (lambda w: w.claiming(count=9), Kind.MANIFEST, "8 records where"),
    "huge count": (lambda w: w.claiming(count=1 << 62), Kind.MANIFEST, "8 records where"),
    "clock": (
        lambda w: w.claiming(clock=replace(w.manifest.clock, clock=5)),
        *(Kind.MANIFEST, "the clock of the manifest"),
    ),
    "padded": (lambda w: w.claiming(padded=("sha256",)), Kind.UNPROVEN, "zero-padded SHA-1"),
    # The archive
    "no archive": (lambda w: b"", Kind.MALFORMED, "no tar archive"),
    "truncated": (lambda w: w.whole.encode()[:-600], Kind.MALFORMED, "archive"),
    "path": (lambda w: named(w, b"../../etc/passwd"), Kind.MALFORMED, "is none of"),
    "absolute path": (lambda w: named(w, b"/records.bin"), Kind.MALFORMED, "is none of"),
    "link": (lambda w: named(w, b"records.bin", b"2"), Kind.MALFORMED, "no plain file"),
    "twice": (lambda w: named(w, b"quote.msg"), Kind.MALFORMED, "quote.msg"),
    "size of eight GiB": (
        lambda w: size_of(w, b"77777777777\0"),
        *(Kind.MALFORMED, "8589934591 bytes, more than"),
    ),
    "size beyond the end": (
        lambda w: size_of(w, b"00000777777\0"),
        *(Kind.MALFORMED, "the archive ends inside records.bin"),
    ),
    "size in binary": (
        lambda w: size_of(w, b"\x80" + b"\xff" * 11),
        *(Kind.MALFORMED, "size of a header is no number"),
    ),
    "bytes behind": (lambda w: w.whole.encode() + b"x" * 512, Kind.MALFORMED, "behind the end"),
}


def old(world: World) -> Bundle:
    """A quote from before the one that was accepted last."""
    machine = PaperTpm()
    machine.clock = replace(world.state.clock, clock=world.state.clock.clock - 20)
    return machine.bundle(b"old")


def judged(world: World, forged: Bundle | bytes) -> Judgement:
    data = forged.encode() if isinstance(forged, Bundle) else forged
    return judge_bundle(data, world.demand, world.state)


def test_what_is_not_forged(world: World) -> None:
    assert judged(world, world.whole).kind is Kind.OK
    assert judged(world, world.part).kind is Kind.OK
    assert len(FORGERIES) >= 40


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery(world: World, name: str) -> None:
    forge, kind, said = FORGERIES[name]
    found = judged(world, forge(world))
    assert (found.kind, found.state) == (kind, None), found.said
    assert said in found.said
    assert found.said.isprintable()
    assert not found.kind.accepted


# Mutation


def meaning(data: bytes) -> list[tuple[object, ...]] | None:
    """What a bundle says of the records: of a violation no digest proves the template data, and
    of no record the template's name. None where it says nothing."""
    try:
        bundle = decode(data)
        order = "little" if bundle.manifest is None else bundle.manifest.order
        return [
            (p.record.pcr, p.record.violation, b"" if p.record.violation else p.record.data)
            for p in Reader(bundle.records, 20, order, opaque=True)
        ]
    except FormatError:
        return None


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to three changes: bits, bytes, blocks moved, cut, doubled; checksums made right."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(len(out))
        size = chance.choice((1, 1, 2, 4, 20, 32, 66, 512))
        match chance.randrange(7):
            case 0 | 1:
                out[at] ^= 1 << chance.randrange(8)
            case 2:
                out[at : at + size] = chance.randbytes(size)
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = out[at : at + size]
            case 5:
                other = chance.randrange(len(out))
                out[at : at + size] = out[other : other + size]
            case _:
                out[at : at + size] = bytes(size)
        if not out:
            return b""
    if chance.random() < 0.7:
        for at in range(0, len(out) - 511, 512):
            if out[at + 257 : at + 262] == b"ustar":
                out[at + 148 : at + 156] = b" " * 8
                out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


def fuzz(rounds: int, seed: int) -> int:
    """How many of so many mutations were accepted: all of them equal in meaning."""
    machine = PaperTpm()
    machine.files(b"/a", b"/b")
    machine.measure(violation(10, b"/log"))
    machine.files(b"/c")
    chance = random.Random(seed)
    accepted = 0
    bundles = [
        machine.bundle().encode(),
        machine.bundle(manifest=False).encode(),
        machine.bundle(selection={"sha256": (10, 11)}).encode(),
    ]
    for number in range(rounds):
        data = chance.choice(bundles)
        changed = mutated(data, chance)
        found = judge_bundle(changed, machine.demand())
        assert found.said.isprintable(), (seed, number)
        if found.kind.accepted:
            accepted += 1
            told, true = meaning(changed), meaning(data)
            assert told is not None
            assert true is not None
            assert told[: found.records] == true, (seed, number, found)
    return accepted


def test_mutations_are_refused_or_equal_in_meaning() -> None:
    assert 0 < fuzz(400, seed=16) < 400


@pytest.mark.nightly
def test_ten_thousand_mutations() -> None:
    assert 0 < fuzz(10_000, seed=20) < 10_000


def test_the_nonce_of_the_helper_is_the_default() -> None:
    assert PaperTpm().demand().nonce == NONCE
