# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Staging and deleting as a client feels them, and what others feel meanwhile.

The fill between two cycles, without a TPM, is the figure for appending.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from scripts.benchlib.plan import Plan, short
from scripts.benchlib.processes import Bare, Client, Imafs
from scripts.benchlib.report import DELETE_FLAT, Line, Report

LIST = "binary_runtime_measurements_sha1"
STAGED = LIST + "_staged"
COUNT = "runtime_measurements_count"
#: Seconds that a prober goes on after a delete, and per record: freeing ends in there.
AFTER, AFTER_EACH = 0.1, 5e-7
#: Title -> how often a line of this kind is said: microseconds of one os.write.
REQUESTS = {"stage": "A", "delete staged": "D", "delete half": "N"}


@dataclass(slots=True)
class Cycles:
    """Times of one size, nanoseconds; ``fill`` in seconds per record."""

    requests: dict[str, list[float]] = field(
        default_factory=lambda: {title: [] for title in REQUESTS}
    )
    bare: list[float] = field(default_factory=list)
    fill: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    stalls: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)


def run(plan: Plan, report: Report, place: Path) -> None:
    """All lines of appending, staging, deleting and stalls."""
    with ExitStack() as stack:
        server = Imafs("--tpm", "none")
        stack.callback(server.close)
        empty = place / "empty"
        empty.write_bytes(b"")
        bare = Bare(place / "requests-bare", empty)
        stack.callback(bare.close)
        writer, prober = Client(), Client()
        stack.callback(writer.close)
        stack.callback(prober.close)
        for process, away in ((server, False), (bare, False), (writer, True), (prober, True)):
            process.pin(away=away)
        # Once through everything, unmeasured: the first of each is slower.
        _cycle(Cycles(), server, bare, writer, prober, plan.request_sizes[0])
        sizes = {}
        for size in plan.request_sizes:
            cycles = sizes[size] = Cycles()
            for _ in range(plan.cycles(size)):
                _cycle(cycles, server, bare, writer, prober, size)
    _lines(report, sizes)


def _cycle(
    cycles: Cycles, server: Imafs, bare: Bare, writer: Client, prober: Client, size: int
) -> None:
    count = server.file(COUNT)
    after = AFTER + AFTER_EACH * size
    begin = time.perf_counter()
    server.fill(size)
    cycles.fill.append((time.perf_counter() - begin) / size)

    def once(path: str, request: str) -> float:
        return float(writer.do("write", path=path, requests=[request])["ns"][0])

    def idle() -> None:
        prober.do("probe_start", path=count)
        time.sleep(after)
        cycles.idle.append(float(prober.do("probe_stop")["max"]))

    # Half of the list away, and back in: two fills serve three requests.
    half = size // 2
    cycles.bare.append(once(bare.file, f"{half}\n"))
    cycles.requests["delete half"].append(once(server.file(LIST), f"{half}\n"))
    server.fill(half)
    idle()
    cycles.requests["stage"].append(once(server.file(STAGED), "A\n"))
    cycles.bare.append(once(bare.file, "D\n"))
    cycles.requests["delete staged"].append(once(server.file(STAGED), "D\n"))
    # Once more under the eyes of others: a second list of the same size.
    server.fill(size)
    once(server.file(STAGED), "A\n")
    prober.do("probe_start", path=count)
    once(server.file(STAGED), "D\n")
    time.sleep(after)
    answer = prober.do("probe_stop")
    cycles.stalls.append(float(answer["max"]))
    cycles.probes.append(float(answer["median"]))


def _lines(report: Report, sizes: dict[int, Cycles]) -> None:
    report.section("appending without a TPM (generated records, names of 60 characters)")
    rates = {size: 1 / median(cycles.fill) for size, cycles in sizes.items()}
    first, last = min(sizes), max(sizes)
    for size, rate in rates.items():
        share = rate / rates[first]
        text = f"{rate:9,.0f} records/s  {share:.2f} of the rate at {short(first)}"
        report.add(Line(f"append {short(size)}", text, rate))
    report.section("one os.write on an open file, and an empty write handler of a bare pyfuse3")
    for title, letter in REQUESTS.items():
        for size, cycles in sizes.items():
            one, other = (median(ns) / 1e3 for ns in (cycles.requests[title], cycles.bare))
            text = f"imafs {one:7.0f} us    bare {other:7.0f} us    ratio {other / one:5.2f}"
            figures = {
                "imafs_us": one,
                "bare_us": other,
                "slowest_us": max(cycles.requests[title]) / 1e3,
            }
            report.add(
                Line(f"{title} ({letter}) {short(size)}", text, other / one, figures=figures)
            )
        small, large = (median(sizes[size].requests[title]) for size in (first, last))
        text = f"time, {short(last)} over {short(first)}: {large / small:.2f}"
        report.add(Line(f"{title} ({letter}) flat", text, large / small, most=DELETE_FLAT))
    report.section(f"reading {COUNT} while a list is deleted")
    for size, cycles in sizes.items():
        stall, idle = max(cycles.stalls) / 1e6, max(cycles.idle) / 1e6
        usual = median(cycles.probes) / 1e6
        text = f"longest {stall:7.2f} ms  idle {idle:7.2f} ms  median {usual:5.2f} ms"
        figures = {"stall_ms": stall, "idle_ms": idle, "median_ms": usual}
        report.add(Line(f"stall {short(size)}", text, stall, figures=figures))
