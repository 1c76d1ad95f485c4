# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Random scripts of the probe language: the same seed gives the same script, for ever.

What is left out, because the two sides cannot go on alike after it: valid requests by
pwrite or in several parts, splice and its kin (FUSE does otherwise, differences.py), calls
that change a file's mode or owner (they outlive a script), and the closing of one of
several writers by another task, after which the kernel's lock is broken until the next boot.
A thread that ended may lend its address, by which the kernel knows a writer, to the next
one: while a thread's writer is open no other new task opens for writing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

BANKS = ("sha1", "sha256", "sha384", "sha512")
SLOTS = "abcdef"
COUNTERS = ("runtime_measurements_count", "violations")
ODD_FILES = ("nosuch", ".", "policy/x", "ascii_runtime_measurements_sha1/x")
#: Sizes around those where something happens; none that FUSE may want filled (explaining.py).
SIZES = (0, 1, 2, 3, 7, 20, 100, 511, 512, 513, 1024, 2048, 4095, 4097, 5000, 8191, 8193, 20000)
#: Read by what copies files; filled only where readahead cannot be switched off.
COPIERS = (65536, 131072)
HUGE = (2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**20, 10**21)
USERS = ("dropcap", "become 1000 1000", "become 1000 0", "become 1000 0 21", "setuid 1000")
STRANGE = (b" ", b"+", b"-", b"0", b"00000", b"0x", b"\r", b"\0", b"\t", b"A", b"D", b":", b"\n")


@dataclass
class Description:
    """An open file description, as far as the choice of calls needs it.

    ``alive``: the open is expected to succeed; most calls go to such ones. What must not
    happen is avoided whether it did or not.
    """

    file: str
    flags: str
    by_thread: bool = False
    alive: bool = True
    written: bool = False

    @property
    def writes(self) -> bool:
        return "w" in self.flags

    @property
    def reads(self) -> bool:
        return "r" in self.flags

    @property
    def is_list(self) -> bool:
        return "_runtime_measurements" in self.file

    @property
    def locks(self) -> bool:
        """It may hold the lock as a writer."""
        return self.writes and self.is_list


