# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Records as the kernel that runs makes them of measurements."""

from __future__ import annotations

import errno

from imafs.emulator.config import EmulatorConfig
from imafs.errors import Refused
from imafs.formats.binary import Record
from imafs.formats.fields import MOST_FIELD, Measurement
from imafs.formats.templates import TEMPLATES, Template
from imafs.kernel.policy.match import UNCONDITIONAL, Decision


def record(
    config: EmulatorConfig,
    measurement: Measurement,
    template: Template | None = None,
    pcr: int | None = None,
) -> Record:
    """A record in the default template and PCR, unless others are given; in one that no TPM
    lets IMA extend too, as in a kernel.

    Raises :class:`FormatError`.
    """
    chosen = template or config.template
    if measurement.violation:
        # Violations use the default template whatever a rule says (observed).
        chosen = config.template
    return Record(
        config.pcr if pcr is None else pcr,
        chosen,
        chosen.build(measurement),
        measurement.violation,
    )


def violation(config: EmulatorConfig, name: bytes) -> Record:
    """A violation of the file ``name`` (ToMToU, open_writers)."""
    algorithm = config.algorithm
    zeros = bytes(algorithm.digest_size)
    return record(config, Measurement(name, algorithm, zeros, violation=True))


def check_data(buf: bytes) -> None:
    """The first look of ``ima_measure_critical_data``, before any rule: no data, no record.

    Raises :class:`Refused` (EINVAL; a kernel's own callers get ENOPARAM, which no user sees).
    """
    if not buf:
        raise Refused(errno.EINVAL, "critical data of 0 bytes: a kernel makes no record of it")


def critical_data(
    config: EmulatorConfig, name: bytes, buf: bytes, decision: Decision = UNCONDITIONAL
) -> Record:
    """Critical data: template ima-buf over the raw buffer (ima_main.c:1098-1258).

    Raises :class:`Refused` as :func:`check_data`, and ENOMEM for what fits into no record.
    """
    check_data(buf)
    if len(buf) > MOST_FIELD:
        raise Refused(
            errno.ENOMEM,
            f"{len(buf)} bytes: a kernel has no memory for a field of more than {MOST_FIELD}",
        )
    algorithm = config.algorithm
    measurement = Measurement(name, algorithm, algorithm.digest(buf), buf=buf)
    # A rule's pcr=0 is no PCR there, but the default one.
    pcr = decision.pcr or None
    return record(config, measurement, decision.template or TEMPLATES["ima-buf"], pcr)
