# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The closed list of calls that the emulator answers unlike a kernel, with the reason.

Everything else in the scripts is answered the same to the byte. An entry that explains
no line (any more) fails its test.
"""

from __future__ import annotations

from tests.conformance.playing import Difference

EMPTY_WRITE = "FUSE answers a write of 0 bytes itself: it never arrives"
POSITION = "FUSE moves the position by what was written (reads are corrected, SEEK_CUR shows it)"
PWRITE = "FUSE does not tell pwrite from lseek and write; the kernel's seq_open forbids it"
APPENDED = "FUSE sends an O_APPEND write for the end of the file, which it takes to be far away"
COPIED = "FUSE copies the caller's bytes before the daemon sees how many they are"
GATHERED = "FUSE hands the parts of a writev over as one write"
PRIVATE_MAP = "FUSE with direct_io allows private maps"
LEASE = "FUSE lets a descriptor that reads take a lease (securityfs: simple_nosetlease)"
EPOLL = "FUSE has a poll operation for every file"
KEPT = "FUSE keeps a size of its own for splice, and FIONREAD shows it"
FAR = "FUSE lets lseek go further than a file of securityfs"
STATFS = "statfs' magic is FUSE's"
UNKNOWN_BOOT = "this boot's first records (its start script) were not recorded"
KERNEL_MEMORY = "the memory of the kernel that runs the test"
ONE_MORE = "FUSE makes EIO of more than was given; a kernel counts the newline that is not there"


BASE: tuple[Difference, ...] = (
    Difference("base", "statfs", "0 type=73636673 *", "0 type=65735546 *", STATFS),
    Difference("base", 'write a ""', "-1 EINVAL", "0 0", EMPTY_WRITE),
    Difference("base", 'pwrite a 5 "A\\n"', "-1 ESPIPE", "2 0", PWRITE),
    Difference("base", 'write a "A\\n"', "2 0", "-1 EEXIST", PWRITE),
    Difference("base", "mmap a", "ENODEV", "ok", PRIVATE_MAP),
)
READS: tuple[Difference, ...] = (
    Difference("reads", "read a 1000000", "4058 0 fnv=*", "4058 0 fnv=*", UNKNOWN_BOOT),
    Difference("reads", "read a 1000000", "4119 0 fnv=*", "4119 0 fnv=*", UNKNOWN_BOOT),
)
MEM: tuple[Difference, ...] = (Difference("mem", "slab", "Slab:*", "Slab:*", KERNEL_MEMORY),)

POLICY: tuple[Difference, ...] = (
    Difference("2-sessions", 'write a "measure fowner=3"', "17 0", "16 0", ONE_MORE),
    Difference("4-gathered", "writev a *", "36 0", "18 0", GATHERED),
)

QUESTIONS: tuple[Difference, ...] = (
    Difference("append", "lseek a 0 cur", "10 0", "2147479554 0", APPENDED),
    Difference("append", 'pwrite a 0 "1\\n"', "-1 ESPIPE", "2 0", PWRITE),
    Difference("append", "count", "0 3", "0 2", PWRITE),
    Difference("bad-pointer", "badwrite a 0", "-1 EINVAL", "0 0", EMPTY_WRITE),
    Difference("bad-pointer", "badwrite a 1", "-1 EINVAL", "-1 EFAULT", COPIED),
    Difference("bad-pointer", "badwrite a 22", "-1 EINVAL", "-1 EFAULT", COPIED),
    Difference("bad-pointer", "badwrite a 5000", "-1 EINVAL", "-1 EFAULT", COPIED),
    Difference("counters", 'write a ""', "-1 EINVAL", "0 0", EMPTY_WRITE),
    Difference("flush-no-delete", 'write a ""', "-1 EINVAL", "0 0", EMPTY_WRITE),
    Difference("other-calls-counter", "mmap a", "ENODEV", "ok", PRIVATE_MAP),
    Difference("other-calls-counter", "epoll a", "EPERM", "0", EPOLL),
    Difference("other-calls-list", "mmap a", "ENODEV", "ok", PRIVATE_MAP),
    Difference("other-calls-list", "epoll a", "EPERM", "0", EPOLL),
    Difference("other-calls-list", "fionread a", "0 0", "0 2147479552", KEPT),
    Difference("other-calls-writer", "fionread a", "0 0", "0 2147479552", KEPT),
    Difference("other-calls-writer", "mmap a", "ENODEV", "ok", PRIVATE_MAP),
    Difference("other-calls-writer", 'pwrite a 0 "x"', "-1 ESPIPE", "-1 EINVAL", PWRITE),
    Difference("other-calls-writer", 'pwrite a 0 "A\\n"', "-1 ESPIPE", "2 0", PWRITE),
    Difference("other-calls-writer", "count", "0 1", "0 0", PWRITE),
    Difference("position-after-writes", "lseek a 0 cur", "0 0", "2 0", POSITION),
    Difference("position-after-writes", "lseek a 0 cur", "40 0", "42 0", POSITION),
    Difference("position-after-writes", "lseek a -10 cur", "70 0", "72 0", POSITION),
    Difference("position-after-writes", "read a 10", "10 0 fnv=*", "10 0 fnv=*", POSITION),
    Difference("position-after-writes", "lseek a 0 cur", "80 0", "82 0", POSITION),
    Difference("position-after-writes", "lseek a 0 cur", "300 0", "302 0", POSITION),
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
