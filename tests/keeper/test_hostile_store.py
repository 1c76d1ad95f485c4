# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A store, settings and a status that somebody else has made: told in one line, or not asked."""

from __future__ import annotations

import json
import os
import socket
import threading
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imafs.cli import keep
from imafs.cli.main import main
from imafs.errors import ControlError, DegradedError, StoreBrokenError, UntrustedError, UsageError
from imafs.keeper import config, journal, status
from imafs.keeper.facts import Gap, LifeFacts, Mode
from imafs.keeper.reading import Reading, lives
from imafs.keeper.store import BankFile, open_store

NOBODY = 65534


@pytest.mark.parametrize(
    "text",
    [
        f"[stage]\nrecords = {'9' * 5000}",
        f"[stage]\nrecords = 0x{'f' * 100_000}",
        f"[stage]\nage = '{'9' * 100_000}s'",
        "a = " + "[" * 100_000,
        "[stage]\nage = 2020-13-41",
        "[store]\nkeep_free = nan",
    ],
    ids=["decimal", "hexadecimal", "text", "depth", "date", "nan"],
)
def test_settings_of_the_wrong_kind_are_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keeper.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as refused:
        config.read(str(file))
    assert len(str(refused.value)) < 500


LIFE = {
    "boot": "boot",
    "banks": [["sha1", 20], ["sha256", 32], ["tpm_alg_27", 32]],
    "modes": {"sha1": "real"},
    "byteorder": "little",
    "clock": None,
    "whole": True,
    "deciding": [10],
    "forked": None,
}


@pytest.mark.parametrize(
    "banks",
    [
        [["foo", 32]],
        [["tpm_alg_zz", 32]],
        [["tpm_alg_123456789", 32]],
        [["sha1", 20], ["sha1", 20]],
        [["sha256", 20]],
        [["sha1"]],
        "sha1",
        [["sha1", 1 << 70]],
    ],
)
def test_a_life_with_banks_that_are_none(tmp_path: Path, banks: object) -> None:
    place = tmp_path / "lives" / "000001-boot"
    place.mkdir(parents=True)
    (place / "journal").touch()
    (place / "life.json").write_text(json.dumps(LIFE))
    store = open_store(str(tmp_path))
    life = store.newest()
    assert life is not None
    life.archive.close()
    (place / "life.json").write_text(json.dumps({**LIFE, "banks": banks}))
    with pytest.raises(StoreBrokenError):
        store.newest()
    store.close()


