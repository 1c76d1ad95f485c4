# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Polls of the view on a real kernel under the policy tcb: which records they make, with and
without the rule of docs/keeper.md, with and without ima_flush_htable. And a long list: in a store
that goes on, and in a new one.

One machine for each test (tests/machine.py): a quarter of an hour each, emulated.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from imafs.keeper.joining import WHOLE
from tests import machine as machines

pytestmark = [pytest.mark.nightly, pytest.mark.root]

#: IMAFS_POLLS: fewer, to try the test itself.
_POLLS = int(os.environ.get("IMAFS_POLLS", "1000"))
_AWAY = 20_000
_LIST, _COUNT = "binary_runtime_measurements_sha1", "runtime_measurements_count"
_RULE = "dont_measure func=FILE_CHECK fsname=fuse fs_subtype=imafs\n"

_RUN = "python3 /host/driver.py\n"

#: One process: a program that starts is measured, and with ima_flush_htable again and again.
_DRIVER = '''
import grp, json, os, signal, subprocess, sys, time
from collections import Counter
from pathlib import Path
from imafs.formats.binary import Reader
from imafs.keeper.status import ask, flush

IMA, VIEW, STORE = "/sys/kernel/security/integrity/ima", "/run/imafs/ima", "/var/lib/keeper"
TSS, NOBODY = grp.getgrnam("tss").gr_gid, 65534


def tell(what, **values):
    print(json.dumps({"what": what, **values}), flush=True)


def poll(path):
    descriptor = os.open(path, os.O_RDONLY)
    data = b""
    while piece := os.read(descriptor, 1 << 20):
        data += piece
    os.close(descriptor)
    return data


def names():
    # A file that is not polled: looking makes a record of it.
    rows = Reader(poll(f"{VIEW}/binary_runtime_measurements_sha256"), 32, opaque=True).walk()
    return [bytes(body).split(b"\\0")[-2].decode() for _, _, body, *_ in rows]


def polls(user):
    """What so many polls by root, or a tenth of them by nobody, added."""
    before, began = len(names()), time.monotonic()
    child = os.fork()
    if child == 0:
        if user:
            os.setgroups([])
            os.setresgid(TSS, TSS, TSS)
            os.setresuid(user, user, user)
        for number in range(POLLS if not user else POLLS // 10):
            poll(f"{VIEW}/{(LIST, COUNT)[number % 2]}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    took = time.monotonic() - began
    added = Counter(names()[before:])
    return {"added": {name: added[f"{VIEW}/{name}"] for name in (LIST, COUNT)},
            "others": sum(added.values()) - added[f"{VIEW}/{LIST}"] - added[f"{VIEW}/{COUNT}"],
            "seconds": round(took, 1)}


class Keeper:
    def __init__(self):
        words = [sys.executable, "-m", "imafs", "keep", "--mount", VIEW, "--store", STORE]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE)
        line = self.process.stdout.readline()
        assert line.startswith(b"imafs: keeping"), line

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait() == 0


def cell(rule):
    keeper = Keeper()
    status = ask(STORE, "status")
    tell("cell", rule=rule, view_measured=status["view_measured"], flush=status["flush_htable"],
         alarms=sorted(status["alarms"]), root=polls(0), nobody=polls(NOBODY))
    keeper.end()


def away():
    os.makedirs("/root/many")
    began = time.monotonic()
    for number in range(AWAY):
        path = f"/root/many/{number}"
        with open(path, "w") as file:
            file.write(path)
        os.close(os.open(path, os.O_RDONLY))
    made, count = time.monotonic() - began, int(poll(f"{IMA}/{COUNT}"))
    began = time.monotonic()
    data = poll(f"{IMA}/{LIST}")
    single = time.monotonic() - began
    began = time.monotonic()
    keeper = Keeper()
    ready = time.monotonic() - began
    at_ready = ask(STORE, "status")["records"]
    while ask(STORE, "status")["view"] != "served":
        time.sleep(0.1)
    flush(STORE)
    drained = time.monotonic() - began
    found = names()
    keeper.end()
    tell("away", count=count, bytes=len(data),
         once=sum(name.startswith("/root/many/") for name in found),
         different=len({name for name in found if name.startswith("/root/many/")}),
         seconds={"made": round(made, 1), "read": round(single, 2), "ready": round(ready, 1),
                  "drained": round(drained, 1)}, not_stored_when_ready=at_ready["in_kernel"])


def cells():
    with open(f"{IMA}/policy") as file:
        policy = file.read()
    cell(rule=False)
    with open("/run/policy", "w") as file:
        file.write(RULE + policy)
    with open(f"{IMA}/policy", "w") as file:
        file.write(RULE + policy)
    cell(rule=True)


if POLLS:
    cells()
if AWAY:
    away()
tell("violations", here=int(poll(f"{IMA}/violations")))
'''


