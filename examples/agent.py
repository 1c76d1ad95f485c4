#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A small attestation agent for Linux 7.2 and later: one round per call.

It follows the workflow of the kernel's Documentation/security/IMA-export-delete.rst: stage
the list, read it, store it durably, only then delete it, and replay to a quote. The list is its
own work; the quote, the replay and the bundle are those of imafs.attest. Exit code 0: EVIDENCE
has one more bundle, which `imafs check` judges (verifier.py); 3: the records do not lead to the
quote; 4: the TPM fails; 5: the list cannot be had. A call that did not end well, or was killed
at any moment, has lost nothing: call it again.

The TPM is that of $TPM2TOOLS_TCTI, else /dev/tpmrm0.
"""

import argparse
import errno
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from imafs.attest import Bundle, Held, attest, create_key, flush
from imafs.errors import ImafsError, MismatchError, TpmError

STAGED = "binary_runtime_measurements_staged"
TCTI = os.environ.get("TPM2TOOLS_TCTI", "device:/dev/tpmrm0")
PATIENCE = float(os.environ.get("AGENT_PATIENCE", "20"))  # seconds for the list
TPM_PATIENCE = float(os.environ.get("AGENT_TPM_PATIENCE", "30"))  # seconds per quote, or key

#: What passes: another program has a list open; measurements are suspended before a kexec
#: (EACCES for A, ESTALE for D); the descriptor is one of a kernel that is gone; a hiccup.
PASSING = {errno.EBUSY, errno.EACCES, errno.ESTALE, errno.EIO, errno.ENODEV, errno.ENOMEM}


class Store:
    """The records of one boot: a file that only grows, and what is known about it.

    ``stored`` bytes are on the disk. ``deleted``: bytes whose deletion the kernel has
    confirmed; those between the two may come again, for D was refused because of a kexec,
    or we died before D. The verifier has got the first ``attested`` records.
    """

    def __init__(self, root: Path, boot: int) -> None:
        self.boot = boot
        self.dir = root / f"boot-{boot}"
        self.dir.mkdir(parents=True, exist_ok=True)
        sync(root)
        self.file = (self.dir / "records").open("ab+", buffering=0)
        self.state: dict[str, Any] = {"stored": 0, "deleted": 0, "attested": 0}
        if (self.dir / "state").exists():
            self.state = json.loads((self.dir / "state").read_text())

    def read(self, start: int) -> bytes:
        self.file.seek(start)
        return self.file.read(self.state["stored"] - start)

    def keep(self, staged: bytes) -> None:
        """Stores what of ``staged`` is not stored yet; it is on the disk when this returns.

        (Records are alike by accident only where all of them are violations of one file.)
        """
        known = self.read(self.state["deleted"])
        new = staged[len(known) :] if staged.startswith(known) else staged
        self.file.truncate(self.state["stored"])  # half of a write that we died in
        while new:
            new = new[self.file.write(new) :]
        os.fsync(self.file.fileno())
        self.note(stored=self.file.seek(0, os.SEEK_END))

    def note(self, **changes: object) -> None:
        self.state |= changes
        put(self.dir / "state", json.dumps(self.state).encode())


def put(path: Path, data: bytes) -> None:
    """All of the file or nothing is on the disk, whenever we die."""
    new = path.with_name(f".{path.name}.new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    sync(path.parent)


def sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)


# The list


def collect(ima: Path, store: Store) -> None:
    """Stores and deletes until no record is left that was there at the beginning."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if drain(ima / STAGED, store):
                return
        except OSError as error:
            if error.errno not in PASSING or time.monotonic() > end:
                raise
            time.sleep(0.05)


def drain(path: Path, store: Store) -> bool:
    """One staged list; false where it was not staged now, so that there is more behind it."""
    # One descriptor for all: nobody else can write, or even read, until it is closed.
    descriptor = os.open(path, os.O_RDWR)
    try:
        fresh = stage(descriptor)
        if fresh is None:
            return True
        store.keep(read_all(descriptor))
        os.write(descriptor, b"D\n")
        store.note(deleted=store.state["stored"])
        return fresh
    finally:
        os.close(descriptor)


def stage(descriptor: int) -> bool | None:
    """True: staged; false: somebody had staged and not deleted (we, perhaps); None: no records."""
    try:
        os.write(descriptor, b"A\n")
    except FileExistsError:
        return False
    except FileNotFoundError:
        return None
    return True


def read_all(descriptor: int) -> bytes:
    """A read gives whole records and a page at most: only an empty one is the end."""
    pieces = []
    while piece := os.read(descriptor, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


# The evidence


def attested(ima: Path, root: Path, evidence: Path, nonce: bytes) -> str:
    """One round; what came of it."""
    used: list[Store] = []

    def held(clock: Any) -> Held:
        """What attest() asks for behind each quote: what that covers is in the list by then."""
        # A reboot resets the PCRs and counts here; a kexec does neither.
        store = Store(root, clock.reset_count)
        used.append(store)
        collect(ima, store)
        return Held(store.read(0), since=store.state["attested"])

    flush(TCTI, deadline=TPM_PATIENCE)  # what a killed round left in a TPM without a manager
    key = create_key(TCTI, deadline=TPM_PATIENCE)  # the same one each time
    # It replays to the quote, gives the records that far, and leaves the excess to the next round.
    bundle = attest(held, tcti=TCTI, key=key, nonce=nonce, deadline=TPM_PATIENCE)
    return sent(bundle, used[-1], evidence)


def sent(bundle: Bundle, store: Store, evidence: Path) -> str:
    """Where a real agent would send it; only then it goes on to the records behind."""
    assert bundle.manifest is not None
    first, count = bundle.manifest.first, bundle.manifest.count
    evidence.mkdir(parents=True, exist_ok=True)
    # The same name again when we died between here and the note: sent anew.
    place = evidence / f"boot-{store.boot}-{first:09d}.tar"
    put(place, bundle.encode())
    store.note(attested=first + count)
    return f"{count} record{'' if count == 1 else 's'} attested: {place}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ima", metavar="IMA_DIR", type=Path, help="/sys/kernel/security/ima")
    parser.add_argument("store", metavar="STORE", type=Path, help="where records are kept")
    parser.add_argument("evidence", metavar="EVIDENCE", type=Path, help="what the verifier gets")
    parser.add_argument("nonce", metavar="NONCE", nargs="?", default="00", help="its, in hex (00)")
    args = parser.parse_args()
    try:
        print(attested(args.ima, args.store, args.evidence, bytes.fromhex(args.nonce)))
        return 0
    except MismatchError as error:
        print(f"the records do not lead to the quote: {error}", file=sys.stderr)
        return 3
    except TpmError as error:
        print(error, file=sys.stderr)
        return 4
    except (OSError, ImafsError) as error:
        print(f"the list cannot be had: {error}", file=sys.stderr)
        return 5


if __name__ == "__main__":
    sys.exit(main())
