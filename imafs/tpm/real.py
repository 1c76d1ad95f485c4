# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The base of all real TPMs: banks, extends and PCR reads over a :class:`Link`."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from imafs.errors import TpmError
from imafs.formats.algorithms import Bank, by_tpm_id
from imafs.tpm import commands
from imafs.tpm.device import ExtendError, ExtendRefused, HangUnsupported, PcrValues
from imafs.tpm.link import Link

BURST = 0.010
"""Seconds for which extends hold the connection: a connect costs about 0.1 ms, so longer
bursts win nothing, and another client waits this long for each of its commands."""

# tpm_transmit() (drivers/char/tpm/tpm-interface.c) doubles its delay from 20 ms and gives
# up above 2 s; here it begins at 1 ms, a software TPM being quicker.
_RETRY_FIRST = 0.001
_RETRY_LAST = 1.0

_READ_ROUNDS = 64

# Manufacturer and vendor string of TPMs that are programs: swtpm and IBM's tpm_server,
# Microsoft's reference simulator.
_SOFTWARE = {("IBM", "SW   TPM"), ("MSFT", "xCG fTPM")}


@dataclass(frozen=True, slots=True)
class Identity:
    """TPM2_PT_MANUFACTURER and the four vendor strings, as text."""

    manufacturer: str
    vendor: str

    @property
    def is_software(self) -> bool:
        """Whether the strings are those of a known software TPM."""
        return (self.manufacturer, self.vendor) in _SOFTWARE


def transact(link: Link, command: bytes | bytearray) -> bytes:
    """One command; RETRY, TESTING and YIELDED are tried again for about two seconds."""
    delay = _RETRY_FIRST
    while True:
        response = link.transact(command)
        if commands.response_code(response) not in commands.RETRYABLE or delay > _RETRY_LAST:
            return response
        time.sleep(delay)
        delay *= 2


def ensure_started(link: Link) -> None:
    """TPM2_Startup(CLEAR) unless the TPM is started (as tpm2_auto_startup() does)."""
    response = transact(link, commands.build_get_pcr_banks())
    if commands.response_code(response) == commands.RC_INITIALIZE:
        started = transact(link, commands.build_startup())
        if commands.response_code(started) != commands.RC_INITIALIZE:
            commands.check(started, "TPM2_Startup")
        response = transact(link, commands.build_get_pcr_banks())
    # In failure mode a TPM says who made it all the same (and libtpms says it backwards).
    commands.check(response, "TPM2_GetCapability")


def identify(link: Link) -> Identity:
    """Ask who made the TPM."""
    first = commands.PT_MANUFACTURER
    response = transact(link, commands.build_get_properties(first, 5))
    values = commands.parse_properties(response)

    def text(*properties: int) -> str:
        raw = b"".join(values.get(p, 0).to_bytes(4, "big") for p in properties)
        return raw.replace(b"\0", b"").decode("ascii", "replace").strip()

    return Identity(text(first), text(*range(first + 1, first + 5)))


def allocation(link: Link) -> list[tuple[int, list[int]]]:
    """``(TPM_ALG_ID, PCRs)`` of all banks which the TPM knows, in its order."""
    return commands.parse_pcr_banks(transact(link, commands.build_get_pcr_banks()))


def read_banks(link: Link) -> tuple[Bank, ...]:
    """Banks with some PCR allocated, as tpm2_get_pcr_allocation() finds them.

    Of an id without a kernel hash the digest size is taken from a PCR, as
    tpm2_init_bank_info() does (drivers/char/tpm/tpm2-cmd.c).
    """
    banks = []
    for tpm_id, pcrs in allocation(link):
        if not pcrs:
            continue
        algorithm = by_tpm_id(tpm_id)
        if algorithm is not None:
            # A hash that this machine cannot compute is padded, as one not built in is.
            padded = not algorithm.available
            banks.append(Bank(tpm_id, algorithm.digest_size, algorithm, padded))
        else:
            value = _read(link, [(tpm_id, pcrs[0])])[tpm_id, pcrs[0]]
            banks.append(Bank(tpm_id, len(value), None))
    if not banks:
        raise TpmError("the TPM has no PCR bank allocated")
    return tuple(banks)


def _check_extend(response: bytes, done: int) -> None:
    """Raises :class:`ExtendRefused` for an answer that is one to this entry alone; TpmError for
    a TPM that is busy, or was reset behind our back."""
    code = commands.response_code(response)
    if not code:
        return
    why = f"TPM2_PCR_Extend: the TPM answered {commands.rc_name(code)}"
    if code in commands.RETRYABLE or code == commands.RC_INITIALIZE:
        raise TpmError(why)
    raise ExtendRefused(why, done=done)


