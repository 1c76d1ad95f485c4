# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Quotes of any TPM that tpm2-tss reaches, through its ESAPI.

The key is a persistent handle or a context file of tpm2-tools. What is loaded is flushed,
whatever happens: without a resource manager a TPM has room for three objects, and one that is
left behind stays there until the next reset.

ESAPI knows no deadline, and a stopped TPM blocks its callers for ever: :func:`within` leaves the
thread behind.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from imafs.errors import ImafsError, TpmError, UsageError
from imafs.tpm import commands

if TYPE_CHECKING:
    from imafs.tpm.link import Link

T = TypeVar("T")

#: Seconds for one quote with all that belongs to it: a chip makes an RSA key in up to a minute.
DEADLINE = 30.0
CREATION = 90.0
#: Seconds that an interrupted call gets to flush what it had loaded.
_GRACE = 3.0
#: Tries to read PCRs while nobody extends them.
_READS = 64

#: What --key names -> tpm2-tss' words for it.
KINDS: Mapping[str, str] = {
    "ecdsa-p256-sha256": "ecc256:ecdsa-sha256:null",
    "ecdsa-p256-sha384": "ecc256:ecdsa-sha384:null",
    "ecdsa-p384-sha384": "ecc384:ecdsa-sha384:null",
    "ecdsa-p384-sha256": "ecc384:ecdsa-sha256:null",
    "rsassa-2048-sha256": "rsa2048:rsassa-sha256:null",
    "rsassa-2048-sha384": "rsa2048:rsassa-sha384:null",
    "rsapss-2048-sha256": "rsa2048:rsapss-sha256:null",
    "rsapss-2048-sha384": "rsa2048:rsapss-sha384:null",
}
_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
_PERSISTENT = range(0x81000000, 0x82000000)

