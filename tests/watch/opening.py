# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Opens every file of a directory twice, in an order of its own; latencies as JSON.

python -m tests.watch.opening DIRECTORY SEED: one line when it begins, then, in microseconds,
the sorted latencies of the first and of the second round.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time


def opens(names: list[str]) -> list[int]:
    """Sorted latencies of one open each."""
    took = []
    for name in names:
        began = time.perf_counter_ns()
        descriptor = os.open(name, os.O_RDONLY)
        took.append((time.perf_counter_ns() - began) // 1000)
        os.close(descriptor)
    return sorted(took)


def main(directory: str, seed: str) -> None:
    """Both rounds."""
    os.chdir(directory)
    names = sorted(os.listdir())
    random.Random(int(seed)).shuffle(names)
    print("begins", flush=True)
    print(json.dumps([opens(names), opens(names)]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