def _read(link: Link, wanted: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    # One answer holds eight digests at most. The update counter tells whether an extend
    # came between two answers; then all is read again.
    for _ in range(_READ_ROUNDS):
        values: dict[tuple[int, int], bytes] = {}
        first: int | None = None
        while missing := [key for key in wanted if key not in values]:
            selection: dict[int, list[int]] = {}
            for tpm_id, pcr in missing:
                selection.setdefault(tpm_id, []).append(pcr)
            response = transact(link, commands.build_pcr_read(selection))
            counter, part = commands.parse_pcr_read(response)
            if part.keys().isdisjoint(missing):  # also one that answers with others for ever
                tpm_id, pcr = missing[0]
                raise TpmError(f"the TPM has no PCR {pcr} in the bank {tpm_id:#x}")
            if first is None:
                first = counter
            elif counter != first:
                break
            values |= part
        else:
            return values
    raise TpmError("other clients extend PCRs faster than they can be read")


class LinkedDevice:
    """Base of the devices with a TPM; a subclass makes links and knows how to reset.

    ``_banks`` is set once, by the subclass, before the device is handed out.
    """

    kind = ""

    def __init__(self, tcti: str) -> None:
        self._tcti = tcti
        self._link: Link | None = None
        self._generation = 0
        # Guards the two above; never held across a call to the TPM.
        self._guard = threading.Lock()

    @property
    def tcti(self) -> str | None:
        """TCTI string for other clients."""
        return self._tcti

    @property
    def banks(self) -> tuple[Bank, ...]:
        """Allocated PCR banks in the TPM's own order."""
        return self._banks

    @property
    def entry_size(self) -> int:
        """Bytes of one packed entry."""
        return self._entry_size

    def _set_banks(self, banks: tuple[Bank, ...]) -> None:
        self._banks = banks
        self._layout = [(bank.tpm_id, bank.digest_size) for bank in banks]
        self._entry_size = commands.ExtendTemplate(self._layout).entry_size

    def _make_link(self) -> Link:
        raise NotImplementedError

    def _current(self) -> Link:
        with self._guard:
            if self._link is None:
                raise TpmError("not connected to the TPM")
            return self._link

    def _replace_link(self) -> Link:
        """Drop the link, make another; the last caller wins where several overlap."""
        with self._guard:
            self._generation += 1
            generation = self._generation
            old, self._link = self._link, None
        if old is not None:
            old.drop()
        link = self._make_link()
        with self._guard:
            if self._generation == generation:
                self._link = link
                return link
        # This thread hung in _make_link() and was abandoned.
        link.drop()
        raise TpmError("the connection to the TPM was given up")

    def extend(self, packed: bytes | memoryview, *, longest: float = inf) -> int:
        """See :class:`imafs.tpm.device.Device`."""
        view = memoryview(packed).cast("B")
        size = self._entry_size
        count, rest = divmod(len(view), size)
        if rest:
            raise ValueError(f"{len(view)} bytes are no whole number of entries of {size}")
        done = 0
        end = time.monotonic() + longest
        # Of its own: a call that was abandoned may still be in its send.
        fill = commands.ExtendTemplate(self._layout).fill
        sent = False
        try:
            link = self._current()
            while done < count and (not done or time.monotonic() < end):
                with link.hold():
                    until = time.monotonic() + BURST
                    while done < count:
                        command = fill(view, done * size)
                        sent = True
                        response = link.transact(command)
                        if response[6:10] != commands.SUCCESS:
                            if commands.response_code(response) in commands.RETRYABLE:
                                response = transact(link, command)
                            sent = False
                            _check_extend(response, done)
                        sent = False
                        done += 1
                        if time.monotonic() >= until:
                            break
        except ExtendRefused:
            raise
        except TpmError as error:
            raise ExtendError(str(error), done=done, uncertain=sent) from error
        return done

    def read_pcrs(self, pcrs: Sequence[int]) -> PcrValues:
        """See :class:`imafs.tpm.device.Device`."""
        for pcr in pcrs:
            if not 0 <= pcr < commands.PCR_COUNT:
                raise ValueError(f"PCR {pcr} is not one of 0 to {commands.PCR_COUNT - 1}")
        if not pcrs:
            return {bank.name: {} for bank in self._banks}
        wanted = [(bank.tpm_id, pcr) for bank in self._banks for pcr in pcrs]
        link = self._current()
        with link.hold():
            values = _read(link, wanted)
        for bank in self._banks:
            for pcr in pcrs:
                size = len(values[bank.tpm_id, pcr])
                if size != bank.digest_size:
                    raise TpmError(f"the TPM has {size} bytes in PCR {pcr} of the bank {bank.name}")
        return {bank.name: {pcr: values[bank.tpm_id, pcr] for pcr in pcrs} for bank in self._banks}

    def hang(self) -> None:
        """See :class:`imafs.tpm.device.Device`."""
        raise HangUnsupported("only a swtpm that imafs started can be made to hang")

    def go_on(self) -> None:
        """See :class:`imafs.tpm.device.Device`."""

    def reconnect(self) -> None:
        """See :class:`imafs.tpm.device.Device`; also asks whether the banks are the same."""
        link = self._replace_link()
        with link.hold():
            ensure_started(link)
            found = [tpm_id for tpm_id, pcrs in allocation(link) if pcrs]
        if found != [bank.tpm_id for bank in self._banks]:
            raise TpmError("the TPM's banks are not those it had: it is another TPM")

    def _drop_link(self) -> None:
        with self._guard:
            self._generation += 1
            link, self._link = self._link, None
        if link is not None:
            link.drop()
