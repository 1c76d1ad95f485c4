# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The state on the disk, and many bundles at once."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from imafs.attest import bundle as bundles
from imafs.attest.bundle import CERTIFICATES, KEY_WITHIN, MEMBERS, key_of
from imafs.attest.judgement import Demand
from imafs.attest.kinds import Kind
from imafs.attest.state import REMEMBERED, decode, load, place, save
from imafs.attest.verifier import Verifier
from imafs.errors import FileError, FormatError, UsageError
from tests.papertpm import NONCE, PaperTpm

NOBODY = 65534


@pytest.fixture
def machine() -> PaperTpm:
    made = PaperTpm()
    made.files(b"/a")
    return made


def verifier(machine: PaperTpm, file: Path, *, new: bool = False) -> Verifier:
    return Verifier(machine.demand(), file, new)


def test_a_state_that_is_missing_is_told(machine: PaperTpm, tmp_path: Path) -> None:
    file = tmp_path / "state"
    found = verifier(machine, file).judge(machine.bundle().encode())
    assert (found.kind, file.exists(), "--new" in found.said) == (Kind.STALE, False, True)
    assert verifier(machine, file, new=True).judge(machine.bundle().encode()).kind is Kind.OK
    state = load(file)
    assert state is not None
    assert (state.index, file.stat().st_mode & 0o777) == (2, 0o600)
    assert verifier(machine, file).judge(machine.bundle().encode()).kind is Kind.OK


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", "x", '{"format": "imafs-verifier-state", "version": 2}', "[" * 50_000),
        '{"format": "imafs-verifier-state", "version": 1}',
    ],
)
def test_a_damaged_state_is_no_first_time(machine: PaperTpm, tmp_path: Path, text: str) -> None:
    file = tmp_path / "state"
    file.write_text(text)
    with pytest.raises(FormatError, match=str(file)):
        verifier(machine, file).judge(machine.bundle().encode())
    assert file.read_text() == text


@pytest.mark.parametrize(
    "change",
    [
        *({"index": -1}, {"index": "1"}, {"index": True}, {"key": "x"}, {"quotes": [1]}),
        *({"pcrs": {"sha256": {"10": "00"}}}, {"pcrs": {"sha0": {}}}, {"pcrs": 1}, {"safe": 1}),
    ],
)
def test_states_that_are_none(machine: PaperTpm, tmp_path: Path, change: dict[str, object]) -> None:
    verifier(machine, tmp_path / "s", new=True).judge(machine.bundle().encode())
    row = json.loads((tmp_path / "s").read_text())
    decode(json.dumps(row).encode(), "s")
    with pytest.raises(FormatError):
        decode(json.dumps(row | change).encode(), "s")


def test_a_verdict_that_is_none_leaves_the_state(machine: PaperTpm, tmp_path: Path) -> None:
    file = tmp_path / "state"
    verifier(machine, file, new=True).judge(machine.bundle().encode())
    before = file.read_bytes()
    for data in (b"x", machine.bundle(b"other").encode(), PaperTpm(number=1).bundle().encode()):
        assert not verifier(machine, file).judge(data).kind.accepted
        assert file.read_bytes() == before


