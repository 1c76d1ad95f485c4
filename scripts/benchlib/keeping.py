# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The keeper: opening and reading its view, storing, starting with millions of records, memory."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from imafs.formats.algorithms import SHA1
from imafs.formats.binary import Record, encode
from imafs.formats.templates import TEMPLATES
from imafs.keeper.archive import SEGMENT_RECORDS, Batch
from imafs.keeper.facts import Anchor, LifeFacts, Mode
from imafs.keeper.index import indexed
from imafs.keeper.status import ask, flush
from imafs.keeper.store import BankFile, open_store
from imafs.verbs.client import ControlClient
from scripts.benchlib.plan import short
from scripts.benchlib.processes import PREFIX, Bare, BenchError, Client, Imafs, Server
from scripts.benchlib.report import (
    COLD_SHARE,
    KEEPER_ANONYMOUS,
    KEEPER_START,
    WARM_SHARE,
    Line,
    Report,
)

BANKS = (BankFile("sha1", 20), BankFile("sha256", 32))
_FILE = "binary_runtime_measurements_sha1"
_BUFFER = 1 << 20
_MIB = 1 << 20
#: Records per second that arrive while the view is opened, and how many at a time.
_RATE, _PIECE = 1000, 50
#: Keepers that are started for one first read each.
COLD_ROUNDS = 3


class Keeper(Server):
    """``imafs keep`` of an emulator; ``seconds``: from its start until its view was there."""

    def __init__(self, place: Path, source: Imafs, store: Path) -> None:
        self.store = store
        begin = time.perf_counter()
        super().__init__(
            place,
            lambda here: [
                *("-m", "imafs", "keep", "--source", str(source.mount)),
                *("--store", str(store), "--mount", str(here / "mnt")),
            ],
        )
        self.seconds = time.perf_counter() - begin
        if "keeping" not in self.announcement:
            self.close()
            raise BenchError(f"imafs keep: {self.announcement}")

    def file(self, name: str = _FILE) -> str:
        """Path of a file of the view."""
        return str(self.mount / name)

    def anonymous(self) -> int:
        """Bytes of its memory that no file backs."""
        text = Path(f"/proc/{self.child.pid}/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+) kB", text)
        if found is None:
            raise BenchError("imafs keep: is gone")
        return int(found[1]) * 1024

    def records(self) -> int:
        """Of the whole life, boot_aggregate included."""
        return int(Path(self.file("runtime_measurements_count")).read_text())


