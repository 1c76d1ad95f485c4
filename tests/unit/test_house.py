# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The rules of the house that a linter cannot say, read from the syntax trees.

The arrows between rooms are contracts in pyproject.toml. Each rule here is a
function from the files to complaints; the second half plants violations and demands
that each is caught, so that no rule can pass by looking at nothing.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pytest

from tests.support import ROOT

#: Every library outside the standard one -> rooms that may import it.
LIBRARIES: dict[str, frozenset[str]] = {
    "pyfuse3": frozenset({"fuse"}),
    "tpm2_pytss": frozenset({"tpm"}),
    "trio": frozenset(
        {
            *("cli", "testing", "verbs", "sources", "emulator", "keeper", "scenarios", "fuse"),
            *("control", "tpm", "host"),
        }
    ),
    "cryptography": frozenset({"attest"}),
    "pytest": frozenset({"testing"}),
    # zstd, where Python is older than 3.14; optional.
    "backports": frozenset({"sources"}),
    # Of the standard library, from Python 3.14 on.
    "compression": frozenset({"sources"}),
}

#: Rooms without I/O, and what of the standard library would be I/O (or a clock, or a lock).
PURE = frozenset({"formats", "lists", "interface", "kernel", "text"})
IMPURE = frozenset(
    {
        *("asyncio", "logging", "multiprocessing", "os", "pathlib", "select", "selectors"),
        *("shutil", "signal", "socket", "subprocess", "tempfile", "threading", "time"),
    }
)

#: Files in which ``except Exception`` is right -> why. A stale entry fails.
BROAD_EXCEPTS: dict[str, str] = {
    "imafs/scenarios/runner.py": "a bug in a step's operation is told, as in one of a client",
    "imafs/control/server.py": "a bug in one verb answers EIO and must not end the daemon",
    "imafs/sources/watch/child/listener.py": "an event without an answer would freeze who opens",
    "imafs/keeper/worker.py": "what a thread raised is raised again where it is waited for",
    "imafs/fuse/boundary.py": "pyfuse3 ends the daemon at anything but FUSEError: EIO instead",
}

MAX_LINES = 600
SPDX = "# SPDX-License-Identifier: GPL-2.0-only OR MIT"


