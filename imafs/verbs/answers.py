# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What the operations answer, key by key; types only, so that a client loads no emulator.

A key with :class:`NotRequired` is there only where there is something to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, TypedDict

if TYPE_CHECKING:
    from imafs.scenarios.script import ScenarioTold


class Nothing(TypedDict):
    """It was done."""


class Row(TypedDict, total=False):
    """What became of one record that was asked for.

    ``rule`` and ``why``: of the policy, when asked for and where nothing is ``measured``. A
    duplicate has no ``number`` since boot. ``errno`` and ``error``: of a file that was refused
    while others were not.
    """

    path: str
    measured: bool
    rule: int | None
    why: str
    digest: str
    duplicate: bool
    number: int
    extended: bool
    errno: str
    error: str


class Measured(TypedDict):
    measured: list[Row]


class Generated(TypedDict):
    added: int
    extended: bool


class Loaded(TypedDict):
    """``but``: what is not known of the list."""

    loaded: int
    bank: str
    extended: bool
    but: NotRequired[str]


class Reached(TypedDict):
    records: int
    extended: int


class Watched(TypedDict):
    watched: list[str]


class KexecLoaded(TypedDict):
    segment_size: int


class Crossed(TypedDict):
    """A kexec: held before the next kernel, or what that kernel has of the list and why not."""

    held: bool
    profile: NotRequired[str]
    records: NotRequired[int]
    carried: NotRequired[int]
    lost: NotRequired[int]
    why: NotRequired[str | None]


class Buffer(TypedDict):
    file: str
    bytes: int
    records: int


class Rebooted(TypedDict):
    profile: str


class FaultAdded(TypedDict):
    fault: int


class FaultsCleared(TypedDict):
    cleared: int


class FaultRow(TypedDict):
    """A fault, how many calls it fitted and how many of them failed; and its options."""

    fault: int
    operation: str
    errno: str
    files: str
    seen: int
    failed: int
    next: NotRequired[int]
    every: NotRequired[int]
    percent: NotRequired[int]
    seed: NotRequired[int]
    writing: NotRequired[bool]


class FaultsListed(TypedDict):
    faults: list[FaultRow]


class Pace(TypedDict):
    """How far the TPM is held up; ``delay`` in milliseconds."""

    behind: int
    delay: int
    fail: int
    hang: bool


class PaceShown(TypedDict):
    """The same in the status; ``delay`` in seconds."""

    behind: int
    delay: float
    fail: int
    hang: bool


class Acted(TypedDict):
    """What the other agent sees of both lists, or how many files it holds open."""

    held: NotRequired[int]
    current: NotRequired[int]
    staged: NotRequired[int]
    deleted: NotRequired[int]


class ScenarioBegun(TypedDict):
    scenario: str
    number: int
    steps: int


class ScenarioEnded(TypedDict):
    scenario: ScenarioTold | None


class PcrRow(TypedDict):
    """A PCR and what the records replay to; ``value`` None: the TPM gave none."""

    bank: str
    pcr: int
    value: str | None
    replayed: str
    equal: bool
    adopted: bool
    pending: bool


class PolicyTold(TypedDict):
    rules: int
    without_effect: int
    source: str | None


class HolderTold(TypedDict):
    """A thread that has a file open; 0 is one of another pid namespace."""

    pid: int
    name: str | None


class Failures(TypedDict):
    """Extends that failed, and records that the PCRs therefore never get."""

    extend: int
    last: str | None
    mismatch: str | None
    skipped: int
    refused: int


class Status(TypedDict):
    """What ``imafs ctl status --json`` shows."""

    mountpoint: str
    control: str
    pid: int
    tpm_device: NotRequired[int]
    version: str
    profile: str
    staging: bool
    template: str
    hash: str
    tpm: str
    tcti: str | None
    environment: dict[str, str]
    banks: list[str]
    records: dict[str, int]
    bytes: dict[str, int]
    boot: dict[str, object]
    violations: int
    policy: PolicyTold | None
    suspended: bool
    pcrs: list[PcrRow]
    readers: list[HolderTold]
    writer: HolderTold | None
    failures: Failures
    faults: list[FaultRow]
    pace: PaceShown
    scenario: ScenarioTold | None
    watch: dict[str, object]
    sizes: dict[str, object]
