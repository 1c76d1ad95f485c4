# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The object that tests use: one emulated kernel with IMA and a TPM."""

from __future__ import annotations

import errno as errnos
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imafs.errors import Refused
from imafs.testing.mounted import Place
from imafs.testing.scenario import Scenario, Scenarios
from imafs.verbs.answers import Acted, Crossed, Row, Status
from imafs.verbs.client import ControlClient

if TYPE_CHECKING:
    from imafs.attest.bundle import Bundle
    from imafs.attest.judgement import Judgement
    from imafs.attest.verify import Verdict
    from imafs.testing.quoting import Quote

Answer = dict[str, object]
StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ListRecord:
    """One record of a measurement list.

    ``template_digest`` is the list's own (SHA-1 unless another bank was asked for),
    ``data`` the template data, ``fields`` its fields as the ASCII list prints them, by
    name: ``d-ng``, ``n-ng``, ``sig``.
    """

    pcr: int
    template: str
    template_digest: bytes
    data: bytes
    fields: Mapping[str, str]
    violation: bool

    @property
    def name(self) -> str:
        """File name, or name of the event."""
        return next((self.fields[key] for key in ("n-ng", "n") if key in self.fields), "")


class Fault:
    """A fault that was asked for; :meth:`clear` takes it back."""

    def __init__(self, ima: Ima, number: int) -> None:
        self._ima = ima
        self.number = number

    @property
    def failed(self) -> int:
        """How many calls have failed by it."""
        with ControlClient(self._ima.control) as client:
            faults = client.fault_list()["faults"]
        return next((row["failed"] for row in faults if row["fault"] == self.number), 0)

    def clear(self) -> None:
        """No call fails by it any more."""
        self._ima.call("fault_clear", fault=self.number)


class OtherAgent:
    """Another agent on the same list: subject to the same locks and the same errors.

    Methods raise :class:`imafs.errors.Refused` with the errno that an agent would get.
    """

    def __init__(self, ima: Ima) -> None:
        self._ima = ima

    def stage(self) -> None:
        """``A``."""
        self._act("stage")

    def delete(self) -> int:
        """``D``: how many records it deleted."""
        return self._act("delete")["deleted"]

    def trim(self, count: int) -> int:
        """A number: deletes the first ``count`` records of the current list."""
        return self._act("trim", count)["deleted"]

    def read(self) -> tuple[int, int]:
        """Opens a list for reading and closes it: (current, staged) records."""
        told = self._act("read")
        return told["current"], told["staged"]

    def open(self, *, write: bool = False) -> None:
        """Opens a list and holds it until :meth:`close`."""
        self._act("open-write" if write else "open-read")

    def close(self) -> None:
        """Closes everything that it holds."""
        self._act("close")

    def _act(self, action: str, count: int | None = None) -> Acted:
        with ControlClient(self._ima.control) as client:
            return client.agent(action, count)