@dataclass(frozen=True)
class Module:
    """One Python file by its path from the project's root, with its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def name(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def room(self) -> str | None:
        """``kernel`` for imafs/kernel/queue.py; None for imafs/__init__.py and outside."""
        parts = self.name.split(".")
        return parts[1] if parts[0] == "imafs" and len(parts) > 1 else None

    def imports(self) -> Iterator[tuple[str, tuple[str, ...], int]]:
        """(module, names taken from it, line) of every import, also those inside functions.

        ``import_module("a.b")`` with a constant counts as an import.
        """
        for node in ast.walk(self.tree):
            match node:
                case ast.Import(names=names):
                    for alias in names:
                        yield alias.name, (), node.lineno
                case ast.ImportFrom(module=module, names=names, level=level):
                    yield self._absolute(module, level), tuple(a.name for a in names), node.lineno
                case ast.Call(func=function, args=[ast.Constant(value=str(target)), *_]) if (
                    _last_name(function) in {"import_module", "__import__"}
                ):
                    yield target, (), node.lineno

    def _absolute(self, module: str | None, level: int) -> str:
        if not level:
            return module or ""
        package = self.name.split(".")
        if self.path.endswith("/__init__.py"):
            package.append("")
        base = package[: len(package) - level]
        return ".".join([*base, module] if module else base)


House = Mapping[str, Module]  # module name -> module
Rule = Callable[[House], Iterator[str]]


def _last_name(node: ast.expr) -> str:
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _product(house: House) -> Iterator[Module]:
    return (module for module in house.values() if module.name.split(".")[0] == "imafs")


def libraries(house: House) -> Iterator[str]:
    """Libraries from outside stand in one room each, or in those which LIBRARIES names."""
    for module in _product(house):
        for target, _, line in module.imports():
            library = target.split(".")[0]
            if library in sys.stdlib_module_names or library == "imafs":
                continue
            if module.room not in LIBRARIES.get(library, frozenset()):
                yield f"{module.path}:{line}: {module.room or 'imafs'} may not import {library}"


def pure(house: House) -> Iterator[str]:
    """The pure rooms do no I/O, read no clock, wait for nobody."""
    waits = (ast.Await, ast.AsyncFor, ast.AsyncWith, ast.AsyncFunctionDef)
    for module in _product(house):
        if module.room not in PURE:
            continue
        for target, _, line in module.imports():
            if target.split(".")[0] in IMPURE:
                yield f"{module.path}:{line}: pure, but imports {target}"
        for node in ast.walk(module.tree):
            if isinstance(node, waits):
                yield f"{module.path}:{node.lineno}: pure, but await or async"
            match node:
                case ast.Call(func=ast.Name(id=("open" | "print" | "input") as name)):
                    yield f"{module.path}:{node.lineno}: pure, but calls {name}()"


def _is_broad(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Tuple):
        return any(_is_broad(element) for element in node.elts)
    return node is not None and _last_name(node) in {"Exception", "BaseException"}


def _broad_excepts(module: Module) -> Iterator[int]:
    for node in ast.walk(module.tree):
        match node:
            case ast.ExceptHandler(type=kind) if _is_broad(kind):
                # Cleaning up and raising the same again swallows nothing.
                match node.body[-1]:
                    case ast.Raise(exc=None):
                        pass
                    case _:
                        yield node.lineno
            case ast.Call(func=function, args=arguments) if _last_name(function) == "suppress":
                if any(_is_broad(argument) for argument in arguments):
                    yield node.lineno


def excepts(house: House) -> Iterator[str]:
    """No bare ``except:``; ``except Exception`` only where BROAD_EXCEPTS says why."""
    for module in house.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                yield f"{module.path}:{node.lineno}: bare except"
        if module.path not in BROAD_EXCEPTS:
            for line in _broad_excepts(module):
                yield f"{module.path}:{line}: except Exception without a reason in BROAD_EXCEPTS"


def stale_reasons(house: House) -> Iterator[str]:
    """BROAD_EXCEPTS names no file that has no broad except (any more)."""
    paths = {module.path: module for module in house.values()}
    for path in BROAD_EXCEPTS:
        if path not in paths or not any(_broad_excepts(paths[path])):
            yield f"{path}: stands in BROAD_EXCEPTS and has no broad except"


def sizes(house: House) -> Iterator[str]:
    """One concern per module."""
    for module in _product(house):
        lines = len(module.text.splitlines())
        if lines > MAX_LINES:
            yield f"{module.path}: {lines} lines, more than {MAX_LINES}"


def licences(house: House) -> Iterator[str]:
    """The licence stands in the first line, or in the second one after ``#!``."""
    for module in house.values():
        head = module.text.splitlines()[:2]
        if head and head[0].startswith("#!"):
            head = head[1:]
        if head[:1] != [SPDX]:
            yield f"{module.path}: does not begin with {SPDX!r}"


def sleeps(house: House) -> Iterator[str]:
    """Tests wait for conditions; only tests/support.py sleeps between two looks."""
    for module in house.values():
        if not module.path.startswith("tests/") or module.path == "tests/support.py":
            continue
        for node in ast.walk(module.tree):
            match node:
                case ast.Attribute(value=ast.Name(id="time"), attr="sleep"):
                    yield f"{module.path}:{node.lineno}: time.sleep (use tests.support.wait_for)"
                case ast.ImportFrom(module="time", names=names) if any(
                    alias.name == "sleep" for alias in names
                ):
                    yield f"{module.path}:{node.lineno}: time.sleep (use tests.support.wait_for)"