def run(records: int, largest: int, rounds: int, report: Report, place: Path) -> None:
    """All lines. ``records``: of the list that is read; ``largest``: of the store."""
    with ExitStack() as stack:
        source = Imafs("--banks", "sha1,sha256", boot_aggregate=True)
        stack.callback(source.close)
        client = Client()
        stack.callback(client.close)
        report.section("storing what arrives")
        _drain(report, source, place / "drain", records // 10, stack)
    with ExitStack() as stack:
        source = Imafs("--banks", "sha1,sha256", boot_aggregate=True)
        stack.callback(source.close)
        report.section("a list that no keeper has seen yet")
        _first(report, source, place / "first", records // 10, stack)
    for count in dict.fromkeys((records, largest)):
        with ExitStack() as stack:
            source = Imafs("--banks", "sha1,sha256", boot_aggregate=True)
            stack.callback(source.close)
            client = Client()
            stack.callback(client.close)
            report.section(f"a store of {short(count)} records: made through the archive")
            store = place / f"store-{count}"
            fill(store, count, _boot_id(source))
            if count == records:
                _read(report, client, source, store, place / "read", count, rounds)
            keeper = Keeper(place / f"keeper-{count}", source, store)
            stack.callback(keeper.close)
            _start(report, keeper, count)
            if count == records:
                _opens(report, client, keeper, source, rounds)
            for name in (_FILE, "ascii_runtime_measurements_sha256"):
                client.do("checksum", path=keeper.file(name), buffer=_BUFFER)
            _memory(report, keeper, count)


def _boot_id(source: Imafs) -> str:
    return (source.mount / ".boot_id").read_text().strip()


def fill(store_: Path, count: int, boot: str) -> None:
    """A store of ``count`` records of one life, in which the PCRs were zero at the end."""
    store = open_store(str(store_))
    try:
        modes = {bank.name: Mode.REAL for bank in BANKS}
        life = store.begin(LifeFacts(1, boot, modes, "little", None, whole=True), BANKS)
        archive = life.archive
        template = TEMPLATES["ima-ng"]
        records = []
        most = min(count, SEGMENT_RECORDS // 2)
        for number in range(most):
            digest = b"sha256:\0" + SHA1.digest(b"%d" % number).ljust(32, b"\1")
            body = template.join([digest, b"%s%08d\0" % (PREFIX.encode(), number)])
            records.append(encode(Record(10, template, body), template.digest(body, SHA1)))
        whole = indexed(b"".join(records))  # once: it takes longer than all the rest
        for at in range(0, count, most):
            some = whole if count - at >= most else indexed(b"".join(records[: count - at]))
            number, found = len(some.idx), some.measured
            archive.commit(Batch(some.data, number, "the one before", modes=modes, measured=found))
        # Its boot_aggregate is in the kernel still.
        archive.commit(Batch(b"", 0, boot, modes=modes))
        zeros = {bank.name: {10: bytes(bank.size)} for bank in BANKS}
        archive.mark(Anchor(count, zeros, "a bench"))
        archive.close()
    finally:
        store.close()


def _start(report: Report, keeper: Keeper, count: int) -> None:
    text = f"{keeper.seconds:6.2f} s until its view is there"
    most = KEEPER_START
    figures = {"seconds": keeper.seconds}
    report.add(Line(f"start {short(count)}", text, keeper.seconds, most=most, figures=figures))


def _memory(report: Report, keeper: Keeper, count: int) -> None:
    found = keeper.anonymous() / _MIB
    text = f"{found:6.1f} MiB anonymous behind full reads, the cache included"
    name = f"memory {short(count)}"
    report.add(Line(name, text, found, most=KEEPER_ANONYMOUS, figures={"mib": found}))


def _read(
    report: Report,
    client: Client,
    source: Imafs,
    store: Path,
    place: Path,
    count: int,
    rounds: int,
) -> None:
    """Full reads next to those of the yardstick, in turns. Cold: the first of a keeper's life, the
    pages of its store dropped. Warm: those behind the first."""
    data, lengths = place / "data", place / "lengths"
    with ExitStack() as stack:
        keeper = Keeper(place / "keeper", source, store)
        stack.callback(keeper.close)
        client.do(
            "capture", path=keeper.file(), buffer=_BUFFER, data=str(data), lengths=str(lengths)
        )
        bare = Bare(place / "bare", data, lengths)
        stack.callback(bare.close)
        # On one processor: see pin().
        for process in (client, keeper, bare):
            process.pin()
        stack.callback(client.unpin)
        _turns(client, keeper, bare)
        before = [server.processors() for server in (keeper, bare)]
        warm = [_turns(client, keeper, bare) for _ in range(rounds)]
        spent = [
            server.processors() - begun
            for server, begun in zip((keeper, bare), before, strict=True)
        ]
        keeper.close()
        cold = []
        for number in range(COLD_ROUNDS):
            keeper = Keeper(place / f"cold-{number}", source, store)
            stack.callback(keeper.close)
            keeper.pin()
            client.do("drop", directory=str(store))
            cold.append(_turns(client, keeper, bare))
            keeper.close()
    size = data.stat().st_size
    for title, times, least in (("cold", cold, COLD_SHARE), ("warm", warm, WARM_SHARE)):
        mine, theirs = (median(one[at] for one in times) for at in (0, 1))
        text = f"keeper {size * 1e3 / mine:7,.0f} MB/s  "
        text += f"bare {size * 1e3 / theirs:7,.0f} MB/s  ratio {theirs / mine:5.2f}"
        figures = {"keeper_ns": mine, "bare_ns": theirs}
        name = f"read {title} {short(count)}"
        report.add(Line(name, text, theirs / mine, least, figures=figures))
    mine, theirs = spent
    text = f"keeper {mine:6.2f} s  bare {theirs:6.2f} s of processors, warm  ratio "
    text += f"{theirs / mine:5.2f}"
    figures = {"keeper_s": mine, "bare_s": theirs}
    report.add(Line(f"processors {short(count)}", text, theirs / mine, figures=figures))


def _turns(client: Client, keeper: Keeper, bare: Bare) -> tuple[float, float]:
    """Nanoseconds of a full read of either."""
    paths = [keeper.file(), bare.file]
    answer = client.do("compare", paths=paths, buffer=_BUFFER, turn=2 << 20)
    if len(set(answer["bytes"])) != 1 or len(set(answer["requests"])) != 1:
        raise BenchError(f"the yardstick reads otherwise: {answer}")
    mine, theirs = answer["ns"]
    return mine, theirs


def _opens(report: Report, client: Client, keeper: Keeper, source: Imafs, rounds: int) -> None:
    for title in ("idle", f"{_RATE}/s"):
        with ExitStack() as stack:
            if title != "idle":
                stack.callback(_arriving(source).set)
            found = client.do("opens", path=keeper.file(), count=100 * rounds)
            p50, p99 = found["p50"] / 1e6, found["p99"] / 1e6
            text = f"p50 {p50:8.2f} ms   p99 {p99:8.2f} ms"
            figures = {"p50_ms": p50, "p99_ms": p99}
            report.add(Line(f"open {title}", text, p99, figures=figures))


def _arriving(source: Imafs) -> threading.Event:
    """Records arrive until the event that is returned is set."""
    end = threading.Event()

    def work() -> None:
        with ControlClient(source.control) as control:
            begin, added = time.monotonic(), 0
            while not end.wait(max(0.0, begin + added / _RATE - time.monotonic())):
                control.generate(_PIECE, name=PREFIX)
                added += _PIECE

    threading.Thread(target=work, daemon=True).start()
    return end


def _drain(report: Report, source: Imafs, place: Path, count: int, stack: ExitStack) -> None:
    """Records that are there already, stored with two syncs per batch, and deleted."""
    keeper = Keeper(place, source, place.with_suffix(".store"))
    stack.callback(keeper.close)
    begin = time.perf_counter()
    with ControlClient(source.control) as control:
        control.generate(count, name=PREFIX)
        added = time.perf_counter() - begin
    words = ("-m", "imafs", "keep", "flush", "--store", str(keeper.store))
    subprocess.run([sys.executable, "-P", *words], check=True)
    took = time.perf_counter() - begin
    if keeper.records() != count + 1:
        raise BenchError(f"{keeper.records()} records are shown, {count} were added")
    text = f"{count / took:9,.0f}/s of {short(count)}, added within {added:.1f} s"
    figures = {"seconds": took, "adding_s": added, "records": count}
    report.add(Line("drain", text, count / took, figures=figures))


def _first(report: Report, source: Imafs, place: Path, count: int, stack: ExitStack) -> None:
    """From the keeper's start until all of it is stored and shown, next to one read of it."""
    with ControlClient(source.control) as control:
        control.generate(count, name=PREFIX)
    begin = time.perf_counter()
    size = len(Path(source.file(_FILE)).read_bytes())
    read = time.perf_counter() - begin
    begin = time.perf_counter()
    keeper = Keeper(place, source, place.with_suffix(".store"))
    stack.callback(keeper.close)
    while ask(str(keeper.store), "status")["view"] != "served":
        time.sleep(0.01)
    flush(str(keeper.store))
    took = time.perf_counter() - begin
    if keeper.records() != count + 1:
        raise BenchError(f"{keeper.records()} records are shown, {count} were there")
    text = f"{took:6.2f} s for {short(count)}, its view after {keeper.seconds:.2f} s; "
    text += f"one read of {size >> 20} MiB {read:.2f} s"
    figures = {"seconds": took, "ready_s": keeper.seconds, "read_s": read, "records": count}
    report.add(Line("first list", text, took, figures=figures))
