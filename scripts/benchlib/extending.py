# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Extends into swtpm: the daemon's, its device's, and raw ones through tpm2-tss."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TCTI,
    TPM2_ALG,
    TPML_DIGEST_VALUES,
    TPMT_HA,
    TPMU_HA,
    TCTILdr,
)

from imafs.formats.algorithms import Bank, by_name
from imafs.tpm import commands
from imafs.tpm.swtpm import SwtpmDevice
from scripts.benchlib.plan import Plan, interleaved
from scripts.benchlib.processes import Imafs
from scripts.benchlib.report import Line, Report

BANKS = {
    "two banks": ("sha1", "sha256"),
    "four banks": ("sha1", "sha256", "sha384", "sha512"),
}
PCR = 10


def run(plan: Plan, report: Report) -> None:
    """All lines of extending."""
    for title, names in BANKS.items():
        report.section(f"extends into swtpm, {title}")
        with ExitStack() as stack:
            device = SwtpmDevice(state_dir=None, banks=[by_name(name) for name in names])
            stack.callback(device.close)
            server = Imafs("--banks", ",".join(names))
            stack.callback(server.close)
            _measure(plan, report, title, device, server)


def _measure(plan: Plan, report: Report, title: str, device: SwtpmDevice, server: Imafs) -> None:
    count = plan.extends
    head = PCR.to_bytes(4, "little")
    width = device.entry_size - 4
    packed = b"".join(head + os.urandom(width) for _ in range(count))
    tcti = device.tcti
    assert tcti is not None
    name, _, conf = tcti.partition(":")

    def daemon() -> float:
        return count / server.fill(count)[1]

    def own() -> float:
        return _rate(count, lambda: device.extend(packed))

    def raw() -> float:
        with TCTILdr(name, conf) as context:
            return _rate(count, lambda: _raw(context, device, packed))

    def esapi() -> float:
        with TCTILdr(name, conf) as context, ESAPI(context) as esys:
            return _rate(count, lambda: _esapi(esys, device.banks, packed))

    figures = interleaved(plan.extend_rounds, daemon, own, raw, esapi)
    ours = median(figures[0])
    kinds = ("imafs end to end", "device of imafs", "bytes through a TCTI", "ESAPI pcr_extend")
    for kind, rates in zip(kinds, figures, strict=True):
        rate = median(rates)
        text = f"{rate:9,.0f} records/s"
        if kind != kinds[0]:
            text += f"  imafs end to end is {ours / rate:.2f} of it"
        report.add(Line(f"extend {title}: {kind}", text, rate))


def _rate(count: int, work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return count / (time.perf_counter() - begin)


def _raw(context: TCTI, device: SwtpmDevice, packed: bytes) -> None:
    banks = [(bank.tpm_id, bank.digest_size) for bank in device.banks]
    fill = commands.ExtendTemplate(banks).fill
    view = memoryview(packed)
    for at in range(0, len(packed), device.entry_size):
        context.transmit(bytes(fill(view, at)))
        response = bytes(context.receive())
        commands.check(response, "TPM2_PCR_Extend")


def _esapi(esys: ESAPI, banks: tuple[Bank, ...], packed: bytes) -> None:
    size = 4 + sum(bank.digest_size for bank in banks)
    for start in range(0, len(packed), size):
        at = start + 4
        digests = []
        for bank in banks:
            value = packed[at : at + bank.digest_size]
            at += bank.digest_size
            union = TPMU_HA(**{bank.name: value})
            digests.append(TPMT_HA(hashAlg=TPM2_ALG(bank.tpm_id), digest=union))
        esys.pcr_extend(ESYS_TR.PCR10, TPML_DIGEST_VALUES(digests))