@pytest.mark.parametrize("damage", ["bytes", "gone", "directory"])
def test_verify_reads_life_json_too(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It passed a life that no keeper takes."""
    made(tmp_path / "store")
    words = ["keep", "verify", "--store", str(tmp_path / "store")]
    assert main(words) == 0
    (file,) = tmp_path.glob("store/lives/*/life.json")
    if damage == "bytes":
        file.write_bytes(file.read_bytes().replace(b"real", b"rea1"))
    else:
        file.unlink()
        if damage == "directory":
            file.mkdir()
    capsys.readouterr()
    assert main(words) == StoreBrokenError.exit_code
    assert "life.json: " in capsys.readouterr().err


def test_a_life_that_has_lost_its_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one before it was verified and exported as if it were the newest."""
    store = tmp_path / "store"
    made(store)
    made(store)
    *_, newest = sorted(store.glob("lives/*"))
    (newest / "journal").rename(newest / "000000000000.bin")
    for words in (["verify"], ["verify", "--all"], ["export", "-o", str(tmp_path / "out")]):
        assert main(["keep", *words, "--store", str(store)]) == StoreBrokenError.exit_code
        assert f"{newest.name}: records without a journal" in capsys.readouterr().err


FRAME: dict[str, Any] = {
    **{"kind": "frame", "n": 0, "first": 0, "count": 0, "seg": "000000000000.bin", "off": 0},
    **{"len": 0, "sha256": "0" * 64, "boot": "boot", "g_count": 0, "g_sha256": "0" * 64},
    **{"skip": 0, "how": "A", "clock": [1, 2, 3, 4, True], "modes": {"sha1": "real"}},
    "pcrs": {"sha1": {"10": "00" * 20}, "tpm_alg_27": {"10": "00"}},
}
GAP = {"kind": "gap", "index": 0, "why": "", "missing": None, "verified": None}


@pytest.mark.parametrize(
    "body",
    [
        *({**FRAME, "pcrs": {"sha1": {pcr: "00" * 20}}} for pcr in ("-5", "64", "\u0661", " 1")),
        *({**FRAME, "pcrs": {"sha1": {"10": value}}} for value in ("", "00" * 32, "zz")),
        *({**FRAME, "clock": [1, 2, 3, wrong, True]} for wrong in (-1, 1 << 64, True, 1.5)),
        *({**GAP, "verified_at": wrong} for wrong in (float("nan"), float("inf"), -1, 10**400)),
    ],
)
def test_a_journal_with_values_that_no_keeper_writes(body: dict[str, Any]) -> None:
    """A PCR of -5 went as far as the TPM, whose refusal ended the keeper."""
    assert journal.item_of({**FRAME, "prev": "0" * 64})
    assert journal.item_of({**GAP, "verified_at": 12.5})
    with pytest.raises(StoreBrokenError):
        journal.item_of({**body, "prev": "0" * 64})


# A journal of any length


def journal_of(store: Path, begin: bytes, size: int) -> Path:
    """A life whose journal begins so, and has that size on a disk that stores no zeros."""
    made(store)
    (path,) = store.glob("lives/*/journal")
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(size)
    return path


def lines(count: int, *bodies: Mapping[str, Any]) -> bytes:
    """A chain of whole lines: ``bodies``, the last one again and again."""
    found, head = [], journal.GENESIS
    for number in range(count):
        text = journal.line(bodies[min(number, len(bodies) - 1)], head)
        found.append(text)
        head = journal.hashed(text)
    return b"".join(found)


FIRST = {**FRAME, "g_count": 1, "pcrs": {}, "modes": {}}
DONE = {"kind": "done", "n": 0}
GOOD_LINES = lines(1, FIRST)


@pytest.mark.parametrize(
    ("begin", "size", "why"),
    [
        (b"", 8 << 30, "journal, line 1: longer than any"),
        (GOOD_LINES, 8 << 30, "journal, line 2: longer than any"),
        (GOOD_LINES + b"x\n" * 2, 8 << 30, "journal, line 4: longer than any"),
        (b"x" * 100 + b"\n" * 3, 8 << 30, "journal, line 1: damaged"),
    ],
    ids=["one line", "behind a line", "behind damage", "damage"],
)
def test_a_journal_of_gigabytes_takes_no_memory(
    begin: bytes, size: int, why: str, tmp_path: Path
) -> None:
    path = journal_of(tmp_path / "store", begin, size)
    before = path.stat().st_blocks
    tracemalloc.start()
    try:
        with pytest.raises(StoreBrokenError, match=why):
            opened(tmp_path / "store")
        with pytest.raises(StoreBrokenError, match=why):
            Reading(str(tmp_path / "store"), path.parent.name)
        assert tracemalloc.get_traced_memory()[1] < 16 * journal.LINE_MAX
    finally:
        tracemalloc.stop()
    assert (path.stat().st_size, path.stat().st_blocks) == (size, before)


def opened(store: Path) -> None:
    found = open_store(str(store))
    try:
        life = found.newest()
        assert life is not None
        life.archive.close()
    finally:
        found.close()


def test_a_journal_of_more_lines_than_any_keeper_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are whole, and follow."""
    data = lines(20_000, FIRST, DONE)
    path = journal_of(tmp_path / "store", data, len(data))
    opened(tmp_path / "store")
    path.write_bytes(data)
    monkeypatch.setattr(journal, "JOURNAL_MAX", 2 << 20)
    with pytest.raises(StoreBrokenError, match="journal: more than 2 MiB, which no keeper writes"):
        opened(tmp_path / "store")
    with pytest.raises(StoreBrokenError, match="journal: more than 2 MiB, which no keeper writes"):
        Reading(str(tmp_path / "store"), path.parent.name)


def test_a_keeper_writes_no_journal_that_it_would_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "store")
    store = open_store(str(tmp_path / "store"))
    life = store.newest()
    assert life is not None
    monkeypatch.setattr(journal, "JOURNAL_MAX", 10_000)
    mark = partial(life.archive.mark, Gap(0, "again"))
    with pytest.raises(DegradedError, match="no more fits"):
        deque(iter(mark, "never"), maxlen=0)
    life.archive.close()
    monkeypatch.undo()
    life = store.newest()
    assert life is not None
    assert 10 < len(life.archive.ledger.gaps) < 1000
    life.archive.close()
    store.close()


@pytest.mark.parametrize(
    "change",
    [{"count": 1, "len": 1 << 40}, {"count": 1 << 40, "len": 1 << 20}, {"count": 5, "len": 4}],
)
def test_a_journal_that_speaks_of_more_bytes_than_a_batch_has(
    change: dict[str, int], tmp_path: Path
) -> None:
    """They would be read at once; a disk that stores no zeros has them."""
    data = lines(1, {**FIRST, **change})
    path = journal_of(tmp_path / "store", data, len(data))
    with (path.parent / "000000000000.bin").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(StoreBrokenError, match="journal: frame 0: "):
        opened(tmp_path / "store")


def test_a_table_of_more_banks_than_any_tpm() -> None:
    """Each would be an object of memory."""
    banks: dict[str, Any] = {f"bank-{number}": {} for number in range(1000)}
    with pytest.raises(StoreBrokenError, match="'pcrs' is not to be understood"):
        journal.item_of({**FRAME, "prev": "0" * 64, "pcrs": banks})


def test_lives_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["000009-a", "999999-a", "1000000-a"]
    for name in names[::-1]:
        (tmp_path / "lives" / name).mkdir(parents=True)
        (tmp_path / "lives" / name / "journal").touch()
    assert lives(str(tmp_path)) == names


# A store in a directory of somebody else


def made(store: Path) -> None:
    """A store with a life, of ours."""
    opened = open_store(str(store))
    facts = LifeFacts(1, "boot", {"sha1": Mode.REAL}, "little", None)
    opened.begin(facts, (BankFile("sha1", 20),)).archive.close()
    opened.close()


def theirs(store: Path) -> None:
    store.mkdir()
    os.chown(store, NOBODY, NOBODY)


def above(store: Path) -> None:
    store.mkdir()
    os.chown(store.parent, NOBODY, NOBODY)


def everybody(store: Path) -> None:
    store.mkdir()
    store.chmod(0o777)


def link_above(store: Path) -> None:
    elsewhere = store.parent / "elsewhere"
    elsewhere.mkdir()
    store.symlink_to(elsewhere)
    os.lchown(store, NOBODY, NOBODY)


def not_yet(store: Path) -> None:
    """There is no store; who may make its directory is another user."""
    os.chown(store.parent, NOBODY, NOBODY)


def lives_elsewhere(store: Path) -> None:
    elsewhere = store.parent / "elsewhere"
    elsewhere.mkdir()
    made(store)
    (store / "lives").rename(elsewhere / "lives")
    (store / "lives").symlink_to(elsewhere / "lives")


def their_lives(store: Path) -> None:
    made(store)
    os.chown(store / "lives", NOBODY, NOBODY)


def their_lock(store: Path) -> None:
    made(store)
    os.chown(store / "lock", NOBODY, NOBODY)


@pytest.mark.root
@pytest.mark.parametrize(
    "make",
    [theirs, above, everybody, link_above, not_yet, lives_elsewhere, their_lives, their_lock],
)
def test_a_store_that_others_can_change_is_refused(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    store = tmp_path / "of" / "store"
    store.parent.mkdir()
    make(store)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="--store"):
        open_store(str(store))
    # The lock alone may have been made, in a directory that is there.
    after = sorted(str(path) for path in tmp_path.rglob("*") if path.name != "lock")
    assert after == [path for path in before if not path.endswith("/lock")]


def test_a_store_of_ours_in_a_directory_with_the_sticky_bit(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    open_store(str(tmp_path / "tmp" / "of" / "store")).close()
    open_store(str(tmp_path / "tmp" / "of" / "store")).close()


# The socket of the status

GOOD: dict[str, Any] = {
    **{"state": "idle", "why": None, "view": "served", "refusal": None, "life": 1, "boot": "b"},
    **{"records": {"total": 1, "stored": 1, "in_kernel": 0, "deleted": 1}},
    **{"verified": None, "alarms": {}, "last_error": None},
    **{"flush_htable": None, "view_measured": "no", "gaps": [], "looked": None},
}


@contextmanager
def answering(store: Path, answer: bytes) -> Iterator[None]:
    """Somebody listens there, and says that."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(store / status.SOCKET))
        sock.listen(1)

        def serve() -> None:
            connection, _ = sock.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield


def answer(**changes: object) -> bytes:
    return json.dumps({"ok": True, "status": {**GOOD, **changes}}).encode() + b"\n"


@pytest.mark.parametrize(
    "said",
    [
        *(b"\n", b"[]\n", b"1\n", b'{"ok": true}\n', b'{"ok": true, "status": []}\n', b"{}\n"),
        *(b"[" * 100_000 + b"\n", b'{"ok": true, "status": {}}\n', b"\xff\n"),
        *(answer(records={}), answer(records=[]), answer(alarms=[]), answer(verified={})),
        *(answer(state=1), answer(alarms={"a": []}), answer(life="x")),
        *(answer(last_error={"text": 1, "when": 0}), answer(last_error="x")),
    ],
)
def test_an_answer_of_no_keeper(
    tmp_path: Path, said: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(tmp_path, said):
        assert main(["keep", "status", "--store", str(tmp_path)]) == ControlError.exit_code
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("when", [1e300, -1e18, float("nan"), float("inf"), 10**20])
def test_a_time_of_no_year(tmp_path: Path, when: float) -> None:
    verified = {"from": 0, "records": 1, "when": when}
    error = {"text": "\x1b[2J", "when": when}
    said = answer(verified=verified, looked=when, why="\x1b[2J\n", last_error=error)
    with answering(tmp_path, said):
        told = keep._lines(status.ask(str(tmp_path), "status"))
    assert all(line.isprintable() for line in told)


@pytest.mark.root
def test_a_socket_of_somebody_else_is_not_asked(tmp_path: Path) -> None:
    """Root asks root, and who owns the store that it has named; of a view, its owner alone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / status.SOCKET))
        os.seteuid(NOBODY)  # whose credentials a listener has is those of listen(2)
        try:
            sock.listen(8)
        finally:
            os.seteuid(0)
        with pytest.raises(UntrustedError, match="uid 65534"):
            status.ask(str(tmp_path), "status")
        os.chown(tmp_path, NOBODY, NOBODY)
        with pytest.raises(UntrustedError):
            status.ask(str(tmp_path), "status", 0)


def test_an_answer_that_never_ends_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_PATIENCE", 0.2)
    go_on = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / status.SOCKET))
        sock.listen(1)

        def drip() -> None:
            connection, _ = sock.accept()
            with connection:
                while not go_on.wait(0.01):
                    try:
                        connection.send(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        with pytest.raises(ControlError):
            status.ask(str(tmp_path), "status")
        go_on.set()
        thread.join()
