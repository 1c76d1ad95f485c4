# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The operations that add records, of files that are watched too, and the one that waits."""

from __future__ import annotations

import errno
import os
from functools import partial
from math import inf

import trio

from imafs import disk
from imafs.control.ops import Options
from imafs.control.server import ProgressCallback, carry_through
from imafs.emulator.emulator import EXTEND_WAIT, Emulator, Receipt
from imafs.emulator.records import check_data
from imafs.errors import FormatError, NotInTimeError, Refused
from imafs.formats.algorithms import by_name
from imafs.formats.binary import Record
from imafs.formats.fields import Measurement
from imafs.host import bounded_thread
from imafs.kernel.audit import File
from imafs.kernel.policy.match import Access
from imafs.sources import generate, local_files, measure_file
from imafs.sources import load as lists
from imafs.sources.file_attributes import Facts
from imafs.sources.watch.daemon.watcher import Watcher
from imafs.verbs import measure_options
from imafs.verbs.answers import Generated, Loaded, Measured, Reached, Row, Watched

#: Records, and bytes of template data, appended between two turns of everybody else.
_TURN = 256
_TURN_BYTES = 1 << 20
#: Records that may wait for the TPM before a bulk operation waits too.
_BACKLOG = 16384
#: Bytes of a file of critical data.
_MOST_DATA = 64 << 20


