# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Errors by which a memory limit shows: not only MemoryError (seen with RLIMIT_AS)."""

from __future__ import annotations

import errno
import resource

#: The types of error that too little memory may look like.
MEMORY_ERRORS = (
    *(MemoryError, OSError, RuntimeError, ImportError, ValueError),
    *(SystemError, SyntaxError),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error``, or one error of a group, comes from too little memory.

    A thread that has no room for its stack is a RuntimeError, a library that cannot be
    mapped an ImportError, a request's buffer of libfuse an OSError, a hash that OpenSSL
    cannot begin a ValueError. Code that CPython 3.11 cannot compile is a SystemError or a
    SyntaxError of sound code (dataclasses, in 3 of 200 starts at the limit): it counts as too
    little memory only where memory is limited.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_out_of_memory, error.exceptions))
    if isinstance(error, RuntimeError):
        return "can't start new thread" in str(error)
    if isinstance(error, SystemError | SyntaxError):
        return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    if isinstance(error, ValueError):
        return "not able to copy ctx" in str(error)
    if isinstance(error, ImportError):
        return "failed to map" in str(error) or "annot allocate memory" in str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    )
