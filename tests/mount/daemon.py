# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A daemon under test, down to its process: how it starts, fails, dies and ends."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from imafs.formats.algorithms import by_name
from imafs.host import mounts
from imafs.testing.mounted import Home, Mounted, children
from imafs.verbs.client import ControlClient
from tests.support import ROOT, ExpectedLogs, require, run, wait_for

IMAFS = (sys.executable, "-P", "-m", "imafs")
#: Seconds; an end takes 0.1 s, but the machine may be busy.
STOP = 60.0

_COMPLAINT = re.compile(r"WARNING|ERROR|Traceback|Exception|Error\b")

ASCII = "ascii_runtime_measurements"
BINARY = "binary_runtime_measurements"
COUNT = "runtime_measurements_count"
VIOLATIONS = "violations"


def patched(*statements: str) -> tuple[str, ...]:
    """A prefix: the command ``imafs`` behind it runs with other constants, for which nobody has
    the patience."""
    run_it = 'sys.exit(main(sys.argv[sys.argv.index("imafs") + 1 :]))'  # behind: python -P -m imafs
    code = ["import sys", *statements, "from imafs.cli.main import main", run_it]
    return (sys.executable, "-c", "\n".join(code))


def imafs(
    *arguments: str | os.PathLike[str],
    check: bool = True,
    deadline: float = 60,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs ``imafs`` with ``arguments`` to its end."""
    return run([*IMAFS, *arguments], check=check, deadline=deadline, env=env, cwd=ROOT)


def alive(pid: int) -> bool:
    """Whether ``pid`` is a process that has not ended, with all its threads.

    A killed process shows as a zombie once its first thread is gone; the others may still
    hold what it had open, /dev/fuse among them, so that a mount of it is not dead yet.
    """
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "XZ" or int(fields[16]) > 1


#: Shell, for a mount namespace of a test's own: no other emulator of this machine is seen.
ALONE = shlex.join([sys.executable, "-P", str(ROOT / "tests" / "mount" / "alone.py")])

#: The same, but for those below $KEEP.
ALONE_BUT = f'{ALONE} "$KEEP"'


def layers(path: str | os.PathLike[str]) -> int:
    """How many mounts lie on exactly ``path``."""
    real = mounts.resolve(path)
    return sum(mount.path == real for mount in mounts.mounts())


class Daemon(Mounted):
    """``imafs mount`` in the foreground, of the interpreter and the code under test.

    :meth:`close` always ends the process, then complains where it had ended unseen, where it
    did not end well, and about log lines of level WARNING or higher which :attr:`logs` does
    not allow.
    """

    STOP = STOP

    def __init__(
        self,
        *options: str | os.PathLike[str],
        place: Home | None = None,
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        control: bool = True,
    ) -> None:
        require("/dev/fuse", "fusermount3")
        self.logs = ExpectedLogs()
        self._told = 0
        self._closed = False
        super().__init__(
            options, home=place, prefix=prefix, command=IMAFS, env=env, cwd=cwd, control=control
        )
        self.place = self.home

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except AssertionError as complaint:
            if error is None:
                raise
            # The first error counts.
            error.add_note(f"and the daemon: {complaint}")

    def log(self) -> str:
        """Everything on stderr so far, or since :meth:`boot_anew`."""
        return super().log()[self._told :]

    def boot_anew(self) -> None:
        """As freshly mounted with default options, for the next test. Raises
        :class:`~imafs.errors.ImafsError` where it is not to be had any more; complains as
        :meth:`close` does of the log.
        """
        with ControlClient(self.control) as client:
            for op, options in (
                *(("scenario_end", {}), ("fault_clear", {}), ("tpm", {"work": True})),
                *(("resume", {}), ("reset", {}), ("wait", {"extended": True})),
            ):
                client.call(op, options, deadline=60)
        log, logs = self.log(), self.logs
        self._told += len(log)
        self.logs = ExpectedLogs()
        _complain(logs, log)

    def close(self) -> None:
        """Ends the process if it has not ended, and looks at its log. Once is enough."""
        if self._closed:
            return
        self._closed = True
        problem = self.end()
        log = self.log()
        problem = self.take_away() or problem
        assert problem is None, f"{problem}\n{log}"
        _complain(self.logs, log)

    # What a running daemon is asked

    def swtpm(self) -> int:
        """Process id of the swtpm that the daemon started."""
        found = [
            pid for pid in children(self.pid) if Path(f"/proc/{pid}/comm").read_text() == "swtpm\n"
        ]
        assert len(found) == 1, found
        return found[0]

    def call(self, op: str, **options: object) -> dict[str, object]:
        """One operation of the control socket, within 60 seconds."""
        with ControlClient(self.control) as client:
            return client.call(op, options, deadline=60)

    def group(self, name: str) -> dict[str, Any]:
        """A group of the status: ``records``, ``bytes``, ``failures``."""
        value = self.call("status")[name]
        assert isinstance(value, dict)
        return value

    def generate(self, count: int, **options: object) -> None:
        """So many new records, in the TPM as well."""
        self.call("generate", count=count, **options)
        self.call("wait", extended=True)

    def ctl(self, *arguments: str | os.PathLike[str], check: bool = True) -> str:
        """What ``imafs ctl`` prints."""
        return imafs("ctl", "--control", self.control, *arguments, check=check).stdout

    def environment(self) -> dict[str, str]:
        """Variables by which other clients find the TPM."""
        value = self.call("status")["environment"]
        assert isinstance(value, dict)
        return value

    def path(self, name: str) -> Path:
        """A file of the IMA directory."""
        return self.dir / name

    def read(self, name: str = BINARY) -> bytes:
        """The whole of a file, by read(2) until it gives nothing."""
        descriptor = os.open(self.dir / name, os.O_RDONLY)
        try:
            return read_to_end(descriptor)
        finally:
            os.close(descriptor)

    def write(self, name: str, data: bytes) -> str:
        """ok, or the errno of the write; the open must succeed, all must be taken."""
        descriptor = os.open(self.dir / name, os.O_WRONLY)
        try:
            assert os.write(descriptor, data) == len(data)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        finally:
            os.close(descriptor)
        return "ok"

    def take(self, name: str) -> bytes:
        """Stages, reads the staged file ``name`` and deletes, by one descriptor."""
        writer = os.open(self.dir / name, os.O_RDWR)
        try:
            os.write(writer, b"A\n")
            os.lseek(writer, 0, os.SEEK_SET)
            data = read_to_end(writer)
            os.write(writer, b"D\n")
        finally:
            os.close(writer)
        return data

    def count(self) -> int:
        """runtime_measurements_count."""
        return int(self.read(COUNT))

    def lists(self) -> dict[str, bytes]:
        """Every list file, the staged ones too, and the counters."""
        names = sorted(n for n in os.listdir(self.dir) if n != "policy")
        return {name: self.read(name) for name in names}

    def pcr(self, bank: str, index: int = 10) -> bytes:
        """What another client reads from the TPM, once all is extended."""
        return self.pcrs((bank,), index)[bank]

    def pcrs(self, banks: Iterable[str], index: int = 10) -> dict[str, bytes]:
        """The same of several banks, read at once."""
        self.call("wait", extended=True)
        sizes = {bank: by_name(bank).digest_size for bank in banks}
        selection = "+".join(f"{bank}:{index}" for bank in sizes)
        with tempfile.NamedTemporaryFile(dir=self.place.base) as values:
            command = ["tpm2_pcrread", selection, "--output", values.name]
            run(command, env={"TPM2TOOLS_TCTI": self.tcti})
            found = {bank: values.read(size) for bank, size in sizes.items()}
            assert not values.read(), "more than the banks that were asked for"
        return found

    def assert_replays(self) -> list[dict[str, Any]]:
        """The daemon's own word: the PCRs are what the lists since boot replay to."""
        self.call("wait", extended=True)
        pcrs = self.call("status")["pcrs"]
        assert isinstance(pcrs, list)
        assert pcrs
        assert all(row["equal"] for row in pcrs), pcrs
        return pcrs


def _complain(logs: ExpectedLogs, log: str) -> None:
    complaints = logs.complaints(line for line in log.split("\n") if _COMPLAINT.search(line))
    assert not complaints, "log of the daemon:\n" + "\n".join(complaints) + "\n" + log


def read_to_end(descriptor: int, size: int = 65536) -> bytes:
    """From the position of ``descriptor`` on."""
    pieces = []
    while piece := os.read(descriptor, size):
        pieces.append(piece)
    return b"".join(pieces)


def gone(path: str | os.PathLike[str]) -> None:
    """Waits until nothing is mounted on ``path``."""
    wait_for(lambda: layers(path) == 0, STOP, f"{path} is unmounted")


def close_dead(descriptor: int) -> None:
    """close() flushes, and the flush of a dead mount is ENOTCONN; the descriptor is closed."""
    with contextlib.suppress(OSError):
        os.close(descriptor)
