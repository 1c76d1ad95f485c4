# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Operations over an emulator in this process."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from imafs.control import wire
from imafs.control.ops import Kind, Operation, Options
from imafs.emulator.config import EmulatorConfig
from imafs.emulator.emulator import Emulator, Receipt
from imafs.errors import ImafsError
from imafs.formats.binary import Record
from imafs.formats.fields import MOST_FIELD
from imafs.formats.templates import TEMPLATES
from imafs.scenarios.script import parse
from imafs.sources.watch.daemon.watcher import Watcher
from imafs.verbs import measuring
from imafs.verbs.answers import Failures, PaceShown, PcrRow, PolicyTold, Status
from imafs.verbs.compose import Verbs
from imafs.verbs.measuring import Measuring
from imafs.verbs.table import TABLE
from tests.support import ExpectedLogs
from tests.unit.emulator_fake import FakeDevice, booted

WAIT = 0.25


async def test_all_files_of_a_request_wait_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TPM that hangs is waited for once, not once for each file."""
    for number in range(4):
        (tmp_path / f"{number}").write_text(f"{number}")
    waits: list[float] = []
    device = FakeDevice()
    monkeypatch.setattr(measuring, "EXTEND_WAIT", WAIT)
    async with booted(device) as emulator:
        device.hang()
        wait_for = emulator.wait_for

        async def noted(receipt: Receipt, seconds: float) -> bool:
            waits.append(seconds)
            return await wait_for(receipt, seconds)

        monkeypatch.setattr(emulator, "wait_for", noted)
        handler = Measuring(emulator, trio.Lock()).measure
        answer = await handler(Options(paths=[str(tmp_path)]), lambda done, total: None)
    rows = answer["measured"]
    assert isinstance(rows, list)
    assert [row["extended"] for row in rows] == [False] * 4
    assert 0 < waits[0] <= WAIT
    assert waits[1:] == pytest.approx([0.0] * 3, abs=0.001)


def verbs_of(emulator: Emulator) -> Verbs:
    watcher = Watcher(emulator, emulator.changes, leave="/m", excused=[])
    return Verbs(emulator, watcher, lambda: None, {"mountpoint": "/m"}, {})


async def test_every_operation_has_its_handler() -> None:
    async with booted(FakeDevice()) as emulator:
        assert verbs_of(emulator).handlers.keys() | {"hello"} == TABLE.keys()


async def test_the_status_has_the_keys_that_its_type_says() -> None:
    """Its type is for clients, which take a daemon's word for it."""
    async with booted(FakeDevice()) as emulator:
        told = await verbs_of(emulator).handlers["status"](Options(), lambda done, total: None)
    of_a_mount = {"control", "pid", "tpm_device", "sizes"}
    assert told.keys() == Status.__annotations__.keys() - of_a_mount
    for key, kind in (("policy", PolicyTold), ("failures", Failures), ("pace", PaceShown)):
        group = told[key]
        assert group is None or set(dict(cast(Any, group))) == set(kind.__annotations__)
    rows = cast(list[dict[str, object]], told["pcrs"])
    assert rows
    assert rows[0].keys() == PcrRow.__annotations__.keys()


async def test_steps_of_scenarios_have_the_same_handlers(expected_logs: ExpectedLogs) -> None:
    """Those of watched files too, which passed the check and could never run."""
    expected_logs.expect("unwatch: ENOENT")
    text = '[[step]]\nwhen = "start"\ndo = [{ op = "unwatch", paths = ["/none"] }]\n'
    async with booted(FakeDevice()) as emulator:
        director = verbs_of(emulator).director
        await director.begin(parse(text, "mine", TABLE.validate))
        told = director.describe()
    assert told is not None
    assert "not watched" in str(told["steps"])


async def answered(operation: Operation, options: dict[str, object]) -> Mapping[str, object] | int:
    """What the whole way of a request gives over a real emulator: the answer or its errno."""
    async with booted(FakeDevice(), EmulatorConfig(boot_aggregate=False)) as emulator:
        handlers = verbs_of(emulator).handlers
        line = wire.encode({"op": operation.name, **options})
        try:
            request = wire.parse_request(TABLE, line)
            with trio.move_on_after(60):
                answer = await handlers[request.op](request.options, lambda done, total: None)
                return {**answer, "list": emulator.queue.newest()}
            raise AssertionError("no answer")
        except ImafsError as error:
            return error.errno


def options_of(operation: Operation, text: str) -> dict[str, object]:
    values = {Kind.INT: 1, Kind.HEX: "00", Kind.PATH: f"/{text}", Kind.PATHS: [f"/{text}"]}
    given = {
        option.name: values.get(option.kind, text)
        for option in operation.options
        if option.kind is not Kind.BOOL
    }
    for name in operation.exactly_one[1:]:
        given.pop(name)
    return given


@pytest.mark.parametrize(
    "text", ["odd\udcff", "a\nb", "\x1b[2J", "x" * 70000], ids=["bytes", "lines", "escape", "long"]
)
@pytest.mark.parametrize("operation", TABLE.values(), ids=lambda operation: operation.name)
async def test_odd_texts_are_no_bug_in_any_operation(operation: Operation, text: str) -> None:
    """All of ImafsError's kinds are answers; anything else would be EIO and a traceback."""
    if operation.name in ("hello", "stop", "watch", "unwatch"):
        return
    await answered(operation, options_of(operation, text))


async def test_generated_names_are_bytes() -> None:
    answer = await answered(TABLE["generate"], {"count": 1, "name": "/a\udcff"})
    assert isinstance(answer, Mapping)
    newest = answer["list"]
    assert isinstance(newest, bytes)
    assert b"/a\xff00000000\0" in newest


@pytest.mark.parametrize(
    ("size", "errno_"), [(1, None), (MOST_FIELD, None), (MOST_FIELD + 1, errno.ENOMEM)]
)
@pytest.mark.parametrize("from_file", [False, True])
async def test_critical_data_of_a_kernel_s_size(
    size: int, errno_: int | None, from_file: bool, tmp_path: Path
) -> None:
    data = bytes(size)
    path = tmp_path / "data"
    path.write_bytes(data)
    source = {"file": str(path)} if from_file else {"data": data.hex()}
    answer = await answered(TABLE["critical_data"], {"label": "l", "name": "n", **source})
    if errno_ is None:
        assert isinstance(answer, Mapping)
        assert answer["number"] == 1
    else:
        assert answer == errno_


async def test_others_have_turns_between_large_records(tmp_path: Path) -> None:
    """By bytes as well: 256 records of 4 MiB would be a second in which nobody is served."""
    turn = measuring._Turn()
    large = Record(10, TEMPLATES["ima-buf"], bytes(600 << 10))
    small = Record(10, TEMPLATES["ima-buf"], b"")
    assert [turn.ends(large) for _ in range(4)] == [False, True, False, True]
    assert [turn.ends(small) for _ in range(256)] == [*[False] * 255, True]
