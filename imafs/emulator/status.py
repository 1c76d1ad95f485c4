# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The emulator's state as one JSON-able mapping: what ``imafs ctl status`` shows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from imafs import __version__
from imafs.emulator.emulator import Emulator
from imafs.errors import TpmError
from imafs.interface.opens import Holder
from imafs.lists.banks import View
from imafs.lists.replay import PcrValues

#: A status must come even when the TPM hangs.
TPM_DEADLINE = 2.0


async def status(emulator: Emulator) -> dict[str, object]:
    """Counts, bytes, PCRs next to their replay, who holds the files, failures."""
    queue, config = emulator.queue, emulator.kernel.config
    sha1 = next(i for i, b in enumerate(emulator.layout.lists) if b.name == "sha1")
    view = View(False, sha1)
    values, trouble = await _pcrs(emulator)
    failures = emulator.extender.failures
    return {
        "version": __version__,
        "profile": config.profile.name,
        "staging": config.staging and config.profile.staged is not None,
        "template": config.template.label,
        "hash": config.algorithm.name,
        "tpm": emulator.device.kind,
        "tcti": emulator.device.tcti,
        "environment": emulator.device.environment(),
        "banks": [bank.name for bank in emulator.layout.banks],
        "records": {
            "current": len(queue.current),
            "staged": len(queue.staged),
            "pending": queue.pending,
            "since_boot": queue.totals.added,
            "deleted": queue.totals.deleted,
            "duplicates": queue.totals.duplicates,
            "unsound": queue.totals.unsound,
        },
        "bytes": {"current": queue.current.size(view), "staged": queue.staged.size(view)},
        "boot": {
            "number": emulator.kernel.start.number,
            "kexecs": emulator.kernel.start.kexecs,
            "carried": emulator.kernel.start.carried,
            "carried_in_all": emulator.kernel.start.carried_in_all,
            "lost": emulator.kernel.start.lost,
            "kexec_loaded": emulator.kernel.image is not None,
            "kexec_held": emulator.kernel.held is not None,
        },
        "violations": queue.violations,
        "policy": _policy(emulator),
        "suspended": queue.suspended,
        "pcrs": _compared(emulator, values),
        "readers": [_who(holder) for holder in emulator.kernel.accounting.readers],
        "writer": next((_who(holder) for holder in emulator.kernel.accounting.writers), None),
        "failures": {
            "extend": failures.extend,
            "last": trouble or failures.last,
            "mismatch": failures.mismatch,
            "skipped": failures.skipped,
            "refused": failures.refused,
        },
        "faults": emulator.trouble.faults.describe(),
        "pace": {
            "behind": emulator.pace.behind,
            "delay": emulator.pace.delay,
            "fail": emulator.pace.fail,
            "hang": emulator.pace.hang,
        },
    }


def _policy(emulator: Emulator) -> dict[str, object] | None:
    """Rules of the active policy, how many of them have no effect here, and their source."""
    active = emulator.kernel.policy
    if active is None:
        return None
    return {
        "rules": len(active.rules),
        "without_effect": sum(rule.never is not None for rule in active.rules),
        "source": emulator.kernel.policy_source,
    }


async def _pcrs(emulator: Emulator) -> tuple[PcrValues, str | None]:
    wanted = sorted({emulator.kernel.config.pcr, *emulator.extender.replay.pcrs})
    device = emulator.device
    try:
        work = emulator.channel.call(lambda: device.read_pcrs(wanted), deadline=TPM_DEADLINE)
        return await work, None
    except TpmError as error:
        return {}, str(error)


def _compared(emulator: Emulator, values: PcrValues) -> Iterable[dict[str, object]]:
    # Where extends failed on purpose: what the records say, not what the TPM was given.
    replay = emulator.extender.listed or emulator.extender.replay
    wanted = sorted({emulator.kernel.config.pcr, *replay.pcrs})
    pending = emulator.queue.pending > 0
    rows: list[dict[str, object]] = []
    for bank in replay.banks:
        for pcr in wanted:
            actual = values.get(bank.name, {}).get(pcr)
            replayed = replay.value(bank, pcr)
            rows.append(
                {
                    "bank": bank.name,
                    "pcr": pcr,
                    "value": None if actual is None else actual.hex(),
                    "replayed": replayed.hex(),
                    "equal": actual == replayed,
                    "adopted": replay.adopted(bank, pcr),
                    "pending": pending,
                }
            )
    return rows


def _who(holder: Holder) -> dict[str, object]:
    """Thread id and name of a holder; a task outside our pid namespace shows as 0."""
    name = None
    if holder.tid:
        try:
            name = Path(f"/proc/{holder.tid}/comm").read_text(errors="replace").strip()
        except OSError:
            name = None  # gone, with the descriptor handed to somebody else
    return {"pid": holder.tid, "name": name}
