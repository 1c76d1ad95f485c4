# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Play a script of system calls against an IMA directory, one answer line per call.

The emulator's side of the conformance tests; ``probe.c`` is the same program for the
inside of a real kernel. LANGUAGE.md describes the verbs. Standard library only::

    python -m tests.conformance.probe DIR < script
    python -m tests.conformance.probe DIR --control SOCKET --files SCRATCH < script

Without ``--control`` it does exactly what probe.c does. With it, absolute paths of the
script are looked up below SCRATCH, and what a kernel's policy would measure is asked
of the emulator under the script's own path.
"""

from __future__ import annotations

import argparse
import os
import signal
import stat
import sys
from collections.abc import Callable, Sequence

from tests.conformance import measuring, names, verbs
from tests.conformance.language import Call, Player, errno_name, failure


def play(player: Player, lines: Sequence[str], depth: int = 0) -> None:
    """Run the lines; ``depth`` is the number of forks above, for the indentation."""
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if depth:
            line = line.lstrip(" ")
        if player.measurer is not None and line.startswith("#emulator: "):
            player.measurer.direct(line.removeprefix("#emulator: "))
        if not line or line.startswith("#"):
            continue
        call = Call(line)
        player.put(f"{' ' * (depth * 2)}{line} -> ")
        if call.verb == "fork":
            end = at
            while end < len(lines) and not lines[end].lstrip(" ").startswith("}"):
                end += 1
            player.put("child\n")
            _fork(player, lines[at:end], depth)
            at = end + 1
            continue
        verb = VERBS.get(call.verb)
        try:
            answer = "?" if verb is None else verb(player, call)
        except OSError as error:
            answer = failure(call.verb, errno_name(error))
        player.put(answer + "\n")


def _fork(player: Player, block: Sequence[str], depth: int) -> None:
    child = os.fork()
    if not child:
        code = 1
        try:
            play(player, block, depth + 1)
            code = 0
        finally:
            if code:
                sys.excepthook(*sys.exc_info())
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("probe: a forked child failed")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        raise SystemExit(f"probe: a forked child died of signal {os.WTERMSIG(status)}")
    player.put(f"{' ' * (depth * 2)}endfork\n")


VERBS: dict[str, Callable[[Player, Call], str]] = {
    **verbs.TABLE,
    **names.TABLE,
    **measuring.TABLE,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0 unless a child of ``fork`` broke."""
    parser = argparse.ArgumentParser(prog="probe", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", help="the IMA directory")
    parser.add_argument("--control", help="control socket of the emulator")
    parser.add_argument("--files", help="where the script's absolute paths are")
    parser.add_argument("--hash", default="sha256", help="what ima_hash= is (default: sha256)")
    options = parser.parse_args(arguments)
    if (options.control is None) != (options.files is None):
        parser.error("--control and --files belong together")
    if options.files is not None and not stat.S_ISDIR(os.stat(options.files).st_mode):
        parser.error(f"{options.files} is no directory")
    measurer = None
    if options.control is not None:
        from tests.conformance.measurer import Measurer

        measurer = Measurer(options.control, options.hash)
    script = os.fsdecode(sys.stdin.buffer.read())
    lines = script.removesuffix("\n").split("\n")
    play(Player(options.directory, options.files, measurer), lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
