# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Reading lists whole and at their end; filling them; what a record costs in memory."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

from scripts.benchlib.plan import PASSES, Plan, interleaved, short
from scripts.benchlib.processes import Bare, BenchError, Client, Imafs
from scripts.benchlib.report import READ_LINEAR, READ_SHARE, RECORD_BYTES, Line, Report

#: Title of a view -> its file.
VIEWS = {
    "sha1 binary": "binary_runtime_measurements_sha1",
    "sha256 binary": "binary_runtime_measurements_sha256",
    "sha1 ascii": "ascii_runtime_measurements_sha1",
}
#: Title of a way of reading -> options of the emulator.
MODES: dict[str, tuple[str, ...]] = {"faithful": (), "large": ("--large-reads",)}
BUFFERS = {"128K": 128 << 10, "1M": 1 << 20}
TAIL = 4096
#: Bytes after which the other file has its turn: what disturbs a machine lasts longer.
TURN = 2 << 20


@dataclass(slots=True)
class Times:
    """Nanoseconds of the same reads, with the emulator and with the yardstick."""

    imafs: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Speed, as a share of the yardstick's."""
        return median(self.bare) / median(self.imafs)


@dataclass(frozen=True, slots=True)
class Pair:
    """One view of one list: in the emulator and in the yardstick."""

    records: int
    bytes: int
    imafs: str
    bare: str


def run(plan: Plan, report: Report, place: Path) -> None:
    """All lines of reading, appending and memory."""
    for mode, options in MODES.items():
        with ExitStack() as stack:
            lists = {}
            report.section(f"lists of two banks, {mode} reads: filling")
            for records in plan.read_sizes:
                server = Imafs("--banks", "sha1,sha256", *options)
                stack.callback(server.close)
                _fill(report, server, mode, records, last=records == plan.read_sizes[-1])
                lists[records] = server
            client = Client()
            stack.callback(client.close)
            client.pin()
            for server in lists.values():
                server.pin()
            for view in VIEWS:
                report.section(f"{view}, {mode} reads")
                _view(plan, report, place, client, lists, view, mode)


def _fill(report: Report, server: Imafs, mode: str, records: int, *, last: bool) -> None:
    before = server.rss()
    appended, extended = server.fill(records)
    per_record = (server.rss() - before) / records
    name = f"append and extend {mode} {short(records)}"
    text = f"{records / appended:9,.0f}/s in the list  {records / extended:9,.0f}/s in the TPM"
    figures = {"appended_s": appended, "extended_s": extended}
    report.add(Line(name, text, records / extended, figures=figures))
    if last:
        # Of the daemon, everything included, before any view was rendered.
        most = RECORD_BYTES
        text = f"{per_record:6.1f} bytes per record"
        figures = {"rss_before": before, "rss_after": server.rss()}
        line = Line(f"memory {mode} {short(records)}", text, per_record, None, most, figures)
        report.add(line)


def _view(
    plan: Plan,
    report: Report,
    place: Path,
    client: Client,
    lists: dict[int, Imafs],
    view: str,
    mode: str,
) -> None:
    if view != "sha1 binary":
        _first(report, client, lists, view, mode)
    for title, buffer in BUFFERS.items():
        with ExitStack() as stack:
            pairs = []
            for records, server in lists.items():
                path = server.file(VIEWS[view])
                here = place / f"{mode}-{view}-{title}-{records}".replace(" ", "-")
                bare, size = _bare(client, path, here, buffer, faithful=mode == "faithful")
                stack.callback(bare.close)
                pairs.append(Pair(records, size, path, bare.file))
            times = [Times() for _ in pairs]
            # All sizes in every pass: one is held against the other.
            for _ in range(PASSES):
                for pair, kept in zip(pairs, times, strict=True):
                    _read(client, pair, buffer, plan.reads(pair.records), kept)
            share = READ_SHARE[mode] if view == "sha1 binary" else None
            _lines(report, f"{view} {mode} {title}", pairs, times, share)
            if buffer == max(BUFFERS.values()):
                for pair in pairs:
                    _tail(plan, report, client, pair, f"{view} {mode}")


