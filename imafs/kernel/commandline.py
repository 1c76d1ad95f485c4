# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``ima_hash=``, ``ima_template=`` and ``ima_template_fmt=``, in the order of a command line.

Each is looked at when its turn comes, and template ``ima`` takes SHA-1 and MD5 only: what comes
first decides, what does not fit is logged and ignored. Source: Linux 7.3 ima_main.c
(``hash_setup``, ``init_ima``), ima_template.c (``ima_template_setup``,
``ima_template_fmt_setup``); asked of 7.2.13.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from imafs.formats import templates
from imafs.formats.algorithms import SHA1, SHA256, HashAlgorithm, by_name
from imafs.formats.templates import FIELDS_MAX, TEMPLATES, Template

#: CONFIG_IMA_DEFAULT_HASH and CONFIG_IMA_DEFAULT_TEMPLATE.
DEFAULT_HASH = SHA256
DEFAULT_TEMPLATE = TEMPLATES["ima-ng"]

HASH, TEMPLATE, TEMPLATE_FMT = "ima_hash", "ima_template", "ima_template_fmt"


@dataclass(frozen=True, slots=True)
class Settled:
    """The options that the kernel runs with; ``said`` are its lines about those it did not take."""

    algorithm: HashAlgorithm
    template: Template
    said: tuple[str, ...] = ()


def settle(words: Iterable[tuple[str, str]]) -> Settled:
    """The outcome of ``(name, value)`` in order.

    Raises :class:`FormatError` for a hash, a template or a field that no kernel knows: a
    kernel logs those and ignores them too, but whoever names one has mistyped.
    """
    setup = _Setup()
    takers = {HASH: setup.hash, TEMPLATE: setup.named, TEMPLATE_FMT: setup.format}
    for name, value in words:
        takers[name](value)
    # init_ima: without effect where a hash was taken.
    setup.hash(DEFAULT_HASH.name)
    return Settled(setup.algorithm, setup.template, tuple(setup.said))


class _Setup:
    """The static variables of ima_main.c and ima_template.c."""

    def __init__(self) -> None:
        self.algorithm = SHA1  # until a hash is taken
        self.template = DEFAULT_TEMPLATE
        self.said: list[str] = []
        self._hash_done = self._template_done = False

    def hash(self, value: str) -> None:
        algorithm = by_name(value)
        if self._hash_done:
            return
        if self.template.is_ima and not algorithm.fits_ima:
            self.said.append(
                f'invalid hash algorithm "{value}" for template "ima": '
                f"it is {self.algorithm.name} (ima_hash)"
            )
            return
        self.algorithm = algorithm
        self._hash_done = True

    def named(self, value: str) -> None:
        template = templates.built_in(value)
        if self._template_done:
            return
        # By its name: template=d|n is the same template, and is not asked (as in a kernel).
        if value == "ima" and not self.algorithm.fits_ima:
            self.said.append(
                f"template does not support hash alg: {self.algorithm.name} is none of "
                f"template ima, so the template is {self.template.label} (ima_template)"
            )
            return
        self.template = template
        self._template_done = True

    def format(self, value: str) -> None:
        template = templates.custom(value)
        if self._template_done:
            return
        if len(template.fields) > FIELDS_MAX:
            self.said += (
                f"format string '{value}' contains too many fields: {FIELDS_MAX} at most",
                f"format string '{value}' not valid, using template {DEFAULT_TEMPLATE.label}",
            )
            return
        self.template = template
        self._template_done = True