def looks(house: House) -> Iterator[str]:
    """A keeper's status is waited for and judged in one look: it goes on between two."""
    for module in house.values():
        if not module.name.startswith(("tests.keeper.", "tests.clients.")):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and _last_name(node.func) == "wait_for":
                inner = [call.func for call in ast.walk(node) if isinstance(call, ast.Call)]
                if any(isinstance(f, ast.Attribute) and f.attr == "status" for f in inner):
                    yield f"{module.path}:{node.lineno}: wait_for on a status (use Keeper.until)"


_INTERPRETERS = "imafs/host/programs.py"
#: In text of a shell or of an f-string: an interpreter that runs a module of ours.
_BARE_MODULE = re.compile(r"""(?:PYTHON\}?"?|^) -m (?:imafs|pytest|scripts|tests)\b""")
#: In a script for another machine.
_BARE_COMMAND = re.compile(r"\bpython3 -m ")


def interpreters(house: House) -> Iterator[str]:
    """``python -m`` executes what lies in the working directory, unless -P or -I is given."""
    for module in house.values():
        for node in ast.walk(module.tree):
            match node:
                case ast.Attribute(value=ast.Name(id="sys"), attr="executable") if (
                    module.name.startswith("imafs.") and module.path != _INTERPRETERS
                ):
                    yield f"{module.path}:{node.lineno}: sys.executable (use imafs.host.programs)"
                case ast.Call(args=words) | ast.List(elts=words) | ast.Tuple(elts=words):
                    if _runs_a_module(_flat(words)):
                        yield f"{module.path}:{node.lineno}: -m without -P or -I"
                case ast.JoinedStr(values=parts) if any(
                    isinstance(part, ast.Constant) and _BARE_MODULE.search(str(part.value))
                    for part in parts
                ):
                    yield f"{module.path}:{node.lineno}: -m without -P or -I in a command"
                case ast.Constant(value=str(text)) if (
                    "PYTHON" in text and _BARE_MODULE.search(text)
                ) or _BARE_COMMAND.search(text):
                    yield f"{module.path}:{node.lineno}: -m without -P or -I in a script"


def _flat(words: Sequence[ast.expr]) -> list[ast.expr]:
    found: list[ast.expr] = []
    for word in words:
        match word:
            case ast.Starred(value=ast.Tuple(elts=inner) | ast.List(elts=inner)):
                found += _flat(inner)
            case _:
                found.append(word)
    return found


def _runs_a_module(words: Sequence[ast.expr]) -> bool:
    """``-m`` behind an interpreter, or before a module of ours, and no -P or -I before it."""
    safe = False
    for before, word, after in zip([None, *words], words, [*words[1:], None], strict=False):
        match word:
            case ast.Constant(value="-P" | "-I"):
                safe = True
            case ast.Constant(value="-m"):
                ours = isinstance(after, ast.Constant) and str(after.value).split(".")[0] in (
                    *("imafs", "pytest", "scripts", "tests"),
                )
                if (ours or (before is not None and _last_name(before) == "executable")) and (
                    not safe
                ):
                    return True
    return False


def forks(house: House) -> Iterator[str]:
    """A child of multiprocessing is a fork: any other kind imports the main module anew."""
    for module in _product(house):
        if not any(name.split(".")[0] == "multiprocessing" for name, _, _ in module.imports()):
            continue
        methods = [
            node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Call) and _last_name(node.func) == "get_context"
        ]
        if not methods or any(method != "fork" for method in methods):
            yield f'{module.path}: multiprocessing without get_context("fork")'


RULES: tuple[Rule, ...] = (
    libraries,
    pure,
    excepts,
    stale_reasons,
    sizes,
    licences,
    sleeps,
    looks,
    interpreters,
    forks,
)


def build(files: Mapping[str, str]) -> dict[str, Module]:
    modules = [Module(path, text) for path, text in files.items()]
    return {module.name: module for module in modules}