#: (TPM_ALG_ID of a bank, PCRs): what is quoted, in order.
Selection = Sequence[tuple[int, Sequence[int]]]
Values = Mapping[tuple[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Quoted:
    """TPM2_Quote's answer: ``message`` (TPMS_ATTEST), ``signature`` (TPMT_SIGNATURE).

    ``public`` is the key's TPM2B_PUBLIC. ``before`` and ``after`` are the PCRs around it by
    (TPM_ALG_ID, PCR): the same, unless records were extended meanwhile.
    """

    message: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    public: bytes = field(repr=False)
    before: Values = field(repr=False)
    after: Values = field(repr=False)


@dataclass(frozen=True, slots=True)
class Key:
    """An attestation key: a persistent ``handle``, or the ``context`` of tpm2-tools.

    ``named`` is what the user called it; ``public`` its TPM2B_PUBLIC, of one that was just made.
    """

    named: str
    handle: int | None = None
    context: bytes | None = field(default=None, repr=False)
    public: bytes | None = field(default=None, repr=False)


def handle_named(text: str) -> int | None:
    """The persistent handle that a text is; None for a text that is rather a file's name.

    Raises :class:`UsageError` for a number that is no persistent handle.
    """
    try:
        number = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        return None
    if number not in _PERSISTENT:
        raise UsageError(
            f"{text} is no persistent handle (0x81000000 to 0x81ffffff): "
            "tpm2_getcap handles-persistent lists them"
        )
    return number


def banks(tcti: str, deadline: float | None = None) -> dict[int, list[int]]:
    """The allocated banks of a TPM, and the PCRs of each. Raises :class:`TpmError`."""

    def ask() -> dict[int, list[int]]:
        from imafs.tpm.real import allocation

        with _link(tcti) as link:
            return {tpm_id: pcrs for tpm_id, pcrs in allocation(link) if pcrs}

    return within(deadline or DEADLINE, ask, tcti)


def flush(tcti: str, deadline: float | None = None) -> None:
    """Flushes every object and session of a TPM, whoever has left it. Raises :class:`TpmError`."""

    def ask() -> None:
        from imafs.tpm.real import transact

        with _link(tcti) as link:
            for first in (commands.TRANSIENT_FIRST, commands.LOADED_SESSION_FIRST):
                found = transact(link, commands.build_get_handles(first))
                for handle in commands.parse_handles(found):
                    answer = transact(link, commands.build_flush_context(handle))
                    commands.check(answer, f"TPM2_FlushContext of {handle:#x}")

    within(deadline or DEADLINE, ask, tcti)


@contextmanager
def _link(tcti: str) -> Iterator[Link]:
    from imafs.tpm.tcti import TctiLink

    link = TctiLink(tcti)
    try:
        yield link
    finally:
        link.drop()


def quote(
    tcti: str, key: Key, nonce: bytes, selection: Selection, deadline: float | None = None
) -> Quoted:
    """One quote. Raises :class:`TpmError`, also where the TPM does not answer."""

    def ask() -> Quoted:
        with _session(tcti) as tpm:
            return tpm.quote(key, nonce, selection)

    return within(deadline or DEADLINE, ask, tcti)


def create(tcti: str, kind: str, deadline: float | None = None) -> Key:
    """A key under the endorsement hierarchy, as a context that tpm2-tools read too.

    The same kind gives the same key on the same TPM, until its endorsement hierarchy is
    replaced. Raises :class:`TpmError`.
    """

    def ask() -> Key:
        with _session(tcti) as tpm:
            return tpm.create(kind)

    return within(deadline or CREATION, ask, tcti)


def within(seconds: float, work: Callable[[], T], tcti: str) -> T:
    """What ``work`` returns. Raises its :class:`ImafsError`, and TpmError after ``seconds``."""
    job = _Job(work)
    thread = threading.Thread(target=job.run, daemon=True, name="imafs TPM")
    thread.start()
    try:
        thread.join(seconds)
    except BaseException:
        thread.join(_GRACE)  # what is loaded is flushed as soon as the call at hand is answered
        raise
    if thread.is_alive():
        raise TpmError(f"the TPM {tcti} did not answer within {seconds:g} s")
    return job.result()


class _Job(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._results: list[T] = []
        self._error: ImafsError | None = None

    def run(self) -> None:
        try:
            self._results.append(self._work())
        except ImafsError as error:
            self._error = error

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        if not self._results:
            raise TpmError("asking the TPM has failed")  # a bug, which the thread has shown
        return self._results[0]


@contextmanager
def _session(tcti: str) -> Iterator[_Tpm]:
    # tpm2-tss logs to stderr what the exception says again.
    os.environ.setdefault("TSS2_LOG", "all+none")
    # Imported here: 0.3 s that other commands need not pay.
    from tpm2_pytss import (  # type: ignore[import-untyped, unused-ignore]
        ESAPI,
        TCTILdr,
        TSS2_Exception,
    )

    name, _, conf = tcti.partition(":")
    try:
        loader = TCTILdr(name, conf or None)
    except TSS2_Exception as error:
        raise TpmError(f"cannot open the TPM {tcti}: {error}") from None
    try:
        with ESAPI(loader) as esapi:
            yield _Tpm(esapi)
    except TSS2_Exception as error:
        raise TpmError(f"the TPM {tcti}: {error}") from None
    finally:
        loader.close()


class _Tpm:
    """Commands of one connection; every method raises :class:`TpmError`."""

    def __init__(self, esapi: Any) -> None:
        self._esapi = esapi

    def quote(self, key: Key, nonce: bytes, selection: Selection) -> Quoted:
        from tpm2_pytss import TPM2B_DATA

        with self._loaded(key) as handle:
            with _saying(f"the key {key.named}"):
                public, _, _ = self._esapi.read_public(handle)
            before = self._read(selection)
            with _saying(f"TPM2_Quote with {key.named}"):
                attest, signature = self._esapi.quote(handle, _pcrs(selection), TPM2B_DATA(nonce))
            after = self._read(selection)
            return Quoted(
                *(bytes(attest.attestationData), signature.marshal(), public.marshal()),
                *(before, after),
            )

    def create(self, kind: str) -> Key:
        from tpm2_pytss import ESYS_TR, TPM2B_PUBLIC

        template = TPM2B_PUBLIC.parse(KINDS[kind], objectAttributes=_ATTRIBUTES)
        with _saying("TPM2_CreatePrimary under the endorsement hierarchy"):
            handle, public, *_ = self._esapi.create_primary(None, template, ESYS_TR.ENDORSEMENT)
        try:
            with _saying("TPM2_ContextSave"):
                context = self._esapi.context_save(handle)
            return Key(kind, context=context.to_tools(), public=public.marshal())
        finally:
            self._esapi.flush_context(handle)

    @contextmanager
    def _loaded(self, key: Key) -> Iterator[Any]:
        if key.handle is not None:
            with _saying(f"the key {key.named}"):
                handle = self._esapi.tr_from_tpmpublic(key.handle)
            try:
                yield handle
            finally:
                self._esapi.tr_close(handle)
            return
        handle = self._load(key)
        try:
            yield handle
        finally:
            self._esapi.flush_context(handle)

    def _load(self, key: Key) -> Any:
        from tpm2_pytss import TSS2_Exception
        from tpm2_pytss.types import TPMS_CONTEXT

        assert key.context is not None
        try:
            context = TPMS_CONTEXT.from_tools(key.context)
        except (ValueError, IndexError, TypeError, TSS2_Exception) as error:
            raise UsageError(f"{key.named} is no context of a key: {error}") from None
        with _saying(
            f"the key {key.named} cannot be loaded; a context lasts until the TPM's next reset: "
            "make it again (--create-ak gives the same key), or a persistent one "
            "(tpm2_evictcontrol)"
        ):
            return self._esapi.context_load(context)

    def _read(self, selection: Selection) -> Values:
        """The PCRs' values, from between two extends where that can be had."""
        wanted = [(bank, pcr) for bank, pcrs in selection for pcr in pcrs]
        for _ in range(_READS):
            values: dict[tuple[int, int], bytes] = {}
            first: int | None = None
            while missing := [place for place in wanted if place not in values]:
                counter, part = self._read_some(missing)
                if first is None:
                    first = counter
                elif counter != first:
                    break
                values |= part
            else:
                return values
        raise TpmError("other clients extend PCRs faster than they can be read: ask for fewer")

    def _read_some(self, places: Sequence[tuple[int, int]]) -> tuple[int, Values]:
        asked: dict[int, list[int]] = {}
        for bank, pcr in places:
            asked.setdefault(bank, []).append(pcr)
        with _saying("TPM2_PCR_Read"):
            counter, told, digests = self._esapi.pcr_read(_pcrs(list(asked.items())))
        got = [
            (int(row.hash), pcr)
            for row in told
            for pcr in range(8 * row.sizeofSelect)
            if row.pcrSelect[pcr // 8] >> pcr % 8 & 1
        ]
        if len(got) != len(digests):
            raise TpmError(f"TPM2_PCR_Read: {len(digests)} digests for {len(got)} PCRs")
        values = dict(zip(got, (bytes(digest) for digest in digests), strict=True))
        if values.keys().isdisjoint(places):  # also one that answers with others for ever
            bank, pcr = places[0]
            raise TpmError(f"the TPM has no PCR {pcr} in the bank {bank:#x}")
        return int(counter), values


def _pcrs(selection: Selection) -> Any:
    from tpm2_pytss import TPML_PCR_SELECTION, TPMS_PCR_SELECTION
    from tpm2_pytss.constants import TPM2_ALG

    return TPML_PCR_SELECTION(
        [TPMS_PCR_SELECTION(hash=TPM2_ALG(bank), pcrs=list(pcrs)) for bank, pcrs in selection]
    )


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Tells of a refusal what was tried, and what helps."""
    from tpm2_pytss import TSS2_Exception

    try:
        yield
    except TSS2_Exception as error:
        raise TpmError(commands.complaint(int(error.rc), what)) from None
