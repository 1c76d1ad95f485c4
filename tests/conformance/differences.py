# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The closed list of calls that the emulator answers unlike a kernel, with the reason.

Everything else in the scripts is answered the same to the byte. An entry that explains
no line (any more) fails its test.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.conformance.playing import Difference

EMPTY_WRITE = "FUSE answers a write of 0 bytes itself: it never arrives"
POSITION = "FUSE moves the position by what was written (reads are corrected, SEEK_CUR shows it)"
PWRITE = "FUSE does not tell pwrite from lseek and write; the kernel's seq_open forbids it"
COPIED = "FUSE copies the caller's bytes before the daemon sees how many they are"
GATHERED = "FUSE hands the parts of a writev over as one write"
PRIVATE_MAP = "FUSE with direct_io allows private maps"
FILLED = "a page at a page's boundary is what splice reads, and is filled: a part means end of file"
LEASE = "FUSE lets a descriptor that reads take a lease (securityfs: simple_nosetlease)"
EPOLL = "FUSE has a poll operation for every file"
SPLICE = "FUSE reads for splice clients, who would get nothing else on a mount (a kernel refuses)"
SEEK_END = "FUSE answers SEEK_END, SEEK_DATA and SEEK_HOLE from st_size"
ST_SIZE = "st_size is the true size, or splice clients would read nothing (--st-size zero: 0)"
STATFS = "statfs' magic is FUSE's"
UNKNOWN_BOOT = "this boot's first records (its start script) were not recorded"
KERNEL_MEMORY = "the memory of the kernel that runs the test"
ONE_MORE = "FUSE makes EIO of more than was given; a kernel counts the newline that is not there"


def _sizes(script: str, *calls: str) -> Iterable[Difference]:
    for call in calls:
        yield Difference(
            script, call, "mode=* size=* nlink=*", "mode=* size=* nlink=*", ST_SIZE, "actual", True
        )


def _filled(script: str, call: str, summary: str) -> Iterable[Difference]:
    """The same bytes in reads of other sizes."""
    yield Difference(script, call, f"sizes=* {summary}", f"sizes=4096x* {summary}", FILLED)


#: Questions with reads of several whole pages: where readahead cannot be switched off
#: (read_ahead_kb of the mount not writable), these are filled too.
SEVERAL_PAGES = {"chunks-8192", "sizes-mixed"}

BASE: tuple[Difference, ...] = (
    Difference("base", "statfs", "0 type=73636673 *", "0 type=65735546 *", STATFS),
    Difference("base", 'write a ""', "-1 EINVAL", "0 0", EMPTY_WRITE),
    Difference("base", 'pwrite a 5 "A\\n"', "-1 ESPIPE", "2 0", PWRITE),
    Difference("base", 'write a "A\\n"', "2 0", "-1 EEXIST", PWRITE),
    Difference("base", "mmap a", "ENODEV", "ok", PRIVATE_MAP),
    Difference("base", "lseek a 0 end", "-1 EINVAL", "0 0", SEEK_END, "zero"),
    Difference("base", "lseek a 0 end", "-1 EINVAL", "665 0", SEEK_END, "actual"),
    Difference("base", "lseek a 0 end", "0 0", "2 0", SEEK_END, "actual"),
    *_sizes(
        "base",
        "stat ascii_runtime_measurements",
        "stat runtime_measurements_count",
        "stat violations",
        "stat policy",
        "fstat a",
    ),
)
READS: tuple[Difference, ...] = (
    Difference("reads", "read a 1000000", "4058 0 fnv=*", "4058 0 fnv=*", UNKNOWN_BOOT),
    Difference("reads", "read a 1000000", "4119 0 fnv=*", "4119 0 fnv=*", UNKNOWN_BOOT),
)
MEM: tuple[Difference, ...] = (Difference("mem", "slab", "Slab:*", "Slab:*", KERNEL_MEMORY),)

POLICY: tuple[Difference, ...] = (
    Difference("2-sessions", 'write a "measure fowner=3"', "17 0", "16 0", ONE_MORE),
    Difference("2-sessions", "lseek a 0 end", "0 0", "* 0", SEEK_END, "actual"),
    Difference("4-gathered", "writev a *", "36 0", "18 0", GATHERED),
)