@pytest.fixture(scope="module")
def house() -> House:
    files = [path for room in ("imafs", "tests") for path in sorted((ROOT / room).rglob("*.py"))]
    return build({str(path.relative_to(ROOT)): path.read_text() for path in files})


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house(rule: Rule, house: House) -> None:
    complaints = list(rule(house))
    assert not complaints, "\n".join([rule.__doc__ or "", *complaints])


def test_house_is_seen(house: House) -> None:
    assert {"imafs", "imafs.errors", "imafs.formats.algorithms", "tests.support"} <= house.keys()
    assert house["imafs.formats.algorithms"].room == "formats"


def test_scripts_and_units_carry_the_licence() -> None:
    files = [path for place in ("scripts", "systemd", ".ci") for path in (ROOT / place).iterdir()]
    assert {"setup", "test", "check", "run", "imafs@.service"} <= {path.name for path in files}
    for path in files:
        if path.is_file():
            assert SPDX in path.read_text().splitlines()[:2], path


FILE = "imafs/{}/planted.py"

#: (rule, file, text, complaint); a complaint of None: the rule must be content.
PLANTED: tuple[tuple[Rule, str, str, str | None], ...] = (
    (pure, "imafs/text.py", "import os", "pure, but imports os"),
    (libraries, FILE.format("emulator"), "import pyfuse3", "emulator may not import pyfuse3"),
    (libraries, FILE.format("emulator"), "from tpm2_pytss.ESAPI import x", "import tpm2_pytss"),
    (libraries, FILE.format("attest"), "import trio.lowlevel", "attest may not import trio"),
    (libraries, FILE.format("fuse"), "import attr", "fuse may not import attr"),
    (libraries, "imafs/errors.py", "import trio", "errors may not import trio"),
    (libraries, FILE.format("fuse"), "import pyfuse3, trio, os", None),
    *(
        (pure, FILE.format("kernel"), f"def f():\n  from {name} import x", f"imports {name}")
        for name in sorted(IMPURE)
    ),
    (pure, FILE.format("formats"), "import os.path", "pure, but imports os.path"),
    (pure, FILE.format("kernel"), "async def f(): pass", "await or async"),
    (pure, FILE.format("kernel"), "async def f():\n  await g()", ":2: pure, but await"),
    (pure, FILE.format("formats"), "open('x')", "calls open()"),
    (pure, FILE.format("kernel"), "access.open(3)", None),
    (pure, FILE.format("emulator"), "import os", None),
    (pure, FILE.format("formats"), "import struct, hashlib", None),
    (excepts, FILE.format("fuse"), "try: f()\nexcept: pass", ":2: bare except"),
    (excepts, "imafs/control/server.py", "try: f()\nexcept: raise", "bare except"),
    (excepts, FILE.format("fuse"), "try: f()\nexcept Exception: pass", "without a reason"),
    (excepts, FILE.format("fuse"), "try: f()\nexcept (A, BaseException): pass", "without a"),
    (excepts, FILE.format("fuse"), "try: f()\nexcept* builtins.Exception: pass", "without a"),
    (excepts, FILE.format("fuse"), "with suppress(Exception): f()", "without a reason"),
    (excepts, "tests/unit/planted.py", "try: f()\nexcept Exception: pass", "without a reason"),
    (excepts, FILE.format("fuse"), "try: f()\nexcept Exception: raise X from None", "without a"),
    (excepts, FILE.format("fuse"), "try: f()\nexcept BaseException:\n  g()\n  raise", None),
    (excepts, FILE.format("fuse"), "try: f()\nexcept (OSError, ValueError): pass", None),
    (stale_reasons, "imafs/control/server.py", "", "control/server.py: stands in"),
    (stale_reasons, FILE.format("control"), "", "control/server.py: stands in"),
    (sizes, FILE.format("fuse"), "\n" * (MAX_LINES + 1), "601 lines, more than 600"),
    (sizes, FILE.format("fuse"), "\n" * MAX_LINES, None),
    (licences, FILE.format("fuse"), '"""No licence."""', "does not begin with"),
    (licences, FILE.format("fuse"), "", "does not begin with"),
    (licences, "tests/x.py", f"\n{SPDX}\n", "does not begin with"),
    (licences, "tests/x.py", f"#!/usr/bin/python3\n{SPDX}\n", None),
    (sleeps, "tests/unit/x.py", "import time\ntime.sleep(1)", ":2: time.sleep"),
    (sleeps, "tests/unit/x.py", "from time import sleep", ":1: time.sleep"),
    (sleeps, "tests/support.py", "import time\ntime.sleep(1)", None),
    (looks, "tests/keeper/test_x.py", "wait_for(lambda: k.status()['life'] == 2, 1, '')", "until"),
    (looks, "tests/keeper/test_x.py", "k.until('the next life', life=2)", None),
    (looks, "tests/mount/test_x.py", "wait_for(lambda: k.status()['life'] == 2, 1, '')", None),
    (interpreters, FILE.format("cli"), "f(sys.executable)", ":1: sys.executable"),
    (interpreters, "imafs/host/programs.py", "[sys.executable, '-I', '-m', x]", None),
    (interpreters, "imafs/host/programs.py", "[sys.executable, *f(), '-m', x]", None),
    (interpreters, "imafs/host/programs.py", "[sys.executable, '-m', x]", "-m without -P"),
    (interpreters, "tests/x.py", "[sys.executable, '-m', 'imafs']", ":1: -m without -P"),
    (interpreters, "tests/x.py", "[a, *(b, sys.executable), '-m', x]", ":1: -m without -P"),
    (interpreters, "tests/x.py", "W = ('-m', 'tests.watch.uses')", ":1: -m without -P"),
    (interpreters, "tests/x.py", "run(sys.executable, '-m', x)", ":1: -m without -P"),
    (interpreters, "tests/x.py", "f'{sys.executable} -m imafs run'", "in a command"),
    (interpreters, "tests/x.py", "S = '\"$PYTHON\" {} imafs run'".format("-m"), "in a script"),
    (interpreters, "tests/x.py", "S = '$PYTHON -P -m imafs run'", None),
    (
        interpreters,
        "tests/x.py",
        "S = 'imafs() {{ python3 {} imafs; }}'".format("-m"),
        "in a script",
    ),
    (interpreters, "tests/x.py", "S = 'imafs() { python3 -P -m imafs; }'", None),
    (interpreters, "tests/x.py", "[sys.executable, '-P', '-m', 'imafs']", None),
    (interpreters, "tests/x.py", "['setpriv', sys.executable, '-I', '-m', x]", None),
    (interpreters, "tests/x.py", "['umount', '-m', 'message']", None),
    (forks, FILE.format("attest"), "import multiprocessing", "without get_context"),
    (
        forks,
        FILE.format("attest"),
        "import multiprocessing as m\nm.get_context('spawn')",
        "without get_context",
    ),
    (forks, FILE.format("cli"), "from multiprocessing import Pool\nPool()", "without get_context"),
    (forks, FILE.format("cli"), "import multiprocessing as m\nm.get_context('fork')", None),
)


@pytest.mark.parametrize(("rule", "path", "text", "complaint"), PLANTED)
def test_planted(rule: Rule, path: str, text: str, complaint: str | None) -> None:
    complaints = list(rule(build({path: text})))
    if complaint is None:
        assert complaints == []
    else:
        assert [complaint in line for line in complaints].count(True) == 1, complaints


def test_every_rule_has_a_planted_violation() -> None:
    caught = {rule for rule, _, _, complaint in PLANTED if complaint is not None}
    assert caught == set(RULES)
