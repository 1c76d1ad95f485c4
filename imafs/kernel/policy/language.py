# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The policy language: one line becomes a rule, or the kernel's errno.

Source: Linux 7.3 ima_policy.c (``ima_parse_add_rule``, ``ima_parse_rule``,
``ima_alloc_rule_opt_list``), lib/parser.c, lib/kstrtox.c, lib/uuid.c. The kernel takes
a few things that look wrong; each is marked "accepted".
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from imafs.errors import Refused
from imafs.formats.algorithms import ALGORITHMS
from imafs.formats.templates import TEMPLATES, Template
from imafs.interface.kstrtox import kstrtoul
from imafs.kernel.policy.rules import FUNCTIONS, LSM, MASKS, Action, Compare, Rule
from imafs.kernel.policy.validity import check

_ACTIONS = {action.value: action for action in Action}
#: Older words for hooks.
_ALIASES = {"PATH_CHECK": "FILE_CHECK", "FILE_MMAP": "MMAP_CHECK"}
_IDS = ("uid", "euid", "gid", "egid", "fowner", "fgroup")
#: uid= and euid= share one place in the kernel's rule, and so do gid= and egid=.
_SHARED = {"uid": "euid", "euid": "uid", "gid": "egid", "egid": "gid"}
_INVALID_ID = (1 << 32) - 1
#: INVALID_PCR: a bit of ``measured_pcrs`` per PCR, an unsigned long.
_PCRS = 64
_UUID = 36


@dataclass(frozen=True, slots=True)
class Words:
    """The words that a kernel's configuration lets rules use.

    ``lsm``: an LSM with labels that knows all of them; without one such rules are EINVAL,
    or, once a ``custom`` policy is active, accepted and dead. ``modsig`` and ``keys`` are
    CONFIG_IMA_APPRAISE_MODSIG and CONFIG_IMA_MEASURE_ASYMMETRIC_KEYS; ``algorithms``
    are the hashes that the kernel can compute (crypto_has_alg); ``template_fmt`` is the
    template of ``ima_template_fmt=``.
    """

    lsm: bool = True
    modsig: bool = True
    keys: bool = True
    algorithms: frozenset[str] = frozenset(a.name for a in ALGORITHMS)
    template_fmt: Template | None = None


DEFAULT_WORDS = Words()


def parse(
    line: bytes,
    words: Words = DEFAULT_WORDS,
    *,
    custom: bool = False,
    audited: list[str] | None = None,
) -> Rule | None:
    """The rule in the first line of ``line``; None for a comment or an empty line.

    ``audited`` takes what a kernel logs of the line: its words, up to the one that was refused.
    Raises :class:`Refused`: EINVAL, or ERANGE for a number above 64 bits.
    """
    text = first_line(line)
    try:
        return _Parser(words, custom, [] if audited is None else audited).parse(text)
    except Refused as refused:
        hint = next((hint for mark, hint in _MARKS.items() if text.startswith(mark)), "")
        if text.endswith(b"\r"):
            hint = " (Windows line ends: a line ends in a newline alone)"
        raise Refused(refused.errno, f"{refused}{hint}") from None


#: What editors put in front of a file, and what is to be done about it.
_MARKS = {
    b"\xef\xbb\xbf": " (a byte order mark: save the file without one)",
    b"\xff\xfe": " (UTF-16: save the file as ASCII or UTF-8)",
    b"\xfe\xff": " (UTF-16: save the file as ASCII or UTF-8)",
}


def first_line(data: bytes) -> bytes:
    """The part that the kernel's string functions see: up to a NUL, then up to a newline."""
    return data[: line_end(data)]


def line_end(data: bytes, start: int = 0) -> int:
    """Where the line from ``start`` on ends for them; nothing behind that is looked at."""
    newline = data.find(b"\n", start)
    end = len(data) if newline < 0 else newline
    nul = data.find(b"\0", start, end)
    return end if nul < 0 else nul