class Measuring:
    """Handlers over one emulator. ``bulk`` is held while records are added in turns."""

    def __init__(self, emulator: Emulator, bulk: trio.Lock) -> None:
        self._emulator = emulator
        self._bulk = bulk
        self._generated: dict[str, int] = {}

    def booted(self) -> None:
        """After a boot generated records are numbered from the first on."""
        self._generated.clear()

    async def measure(self, options: Options, progress: ProgressCallback) -> Measured:
        """Files by path, or a digest with a name."""
        if "digest" in options:
            return {"measured": [await self._measure_digest(options)]}
        how = measure_options.use(options)
        paths = options.paths("paths")
        name = options.raw("name") if "name" in options else None
        # One path that cannot be measured is the answer; one of several is a row of it.
        alone = len(paths) == 1
        rows: list[tuple[Receipt | None, Row]] = []
        for given in paths:
            try:
                found = await bounded_thread.run(
                    partial(_walk, given), silence=bounded_thread.SILENCE
                )
            except Refused as refused:
                if alone:
                    raise
                rows.append((None, _refused(given, refused)))
                continue
            for path in found:
                alone_here = alone and path == given
                rows.append(await self._measure_path(path, name, how, alone=alone_here))
                progress(len(rows), max(len(found), len(rows)))
        deadline = trio.current_time() + EXTEND_WAIT  # of all together
        return {
            "measured": [
                row if receipt is None else {**row, **await self._outcome(receipt, deadline)}
                for receipt, row in rows
            ]
        }

    async def _measure_path(
        self, path: str, name: bytes | None, how: measure_options.Use, *, alone: bool
    ) -> tuple[Receipt | None, Row]:
        emulator = self._emulator
        try:
            judged = await measure_file.judge(emulator, path, how.access, name)
        except Refused as refused:
            if alone:
                raise
            return None, _refused(path, refused)
        decision, measurement = judged.decision, judged.measurement
        said: Row = {"path": path, **measure_options.explained(decision, how.explain)}
        if measurement is None:
            return None, said
        receipt = emulator.append(
            emulator.kernel.record(measurement, decision.template, decision.pcr)
        )
        digest = f"{measurement.algorithm.name}:{measurement.digest.hex()}"
        return receipt, {**said, "digest": digest}

    async def _measure_digest(self, options: Options) -> Row:
        algorithm_name, _, digits = options.text("digest").partition(":")
        algorithm = by_name(algorithm_name)
        try:
            digest = bytes.fromhex(digits)
        except ValueError:
            raise FormatError(f"{digits!r} is not a hexadecimal digest") from None
        if len(digest) != algorithm.digest_size:
            raise FormatError(
                f"a {algorithm.name} digest has {algorithm.digest_size} bytes, not {len(digest)}"
            )
        name = options.text("name")
        how = measure_options.use(options)
        # No file, so nothing is known of one but what the request says.
        decision = self._emulator.kernel.judge(how.access(Facts()))
        said: Row = {"path": name, **measure_options.explained(decision, how.explain)}
        if not decision.measure:
            return said
        measurement = Measurement(os.fsencode(name), algorithm, digest)
        record = self._emulator.kernel.record(measurement, decision.template, decision.pcr)
        outcome = await self._outcome(self._emulator.append(record))
        return {**said, "digest": f"{algorithm.name}:{digest.hex()}", **outcome}

    async def _outcome(self, receipt: Receipt, deadline: float | None = None) -> Row:
        """The outcome of a measurement, after its own extend or the deadline (trio's time)."""
        left = EXTEND_WAIT if deadline is None else max(0.0, deadline - trio.current_time())
        extended = await self._emulator.wait_for(receipt, left)
        if receipt.duplicate:
            return {"duplicate": True, "extended": extended}
        return {"duplicate": False, "number": receipt.number, "extended": extended}

    async def violation(self, options: Options, progress: ProgressCallback) -> Row:
        """A violation record."""
        name = options.raw("name")
        receipt = self._emulator.append(self._emulator.kernel.violation(name))
        self._emulator.audit.violation("ToMToU", File(name))
        return await self._outcome(receipt)

    async def critical_data(self, options: Options, progress: ProgressCallback) -> Row:
        """A buffer in template ima-buf, where the policy measures its label."""
        file = options.maybe_text("file")
        if file is not None:
            read = partial(disk.read_whole, file, _MOST_DATA, bounded_thread.going_on)
            data = await bounded_thread.run(read, silence=bounded_thread.SILENCE)
        else:
            data = bytes.fromhex(options.text("data"))
        check_data(data)
        label = options.text("label")
        decision = self._emulator.kernel.judge(Access("CRITICAL_DATA", 0, label=label))
        if not decision.measure:
            return measure_options.explained(decision, False)
        record = self._emulator.kernel.critical_data(options.raw("name"), data, decision)
        return await self._outcome(self._emulator.append(record))

    async def generate(self, options: Options, progress: ProgressCallback) -> Generated:
        """Distinct records; numbering goes on per prefix, so none is a duplicate."""
        count = options.number("count")
        prefix = options.text("name", generate.PREFIX)
        start = self._generated.get(prefix, 0)
        self._generated[prefix] = start + count
        config = self._emulator.kernel.config
        source = generate.generate(
            count, config.algorithm, prefix=prefix, start=start, want_sha1=config.template.has("d")
        )
        added = 0
        async with self._bulk:
            turn = _Turn()
            for done, measurement in enumerate(source, 1):
                record = self._emulator.kernel.record(measurement)
                added += not self._emulator.append(record).duplicate
                if turn.ends(record):
                    await self._breathe()
                    progress(done, count)
        return {"added": added, "extended": self._settled()}

    async def _breathe(self) -> None:
        """Lets everybody else have a turn, and the TPM catch up."""
        await trio.lowlevel.checkpoint()
        queue = self._emulator.queue
        if queue.pending > _BACKLOG and not self._emulator.channel.broken:
            await self._emulator.wait_extended(queue.totals.added - _BACKLOG // 2, 5.0)

    def _settled(self) -> bool:
        """Whether all records so far are in the PCRs. Bulk operations do not wait for that."""
        totals = self._emulator.queue.totals
        return totals.extended >= totals.added

    async def repeat(self, options: Options, progress: ProgressCallback) -> Row:
        """The newest record again: a duplicate, unless the hash table is off or flushed."""
        newest = self._emulator.kernel.newest()
        return await self._outcome(self._emulator.append(newest))

    async def load(self, options: Options, progress: ProgressCallback) -> Loaded:
        """A recorded list: parsed and checked whole before the first record is taken."""
        token = trio.lowlevel.current_trio_token()

        def parsing(done: int, total: int) -> None:
            bounded_thread.going_on()
            token.run_sync_soon(progress, done, 2 * total)

        loaded = await bounded_thread.run(
            partial(
                lists.load,
                options.text("file"),
                options.maybe_text("bank"),
                parsing,
                as_is=options.flag("as_is"),
                moment=options.maybe_text("moment"),
            )
        )
        if loaded.unsound:
            self._emulator.layout.check_claims(loaded.bank.name)
        carry_through()
        records = loaded.records
        async with self._bulk:
            if self._emulator.queue.suspended:
                raise Refused(errno.ENODEV, "measurements are suspended")
            turn = _Turn()
            for done, record in enumerate(records, 1):
                self._emulator.append(record, loaded=True)
                if turn.ends(record):
                    progress(len(records) + done, 2 * len(records))
                    await self._breathe()
        answer: Loaded = {
            "loaded": len(records),
            "bank": loaded.bank.name,
            "extended": self._settled(),
        }
        if said := loaded.said():
            answer["but"] = said
        return answer

    async def wait(self, options: Options, progress: ProgressCallback) -> Reached:
        """Until so many records were added since boot, and are extended if asked.

        Those that are held back on purpose (``tpm --behind``) are not waited for.
        :class:`NotInTimeError` after ``timeout`` seconds (default: never); :class:`Refused`
        (ENODEV) where a reboot ends what was waited for.
        """
        records = options.maybe_number("records")
        seconds = options.maybe_number("timeout")
        emulator = self._emulator
        with trio.move_on_after(inf if seconds is None else seconds):
            await emulator.wait_added(emulator.queue.totals.added if records is None else records)
            if options.flag("extended"):
                behind = emulator.pace.behind
                await emulator.extender.wait_extended(emulator.queue.totals.added - behind)
            return {
                "records": emulator.queue.totals.added,
                "extended": emulator.queue.totals.extended,
            }
        raise NotInTimeError(f"not reached within {seconds} s")


class Watching:
    """Handlers over one watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    async def watch(self, options: Options, progress: ProgressCallback) -> Watched:
        """Answered once every use of files below the paths is seen."""
        await self._watcher.watch(options.paths("paths"))
        return {"watched": self._watcher.paths}

    async def unwatch(self, options: Options, progress: ProgressCallback) -> Watched:
        """The rest stays watched."""
        await self._watcher.unwatch(options.paths("paths"))
        return {"watched": self._watcher.paths}


class _Turn:
    """Tells when it is everybody else's turn."""

    def __init__(self) -> None:
        self._records = self._bytes = 0

    def ends(self, record: Record) -> bool:
        """After ``record`` was appended."""
        self._records += 1
        self._bytes += len(record.data)
        over = self._records >= _TURN or self._bytes >= _TURN_BYTES
        if over:
            self._records = self._bytes = 0
        return over


def _walk(path: str) -> list[str]:
    return list(local_files.walk([path], bounded_thread.going_on))


def _refused(path: str, refused: Refused) -> Row:
    return {"path": path, "errno": refused.errno_name, "error": str(refused)}
