# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Others who delete from the same kernel: somebody who does nothing else, and a second keeper."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from imafs.keeper.records import listed
from tests.keeper.process import Keeper, Keepers
from tests.keeper.test_untrimmed import piece
from tests.mount.daemon import BINARY, Daemon, imafs
from tests.mount.fixtures import Starter
from tests.support import kill_group

pytestmark = [pytest.mark.mount, pytest.mark.swtpm]
#: As in the mails: whoever has no memory left writes N, and looks at nothing.
_TRIMMER = 'while :; do echo 3 > "$0"; done 2> /dev/null'


@contextmanager
def trimmed(kernel: Daemon) -> Iterator[None]:
    """A process deletes records by number, as often as it can."""
    words = ["sh", "-c", _TRIMMER, str(kernel.path(BINARY))]
    with subprocess.Popen(words, start_new_session=True) as process:
        try:
            yield
            assert process.poll() is None, "it has ended"
        finally:
            kill_group(process)


def stored(keeper: Keeper) -> list[bytes]:
    """The records of the newest life."""
    out = keeper.store.with_name(f"{keeper.store.name}.out")
    result = imafs("keep", "export", "--store", keeper.store, "-o", out, check=False)
    assert result.returncode in (0, 10), result.stderr
    return records(out.read_bytes())


def records(data: bytes) -> list[bytes]:
    found = listed(data)
    return [found.joined(number, number + 1) for number in range(len(found))]


def without_repeats(kept: list[bytes], gaps: list[int]) -> list[bytes]:
    """Behind a gap the records in front of it may stand once more: those of a batch that was staged
    still. Nowhere else, and no others."""
    found = list(kept)
    for gap in sorted(gaps, reverse=True):
        sizes = range(min(gap, len(found) - gap), 0, -1)
        again = (size for size in sizes if found[gap - size : gap] == found[gap : gap + size])
        del found[gap : gap + next(again, 0)]
    return found


def read(keeper: Keeper) -> bytes | None:
    """The view; None: it is refused."""
    try:
        return keeper.read(BINARY)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None


class Race:
    """A kernel with a trimmer, a keeper of it, and a kernel of the same records that nobody
    trims."""

    def __init__(self, start: Starter, keepers: Keepers, options: tuple[str, ...]) -> None:
        self.kernel = start("--banks", "sha1,sha256", *options)
        self.untrimmed = start("--banks", "sha1,sha256")
        self._keepers = keepers
        self.keeper = self._begun(None)
        self._pieces = 0

    def _begun(self, of: Keeper | None) -> Keeper:
        keeper = self._keepers(
            *(self.kernel, "--pcrs", self.kernel.tcti),
            of=of,
            records=10,
            allow="gap|gets EIO|waiting|joining|degraded",
        )
        keeper.until("it is kept", state="idle")
        return keeper

    def add(self) -> None:
        for daemon in (self.kernel, self.untrimmed):
            piece(daemon, self._pieces)
        self._pieces += 1

    def restart(self, *, killed: bool, meanwhile: int = 0) -> None:
        """The next keeper; so many pieces are added while none runs."""
        (Keeper.kill if killed else Keeper.terminate)(self.keeper)
        for _ in range(meanwhile):
            self.add()
        self.keeper = self._begun(self.keeper)

    def reboot(self) -> None:
        life = self.keeper.status()["life"]
        for daemon in (self.kernel, self.untrimmed):
            daemon.call("reboot")
        self.keeper.until("the next life", lambda so: so["life"] != life, state="idle")

    def is_served(self) -> bool:
        """The view is the truth; or it is refused, and records are in no store. Behind a gap a
        batch that is there still is stored again: an emulator does not tell that its kernel keeps
        the hash table, without which the same records may have come twice."""
        truth = self.untrimmed.read(BINARY)
        shown = read(self.keeper)
        if shown is not None:
            assert shown == truth
            return True
        gaps = [gap["after"] for gap in self.keeper.emptied(self.kernel)["gaps"]]
        every, kept = records(truth), without_repeats(stored(self.keeper), gaps)
        assert [record for record in every if record in set(kept)] == kept
        assert len(kept) < len(every), "refused, but nothing is lost"
        assert read(self.keeper) is None
        return False


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="staging"),
        pytest.param(("--no-staging",), id="no staging", marks=pytest.mark.nightly),
        pytest.param(("--profile", "v5"), id="v5", marks=pytest.mark.nightly),
    ],
)
def test_a_trimmer_in_a_loop(start: Starter, keepers: Keepers, options: tuple[str, ...]) -> None:
    """While a keeper runs nobody else deletes anything. Between two of them records are lost, and
    the view is refused then; it is whole again behind the next reboot."""
    race = Race(start, keepers, options)
    with trimmed(race.kernel):
        for _ in range(5):
            race.add()
            assert race.is_served()
        for killed in (True, False):
            race.keeper.emptied(race.kernel)
            race.restart(killed=killed)
            assert race.is_served()
        served = []
        for number in range(4):
            race.add()
            race.restart(killed=number % 2 == 0, meanwhile=number % 2)
            race.add()
            served.append(race.is_served())
        assert not all(served)
        assert not served[-1], "a gap ends with the next reboot alone"
    race.reboot()
    for _ in range(3):
        race.add()
        assert race.is_served()


def test_two_keepers_of_one_kernel(start: Starter, keepers: Keepers) -> None:
    """The second one waits, and says for whom. When the first has ended it keeps the rest, and says
    what it has not: together they have all records, and neither serves a part as the whole."""
    kernel, untrimmed = start("--banks", "sha1,sha256"), start("--banks", "sha1,sha256")

    def add(number: int) -> None:
        for daemon in (kernel, untrimmed):
            piece(daemon, number)

    first = keepers(kernel)
    add(1)
    first.emptied(kernel)
    second = keepers(kernel, name="second-", allow="waiting|gets EIO|gap")
    status = second.until("it is told", state="waiting")
    assert "somebody else has a measurement list open" in status["why"]
    assert (status["view"], status["life"]) == ("refused", None)
    assert not list(second.view.glob("*measurements*"))  # nobody knows yet which banks there are
    assert f"{first.process.pid} " in imafs("keep", "holders", "--source", kernel.dir).stdout
    add(2)
    assert first.read(BINARY) == untrimmed.read(BINARY)
    first.emptied(kernel)
    add(3)
    first.terminate()
    status = second.until("the second has the lists", state="idle")
    add(4)
    assert (status["view"], [gap["after"] for gap in status["gaps"]]) == ("refused", [0])
    assert read(second) is None
    second.emptied(kernel)
    assert [*stored(first), *stored(second)] == records(untrimmed.read(BINARY))
    second.terminate()
    first = keepers(kernel, of=first, allow="gap|gets EIO")
    status = first.until("the first one has looked", state="idle")
    assert (status["view"], list(status["alarms"])) == ("refused", ["gap"])
    assert read(first) is None
