# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""atheris target: parsers raise their own error and nothing else.

    scripts/fuzz [SECONDS]

The first byte of an input chooses the parser, the rest is what it parses.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["imafs"]):
    from imafs.attest import pcrfile
    from imafs.attest.verify import verify
    from imafs.control import wire
    from imafs.errors import FormatError, Refused, UsageError
    from imafs.formats import binary, kexec_buffer, list_file
    from imafs.formats.templates import TEMPLATES
    from imafs.interface.grammar import parse
    from imafs.interface.profiles import PROFILES
    from imafs.kernel.policy import language
    from imafs.scenarios import script
    from imafs.verbs.table import TABLE

# Found beside this file, which runs as a script.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["tests.fuzz"]):
    from tests.fuzz import bundles

_ZERO = {"sha1": {10: bytes(20)}, "sha256": {10: bytes(32)}}


def _lists(data: bytes) -> None:
    for parsed in binary.read(data):
        again = binary.encode(parsed.record, parsed.digest)
        assert again == data[parsed.start : parsed.end]
        parsed.record.template.text(parsed.record.data)


def _verify(data: bytes) -> None:
    verify(data, _ZERO)


def _templates(data: bytes) -> None:
    template = list(TEMPLATES.values())[data[0] % len(TEMPLATES)] if data else TEMPLATES["ima"]
    template.split(data[1:])
    template.text(data[1:])


def _requests(data: bytes) -> None:
    for profile in PROFILES:
        for files in (profile.current, profile.staged, *profile.requests):
            if files is None or files.grammar is None:
                continue
            with contextlib.suppress(Refused):
                parse(files.grammar, data, 0, flush_htable=data[:1] == b"1", trimmed=len(data))


def _kexec(data: bytes) -> None:
    # Also with a header that fits: hardly any random one does.
    count = data[0] if data else 0
    for buffer in (data, kexec_buffer.encode(data[1:], count)):
        for parsed in kexec_buffer.decode(buffer):
            again = binary.encode(parsed.record, parsed.digest)
            assert again == buffer[parsed.start : parsed.end]


def _pcrs(data: bytes) -> None:
    pcrfile.parse(data)
    pcrfile.parse(data.decode("latin-1"))


def _wire(data: bytes) -> None:
    wire.decode(data)


def _scenario(data: bytes) -> None:
    script.parse(data.decode("utf-8", "replace"), "fuzz", TABLE.validate)


def _policy(data: bytes) -> None:
    rule = language.parse(data, custom=data[:1] == b"1")
    if rule is not None:
        rule.encoded()


def _quoted_pcrs(data: bytes) -> None:
    # With a count and a size that fit: hardly any random one does.
    pieces = -(-max(len(data) - 132, 0) // 532)
    head = data[:132].ljust(132, b"\0") + pieces.to_bytes(4, "little")
    pcrfile.parse(b"\2\0\0\0" + head[4:] + data[132:].ljust(532 * pieces, b"\0"))


def _any_form(data: bytes) -> None:
    found = list_file.parse(data)
    for item in found.items():
        parsed = item.parsed if isinstance(item, list_file.Fault) else item
        if parsed is not None:
            assert parsed.start <= parsed.end
        if isinstance(item, list_file.Fault):
            assert str(item.error())


_TARGETS = (
    *(_lists, _verify, _templates, _requests, _pcrs, _wire, _kexec, _scenario, _policy),
    *(_any_form, _quoted_pcrs, bundles.bundles, bundles.pieces),
)


def one_input(data: bytes) -> None:
    """One run of one parser."""
    if not data:
        return
    try:
        _TARGETS[data[0] % len(_TARGETS)](data[1:])
    except (FormatError, Refused, UsageError) as expected:
        if not str(expected):
            raise


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
