# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""For people who test attestation agents: a pytest plugin with an emulator per test.

::

    from imafs.testing import Ima

    def test_my_agent(ima: Ima) -> None:
        ima.measure("/usr/bin/env")
        ima.other_agent.stage()
        assert ima.run(["my-agent", "--ima", ima.dir]).returncode == 0

pytest finds the fixtures ``ima`` and ``ima_session`` and the marker ``ima`` by an entry
point; runs that use none of them import nothing but :mod:`imafs.testing.plugin`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imafs.testing.ima import Fault, Ima, ListRecord, OtherAgent
    from imafs.testing.quoting import Quote
    from imafs.testing.scenario import Scenario

__all__ = ["Fault", "Ima", "ListRecord", "OtherAgent", "Quote", "Scenario"]


def __getattr__(name: str) -> object:
    # Not imported above: every pytest run of an environment with imafs comes through here.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from imafs.testing import ima, quoting

    return getattr(quoting if name == "Quote" else ima, name)
