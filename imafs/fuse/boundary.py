# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""What may leave a FUSE handler."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from pyfuse3 import FUSEError

from imafs.errors import ImafsError
from imafs.fuse.directory import WaitFirst
from imafs.host.ratelimit import Ratelimit

log = logging.getLogger(__name__)
_seldom = Ratelimit(log)

#: Linux's FUSE takes no answer with a larger errno (fs/fuse/dev.c, fuse_dev_do_write: -512 is
#: the kernel's own), and its caller would wait for ever.
_LARGEST = 511

P = ParamSpec("P")
R = TypeVar("R")


def carried(number: int) -> int:
    """The errno that a caller gets: EINVAL in place of one that FUSE cannot carry."""
    return number if 0 < number <= _LARGEST else errno.EINVAL


def boundary(
    handler: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Any exception but FUSEError ends the daemon (measured), so none gets past this.

    Errors of ours become their errno; everything else is a bug of ours: traceback in
    the log, EIO for that one call.
    """

    @functools.wraps(handler)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except ImafsError as error:
            raise FUSEError(carried(error.errno)) from None
        except Exception:
            _tell("%s failed: EIO for this call", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return guarded


def at_once(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | int:
    """What ``call`` returns, or the errno of what it raises: the same for no coroutine.

    Raises :class:`WaitFirst`.
    """
    try:
        return call(*args, **kwargs)
    except WaitFirst:
        raise
    except ImafsError as error:
        return carried(error.errno)
    except Exception:
        _tell("%r failed: EIO for this call", getattr(call, "__qualname__", call))
        return errno.EIO


def _tell(line: str, what: object) -> None:
    # Anybody can make the same call again, and a traceback is long.
    _seldom.say(f"failed {what}", logging.ERROR, line, what, exc_info=True)