QUESTIONS: tuple[Difference, ...] = (
    Difference("append", "lseek a 0 cur", "10 0", "2 0", POSITION, "zero"),
    Difference("append", "lseek a 0 cur", "10 0", "677 0", POSITION, "actual"),
    Difference("append", 'pwrite a 0 "1\\n"', "-1 ESPIPE", "2 0", PWRITE),
    Difference("append", "count", "0 3", "0 2", PWRITE),
    Difference("bad-pointer", "badwrite a 0", "-1 EINVAL", "0 0", EMPTY_WRITE),
    Difference("bad-pointer", "badwrite a 1", "-1 EINVAL", "-1 EFAULT", COPIED),
    Difference("bad-pointer", "badwrite a 22", "-1 EINVAL", "-1 EFAULT", COPIED),
    Difference("bad-pointer", "badwrite a 5000", "-1 EINVAL", "-1 EFAULT", COPIED),
    *_sizes("chmod-chown", "stat runtime_measurements_count", "stat violations"),
    *_filled("chunks-4096", "chunks a 4096", "calls=3 total=11550 0 fnv=e620c28a"),
    *_filled("chunks-4096", "chunks a 4096", "calls=3 total=8960 0 fnv=0fd7e39f"),
    *_filled("chunks-4096", "chunks a 4096", "calls=* total=12040 0 fnv=1690b007"),
    *_filled("chunks-4096", "chunks a 4096", "calls=4 total=15470 0 fnv=8511a6ab"),
    Difference("counters", 'write a ""', "-1 EINVAL", "0 0", EMPTY_WRITE),
    Difference("counters", "lseek a 0 end", "0 0", "3 0", SEEK_END, "actual"),
    Difference("counters", "lseek a -1 cur", "-1 EINVAL", "2 0", SEEK_END, "actual"),
    Difference("counters", "lseek a 0 data", "-1 ENXIO", "0 0", SEEK_END, "actual"),
    Difference("counters", "lseek a 0 hole", "-1 ENXIO", "3 0", SEEK_END, "actual"),
    Difference("counters", "fionread a", "0 -100", "0 0", SEEK_END, "actual"),
    Difference("flush-no-delete", 'write a ""', "-1 EINVAL", "0 0", EMPTY_WRITE),
    *_filled("long-records", "chunks a 4096", "calls=* total=22712 0 fnv=62e7f0d9"),
    *_sizes("open-path", "fstat a"),
    Difference("other-calls-counter", "mmap a", "ENODEV", "ok", PRIVATE_MAP),
    Difference("other-calls-counter", "epoll a", "EPERM", "0", EPOLL),
    Difference("other-calls-counter", "splice a 100", "-1 EINVAL", "0 0", SPLICE, "zero"),
    Difference("other-calls-counter", "splice a 100", "-1 EINVAL", "2 0", SPLICE, "actual"),
    Difference("other-calls-counter", "sendfile a o 100", "-1 EINVAL", "0 0", SPLICE),
    Difference("other-calls-counter", "readv a 2 2", "2 0", "0 0", SPLICE, "actual"),
    Difference("other-calls-list", "mmap a", "ENODEV", "ok", PRIVATE_MAP),
    Difference("other-calls-list", "epoll a", "EPERM", "0", EPOLL),
    Difference("other-calls-list", "splice a 100", "-1 EINVAL", "0 0", SPLICE, "zero"),
    Difference("other-calls-list", "splice a 100", "-1 EINVAL", "100 0", SPLICE, "actual"),
    Difference("other-calls-list", "sendfile a o 100", "-1 EINVAL", "0 0", SPLICE, "zero"),
    Difference("other-calls-list", "sendfile a o 100", "-1 EINVAL", "45 0", SPLICE, "actual"),
    Difference("other-calls-list", "lseek a 0 data", "-1 EINVAL", "-1 ENXIO", SEEK_END, "zero"),
    Difference("other-calls-list", "lseek a 0 data", "-1 EINVAL", "0 0", SEEK_END, "actual"),
    Difference("other-calls-list", "lseek a 0 hole", "-1 EINVAL", "-1 ENXIO", SEEK_END, "zero"),
    Difference("other-calls-list", "lseek a 0 hole", "-1 EINVAL", "145 0", SEEK_END, "actual"),
    Difference("other-calls-list", "lseek a 0 end", "-1 EINVAL", "0 0", SEEK_END, "zero"),
    Difference("other-calls-list", "lseek a 0 end", "-1 EINVAL", "145 0", SEEK_END, "actual"),
    Difference("other-calls-writer", "mmap a", "ENODEV", "ok", PRIVATE_MAP),
    Difference("other-calls-writer", "splice a 10", "-1 EINVAL", "0 0", SPLICE),
    Difference("other-calls-writer", 'pwrite a 0 "x"', "-1 ESPIPE", "-1 EINVAL", PWRITE),
    Difference("other-calls-writer", 'pwrite a 0 "A\\n"', "-1 ESPIPE", "2 0", PWRITE),
    Difference("other-calls-writer", "count", "0 1", "0 0", PWRITE),
    Difference("position-after-writes", "lseek a 0 cur", "0 0", "2 0", POSITION),
    Difference("position-after-writes", "lseek a 0 cur", "40 0", "42 0", POSITION),
    Difference("position-after-writes", "lseek a -10 cur", "70 0", "72 0", POSITION),
    Difference("position-after-writes", "read a 10", "10 0 fnv=*", "10 0 fnv=*", POSITION),
    Difference("position-after-writes", "lseek a 0 cur", "80 0", "82 0", POSITION),
    Difference("position-after-writes", "lseek a 0 cur", "300 0", "302 0", POSITION),
    Difference("seek-into", "read a 4096", "4046 0 fnv=*", "4096 0 fnv=*", FILLED),
    Difference("seek-into", "read a 4096", "1518 0 fnv=*", "1468 0 fnv=*", FILLED),
    *_sizes(
        "stat",
        "stat ascii_runtime_measurements_sha512",
        "stat runtime_measurements_count",
        "stat violations",
        "fstat a",
    ),
    *_sizes("truncate", "stat ascii_runtime_measurements", "fstat a"),
    Difference("write-only-descriptor", "lseek a 0 cur", "5 0", "7 0", POSITION),
    Difference("write-only-descriptor", 'pwrite a 0 "1\\n"', "-1 ESPIPE", "-1 EBADF", PWRITE),
    Difference("writev", 'writev a "A" "\\n"', "-1 EINVAL", "2 0", GATHERED),
    Difference("writev", "count", "0 4", "0 0", GATHERED),
    Difference("writev", 'writev a "D\\n" "A\\n"', "-1 ENOENT", "-1 EINVAL", GATHERED),
    Difference("writev", 'writev a "A\\n" "D\\n"', "4 0", "-1 EINVAL", GATHERED),
)


def for_script(script: str) -> list[Difference]:
    """The entries of one script."""
    return [d for d in (*BASE, *READS, *MEM, *POLICY, *QUESTIONS) if d.script == script]
