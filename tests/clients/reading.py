# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Run by the Python of ``requirements/readers.txt``: what libraries make of measurement lists.

    reading.py keylime|evidence <REQUEST

REQUEST is JSON: a list of ``[path, algorithm of the list, algorithm of the PCR, quoted PCR in
hex or null]``; so is the answer, one ``{"pcr": hex, "events": [...], "records": N}`` for each.
Imports nothing of imafs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

#: Any file will do, and the list is of the algorithm that the request says.
POLICY: dict[str, Any] = {
    "meta": {"version": 1, "generator": 0},
    "release": 0,
    "digests": {},
    "excludes": [".*"],
    "keyrings": {},
    "ima": {"ignored_keyrings": ["*"], "dm_policy": None},
    "ima-buf": {},
    "verification-keys": "",
}


def keylime(
    path: str, list_algorithm: str, pcr_algorithm: str, quoted: str | None
) -> dict[str, Any]:
    """PCR 10 and the failures, as the verifier's own function finds them."""
    from keylime.agentstates import AgentAttestState
    from keylime.common.algorithms import Hash
    from keylime.ima import ima

    policy = {**POLICY, "ima": {**POLICY["ima"], "log_hash_alg": list_algorithm}}
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    value, failure = ima.process_measurement_list(
        AgentAttestState("agent"),
        lines,
        runtime_policy=policy,
        pcrval=quoted,
        hash_alg=Hash(pcr_algorithm),
    )
    events = [event.event_id for event in failure.events]
    return {"pcr": value, "events": events, "records": len(lines) - 1}


def evidence(
    path: str, list_algorithm: str, pcr_algorithm: str, quoted: str | None
) -> dict[str, Any]:
    """PCR 10 as the Evidence API replays it; it compares nothing."""
    from evidence_api.eventlog import EventLogs
    from evidence_api.tcg import TcgAlgorithmRegistry

    assert (list_algorithm, quoted) == (pcr_algorithm, None)
    logs = EventLogs(b"", Path(path).read_bytes(), parse_format="PCClient")
    logs.select(None, None)
    algorithm = getattr(TcgAlgorithmRegistry, f"TPM_ALG_{pcr_algorithm.upper()}")
    value = EventLogs.replay(logs.event_logs)[10][algorithm]
    return {"pcr": bytes(value).hex(), "events": [], "records": logs.count}


if __name__ == "__main__":
    _reader = {"keylime": keylime, "evidence": evidence}[sys.argv[1]]
    json.dump([_reader(*request) for request in json.load(sys.stdin)], sys.stdout)