def _asked(
    request: pytest.FixtureRequest, host: Path, polls: int, away: int, cmdline: str
) -> dict[str, list[dict[str, Any]]]:
    """What the driver told, by what it is of."""
    machine = machines.found(request)
    host.mkdir()
    machines.pack(host)
    names = f"POLLS, AWAY, RULE = {polls}, {away}, {_RULE!r}\n"
    names += f"LIST, COUNT = {_LIST!r}, {_COUNT!r}\n"
    (host / "driver.py").write_text(names + _DRIVER)
    (host / "run.sh").write_text(machines.HEAD + _RUN)
    out = machines.ask(machine, host, cmdline)
    print(out)  # figures
    assert "status 0" in out.splitlines(), out
    told: dict[str, list[dict[str, Any]]] = {}
    for line in out.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            told.setdefault(row["what"], []).append(row)
    assert told["violations"] == [{"what": "violations", "here": 0}], out
    return told


def _check_cells(rows: list[dict[str, Any]], flush: bool, added: dict[str, int]) -> None:
    """Without the rule ``added`` by root; nothing else, by nobody and with the rule."""
    without, with_rule = rows
    assert (without["rule"], with_rule["rule"]) == (False, True)
    assert (without["view_measured"], with_rule["view_measured"]) == ("yes", "no")
    assert without["alarms"] == (["view_measured"] if flush else [])
    assert with_rule["alarms"] == []
    assert [row["flush"] for row in rows] == [flush, flush]
    assert without["root"]["added"] == added
    for polls in (without["nobody"], with_rule["root"], with_rule["nobody"]):
        assert polls["added"] == {_LIST: 0, _COUNT: 0}


def test_every_poll_is_measured_with_flush(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Of a kernel that forgets what it has measured; with the rule none is."""
    told = _asked(request, tmp_path / "host", _POLLS, 0, "ima_policy=tcb ima_flush_htable")
    added = told["cell"][0]["root"]["added"]
    _check_cells(told["cell"], flush=True, added=added)
    # Of two polls between two deletions the second makes none.
    assert 0.9 * _POLLS < sum(added.values()) <= _POLLS


def test_a_file_is_measured_once(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """And with the rule never. Then so many records come while the keeper is away."""
    told = _asked(request, tmp_path / "host", _POLLS, _AWAY, "ima_policy=tcb")
    _check_cells(told["cell"], flush=False, added={_LIST: 1, _COUNT: 1})
    (away,) = told["away"]
    assert away["count"] >= _AWAY
    assert (away["once"], away["different"]) == (_AWAY, _AWAY)


def test_a_long_first_list_comes_in_pieces(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Of a kernel that no keeper has seen: deleted by number, and the PCRs confirm the rest."""
    told = _asked(request, tmp_path / "host", 0, _AWAY, "ima_policy=tcb")
    (away,) = told["away"]
    assert away["count"] > WHOLE
    assert (away["once"], away["different"]) == (_AWAY, _AWAY)
    # Its first view was there before all of it was stored.
    assert 0 < away["not_stored_when_ready"] < away["count"] // 2
