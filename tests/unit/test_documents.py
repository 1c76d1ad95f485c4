# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The documents name files, modules and commands that there are."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

import pytest

from imafs.errors import Refused
from imafs.interface import grammar
from imafs.interface.behaviour import Condition
from imafs.interface.grammar import Operation, Request, parse
from imafs.interface.profiles import Profile, staging
from tests.support import ROOT

DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("tests/**/*.md"))
    if path.name != "CHANGELOG.md"
)
ROOMS = {path.name.removesuffix(".py") for path in (ROOT / "imafs").iterdir()}
#: `imafs/lists/packed.py`, `tests/data`, `scripts/bench --quick`
_PATH = re.compile(r"`((?:imafs|tests|scripts|docs|examples|systemd|\.ci)/[\w./@-]+)")
#: [text](docs/keeper.md#part)
_LINK = re.compile(r"\]\(([\w./@-]+)(#[\w-]+)?\)")
#: imafs.attest.verify
_MODULE = re.compile(r"`imafs\.([a-z_.]+)")


def missing(document: str) -> Iterator[str]:
    """What a document names and nobody can find."""
    path = ROOT / document
    text = path.read_text()
    for name in _PATH.findall(text):
        if not (ROOT / name.rstrip(".")).exists():
            yield name
    for name, _ in _LINK.findall(text):
        if not (path.parent / name).exists():
            yield name
    for name in _MODULE.findall(text):
        first = name.split(".")[0]
        if first not in ROOMS:
            yield f"imafs.{name}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_names_is_there(document: str) -> None:
    assert list(missing(document)) == []


def test_a_missing_file_is_seen() -> None:
    assert "imafs/kernel/no_such.py" in _PATH.findall("see `imafs/kernel/no_such.py`")
    assert not (ROOT / "imafs/kernel/no_such.py").exists()


def test_the_example_of_a_profile_works() -> None:
    """ARCHITECTURE.md, "Example": the code as it stands there, in its modules' names."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    blocks = re.findall(r"   ```python\n(.*?)   ```", text, re.DOTALL)
    code = [textwrap.dedent(block) for block in blocks]
    names = dict(vars(grammar))
    exec(code[0], names)
    names |= {**vars(staging), "CountedStaging": names["CountedStaging"]}
    exec(code[1], names)
    profile: Profile = names["COUNTED"]
    assert profile.staged is not None
    words = profile.staged.grammar
    assert words is not None
    for data, request in (
        (b"A\n", Request(Operation.STAGE)),
        (b"A 100\n", Request(Operation.STAGE, 100)),
        (b"D\n", Request(Operation.DELETE_STAGED)),
    ):
        assert parse(words, data, 7) == request
        assert words.spell(request) == data
    for wrong in (b"A 0\n", b"A \n", b"B\n", b"D 1\n", b"A -1\n", b"A", b"A 5", b"A 5\n\n"):
        with pytest.raises(Refused):
            parse(words, wrong, 0)
    assert profile.rules.checks[Operation.STAGE][-1].condition is Condition.TOO_MANY
