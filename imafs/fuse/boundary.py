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

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


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
            raise FUSEError(error.errno) from None
        except Exception:
            log.exception("%s failed: EIO for this call", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return guarded
