#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""A small attestation agent for Linux 7.2 and later: one round per call.

It follows the workflow of the kernel's Documentation/security/IMA-export-delete.rst: stage
the list, read it, store it durably, only then delete it, and replay to a quote. Exit code 0:
EVIDENCE has one more directory with the quote and the records that lead to it, and the same as
bundle.tar, which `imafs check` judges (verifier.py); 3: the records do not lead to the quote;
4: the TPM fails; 5: the list cannot be had. A call that did not end well, or was killed at
any moment, has lost nothing: call it again.
"""

import argparse
import errno
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PCR, SIZE = 10, 32  # of the SHA-256 bank
STAGED = "binary_runtime_measurements_staged"  # with digests of SHA-1, 20 bytes each
EVIDENCE = ("manifest.json", "ak.pub", "quote.msg", "quote.sig", "quote.pcrs", "records.bin")
CLOCK = ("clock", "reset_count", "restart_count", "safe")
ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
PATIENCE = float(os.environ.get("AGENT_PATIENCE", "20"))  # seconds for the list
TPM_PATIENCE = float(os.environ.get("AGENT_TPM_PATIENCE", "10"))  # seconds per TPM command

#: What passes: another program has a list open; measurements are suspended before a kexec
#: (EACCES for A, ESTALE for D); the descriptor is one of a kernel that is gone; a hiccup.
PASSING = {errno.EBUSY, errno.EACCES, errno.ESTALE, errno.EIO, errno.ENODEV, errno.ENOMEM}


class Store:
    """The records of one boot: a file that only grows, and what is known about it.

    ``stored`` bytes are on the disk. ``deleted``: bytes whose deletion the kernel has
    confirmed; those between the two may come again, for D was refused because of a kexec,
    or we died before D. ``attested`` bytes, ``index`` records, lead to ``value``, the PCR of
    the last quote.
    """

    def __init__(self, root: Path, boot: int) -> None:
        self.dir = root / f"boot-{boot}"
        self.dir.mkdir(parents=True, exist_ok=True)
        self.file = (self.dir / "records").open("ab+", buffering=0)
        self.state: dict[str, Any] = {"stored": 0, "deleted": 0, "attested": 0, "index": 0}
        self.state["value"] = bytes(SIZE).hex()
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
        """All of the state or none of it is on the disk, whenever we die."""
        self.state |= changes
        with open(self.dir / "state.new", "w") as file:
            json.dump(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.dir / "state.new", self.dir / "state")
        sync(self.dir)


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


def records(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """``(end, pcr, digest)`` of every record of a list: what extends SHA-256's PCR."""
    at = 0
    while at < len(data):
        (pcr,) = struct.unpack_from("=I", data, at)
        violation = not any(data[at + 4 : at + 24])
        at += 24
        (length,) = struct.unpack_from("=I", data, at)
        name = data[at + 4 : at + 4 + length]
        begin = at = at + 4 + length
        if name == b"ima":  # a digest of SHA-1, then the file's name; no length of both
            at += 20
        (length,) = struct.unpack_from("=I", data, at)
        at += 4 + length
        hashed = data[begin:at] if name == b"ima" else data[begin + 4 : at]
        if name == b"ima":  # hashed are the digest, and the name in 256 bytes
            hashed = hashed[:20] + hashed[24:].ljust(256, b"\0")
        # A violation is zeros in the list and ones in the PCR.
        yield at, pcr, b"\xff" * SIZE if violation else hashlib.sha256(hashed).digest()


def replay(value: bytes, data: bytes, quoted: bytes) -> tuple[int, bytes] | None:
    """How many bytes lead from ``value`` to the quoted PCR, and its value; None: none do.

    What is behind them was measured after the quote, or is not extended yet: the next
    round's.
    """
    end = 0
    for following, pcr, digest in records(data):
        if hashlib.sha256(value).digest() == quoted:
            break
        if pcr == PCR:
            value = hashlib.sha256(value + digest).digest()
        end = following
    return (end, value) if hashlib.sha256(value).digest() == quoted else None


# The TPM


class TpmError(Exception):
    """The TPM does not answer as it should."""