def _first(report: Report, client: Client, lists: dict[int, Imafs], view: str, mode: str) -> None:
    """The first read of each list: nothing of a rendered view is in the cache yet.

    Later reads of small lists come from the cache and those of lists that are larger
    than it do not, so only first reads tell whether rendering is linear.
    """
    per_byte = {}
    for records, server in lists.items():
        path = server.file(VIEWS[view])
        begin = perf_counter()
        found = client.do("checksum", path=path, buffer=max(BUFFERS.values()))
        per_byte[records] = (perf_counter() - begin) / int(found["bytes"])
    first, last = min(per_byte), max(per_byte)
    growth = per_byte[last] / per_byte[first]
    text = f"time per byte, {short(last)} over {short(first)}: {growth:.2f}"
    text += f"  ({1e-6 / per_byte[last]:,.0f} MB/s)"
    name = f"linear first read {view} {mode}"
    report.add(Line(name, text, growth, most=READ_LINEAR, figures={"imafs": growth}))


def _bare(
    client: Client, path: str, here: Path, buffer: int, *, faithful: bool
) -> tuple[Bare, int]:
    data, lengths = here.with_suffix(".data"), here.with_suffix(".lengths")
    found = client.do("capture", path=path, buffer=buffer, data=str(data), lengths=str(lengths))
    bare = Bare(here, data, lengths if faithful else None)
    bare.pin()
    data.unlink()  # it has the bytes in its memory
    if client.do("checksum", path=bare.file, buffer=buffer)["crc"] != found["crc"]:
        bare.close()
        raise BenchError(f"{path}: the yardstick serves other bytes")
    return bare, int(found["bytes"])


def _read(client: Client, pair: Pair, buffer: int, rounds: int, times: Times) -> None:
    for _ in range(rounds):
        answer = client.do("compare", paths=[pair.imafs, pair.bare], buffer=buffer, turn=TURN)
        if answer["bytes"] != [pair.bytes, pair.bytes]:
            raise BenchError(f"{pair.imafs}: {answer['bytes']} bytes instead of {pair.bytes}")
        if len(set(answer["requests"])) != 1:
            raise BenchError(f"{pair.imafs}: reads of {answer['requests']} requests are compared")
        imafs, bare = answer["ns"]
        times.imafs.append(imafs)
        times.bare.append(bare)


def _lines(
    report: Report, name: str, pairs: list[Pair], times: list[Times], share: float | None
) -> None:
    for pair, kept in zip(pairs, times, strict=True):
        speed, yardstick = (pair.bytes * 1e3 / median(ns) for ns in (kept.imafs, kept.bare))
        text = f"imafs {speed:7,.0f} MB/s  bare {yardstick:7,.0f} MB/s  ratio {kept.ratio:5.2f}"
        figures = {"imafs_mb_s": speed, "bare_mb_s": yardstick, "reads": len(kept.imafs)}
        title = f"read {name} {short(pair.records)}"
        report.add(Line(title, text, kept.ratio, share, figures=figures))
    first, last = pairs[0], pairs[-1]
    imafs, bare = (
        (median(large) / last.bytes) / (median(small) / first.bytes)
        for small, large in ((times[0].imafs, times[-1].imafs), (times[0].bare, times[-1].bare))
    )
    # A list's reads take seconds and those of a small one milliseconds, so what else the
    # machine does hits them unlike: judged is what the yardstick does not show as well.
    text = f"time per byte, {short(last.records)} over {short(first.records)}: "
    text += f"{imafs:.2f}  bare {bare:.2f}  ratio {imafs / bare:.2f}"
    figures = {"imafs": imafs, "bare": bare}
    # Of rendered views the first reads are judged, see _first.
    most = None if share is None else READ_LINEAR
    report.add(Line(f"linear {name}", text, imafs / bare, most=most, figures=figures))


def _tail(plan: Plan, report: Report, client: Client, pair: Pair, name: str) -> None:
    def once(path: str) -> float:
        return float(client.do("tail", path=path, size=TAIL, end=pair.bytes)["ns"])

    imafs, bare = interleaved(plan.tails, lambda: once(pair.imafs), lambda: once(pair.bare))
    times = Times(imafs, bare)
    one, other = median(imafs) / 1e3, median(bare) / 1e3
    text = f"imafs {one:7.0f} us    bare {other:7.0f} us    ratio {times.ratio:5.2f}"
    figures = {"imafs_us": one, "bare_us": other}
    title = f"last 4 KiB {name} {short(pair.records)}"
    report.add(Line(title, text, times.ratio, figures=figures))
