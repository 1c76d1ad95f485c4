#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A small verifier for the bundles of agent.py, or of `imafs attest`: one per call.

STATE is its own memory of the machine: the first bundle's key is remembered there with --enrol,
and what was verified. Exit code: that of the verdict (`man imafs-check`).
"""

import argparse
import sys
from pathlib import Path

from imafs.attest import check, keys
from imafs.errors import ImafsError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", metavar="STATE", type=Path, help="what is known of the machine")
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="bundle.tar of the agent")
    parser.add_argument("nonce", metavar="NONCE", type=bytes.fromhex, help="asked with, in hex")
    parser.add_argument("--ak", metavar="PUB", help="the machine's key, from its enrolment")
    parser.add_argument("--enrol", action="store_true", help="the first time")
    args = parser.parse_args()
    try:
        found = check(
            args.bundle,
            nonce=args.nonce,
            keys=keys(args.ak) if args.ak else (),
            state=args.state,
            new=args.enrol,
            enrol=args.enrol,
        )
    except ImafsError as error:
        print(f"verifier: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{found.kind.word}: {found.said}")
    if found.kind.accepted:
        # Here a relying party acts: it lets the machine in, or looks at the files.
        print(f"{found.records} records are those of the machine {found.key}")
    return found.kind.code


if __name__ == "__main__":
    sys.exit(main())