def test_the_state_is_on_the_disk_before_the_verdict(
    machine: PaperTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync, rename = os.fsync, os.rename

    def told_fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def told_rename(old: str, new: str, **more: int | None) -> None:
        synced.append("rename")
        rename(old, new, **more)

    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(os, "rename", told_rename)
    verifier(machine, tmp_path / "state", new=True).judge(machine.bundle().encode())
    assert len(synced) == 3
    assert synced[0].startswith(str(tmp_path / ".imafs-"))
    assert synced[1:] == ["rename", str(tmp_path)]


def test_a_state_that_cannot_be_written_is_no_verdict(machine: PaperTpm, tmp_path: Path) -> None:
    with pytest.raises(FileError):
        verifier(machine, tmp_path / "none" / "state", new=True).judge(machine.bundle().encode())
    (tmp_path / "link.lock").symlink_to("/etc/passwd")
    with pytest.raises(FileError):
        verifier(machine, tmp_path / "link", new=True).judge(machine.bundle().encode())


def test_old_quotes_are_forgotten_one_by_one(machine: PaperTpm, tmp_path: Path) -> None:
    file = tmp_path / "state"
    for number in range(REMEMBERED + 3):
        nonce = b"%d" % number
        found = Verifier(machine.demand(nonce=nonce), file, not number).judge(
            machine.bundle(nonce).encode()
        )
        assert found.kind is Kind.OK
    state = load(file)
    assert state is not None
    assert (len(state.quotes), state.sequence) == (REMEMBERED, REMEMBERED + 3)


def test_a_directory_has_a_file_for_each_machine(tmp_path: Path) -> None:
    machines = [PaperTpm(number=number) for number in range(3)]
    keys = tuple(key for machine in machines for key in machine.demand().keys)
    demand = machines[0].demand(keys=keys)
    for machine in machines:
        assert Verifier(demand, tmp_path, True).judge(machine.bundle().encode()).kind is Kind.OK
    assert len(list(tmp_path.glob("*.json"))) == 3
    machines[1].files(b"/new")
    found = Verifier(demand, tmp_path).judge(machines[1].bundle().encode())
    assert (found.kind, found.records) == (Kind.OK, 2)
    assert place(tmp_path, "ab") == tmp_path / "ab.json"
    state = load(tmp_path / f"{found.key}.json")
    assert state is not None
    save(tmp_path / "copy", replace(state, index=7))
    copied = load(tmp_path / "copy")
    assert copied is not None
    assert copied.index == 7


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_many_bundles_keep_their_order(tmp_path: Path, jobs: int) -> None:
    machines = [PaperTpm(number=number) for number in range(3)]
    keys = tuple(key for machine in machines for key in machine.demand().keys)
    paths, expected = [], []
    for number in range(30):
        machine = machines[number % 3]
        nonce = NONCE if number % 7 else b"other"
        path = tmp_path / f"{number}.tar"
        data = machine.bundle(nonce).encode()
        path.write_bytes(data if number % 5 else data[:-700])
        paths.append(str(path))
        expected.append(Kind.MALFORMED if not number % 5 else Kind.OK if number % 7 else Kind.NONCE)
    found = list(Verifier(machines[0].demand(keys=keys)).check_all(paths, jobs))
    assert [path for path, _ in found] == paths
    assert [judgement.kind for _, judgement in found] == expected


def test_nonces_of_their_own(tmp_path: Path) -> None:
    machine = PaperTpm()
    paths = []
    for number in range(3):
        path = tmp_path / str(number)
        path.write_bytes(machine.bundle(b"%d" % number).encode())
        paths.append(str(path))
    nonces = {path: path[-1].encode() for path in paths}
    found = Verifier(machine.demand(), nonces=nonces).check_all(paths, 2)
    assert {judgement.kind for _, judgement in found} == {Kind.OK}


def test_a_file_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(FileError):
        Verifier(PaperTpm().demand()).check(str(tmp_path / "none"))
    with pytest.raises((FileError, UsageError)):
        Verifier(PaperTpm().demand()).check("/dev/zero")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_file_that_is_not_there_among_others(tmp_path: Path, jobs: int) -> None:
    """A process of the pool says which, as this one does."""
    machine = PaperTpm()
    (tmp_path / "a").write_bytes(machine.bundle().encode())
    paths = [str(tmp_path / name) for name in "ab"]
    with pytest.raises(FileError, match="b: No such file") as refused:
        list(Verifier(machine.demand()).check_all(paths, jobs))
    assert (refused.value.errno, refused.value.exit_code) == (errno.ENOENT, 2)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_bundle_that_is_too_large_ends_no_others_verdict(
    tmp_path: Path, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = PaperTpm()
    data = machine.bundle().encode()
    monkeypatch.setattr("imafs.attest.bundle.MOST", len(data))
    for name, content in (("a", data), ("b", data + b"\0" * 512), ("c", data)):
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in "abc"]
    found = dict(Verifier(machine.demand()).check_all(paths, jobs))
    assert [found[path].kind for path in paths] == [Kind.OK, Kind.MALFORMED, Kind.OK]
    assert "is larger than" in found[paths[1]].said


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("where", ["imafs.disk.content", "imafs.attest.evidence.judge_bundle"])
def test_a_bundle_that_eats_the_memory_ends_no_others_verdict(
    tmp_path: Path, jobs: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is limited a gigabyte is a MemoryError, and no process is killed."""
    machine = PaperTpm()
    module, name = where.rsplit(".", 1)
    real = getattr(import_module(module), name)

    def limited(*words: object) -> object:
        found = real(*words)
        if found == large:
            raise MemoryError
        return found

    def judged(given: bytes, *words: object) -> object:
        if given == large:
            raise MemoryError
        return real(given, *words)

    data = machine.bundle().encode()
    large = data + b"\0" * 512
    monkeypatch.setattr(where, limited if name == "content" else judged)
    for file, content in (("a", data), ("b", large), ("c", data)):
        (tmp_path / file).write_bytes(content)
    paths = [str(tmp_path / file) for file in "abc"]
    found = dict(Verifier(machine.demand()).check_all(paths, jobs))
    assert [found[path].kind for path in paths] == [Kind.OK, Kind.MALFORMED, Kind.OK]
    assert "does not fit into memory" in found[paths[1]].said


@pytest.fixture
def fleet(tmp_path: Path) -> tuple[Demand, list[str]]:
    """Four machines with a state each, and eight bundles of theirs."""
    machines = [PaperTpm(number=number) for number in range(4)]
    keys = tuple(key for machine in machines for key in machine.demand().keys)
    demand, paths = machines[0].demand(keys=keys), []
    (tmp_path / "states").mkdir()
    for number in range(12):
        machine = machines[number % 4]
        machine.files(b"/%d" % number)
        path = tmp_path / f"{number}.tar"
        path.write_bytes(machine.bundle().encode())
        if number < 4:
            assert Verifier(demand, tmp_path / "states", True).check(str(path)).kind is Kind.OK
        else:
            paths.append(str(path))
    return demand, paths


def states(directory: Path) -> dict[str, tuple[int, int]]:
    """Index and sequence of each machine's."""
    found = {path.name: load(path) for path in directory.glob("*.json")}
    return {name: (state.index, state.sequence) for name, state in found.items() if state}


@pytest.mark.parametrize("when", ["before its state is saved", "behind that"])
def test_a_process_that_is_killed_takes_no_verdict_along(
    fleet: tuple[Demand, list[str]], tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a state: whose verdict was not told would be "replayed" the next time."""
    demand, paths = fleet
    ours, once, real = os.getpid(), tmp_path / "once", Verifier._look

    def look(self: Verifier, path: str, *, saves: bool) -> object:
        found = None if when == "before its state is saved" else real(self, path, saves=saves)
        if path == paths[3] and os.getpid() != ours and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return found or real(self, path, saves=saves)

    monkeypatch.setattr(Verifier, "_look", look)
    found = list(Verifier(demand, tmp_path / "states").check_all(paths, 2))
    assert once.exists()
    assert [path for path, _ in found] == paths
    assert {judgement.kind for _, judgement in found} == {Kind.OK}
    assert sorted(states(tmp_path / "states").values()) == [(4, 3)] * 4
    again = Verifier(demand, tmp_path / "states").check_all(paths, 2)
    assert {judgement.kind for _, judgement in again} == {Kind.REPLAYED}


@pytest.mark.parametrize("stateful", [True, False])
def test_a_bundle_that_has_every_process_killed_ends_no_others_verdict(
    fleet: tuple[Demand, list[str]],
    tmp_path: Path,
    stateful: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    demand, paths = fleet
    ours, real = os.getpid(), bundles.decode

    def decode(data: bytes) -> bundles.Bundle:
        if data == Path(paths[5]).read_bytes():
            assert os.getpid() != ours, "where it is judged now nobody judges the others"
            os.kill(os.getpid(), signal.SIGKILL)
        return real(data)

    monkeypatch.setattr(bundles, "decode", decode)
    place = tmp_path / "states" if stateful else None
    before = states(tmp_path / "states")
    found = dict(Verifier(demand, place).check_all(paths, 2))
    assert list(found) == paths
    assert [found[path].kind for path in paths] == [
        Kind.UNJUDGED if number == 5 else Kind.OK for number in range(8)
    ]
    assert "killed, twice" in found[paths[5]].said
    if stateful:
        after = states(tmp_path / "states")
        assert sorted(after[name][1] - before[name][1] for name in before) == [1, 2, 2, 2]


def test_a_machine_of_which_another_verifier_judges_a_bundle_meanwhile(
    fleet: tuple[Demand, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its verdict and its state are those against what that one has saved."""
    demand, paths = fleet
    ours, real = os.getpid(), Verifier._look
    place = tmp_path / "states"

    def look(self: Verifier, path: str, *, saves: bool) -> object:
        found = real(self, path, saves=saves)
        if path == paths[0] and os.getpid() != ours:
            assert real(Verifier(demand, place), path, saves=True).verdict.kind is Kind.OK
        return found

    monkeypatch.setattr(Verifier, "_look", look)
    found = [judgement.kind for _, judgement in Verifier(demand, place).check_all(paths, 2)]
    assert found == [Kind.REPLAYED] + [Kind.OK] * 7
    assert sorted(states(place).values()) == [(4, 3)] * 4


def strangers(machine: PaperTpm) -> dict[str, bytes]:
    """Bundles of nobody: another key, and a signature of none."""
    thief = PaperTpm(number=1)
    mine = machine.bundle()
    return {
        "another key": thief.bundle().encode(),
        "no signature": replace(mine, signature=mine.signature[:-1] + b"\0").encode(),
        "no signature, another key": replace(mine, key=thief.area).encode(),
    }


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("enrol", [False, True])
@pytest.mark.parametrize("what", ["another key", "no signature", "no signature, another key"])
def test_strangers_leave_nothing_among_the_states(
    machine: PaperTpm, tmp_path: Path, what: str, new: bool, enrol: bool
) -> None:
    data = strangers(machine)[what]
    demand = machine.demand(enrol=enrol)
    assert not Verifier(demand, tmp_path, new).judge(data).kind.accepted
    if not (enrol and new and what == "another key"):  # who asks for that, gets it
        assert not Verifier(replace(demand, keys=()), tmp_path, new).judge(data).kind.accepted
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_each_machine_where_bundles_name_no_key(tmp_path: Path) -> None:
    machines = [PaperTpm(number=number) for number in range(2)]
    keys = tuple(key for machine in machines for key in machine.demand().keys)
    for new in (True, False):
        for machine in machines:
            data = replace(machine.bundle(), key=None).encode()
            found = Verifier(machine.demand(keys=keys), tmp_path, new).judge(data)
            assert found.kind is Kind.OK
            assert (tmp_path / f"{machine.demand().keys[0].fingerprint}.json").exists()
    assert len(list(tmp_path.glob("*.json"))) == 2


@pytest.mark.parametrize("keyless", [False, True])
def test_bundles_of_one_machine_are_judged_in_their_order(tmp_path: Path, keyless: bool) -> None:
    """In whatever process: the first one is the longest, and the others would be ready sooner."""
    machines = [PaperTpm(number=number) for number in range(2)]
    keys = tuple(key for machine in machines for key in machine.demand().keys)
    (tmp_path / "states").mkdir()
    paths = []
    for number in range(24):
        machine = machines[number % 3 % 2]
        machine.files(*(b"/%d-%d" % (number, n) for n in range(0 if number % 4 else 400)))
        bundle = machine.bundle()
        data = replace(bundle, key=None).encode() if keyless else bundle.encode()
        path = tmp_path / f"{number}.tar"
        path.write_bytes(data)
        paths.append(str(path))
    demand, states = machines[0].demand(keys=keys), tmp_path / "states"
    assert {Verifier(demand, states, True).check(path).kind for path in paths[:2]} == {Kind.OK}
    found = list(Verifier(demand, states).check_all(paths[2:], 4))
    assert {judgement.kind for _, judgement in found} == {Kind.OK}, [j.said for _, j in found]
    again = Verifier(demand, states).check_all(paths[2:6] * 2, 4)
    assert {judgement.kind for _, judgement in again} == {Kind.REPLAYED}


def test_the_key_of_a_bundle_is_found_in_front(machine: PaperTpm) -> None:
    data = machine.bundle().encode()
    assert len(data) < KEY_WITHIN
    assert key_of(data[:KEY_WITHIN]) == machine.area
    whole = replace(machine.bundle(), certificates=bytes(MEMBERS[CERTIFICATES]))
    assert key_of(whole.encode()[:KEY_WITHIN]) == machine.area
    for some in (b"", b"x" * 600, data[:700], data[512:], replace(machine.bundle(), key=None)):
        head = some if isinstance(some, bytes) else some.encode()
        assert key_of(head) is None


def _in_their_directory(file: Path) -> None:
    os.chown(file.parent, NOBODY, NOBODY)


def _where_everybody_writes(file: Path) -> None:
    file.parent.chmod(0o777)


def _theirs(file: Path) -> None:
    os.chown(file, NOBODY, NOBODY)


def _their_lock(file: Path) -> None:
    os.chown(f"{file}.lock", NOBODY, NOBODY)


def _their_link(file: Path) -> None:
    file.rename(file.with_name("other"))
    file.symlink_to("other")
    os.lchown(file, NOBODY, NOBODY)


@pytest.mark.root
@pytest.mark.parametrize(
    "plant", [_in_their_directory, _where_everybody_writes, _theirs, _their_lock, _their_link]
)
def test_a_state_that_others_can_change_is_none(
    plant: Callable[[Path], None], machine: PaperTpm, tmp_path: Path
) -> None:
    """Who sets it back makes an old list new, and who holds its lock keeps a verifier waiting."""
    (tmp_path / "states").mkdir()
    file = tmp_path / "states" / "machine.json"
    assert Verifier(machine.demand(), file, True).judge(machine.bundle().encode()).kind is Kind.OK
    plant(file)
    before = file.read_bytes()
    with pytest.raises(UsageError, match="--state"):
        Verifier(machine.demand(), file).judge(machine.bundle().encode())
    assert file.read_bytes() == before


@pytest.mark.parametrize("make", [Path.symlink_to, Path.hardlink_to])
def test_a_state_has_one_name(
    make: Callable[[Path, Path], None], machine: PaperTpm, tmp_path: Path
) -> None:
    """A verdict under another name replaced that one, and the first one's state was the old one."""
    file, other = tmp_path / "state", tmp_path / "other"
    first, second = (machine.bundle().encode() for _ in "ab")
    assert verifier(machine, file, new=True).judge(first).kind is Kind.OK
    make(other, file)
    before = file.read_bytes()
    for new in (False, True):
        with pytest.raises(UsageError, match=r"symbolic link|another name"):
            verifier(machine, other, new=new).judge(second)
    assert file.read_bytes() == before
    other.unlink()
    assert verifier(machine, file).judge(second).kind is Kind.OK


def test_a_state_beside_others_in_a_directory_with_the_sticky_bit(
    machine: PaperTpm, tmp_path: Path
) -> None:
    tmp_path.chmod(0o1777)
    file = tmp_path / "machine.json"
    for new in (True, False):
        found = Verifier(machine.demand(), file, new).judge(machine.bundle().encode())
        assert found.kind is Kind.OK