def quoted(data: bytes) -> str:
    """``data`` as a "text" of the language."""
    names = {10: "\\n", 9: "\\t", 0: "\\0", 34: '\\"', 92: "\\\\"}
    shown = (names.get(b) or (chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in data)
    return f'"{"".join(shown)}"'


class Writer:
    """Makes one script. ``place`` is the directory of its files."""

    def __init__(self, random: Random, place: str) -> None:
        self.random = random
        self.place = place
        self.lines: list[str] = []
        self.slots: dict[str, Description] = {}
        self.child = False
        self.outer: list[Description] = []
        self.named = 0

    # Choices

    def chance(self, percent: int) -> bool:
        return self.random.randrange(100) < percent

    def list_file(self, *, staged: bool | None = None) -> str:
        """A list, by one of its names."""
        random = self.random
        staged = self.chance(45) if staged is None else staged
        bank = random.choice(("", *BANKS))
        name = f"{random.choice(('ascii', 'binary'))}_runtime_measurements"
        return f"{name}{'_' if bank else ''}{bank}{'_staged' if staged else ''}"

    def file(self) -> str:
        if self.chance(10):
            return self.random.choice(COUNTERS)
        return self.random.choice(ODD_FILES) if self.chance(4) else self.list_file()

    def flags(self) -> str:
        """Of an open that mostly does not meet EBUSY."""
        lists = [d for d in self.slots.values() if d.is_list and d.alive]
        if lists and self.chance(80):
            flags = self.random.choice(("rw", "rw", "w")) if lists[0].writes else "r"
        else:
            flags = self.random.choice(("r", "w", "rw", "rw", "rw"))
        if self.chance(15):
            flags += "".join(self.random.sample("tacndfpxysm", self.random.choice((1, 1, 2))))
        return flags

    def size(self) -> int:
        random = self.random
        if self.chance(50):
            return random.choice(SIZES)
        if self.chance(10):
            return random.choice(COPIERS)
        size = random.randrange(1, random.choice((50, 300, 3000, 12000)))
        return size if size % 512 else size + 1

    def position(self) -> int:
        random = self.random
        if self.chance(30):
            return 0
        return random.randrange(random.choice((10, 200, 2000, 20000)))

    def used(self, *, reads: bool = False, writes: bool = False) -> str:
        """A slot in use, mostly one that can do this."""
        able = [
            slot
            for slot, d in self.slots.items()
            if d.alive and (d.reads or not reads) and (d.locks or not writes)
        ]
        return self.random.choice(sorted(able if able and self.chance(93) else self.slots))

    def expected(self, file: str, flags: str, *, thread: bool = False) -> bool:
        """Whether an open is expected to succeed."""
        if file in ODD_FILES or set(flags) & set("dpyxf"):
            return False
        lists = [d for d in self.slots.values() if d.is_list and d.alive]
        if file in COUNTERS or not lists:
            return True
        if "w" not in flags:
            return not lists[0].writes
        own = not thread and not any(d.by_thread for d in lists) and not self.outer
        return own and lists[0].writes

    def locking(self) -> int:
        """How many slots may hold the lock as writers."""
        return sum(d.locks for d in self.slots.values())

    def request(self, *, staged: bool) -> bytes:
        """What to write: mostly what the file takes, often something near it."""
        random = self.random
        small = random.randrange(random.choice((3, 10, 100)))
        number = b"%d" % (
            random.choice(HUGE) + random.randrange(-1, 2) if self.chance(8) else small
        )
        if self.chance(65):
            return random.choice((b"A\n", b"A\n", b"D\n")) if staged else number + b"\n"
        text = random.choice((b"A", b"D", number, number, b"", random.randbytes(3)))
        for _ in range(random.randrange(1, 3)):
            at = random.choice((0, len(text), random.randrange(len(text) + 1)))
            text = text[:at] + random.choice(STRANGE) + text[at:]
        if self.chance(15):
            text = text.rjust(random.choice((19, 20, 21, 22)), random.choice((b"0", b" ", b"1")))
        return text + random.choice((b"\n", b"\n", b"\n", b"", b"\n\n", b"\n\0", b"\0\n"))

    # Calls

    def add(self, line: str) -> None:
        self.lines.append(f" {line}" if self.child else line)

    def free_slot(self) -> str:
        slot = self.random.choice(SLOTS)
        if slot in self.slots:
            self.close(slot)
        return slot

    def may_lock(self, *, new_task: bool) -> bool:
        held = [*self.slots.values(), *self.outer]
        return not new_task or not any(d.locks and d.by_thread for d in held)

    def open(self) -> None:
        file, flags = self.file(), self.flags()
        thread = self.chance(12)
        if not self.may_lock(new_task=thread or self.child):
            flags = "r"
        slot = self.free_slot()
        self.add(f"{'thread-' if thread else ''}open {slot} {file} {flags}")
        alive = self.expected(file, flags, thread=thread)
        self.slots[slot] = Description(file, flags, thread, alive)

    def reopen(self) -> None:
        old = self.slots[source := self.used()]
        flags = self.flags() if self.may_lock(new_task=self.child) else "r"
        slot = self.free_slot()
        if source not in self.slots or slot == source:
            return
        self.add(f"reopen {slot} {source} {flags}")
        self.slots[slot] = Description(old.file, flags, alive=self.expected(old.file, flags))

    def open_many(self) -> None:
        flags = self.flags() if self.may_lock(new_task=self.child) else "r"
        self.add(f"openmany {self.file()} {flags} {self.random.randrange(1, 6)}")

    def dup(self) -> None:
        source = self.used()
        slot = self.free_slot()
        if source in self.slots and slot != source:
            self.add(f"dup {source} {slot}")
            self.slots[slot] = self.slots[source]

    def close(self, slot: str = "") -> None:
        slot = slot or self.used()
        thread = self.chance(15) and self.locking() <= 1
        self.add(f"{'thread-' if thread else ''}close {slot}")
        del self.slots[slot]
        if self.chance(5):  # nothing may have taken its number yet
            self.add(self.random.choice(("close {}", "read {} 5", 'write {} "1\\n"')).format(slot))

    def write(self) -> None:
        slot = self.used(writes=True)
        description = self.slots[slot]
        text = self.request(staged=description.file.endswith("_staged") ^ self.chance(5))
        description.written = True
        verb = "thread-write" if self.chance(10) else "writev" if self.chance(5) else "write"
        self.add(f"{verb} {slot} {quoted(text)}")

    def bad_write(self) -> None:
        if self.chance(50):
            self.add(f"badwrite {self.used()} {self.random.choice((0, 1, 2, 21, 22, 5000))}")
        else:
            self.add(f'pwrite {self.used()} {self.position()} "x"')

    def read(self) -> None:
        slot, size = self.used(reads=True), self.size()
        verb = self.random.choices(
            ("read", "thread-read", "text", "readv", "pread", "readall", "chunks", "badread"),
            (30, 4, 8, 4, 10, 12, 12, 2),
        )[0]
        if verb == "text":
            self.add(f"text {slot} {self.random.randrange(1, 120)}")
        elif verb == "readv":
            self.add(
                f"readv {slot} {self.random.randrange(2, 400)} {self.random.randrange(2, 400)}"
            )
        elif verb == "pread":
            self.add(f"pread {slot} {self.position()} {size}")
        elif verb == "readall":
            self.add(f"readall {slot}")
        elif verb == "chunks":
            self.add(f"chunks {slot} {self.random.choice((4096, max(size, 13)))}")
        else:
            self.add(f"{verb} {slot} {size}")

    def seek(self) -> None:
        slot = self.used()
        if self.chance(60):
            self.add(f"lseek {slot} {self.position() if self.chance(97) else -5} set")
            return
        if self.chance(60):
            step = self.random.choice((0, 0, 1, -1, 50, -50, 1000))
            self.add(f"lseek {slot} {step} cur")
            if not step or not self.slots[slot].written:
                return
        else:
            where = self.random.choice(("end", "data", "hole", "bad"))
            self.add(f"lseek {slot} {self.random.choice((0, 0, 5, -5))} {where}")
        # From where FUSE's position is not the kernel's.
        self.add(f"lseek {slot} {self.position()} set")

    def other(self) -> None:
        slot = self.used()
        self.add(
            self.random.choice(
                (
                    f"fstat {slot}",
                    f"poll {slot}",
                    f"epoll {slot}",
                    f"mmap {slot}",
                    f"mmap {slot} shared",
                    f"tcgets {slot}",
                    f"getfl {slot}",
                    f"fsync {slot}",
                    f"fdatasync {slot}",
                    f"fallocate {slot} 5",
                    f"ftruncate {slot} {self.random.choice((0, 7))}",
                    f"flock {slot} {self.random.choice(('ex', 'sh'))}",
                    f"setlk {slot} {self.random.choice(('ex', ''))}".strip(),
                )
            )
        )

    def look(self) -> None:
        list_file = self.list_file()
        self.add(
            self.random.choice(
                (
                    "count",
                    "count",
                    "count",
                    "violations",
                    f"lines {list_file}",
                    f"lines {list_file}",
                    f"show {list_file.replace('binary', 'ascii')}",
                    f"stat {self.file()}",
                    f"lstat {list_file}",
                    f"access {self.file()} {self.random.randrange(8)}",
                    f"readlink {list_file}",
                )
            )
        )

    def measure(self) -> None:
        """New contents, and ones that were measured before."""
        random = self.random
        kind = random.randrange(10)
        file = f"{self.place}/{random.choice(('a', 'b', 'c', 'some_longer_name'))}"
        if kind < 4:
            self.add(f"measure {file} text{random.randrange(6)}")
        elif kind < 8:
            number = random.randrange(1, random.choice((4, 20, 70)))
            self.add(f"measuren {file}-{random.randrange(4)} {number} tag")
        elif kind == 8:
            size = random.choice((256, 300, 1000, 4000, 4095, random.randrange(100, 4096)))
            self.add(f"measurelong {self.place}/l{size} {size} text{random.randrange(3)}")
        else:
            self.violation()

    def violation(self) -> None:
        """A reader while a writer is there; both slots are files of the script."""
        self.named += 1
        file = f"{self.place}/v{self.named}"
        self.add(f"measure {file} one")
        self.add(f"open y {file} w")
        self.add(f"open z {file} r")
        self.add(f"#emulator: violation {file}")
        self.add("close z")
        self.add("close y")

    def fork(self) -> None:
        if self.child:
            return
        slots = dict(self.slots)
        self.outer = list(slots.values())
        self.add("fork {")
        self.child = True
        who = self.random.choice(
            (
                "",
                "",
                "",
                "dropcap",
                "become 1000 1000",
                "become 1000 0",
                "become 1000 0 21",
                "setuid 1000",
            )
        )
        if who:
            self.add(who)
        calls: dict[Callable[[], None], int] = {
            self.open: 30,
            self.read: 25,
            self.write: 20,
            self.seek: 10,
            self.close: 15,
            self.look: 8,
            self.dup: 4,
            **({} if who else {self.measure: 10, self.reopen: 4}),
        }
        self.some(calls, self.random.randrange(2, 9))
        if self.chance(10):
            self.add("kill9")
        self.child = False
        self.add("}")
        self.slots, self.outer = slots, []

    def some(self, calls: dict[Callable[[], None], int], number: int) -> None:
        """So many calls, by their weights; what takes a descriptor only where there is one."""
        free = (self.open, self.look, self.measure, self.open_many, self.fork)
        for _ in range(number):
            call = self.random.choices(list(calls), list(calls.values()))[0]
            if call in free or self.slots:
                call()
            else:
                self.open()

    def whole(self, number: int) -> str:
        calls: dict[Callable[[], None], int] = {
            self.open: 12,
            self.close: 9,
            self.read: 24,
            self.write: 22,
            self.seek: 9,
            self.measure: 14,
            self.look: 6,
            self.other: 4,
            self.fork: 4,
            self.dup: 2,
            self.reopen: 2,
            self.open_many: 1,
            self.bad_write: 2,
        }
        self.measure()
        self.some(calls, number)
        return "".join(f"{line}\n" for line in self.lines)


def script(seed: int, name: str, calls: int) -> str:
    """The script of a seed; its files are below ``/q/NAME``."""
    return Writer(Random(seed), f"/q/{name}").whole(calls)