def tpm(home: Path, command: str) -> None:
    """One of tpm2-tools; a TPM that hangs must not hang us."""
    try:
        subprocess.run([*command.split(), "-Q"], cwd=home, timeout=TPM_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise TpmError(f"the TPM does not answer as it should: {error}") from error


def quote(home: Path, nonce: str) -> tuple[dict[str, Any], bytes]:
    """Writes message, signature and public key; the TPM's clock and SHA-256 of the PCR."""
    # Without a resource manager the TPM has room for three objects and three sessions, and a
    # tool that was killed leaves its own there: begin with none.
    for kind in ("-t", "-l"):
        tpm(home, f"tpm2_flushcontext {kind}")
    tpm(home, f"tpm2_createprimary -C e -G ecc256:ecdsa-sha256:null -c key -a {ATTRIBUTES}")
    tpm(home, "tpm2_readpublic -c key -o ak.pub")
    tpm(home, f"tpm2_quote -c key -l sha256:{PCR} -m quote.msg -s quote.sig -q {nonce}")
    tpm(home, "tpm2_flushcontext -t")
    (home / "key").unlink()
    message = (home / "quote.msg").read_bytes()  # TPMS_ATTEST
    at = 6
    for _ in range(2):  # qualifiedSigner, extraData (the nonce)
        at += 2 + int.from_bytes(message[at : at + 2], "big")
    # A reboot resets the PCRs and counts here; a kexec does neither.
    counters = struct.unpack_from(">QII?", message, at)
    return dict(zip(CLOCK, counters, strict=True)), message[-SIZE:]


def values(value: bytes) -> bytes:
    """What ``tpm2_quote -o`` writes of one PCR: two structures of C, little endian."""
    selection = struct.pack("<IHB4s", 1, 0x000B, 3, (1 << PCR).to_bytes(4, "little"))
    digests = struct.pack("<IIH64s", 1, 1, SIZE, value)
    return selection.ljust(4 + 16 * 8, b"\0") + digests.ljust(4 + 4 + 8 * 66, b"\0")


def manifest(clock: dict[str, Any], first: int, count: int, excess: int) -> dict[str, Any]:
    """docs/bundle.schema.json; a verifier believes none of it."""
    return {"format": "imafs-bundle", "version": 1, "imafs": "examples/agent.py", "life": None,
            "boot_ids": [], "clock": clock, "order": sys.byteorder, "padded": [], "first": first,
            "count": count, "excess": excess, "start": {}, "end": {}, "gaps": [],
            "diverged": []}  # fmt: skip


def attest(ima: Path, root: Path, evidence: Path, nonce: str) -> bool:
    """One round; whether the records lead to the quote."""
    evidence.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=evidence, prefix=".new-") as new:
        # The quote first: what it covers is in the list by then, whatever comes later.
        clock, quoted = quote(Path(new), nonce)
        boot = clock["reset_count"]
        store = Store(root, boot)
        collect(ima, store)
        start, first = store.state["attested"], store.state["index"]
        data = store.read(start)
        found = replay(bytes.fromhex(store.state["value"]), data, quoted)
        if found is None:
            return False
        length, value = found
        count, excess = (sum(1 for _ in records(d)) for d in (data[:length], data[length:]))
        (Path(new) / "records.bin").write_bytes(data[:length])
        (Path(new) / "quote.pcrs").write_bytes(values(value))
        about = manifest(clock, first, count, excess)
        (Path(new) / "manifest.json").write_text(json.dumps(about))
        with tarfile.open(Path(new) / "bundle.tar", "w", format=tarfile.USTAR_FORMAT) as bundle:
            for name in EVIDENCE:
                bundle.add(Path(new) / name, name)
        # The same place again when we died between here and the note: sent anew.
        place = evidence / f"boot-{boot}-{start:012d}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name in (*EVIDENCE, "bundle.tar"):
            os.rename(Path(new) / name, place / name)
        store.note(attested=start + length, index=first + count, value=value.hex())
        print(f"{count} record{'' if count == 1 else 's'} attested: {place}")
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ima", metavar="IMA_DIR", type=Path, help="/sys/kernel/security/ima")
    parser.add_argument("store", metavar="STORE", type=Path, help="where records are kept")
    parser.add_argument("evidence", metavar="EVIDENCE", type=Path, help="what the verifier gets")
    parser.add_argument("nonce", metavar="NONCE", nargs="?", default="00", help="its, in hex (00)")
    args = parser.parse_args()
    words = args.ima, args.store, args.evidence, args.nonce
    try:
        # Twice: the machine may have rebooted between quote and list.
        if attest(*words) or attest(*words):
            return 0
        print("the records do not lead to the quote: some are missing, deleted by somebody "
              "else, or were never extended", file=sys.stderr)  # fmt: skip
        return 3
    except TpmError as error:
        print(error, file=sys.stderr)
        return 4
    except OSError as error:
        print(f"the list cannot be had: {error}", file=sys.stderr)
        return 5


if __name__ == "__main__":
    sys.exit(main())