class _Parser:
    """``struct ima_rule_entry`` while it is filled, token by token."""

    def __init__(self, words: Words, custom: bool, audited: list[str]) -> None:
        self._words = words
        self._audited = audited
        self._custom = custom
        self._action: Action | None = None
        self._set: dict[str, Any] = {}
        self._lsm: dict[str, str] = {}

    def parse(self, line: bytes) -> Rule | None:
        text = line.decode("utf-8", "surrogateescape").lstrip(" \t")
        if not text or text.startswith("#"):
            return None
        for token in text.replace("\t", " ").split(" "):
            if token.startswith("#"):
                break
            if token:
                self._token(token)
        if self._action is None:
            raise _invalid("a rule begins with an action")
        lsm = tuple((word, self._lsm[word]) for word in LSM if word in self._lsm)
        active = self._words.lsm or not lsm
        rule = Rule(self._action, lsm=lsm, lsm_active=active, **self._set)
        check(rule)
        return rule

    def _token(self, token: str) -> None:
        if token in _ACTIONS:
            self._audited.append(f"action={token}")
            if self._action is not None:
                raise _invalid(f"{token}: a second action")
            self._action = _ACTIONS[token]
        elif token == "permit_directio":
            self._set["directio"] = True
        else:
            self._option(token)

    def _option(self, token: str) -> None:
        for name in _IDS:
            rest = token[len(name) :]
            if token.startswith(name) and rest[:1] in ("=", "<", ">") and rest[1:]:
                self._audited.append(token)
                self._id(name, rest[0], rest[1:])
                return
        name, equals, value = token.partition("=")
        handler = _HANDLERS.get(name)
        if handler is None or not equals or not value:
            self._audited.append(f"UNKNOWN={token}")
            raise _invalid(f"{token}: no such word")
        self._audited.append(token)
        handler(self, name, value)

    def _id(self, name: str, operator: str, value: str) -> None:
        if name in self._set or _SHARED.get(name) in self._set:
            raise _invalid(f"{name}: given twice (uid and euid, gid and egid are one)")
        number = _number(value, 10)
        if number >= _INVALID_ID:
            raise _invalid(f"{name}: {value} is no id")
        self._set[name] = Compare(operator, number)

    def _func(self, name: str, value: str) -> None:
        self._once(name)
        func = _ALIASES.get(value, value)
        if func not in FUNCTIONS or (func == "KEY_CHECK" and not self._words.keys):
            raise _invalid(f"func={value}: no such hook")
        self._set["func"] = func

    def _mask(self, name: str, value: str) -> None:
        self._once(name)
        word = value.removeprefix("^")
        if word not in MASKS:
            raise _invalid(f"mask={value}: no such mask")
        self._set["mask"] = MASKS[word]
        self._set["any_mask"] = value.startswith("^")

    def _fsmagic(self, name: str, value: str) -> None:
        # Accepted: a second one behind fsmagic=0.
        if self._set.get(name):
            raise _invalid("fsmagic: given twice")
        self._set[name] = _number(value, 16)

    def _fsname(self, name: str, value: str) -> None:
        self._set[name] = value  # accepted: several, the last one counts

    def _fs_subtype(self, name: str, value: str) -> None:
        self._once(name)
        self._set[name] = value

    def _keyrings(self, name: str, value: str) -> None:
        if not self._words.keys:
            raise _invalid("keyrings: not in this kernel")
        self._list(name, value)

    def _list(self, name: str, value: str) -> None:
        self._once(name)
        items = tuple(value.split("|"))
        if "" in items:
            raise _invalid(f"{name}={value}: an empty item")
        self._set[name] = items

    def _fsuuid(self, name: str, value: str) -> None:
        # Accepted: anything behind the 36 characters, a second one behind the null UUID.
        if any(self._set.get(name, b"")):
            raise _invalid("fsuuid: given twice")
        text = value[:_UUID]
        groups = [text[:8], text[9:13], text[14:18], text[19:23], text[24:]]
        digits = "".join(groups)
        if (
            len(text) != _UUID
            or any(text[at] != "-" for at in (8, 13, 18, 23))
            or not all(c in "0123456789abcdefABCDEF" for c in digits)
        ):
            raise _invalid(f"fsuuid={value}: not a UUID")
        self._set[name] = bytes.fromhex(digits)

    def _labelled(self, name: str, value: str) -> None:
        if self._words.lsm:
            if name in self._lsm:
                raise _invalid(f"{name}: given twice")
        elif not self._custom:
            raise _invalid(f"{name}: this kernel has no LSM that knows {value}")
        self._lsm[name] = value

    def _digest_type(self, name: str, value: str) -> None:
        if value != "verity":
            raise _invalid(f"digest_type={value}: only verity")
        self._set["verity"] = True

    def _appraise_type(self, name: str, value: str) -> None:
        seen = self._set
        if value == "sigv3":
            seen["sigv3"] = True
        elif value == "imasig|modsig" and self._words.modsig:
            if seen.get("verity") or seen.get("sigv3"):
                raise _invalid("appraise_type=imasig|modsig: not with verity or sigv3")
            seen["modsig"] = True
        elif value != "imasig" or seen.get("verity"):
            # Accepted: imasig before digest_type=verity.
            raise _invalid(f"appraise_type={value}: no such type, or not behind verity")
        seen["signature"] = True

    def _appraise_flag(self, name: str, value: str) -> None:
        pass  # accepted and ignored, whatever it says (deprecated)

    def _appraise_algos(self, name: str, value: str) -> None:
        if "algorithms" in self._set:
            raise _invalid("appraise_algos: given twice")
        wanted = set(value.split(","))
        if not wanted <= self._words.algorithms:
            raise _invalid(f"appraise_algos={value}: an unknown or unavailable hash")
        self._set["algorithms"] = tuple(a.name for a in ALGORITHMS if a.name in wanted)

    def _pcr(self, name: str, value: str) -> None:
        # kstrtoint, whose ERANGE becomes EINVAL here; accepted: several, and -0.
        number = _number(value.removeprefix("-"), 10, overflow=errno.EINVAL)
        if number >= _PCRS or (value.startswith("-") and (number or value[1:2] == "+")):
            raise _invalid(f"pcr={value}: 0 to {_PCRS - 1}")
        self._set[name] = number

    def _template(self, name: str, value: str) -> None:
        if self._action is not Action.MEASURE:
            raise _invalid("template: only behind measure")
        self._once(name)
        self._set[name] = self._lookup(value)

    def _lookup(self, value: str) -> Template:
        """By name or by format (``lookup_template_desc``)."""
        own = self._words.template_fmt
        known: list[Template] = [*TEMPLATES.values()]
        if own is not None:
            known.append(own)
        for template in known:
            if value == template.format or (
                template.label in TEMPLATES and value == template.label
            ):
                return template
        raise _invalid(f"template={value}: no such template")

    def _once(self, name: str) -> None:
        if name in self._set:
            raise _invalid(f"{name}: given twice")


_HANDLERS: Mapping[str, Callable[[_Parser, str, str], None]] = {
    "func": _Parser._func,
    "mask": _Parser._mask,
    "fsmagic": _Parser._fsmagic,
    "fsname": _Parser._fsname,
    "fs_subtype": _Parser._fs_subtype,
    "fsuuid": _Parser._fsuuid,
    "keyrings": _Parser._keyrings,
    "label": _Parser._list,
    "digest_type": _Parser._digest_type,
    "appraise_type": _Parser._appraise_type,
    "appraise_flag": _Parser._appraise_flag,
    "appraise_algos": _Parser._appraise_algos,
    "pcr": _Parser._pcr,
    "template": _Parser._template,
    **dict.fromkeys(LSM, _Parser._labelled),
}


def _number(value: str, base: int, *, overflow: int = errno.ERANGE) -> int:
    try:
        return kstrtoul(value.encode("utf-8", "surrogateescape"), base)
    except Refused as refused:
        code = overflow if refused.errno == errno.ERANGE else refused.errno
        raise Refused(code, f"{value}: {refused}") from None


def _invalid(why: str) -> Refused:
    return Refused(errno.EINVAL, why)
