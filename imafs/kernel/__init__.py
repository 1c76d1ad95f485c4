# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The kernel's behaviour, as synchronous state machines without any I/O.

Who knows IMA finds the rooms by their names: the queue (ima_queue.c), the hash
table in it, seq_file reading (fs/seq_file.c), opens and requests (ima_fs.c).
A call without await is the critical section: nothing here ever waits.
"""