class Ima:
    """One emulated kernel. See docs/testing.md.

    ``dir`` is the IMA directory, ``control`` the control socket. What the daemon refuses
    raises :class:`imafs.errors.Refused`, with the ``errno`` that a kernel gives.
    """

    def __init__(self, place: Place, options: tuple[str, ...]) -> None:
        self.place = place
        self.options = options
        self.other_agent = OtherAgent(self)
        self._scenarios = Scenarios(self.call)
        self._logged = 0
        # What the mount's own options asked for: no test has been here yet.
        self._own_watches = self._watched()

    @property
    def dir(self) -> Path:
        """The IMA directory: ``/sys/kernel/security/ima`` of the emulated kernel."""
        return self.place.dir

    @property
    def control(self) -> str:
        """Path of the control socket (``imafs ctl --control``)."""
        return self.place.control

    @property
    def tcti(self) -> str:
        """TCTI by which tpm2-tss reaches the TPM; empty without one."""
        return str(self.status()["tcti"] or "")

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which tpm2-tools, agents and IBM's TSS find the TPM."""
        return self.status()["environment"]

    def call(self, op: str, **options: object) -> Answer:
        """Any operation of the control socket, by its name in ``imafs ctl`` with ``_``."""
        with ControlClient(self.control) as client:
            return client.call(op, options)

    def status(self) -> Status:
        """The answer of ``imafs ctl status --json``."""
        with ControlClient(self.control) as client:
            return client.status()

    def log(self) -> str:
        """The daemon's log since :meth:`boot_anew` (empty inside ``imafs run``).

        Tests share daemons: what an earlier test caused is not in the log of this one.
        """
        return self.place.log()[self._logged :]

    def run(
        self, command: Sequence[str] | Sequence[StrPath], *, timeout: float = 60, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program to its end with :attr:`environment` and more ``variables``.

        Output is text, captured. Raises :class:`subprocess.TimeoutExpired`.
        """
        return subprocess.run(
            command,
            env={**os.environ, **self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=timeout,
            check=False,
        )

    # Measuring

    def measure(
        self, *paths: StrPath, digest: str | None = None, name: str | None = None
    ) -> list[Row]:
        """Measures files (directories: all below), or ``digest`` (``ALG:HEX``) as ``name``."""
        with ControlClient(self.control) as client:
            return client.measure(*paths, digest=digest, name=name)["measured"]

    def generate(self, count: int, name: str | None = None) -> None:
        """``count`` distinct records; those that may reach the PCR are there when it returns."""
        self.call("generate", count=count, name=name)
        if not self.status()["pace"]["hang"]:
            self.wait()

    def violation(self, name: str) -> None:
        """A violation of the file ``name``: a record whose digests are zero."""
        self.call("violation", name=name)

    def critical_data(self, label: str, name: str, data: bytes) -> None:
        """Critical data as a kernel's subsystem measures it."""
        self.call("critical_data", label=label, name=name, data=data.hex())

    def wait(self, *, records: int | None = None, extended: bool = True, timeout: int = 30) -> None:
        """Until ``records`` were added since the boot, and all are in the PCRs.

        Records that :meth:`tpm` holds back are not waited for. Raises :class:`Refused` (ETIMEDOUT).
        """
        self.call("wait", records=records, extended=extended, timeout=timeout)

    # Looking

    def read_list(self, bank: str = "sha1", *, staged: bool = False) -> bytes:
        """A binary list whole, without a reader's lock on it for longer than that."""
        name = f"binary_runtime_measurements_{bank}{'_staged' if staged else ''}"
        descriptor = os.open(self.dir / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            pieces = []
            while piece := os.read(descriptor, 1 << 20):
                pieces.append(piece)
        finally:
            os.close(descriptor)
        return b"".join(pieces)

    def records(self, bank: str = "sha1", *, staged: bool = False) -> list[ListRecord]:
        """The records of the current list, or of the staged one."""
        return parse(self.read_list(bank, staged=staged), bank)

    def pcr(self, index: int = 10, bank: str = "sha256") -> bytes:
        """A PCR that records go to, as the TPM has it. Raises :class:`LookupError`."""
        return self._pcrs()[bank][index]

    def _pcrs(self) -> dict[str, dict[int, bytes]]:
        found: dict[str, dict[int, bytes]] = {}
        for row in self.status()["pcrs"]:
            if row["value"] is not None:
                found.setdefault(row["bank"], {})[row["pcr"]] = bytes.fromhex(row["value"])
        return found

    def verify(self, data: bytes) -> Verdict:
        """Replays binary records, from the boot's first one on, against the PCRs as they are.

        ``.matched`` is the number of records after which they agree, None: never.
        Raises :class:`imafs.errors.FormatError` where ``data`` is malformed.
        """
        from imafs.attest.verify import verify

        return verify(data, self._pcrs())

    def quote(
        self, nonce: bytes = b"", *, bank: str = "sha256", pcrs: Sequence[int] = (10,)
    ) -> Quote:
        """A quote of the TPM, checked. Raises :class:`imafs.errors.TpmError`."""
        from imafs.testing.quoting import quote

        return quote(self.tcti, nonce, bank, pcrs)

    def attest(
        self,
        nonce: bytes = b"",
        *,
        since: int = 0,
        banks: Sequence[str] = (),
        pcrs: Sequence[int] | None = None,
    ) -> Bundle:
        """Evidence as ``imafs attest`` makes it: a quote, and the records that lead to it.

        Raises :class:`imafs.errors.MismatchError` where the list does not lead to the quote.
        """
        from imafs.attest import api
        from imafs.testing.quoting import key

        tcti, made = self.tcti, key(self.tcti)
        return api.attest(
            self.dir, tcti=tcti, key=made, nonce=nonce, banks=banks, pcrs=pcrs, since=since
        )

    def check(
        self,
        bundle: bytes | Bundle | StrPath,
        nonce: bytes = b"",
        *,
        state: StrPath | None = None,
        new: bool = False,
        **options: Any,
    ) -> Judgement:
        """The verdict of ``imafs check`` on evidence of this TPM's key: ``.kind``, ``.said``.

        ``options`` are those of :func:`imafs.attest.check`.
        """
        from imafs.attest import api
        from imafs.testing.quoting import public_key

        options.setdefault("keys", public_key(self.tcti))
        return api.check(bundle, nonce=nonce, state=state, new=new, **options)

    # Bad days

    def fault(
        self,
        operation: str,
        errno: int | str,
        files: str = "*",
        *,
        next: int | None = None,
        every: int | None = None,
        percent: int | None = None,
        seed: int | None = None,
        writing: bool | None = None,
    ) -> Fault:
        """Lets calls fail: ``ima.fault("open", errno.EBUSY, "*_staged", next=3)``.

        ``operation`` is open, read or write; ``files`` a shell pattern. With none of
        ``next``, ``every`` and ``percent`` every such call fails.
        """
        name = errno if isinstance(errno, str) else errnos.errorcode[errno]
        chosen = {"files": files, "next": next, "every": every, "percent": percent, "seed": seed}
        ways = {"writing": writing is True or None, "reading": writing is False or None}
        with ControlClient(self.control) as client:
            return Fault(self, client.fault(operation, name, **chosen, **ways)["fault"])

    def tpm(
        self,
        *,
        behind: int | None = None,
        delay: float | None = None,
        fail: int | None = None,
        hang: bool | None = None,
    ) -> None:
        """Holds the TPM up: ``behind`` records, ``delay`` seconds, ``fail`` extends, hanging."""
        milliseconds = None if delay is None else round(delay * 1000)
        self.call("tpm", behind=behind, delay=milliseconds, fail=fail, hang=hang)

    def tpm_works(self) -> None:
        """Takes :meth:`tpm` back."""
        self.call("tpm", work=True)

    def scenario(self, name: StrPath, *, must_happen: bool = True) -> Scenario:
        """Begins a ready scenario by its name (``imafs scenarios``), or one from a file.

        A test that passes without every step done fails at its end, unless ``must_happen``
        is false.
        """
        return self._scenarios.begin(os.fspath(name), must_happen=must_happen)

    def suspend(self) -> None:
        """No more records, A is EACCES, D and numbers ESTALE: the last moments of a kernel."""
        self.call("suspend")

    def resume(self) -> None:
        """Back from :meth:`suspend`."""
        self.call("resume")

    def kexec(
        self, profile: str | None = None, *, hold: bool = False, carry: bool = True
    ) -> Crossed:
        """The next kernel, with the lists of this one and the PCRs as they are.

        ``hold`` stays in the window in which measurements are suspended until
        :meth:`kexec_finish`; without ``carry`` the lists are lost.
        """
        with ControlClient(self.control) as client:
            return client.kexec_execute(profile, hold=hold, no_carry=not carry)

    def kexec_finish(self) -> Crossed:
        """Ends a kexec that is held."""
        with ControlClient(self.control) as client:
            return client.kexec_finish()

    def reboot(self, profile: str | None = None) -> None:
        """A new kernel with empty lists, and the TPM reset."""
        self.call("reboot", profile=profile)

    # Between tests

    def complaints(self, *, passed: bool = True) -> list[str]:
        """Steps that scenarios could not do, and those that did not happen in a test that passed.

        Raises :class:`imafs.errors.ControlError`.
        """
        return self._scenarios.problems(demand=passed)

    def boot_anew(self, profile: str | None = None) -> None:
        """As a fresh mount: no fault, no scenario, TPM reset, boot_aggregate.

        Watched are the paths of the mount's own ``--watch``. :meth:`log` begins behind it.
        """
        self.call("scenario_end")
        self._scenarios.forget()
        self.call("fault_clear")
        self.call("tpm", work=True)
        self.other_agent.close()
        with suppress(Refused):  # none is held
            self.kexec_finish()
        self.resume()
        watched = self._watched()
        if others := [path for path in watched if path not in self._own_watches]:
            self.call("unwatch", paths=others)
        if lacking := [path for path in self._own_watches if path not in watched]:
            self.call("watch", paths=lacking)
        if profile is None:
            self.call("reset")
        else:
            self.reboot(profile)
        self.wait()
        self._logged = len(self.place.log())

    def _watched(self) -> list[str]:
        paths = self.status()["watch"]["paths"]
        return [str(path) for path in paths] if isinstance(paths, list) else []


def parse(data: bytes, bank: str) -> list[ListRecord]:
    """The records of a binary list. Raises :class:`imafs.errors.FormatError`."""
    from imafs.formats.algorithms import by_name
    from imafs.formats.binary import Reader

    found = []
    for parsed in Reader(data, by_name(bank).digest_size):
        record = parsed.record
        template = record.template
        fields = {
            field.name: field.text(part) if part else ""
            for field, part in zip(template.fields, template.split(record.data), strict=True)
        }
        found.append(
            ListRecord(
                record.pcr, template.label, parsed.digest, record.data, fields, record.violation
            )
        )
    return found
