# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The client of an emulator's control socket; synchronous, standard library only.

with ControlClient("/run/imafs/mnt-ima.sock") as imafs:
    imafs.measure("/usr/bin/true")
    print(imafs.status()["violations"])
"""

from __future__ import annotations

import os
from pathlib import Path

from imafs.control.client import DEADLINE_SECONDS, Answer, Client, Progress
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
    ) -> Answer:
        """Measure files (relative to this process), or ``digest`` (``ALG:HEX``) as ``name``."""
        absolute = [_absolute(path) for path in paths] or None
        options = {"paths": absolute, "digest": digest, "name": name}
        return self.call("measure", options, deadline=deadline)

    def violation(self, name: str) -> Answer:
        """Add a violation."""
        return self.call("violation", {"name": name})

    def critical_data(
        self,
        label: str,
        name: str,
        *,
        file: str | os.PathLike[str] | None = None,
        data: bytes | None = None,
    ) -> Answer:
        """Measure the bytes of ``file``, or ``data``, as critical data."""
        options = {
            "label": label,
            "name": name,
            "file": None if file is None else _absolute(file),
            "data": None if data is None else data.hex(),
        }
        return self.call("critical_data", options)

    def generate(
        self,
        count: int,
        *,
        name: str | None = None,
        progress: Progress | None = None,
        deadline: float | None = None,
    ) -> Answer:
        """Add ``count`` generated records whose names begin with ``name``."""
        options = {"count": count, "name": name}
        return self.call("generate", options, progress=progress, deadline=deadline)

    def repeat(self) -> Answer:
        """Ask once more for the last measurement."""
        return self.call("repeat")

    def load(
        self,
        file: str | os.PathLike[str],
        *,
        bank: str | None = None,
        moment: str | None = None,
        as_is: bool = False,
        progress: Progress | None = None,
        deadline: float | None = None,
    ) -> Answer:
        """Append the measurement list in ``file``."""
        options = {"file": _absolute(file), "bank": bank, "moment": moment, "as_is": as_is or None}
        return self.call("load", options, progress=progress, deadline=deadline)

    def wait(
        self,
        *,
        records: int | None = None,
        extended: bool | None = None,
        timeout: int | None = None,
    ) -> Answer:
        """Wait for ``records`` records since boot and, if ``extended``, for the TPM."""
        deadline = None if timeout is None else timeout + self.deadline
        options = {"records": records, "extended": extended, "timeout": timeout}
        return self.call("wait", options, deadline=deadline)

    def status(self) -> Answer:
        """Lists, PCRs, readers, failures."""
        return self.call("status")

    def watch(self, *paths: str | os.PathLike[str]) -> Answer:
        """Measure what is used below ``paths`` (relative to this process)."""
        return self.call("watch", {"paths": [_absolute(path) for path in paths]})

    def unwatch(self, *paths: str | os.PathLike[str]) -> Answer:
        """Watch ``paths`` no more."""
        return self.call("unwatch", {"paths": [_absolute(path) for path in paths]})

    def suspend(self) -> Answer:
        """Stop adding records."""
        return self.call("suspend")

    def resume(self) -> Answer:
        """Add records again."""
        return self.call("resume")

    def kexec_load(self, cmdline: str | None = None) -> Answer:
        """Load a kernel for kexec, with this command line."""
        return self.call("kexec_load", {} if cmdline is None else {"cmdline": cmdline})

    def kexec_execute(
        self,
        profile: str | None = None,
        *,
        no_carry: bool = False,
        whole: bool = False,
        hold: bool = False,
    ) -> Answer:
        """Start the next kernel by kexec, or with ``hold`` stop before it."""
        options = {"profile": profile, "no_carry": no_carry, "whole": whole, "hold": hold}
        return self.call("kexec_execute", {k: v for k, v in options.items() if v})

    def kexec_finish(self) -> Answer:
        """Start the next kernel of a kexec that is held."""
        return self.call("kexec_finish")

    def kexec_buffer(self, file: str | os.PathLike[str]) -> Answer:
        """Write the kexec buffer of this moment to a file."""
        return self.call("kexec_buffer", {"file": _absolute(file)})

    def reboot(self, profile: str | None = None) -> Answer:
        """Reboot: down through suspend."""
        return self.call("reboot", {"profile": profile} if profile else {})

    def reset(self) -> Answer:
        """Power off and on."""
        return self.call("reset")

    def fault(self, operation: str, errno_name: str, **chosen: str | int | bool | None) -> Answer:
        """Let calls fail; ``chosen``: files, next, every, percent, seed, writing, reading."""
        return self.call("fault", {"operation": operation, "errno": errno_name, **chosen})

    def fault_clear(self, fault: int | None = None) -> Answer:
        """Drop one fault, or all."""
        return self.call("fault_clear", {"fault": fault})

    def fault_list(self) -> Answer:
        """The faults in force."""
        return self.call("fault_list")

    def tpm(self, **pace: int | bool | None) -> Answer:
        """Hold the TPM up: behind (records), delay (ms), fail (extends), hang; or work."""
        return self.call("tpm", pace)

    def agent(self, action: str, count: int | None = None) -> Answer:
        """Act as another agent on the same list."""
        return self.call("agent", {"action": action, "count": count})

    def scenario(
        self, file: str | os.PathLike[str] | None = None, *, name: str | None = None
    ) -> Answer:
        """Begin the scenario in ``file``, or the ready one called ``name``."""
        options = {"file": None if file is None else _absolute(file), "name": name}
        return self.call("scenario", options)

    def scenario_end(self) -> Answer:
        """End the scenario."""
        return self.call("scenario_end")

    def stop(self) -> Answer:
        """Unmount and end the daemon."""
        return self.call("stop")


def _absolute(path: str | os.PathLike[str]) -> str:
    # Not abspath: ".." after a symbolic link is for the system to resolve.
    return str(Path(path).absolute())
