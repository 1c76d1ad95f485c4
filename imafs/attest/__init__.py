# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Attestation: evidence of a machine, and the verdict on it.

On the attested machine::

    from imafs.attest import attest, context

    bundle = attest("/sys/kernel/security/ima", tcti="device:/dev/tpmrm0",
                    key=context("ak.ctx"), nonce=nonce)
    send(bundle.encode())

and on the verifier's::

    from imafs.attest import check, keys

    found = check(received, nonce=nonce, keys=keys("ak.pem"), state="machine.state")
    assert found.kind.accepted, found.said
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imafs.attest.api import (
        anchors,
        attest,
        check,
        context,
        create_key,
        flush,
        keys,
        persistent,
    )
    from imafs.attest.bundle import Bundle
    from imafs.attest.gather import Held
    from imafs.attest.judgement import Demand, Judgement
    from imafs.attest.kinds import Kind
    from imafs.attest.reference import Reference
    from imafs.attest.verifier import Verifier

_PLACES = {
    **dict.fromkeys(
        ("anchors", "attest", "check", "context", "create_key", "flush", "keys", "persistent"),
        "api",
    ),
    "Bundle": "bundle",
    "Held": "gather",
    **dict.fromkeys(("Demand", "Judgement"), "judgement"),
    "Kind": "kinds",
    "Reference": "reference",
    "Verifier": "verifier",
}

__all__ = [
    "Bundle",
    "Demand",
    "Held",
    "Judgement",
    "Kind",
    "Reference",
    "Verifier",
    "anchors",
    "attest",
    "check",
    "context",
    "create_key",
    "flush",
    "keys",
    "persistent",
]


def __getattr__(name: str) -> object:
    # Not imported above: cryptography and the TSS are slow, and most commands need neither.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"imafs.attest.{_PLACES[name]}"), name)
