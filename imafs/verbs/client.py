# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The client of an emulator's control socket; synchronous, standard library only.

with ControlClient("/run/imafs/mnt-ima.sock") as imafs:
    imafs.measure("/usr/bin/true")
    print(imafs.status()["violations"])
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from imafs.control.client import DEADLINE_SECONDS, Client, Progress
from imafs.verbs.answers import (
    Acted,
    Buffer,
    Crossed,
    FaultAdded,
    FaultsCleared,
    FaultsListed,
    Generated,
    KexecLoaded,
    Loaded,
    Measured,
    Nothing,
    Pace,
    Reached,
    Rebooted,
    Row,
    ScenarioBegun,
    ScenarioEnded,
    Status,
    Watched,
)
from imafs.verbs.table import TABLE


class ControlClient(Client):
    """See :class:`imafs.control.client.Client`; a method for every operation of an emulator."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        deadline: float = DEADLINE_SECONDS,
        uid: int | None = None,
    ) -> None:
        super().__init__(path, TABLE, deadline=deadline, uid=uid)

    def measure(
        self,
        *paths: str | os.PathLike[str],
        digest: str | None = None,
        name: str | None = None,
        deadline: float | None = None,
    ) -> Measured:
        """Measure files (relative to this process), or ``digest`` (``ALG:HEX``) as ``name``."""
        absolute = [_absolute(path) for path in paths] or None
        options = {"paths": absolute, "digest": digest, "name": name}
        return cast(Measured, self.call("measure", options, deadline=deadline))

    def violation(self, name: str) -> Row:
        """Add a violation."""
        return cast(Row, self.call("violation", {"name": name}))

    def critical_data(
        self,
        label: str,
        name: str,
        *,
        file: str | os.PathLike[str] | None = None,
        data: bytes | None = None,
    ) -> Row:
        """Measure the bytes of ``file``, or ``data``, as critical data."""
        options = {
            "label": label,
            "name": name,
            "file": None if file is None else _absolute(file),
            "data": None if data is None else data.hex(),
        }
        return cast(Row, self.call("critical_data", options))

    def generate(
        self,
        count: int,
        *,
        name: str | None = None,
        progress: Progress | None = None,
        deadline: float | None = None,
    ) -> Generated:
        """Add ``count`` generated records whose names begin with ``name``."""
        options = {"count": count, "name": name}
        return cast(Generated, self.call("generate", options, progress=progress, deadline=deadline))

    def repeat(self) -> Row:
        """Ask once more for the last measurement."""
        return cast(Row, self.call("repeat"))

    def load(
        self,
        file: str | os.PathLike[str],
        *,
        bank: str | None = None,
        moment: str | None = None,
        as_is: bool = False,
        progress: Progress | None = None,
        deadline: float | None = None,
    ) -> Loaded:
        """Append the measurement list in ``file``."""
        options = {"file": _absolute(file), "bank": bank, "moment": moment, "as_is": as_is or None}
        return cast(Loaded, self.call("load", options, progress=progress, deadline=deadline))

    def wait(
        self,
        *,
        records: int | None = None,
        extended: bool | None = None,
        timeout: int | None = None,
    ) -> Reached:
        """Wait for ``records`` records since boot and, if ``extended``, for the TPM."""
        deadline = None if timeout is None else timeout + self.deadline
        options = {"records": records, "extended": extended, "timeout": timeout}
        return cast(Reached, self.call("wait", options, deadline=deadline))

    def status(self) -> Status:
        """Lists, PCRs, readers, failures."""
        return cast(Status, self.call("status"))

    def watch(self, *paths: str | os.PathLike[str]) -> Watched:
        """Measure what is used below ``paths`` (relative to this process)."""
        return cast(Watched, self.call("watch", {"paths": [_absolute(path) for path in paths]}))

    def unwatch(self, *paths: str | os.PathLike[str]) -> Watched:
        """Watch ``paths`` no more."""
        return cast(Watched, self.call("unwatch", {"paths": [_absolute(path) for path in paths]}))

    def suspend(self) -> Nothing:
        """Stop adding records."""
        return cast(Nothing, self.call("suspend"))

    def resume(self) -> Nothing:
        """Add records again."""
        return cast(Nothing, self.call("resume"))

    def kexec_load(self, cmdline: str | None = None) -> KexecLoaded:
        """Load a kernel for kexec, with this command line."""
        return cast(
            KexecLoaded, self.call("kexec_load", {} if cmdline is None else {"cmdline": cmdline})
        )

    def kexec_execute(
        self,
        profile: str | None = None,
        *,
        no_carry: bool = False,
        whole: bool = False,
        hold: bool = False,
    ) -> Crossed:
        """Start the next kernel by kexec, or with ``hold`` stop before it."""
        options = {"profile": profile, "no_carry": no_carry, "whole": whole, "hold": hold}
        return cast(Crossed, self.call("kexec_execute", {k: v for k, v in options.items() if v}))

    def kexec_finish(self) -> Crossed:
        """Start the next kernel of a kexec that is held."""
        return cast(Crossed, self.call("kexec_finish"))

    def kexec_buffer(self, file: str | os.PathLike[str]) -> Buffer:
        """Write the kexec buffer of this moment to a file."""
        return cast(Buffer, self.call("kexec_buffer", {"file": _absolute(file)}))

    def reboot(self, profile: str | None = None) -> Rebooted:
        """Reboot: down through suspend."""
        return cast(Rebooted, self.call("reboot", {"profile": profile} if profile else {}))

    def reset(self) -> Nothing:
        """Power off and on."""
        return cast(Nothing, self.call("reset"))

    def fault(
        self, operation: str, errno_name: str, **chosen: str | int | bool | None
    ) -> FaultAdded:
        """Let calls fail; ``chosen``: files, next, every, percent, seed, writing, reading."""
        return cast(
            FaultAdded, self.call("fault", {"operation": operation, "errno": errno_name, **chosen})
        )

    def fault_clear(self, fault: int | None = None) -> FaultsCleared:
        """Drop one fault, or all."""
        return cast(FaultsCleared, self.call("fault_clear", {"fault": fault}))

    def fault_list(self) -> FaultsListed:
        """The faults in force."""
        return cast(FaultsListed, self.call("fault_list"))

    def tpm(self, **pace: int | bool | None) -> Pace:
        """Hold the TPM up: behind (records), delay (ms), fail (extends), hang; or work."""
        return cast(Pace, self.call("tpm", pace))

    def agent(self, action: str, count: int | None = None) -> Acted:
        """Act as another agent on the same list."""
        return cast(Acted, self.call("agent", {"action": action, "count": count}))

    def scenario(
        self, file: str | os.PathLike[str] | None = None, *, name: str | None = None
    ) -> ScenarioBegun:
        """Begin the scenario in ``file``, or the ready one called ``name``."""
        options = {"file": None if file is None else _absolute(file), "name": name}
        return cast(ScenarioBegun, self.call("scenario", options))

    def scenario_end(self) -> ScenarioEnded:
        """End the scenario."""
        return cast(ScenarioEnded, self.call("scenario_end"))

    def stop(self) -> Nothing:
        """Unmount and end the daemon."""
        return cast(Nothing, self.call("stop"))


def _absolute(path: str | os.PathLike[str]) -> str:
    # Not abspath: ".." after a symbolic link is for the system to resolve.
    return str(Path(path).absolute())
