#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""How not to do it: an agent that works on a quiet day and on no other.

As agent.py, with the mistakes that docs/scenarios.md names. Do not copy from here.
"""

import argparse
import hashlib
import os
import struct
import subprocess
import sys
from pathlib import Path

ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
STAGED = "binary_runtime_measurements_staged"
EVIDENCE = ("ak.pub", "quote.msg", "quote.sig", "quote.pcrs", "records.bin")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ima", metavar="IMA_DIR", type=Path, help="/sys/kernel/security/ima")
    parser.add_argument("store", metavar="STORE", type=Path, help="where records are kept")
    parser.add_argument("evidence", metavar="EVIDENCE", type=Path, help="what the verifier gets")
    parser.add_argument("nonce", metavar="NONCE", nargs="?", default="00", help="its, in hex (00)")
    args = parser.parse_args()
    ima, store, evidence, nonce = args.ima, args.store, args.evidence, args.nonce
    store.mkdir(parents=True, exist_ok=True)
    evidence.mkdir(parents=True, exist_ok=True)

    # Three opens: anybody may come in between. No errno is looked at.
    with open(ima / STAGED, "wb", buffering=0) as file:
        file.write(b"A\n")
    with open(ima / STAGED, "rb", buffering=0) as file:
        data = file.read(1 << 30)  # one read(2): a page at most
    with open(store / "records", "ab") as file:
        file.write(data)  # not synced; stored again when the deletion fails
    with open(ima / STAGED, "wb", buffering=0) as file:
        file.write(b"D\n")

    # Everything of all boots, zeros of violations included, up to the last record.
    records = (store / "records").read_bytes()
    value = bytes(20)
    at = count = 0
    while at < len(records):
        count += 1
        (length,) = struct.unpack_from("=I", records, at + 24)
        value = hashlib.sha1(value + records[at + 4 : at + 24]).digest()
        at += 28 + length
        at += 4 + struct.unpack_from("=I", records, at)[0]

    # The quote comes after the list, without a deadline, and is not compared with it.
    place = evidence / f"all-{len(list(evidence.iterdir())):06d}"
    place.mkdir()
    for command in (
        "tpm2_flushcontext -t",
        f"tpm2_createprimary -C e -G ecc256:ecdsa-sha256:null -c key -a {ATTRIBUTES}",
        "tpm2_readpublic -c key -o ak.pub",
        f"tpm2_quote -c key -l sha1:10 -m quote.msg -s quote.sig -o quote.pcrs -q {nonce}",
        "tpm2_flushcontext -t",
    ):
        subprocess.run(command.split(), cwd=place, check=True, stdout=subprocess.DEVNULL)
    os.remove(place / "key")
    (place / "records.bin").write_bytes(records)
    (place / "value").write_text(value.hex())
    subprocess.run(["tar", "cf", "bundle.tar", *EVIDENCE], cwd=place, check=True)
    print(f"{count} record{'' if count == 1 else 's'} sent: {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
