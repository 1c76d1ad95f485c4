# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""``python -m imafs`` and the command ``imafs``: a Ctrl-C is in order from the first line on."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    # ``python -m imafs`` has put the working directory here, which may be anybody's: nothing
    # else is imported from it. What is named ``imafs`` there has run by now (use ``imafs``).
    del sys.path[0]

# Not from signal: that imports enum, some milliseconds in which a Ctrl-C would be a traceback.
from _signal import (  # type: ignore[import-not-found]
    SIG_DFL,
    SIGINT,
    default_int_handler,
    getsignal,
    signal,
)


def main() -> int:
    """Runs ``imafs`` with the process's arguments; the exit code.

    While modules are imported, and again when all is done, SIGINT has its default action:
    there is nothing to clean up. A process that was started with SIGINT ignored keeps that.
    """
    ours = getsignal(SIGINT) is default_int_handler
    if ours:
        signal(SIGINT, SIG_DFL)
    from imafs.cli import main as commands

    try:
        if ours:
            signal(SIGINT, default_int_handler)
        sys.excepthook = commands.show_bug
        return commands.main()
    except KeyboardInterrupt:  # where the commands' own frame does not catch it
        return commands.INTERRUPTED
    finally:
        if getsignal(SIGINT) is default_int_handler:
            signal(SIGINT, SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
