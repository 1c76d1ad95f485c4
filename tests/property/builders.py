# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""From hand-written records to those of imafs, and hypothesis strategies for both."""

from __future__ import annotations

import string

from hypothesis import strategies as st

from imafs.formats import templates
from imafs.formats.algorithms import Bank, bank_for, by_name
from imafs.formats.binary import Record
from tests.property.reference import FORMATS, WIDTHS, Rec

#: Custom formats beside the built-in templates; the second has a single field.
CUSTOM = ("d-ng|n-ng|iuid|igid|imode", "d-ng", "n-ng|d|sig", "xattrlengths|n|d-ngv2")
LABELS = (*FORMATS, *CUSTOM)
BANKS = ("sha1", "sha256", "sha384", "sha512")


def record(rec: Rec) -> Record:
    """The record as imafs holds it."""
    return Record(rec.pcr, templates.lookup(rec.label), rec.data, rec.violation)


def banks(*names: str, padded: tuple[str, ...] = ()) -> tuple[Bank, ...]:
    """TPM banks by name."""
    return tuple(bank_for(by_name(name), padded=name in padded) for name in names)


_no_nul = st.integers(1, 255).filter(lambda byte: byte != 0x20)
#: What the kernel stores of a name: no NUL, spaces already replaced; anything else goes.
stored_names = st.one_of(
    st.text(string.ascii_letters + string.digits + "/._-", min_size=1, max_size=40).map(
        lambda name: b"/" + name.encode()
    ),
    st.lists(_no_nul, max_size=60).map(bytes),
    st.sampled_from([b"/n" * 150, "/größe/\u4e16".encode(), b"/\xff\xfe\n\t", b"boot_aggregate"]),
)


@st.composite
def digest_fields(draw: st.DrawFn, prefix: bytes = b"") -> bytes:
    """Field data of d-ng, or of d-ngv2 with a prefix."""
    algorithm = draw(st.sampled_from(sorted(WIDTHS)))
    width = WIDTHS[algorithm]
    return prefix + algorithm.encode() + b":\0" + draw(st.binary(min_size=width, max_size=width))


def _field(name: str) -> st.SearchStrategy[bytes]:
    if name == "d":
        return st.binary(min_size=20, max_size=20)
    if name in ("n", "n-ng"):
        return stored_names.map(lambda text: text + b"\0")
    if name == "d-ng":
        return digest_fields()
    if name == "d-ngv2":
        return st.sampled_from([b"ima:", b"verity:"]).flatmap(digest_fields)
    if name == "d-modsig":
        return st.one_of(st.just(b""), digest_fields())
    if name == "xattrnames":
        return st.sampled_from([b"", b"security.ima\0", b"security.selinux|security.evm\0"])
    if name in ("iuid", "igid"):
        return st.one_of(st.just(b""), st.binary(min_size=4, max_size=4))
    if name == "imode":
        return st.one_of(st.just(b""), st.binary(min_size=2, max_size=2))
    return st.binary(max_size=80)


@st.composite
def recs(draw: st.DrawFn, labels: tuple[str, ...] = LABELS) -> Rec:
    """Any record that a kernel could have written."""
    label = draw(st.sampled_from(labels))
    pcr = draw(st.sampled_from([10, 10, 10, 11, 8, 0, 23]))
    if label == "ima":
        size = draw(st.sampled_from([20, 20, 16]))
        digest = draw(st.binary(min_size=size, max_size=size))
        name = draw(stored_names)[:255]
        return Rec(pcr, label, (digest, name))
    names = FORMATS.get(label, label).split("|")
    parts = tuple(draw(_field(name)) for name in names)
    return Rec(pcr, label, parts, violation=draw(st.integers(0, 9)) == 0)
