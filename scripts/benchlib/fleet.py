# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A verifier of a fleet: `imafs check` on a bundle of each of many machines.

The machines are made up: a key, a list and a quote of each, all different, as a TPM and a kernel
would have made them. What is measured is the verifier alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from imafs.attest import quote
from imafs.attest.bundle import Bundle, Manifest
from scripts.benchlib.processes import ANSWER, BenchError
from scripts.benchlib.report import Line, Report

NONCE = bytes.fromhex("5eedf00d")
_DIGEST = b"sha256:\0"
#: Records that a busy machine has in a day.
DAILY = 5000
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of `imafs check` took: seconds by the clock and of processors, bytes."""

    wall: float
    processor: float
    memory: int


def run(machines: int, records: int, report: Report, place: Path) -> None:
    """Makes the bundles, checks them on one and on two processors, reports."""
    report.section(f"a fleet: {machines} machines with {records} records each")
    keys, bundles = place / "keys.pem", [place / f"{n:06d}.tar" for n in range(machines)]
    with keys.open("wb") as file:
        for number, path in enumerate(bundles):
            pem, bundle = machine(number, records)
            file.write(pem)
            path.write_bytes(bundle.encode())
    empty = check(keys, bundles[:1], 1)
    for jobs in (1, 2):
        found = check(keys, bundles, jobs)
        wall = max(found.wall - empty.wall, 1e-9)
        processor = max(found.processor - empty.processor, 1e-9)
        each = processor / (machines * records)
        report.add(
            Line(
                f"check, {jobs} {'job' if jobs == 1 else 'jobs'}",
                f"{machines / wall:.0f} bundles/s, {machines * records / wall:,.0f} records/s, "
                f"{each * 1e6:.2f} us of processor per record, {found.memory >> 20} MiB",
                machines / wall,
                figures={
                    "bundles_per_second": machines / wall,
                    "records_per_second": machines * records / wall,
                    "processor_per_record": each,
                    "processor_per_bundle": processor / machines,
                    "memory": float(found.memory),
                    "start": empty.wall,
                },
            )
        )
        if jobs == 1:
            _days(report, processor / machines, records)


def _days(report: Report, bundle: float, records: int) -> None:
    """What whole fleets take, if each machine sends the records of a day in one bundle."""
    for fleet in (10_000, 1_000_000):
        # The same for every record, and a signature for every bundle.
        hours = bundle / records * DAILY * fleet / 3600
        report.add(
            Line(
                f"{fleet:,} machines a day",
                f"{hours:.1f} hours of a processor: {hours / 24:.2f} processors all day",
                hours,
                figures={"hours": hours},
            )
        )


def machine(number: int, count: int) -> tuple[bytes, Bundle]:
    """The public key (PEM) and the evidence of one machine."""
    values = {"sha256": bytes(32)}
    out = []
    for place in range(count):
        name = b"boot_aggregate" if not place else b"/usr/lib/machine-%06d/%08d" % (number, place)
        data = _field(_DIGEST + hashlib.sha256(name).digest()) + _field(name + b"\0")
        front = struct.pack("<I20sI", 10, hashlib.sha1(data).digest(), 6)
        out.append(front + b"ima-ng" + _field(data))
        extended = values["sha256"] + hashlib.sha256(data).digest()
        values["sha256"] = hashlib.sha256(extended).digest()
    private = ec.generate_private_key(ec.SECP256R1())
    clock = quote.Clock(1000 + number, 1, 0, True)
    selected = quote.selected(
        quote.selection_of({"sha256": [10]}), {"sha256": {10: values["sha256"]}}
    )
    message = b"".join(
        (
            struct.pack(">IHHHH", quote.MAGIC, quote.ST_ATTEST_QUOTE, 0, 4, 0)[:8],
            struct.pack(">H", len(NONCE)) + NONCE,
            struct.pack(">QIIBQ", clock.clock, clock.reset_count, clock.restart_count, 1, 0),
            struct.pack(">IHB3s", 1, 0x000B, 3, (1 << 10).to_bytes(3, "little")),
            struct.pack(">H", 32) + hashlib.sha256(values["sha256"]).digest(),
        )
    )
    r, s = decode_dss_signature(private.sign(message, ec.ECDSA(hashes.SHA256())))
    signature = struct.pack(">HHH32sH32s", 0x18, 0x0B, 32, r.to_bytes(32), 32, s.to_bytes(32))
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    manifest = Manifest("bench", 0, count, 0, clock, end={"sha256": {10: values["sha256"]}})
    return pem, Bundle(
        b"".join(out), message, signature, quote.encode_pcrs(selected), pem, manifest=manifest
    )


def _field(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def check(keys: Path, bundles: list[Path], jobs: int) -> Run:
    """One run of the command; every bundle must be ok."""
    command = [sys.executable, "-P", "-m", "imafs", "check", "--json", "--jobs", str(jobs)]
    command += ["--nonce", NONCE.hex(), "--ak", str(keys), *map(str, bundles)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            told, _ = process.communicate(timeout=ANSWER)
        except BaseException:
            os.killpg(process.pid, 9)
            raise
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    verdicts = [json.loads(line)["verdict"] for line in told.splitlines()]
    if process.returncode or verdicts != ["ok"] * len(bundles):
        raise BenchError(f"imafs check ended with {process.returncode}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(wall, used, after.ru_maxrss << 10)
