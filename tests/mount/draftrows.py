# SPDX-License-Identifier: GPL-2.0-only OR MIT
# ruff: noqa: E501  (a script is one line)
"""Rows of the tables that compare the proposals: which profile answers what.

Written from the patches and the kernel's source, not from the profiles. ``WHERE`` is a
profile, or several with spaces, each with ``+flush`` (ima_flush_htable), ``+bugs``
(--draft-bugs) or ``+off`` (--no-staging) as the row needs it.
"""

from __future__ import annotations

from collections.abc import Mapping

Row = tuple[str, Mapping[str, str]]

STAGED = "mainline v5 v4 v3 rfc-v2 rfc-v1"
TRIMS = "trim-v1 trim-v2 trim-v3 trim-v4 trim-v5"
COUNTED = "trim-v2 trim-v3 trim-v4 trim-v5"
EXPORTS = "export-2020 export-2019 export-rfc"


def _both(title: str, text: str, original: str, staged: str) -> Row:
    return title, {"mainline": f"or {text} => {original} ; st {text} => {staged}"}


def _same(title: str, texts: list[str], original: str = "EINVAL") -> list[Row]:
    return [_both(f"{title}: {text}", text, original, "EINVAL") for text in texts]


#: The parser of Linux 7.2 and 7.3, both kinds of file.
PARSER: list[Row] = [
    _both("A", "A", "EINVAL", "ok"),
    ("D", {"mainline": "or D => EINVAL ; st A ; or D => EINVAL ; st D => ok"}),
    *_same("one byte", ["!A", "!D", "!5", "!\\n"]),
    *_same("no newline", ["!AA", "!12"]),
    *_same("more than a letter", ["A\\n", "A ", "AB", "a", "d"]),
    *_same("two newlines", ["\\n"]),
    *_same("deletes 5", ["5", "+5", "005", "5\\n", "5\\x00xyz"], "ok"),
    *_same("no number", ["-5", " 5", "5 ", "0x5", "5a", "++5"]),
    *_same("zero", ["0", "000"]),
    _both("ULONG_MAX", "18446744073709551615", "ENOENT", "EINVAL"),
    _both("above ULONG_MAX", "18446744073709551616", "ERANGE", "EINVAL"),
    _both("far above", "99999999999999999999", "ERANGE", "EINVAL"),
    _both("22 bytes", "000000000000000000005", "EINVAL", "EINVAL"),
    ("flush_htable", {"mainline+flush": "or 5 => EINVAL ; or 99999999999999999999 => EINVAL"}),
]

#: Requests of the staging series, version by version.
REQUESTS: list[Row] = [
    (
        "file for A",
        {
            "v5": "or A => ok ; read st => 5",
            "mainline v4 v3 rfc-v2 rfc-v1": "st A => ok ; read st => 5",
        },
    ),
    ("file for D", {STAGED.replace("v5 ", ""): "st A ; st D => ok", "v5": "or A ; st D => ok"}),
    (
        "file for N",
        {
            "mainline v5": "or 2 => ok ; count => 3 ; st 2 => EINVAL",
            "v4 v3 rfc-v2 rfc-v1": "or 2 => EINVAL ; count => 5",
        },
    ),
    (
        "wrong file",
        {
            "v5": "st A => EINVAL ; st 2 => EINVAL ; or D => EINVAL",
            "mainline": "or A => EINVAL ; or D => EINVAL ; st 2 => EINVAL",
            "v4 v3 rfc-v2 rfc-v1 snap": "or A => EINVAL ; or D => EINVAL",
        },
    ),
    (
        "meaning of N",
        {
            "rfc-v1 rfc-v2": "st 2 ; read st => 2 ; count => 3 ; st D ; count => 3",
            "v3": "st A ; add 1 ; st 2 => ok ; count => 4 ; read st => 0",
            "v4": "st 2 => ok ; count => 3 ; read st => 0",
            "v5 mainline": "or 2 => ok ; count => 3 ; read st => 0",
        },
    ),
    (
        "-N",
        {
            "rfc-v2": "st -2 => ok ; count => 3 ; st A ; st -2 => EEXIST",
            "rfc-v1 v3 v4": "st -2 => EINVAL",
            "v5 mainline": "or -2 => EINVAL",
        },
    ),
    (
        "number base",
        {
            "rfc-v1 rfc-v2": "add 5 ; st 0x3 ; read st => 3 ; st D ; st 03 ; read st => 3",
            "v4": "st 0x3 => EINVAL ; st 03 => ok ; count => 2",
            "v3": "st A ; st 0x3 => EINVAL ; st 03 => ok ; count => 2",
            "v5 mainline": "or 0x3 => EINVAL ; or 03 => ok ; count => 2",
        },
    ),
    (
        "position above 0",
        {
            "rfc-v1 rfc-v2 v3 v4": "st@1 A => EINVAL ; read or => 5",
            "snap": "st@1 0 => EINVAL",
            "v5": "or@1 A => EINVAL ; or@9 2 => EINVAL ; count => 5",
            "mainline": "st@1 A => ok",
        },
    ),
    (
        "length 2 to 21",
        {
            "rfc-v1 rfc-v2 v4": "st !A => EINVAL ; st 000000000000000000002 => EINVAL ; st 0002 => ok",
            "v3": "st !A => EINVAL ; st A ; st 000000000000000000002 => EINVAL",
            "v5": "or !A => EINVAL ; or 000000000000000000002 => EINVAL",
            "mainline": "or 00000000000000000002 => ok",
        },
    ),
    (
        "newline",
        {
            "rfc-v1": "st !AB => EINVAL ; st A\\nxyz => ok",
            "rfc-v2 v4 v3": "st !AA => EINVAL ; st !22 => EINVAL",
            "v5 mainline": "or !22 => EINVAL",
        },
    ),
    (
        "N = 0",
        {
            "rfc-v1": "st 0 => ENOENT ; st A ; st 0 => EEXIST",
            "rfc-v2 v4": "st 0 => EINVAL",
            "v3": "st A ; st 0 => EINVAL",
            "v5 mainline": "or 0 => EINVAL",
        },
    ),
    (
        "N huge",
        {
            "rfc-v1": "st 18446744073709551614 => ENOENT ; st 18446744073709551615 => ok ; count => 0",
            "rfc-v2": "st 9223372036854775808 => EINVAL ; st 9223372036854775807 => ok ; count => 0 ; "
            "st D ; add 3 ; st -9223372036854775807 => ok ; count => 0",
            "v3": "st A ; st 18446744073709551615 => ERANGE ; st 18446744073709551614 => ENOENT",
            "v4": "st 18446744073709551615 => ENOENT ; count => 5 ; read st => 0",
            "v5 mainline": "or 18446744073709551615 => ENOENT",
        },
    ),
    (
        "N with flush_htable",
        {
            "rfc-v1+flush rfc-v2+flush": "st 2 => ok ; read st => 2",
            "v3+flush": "st A ; st 2 => EINVAL",
            "v4+flush": "st 2 => EINVAL ; st 99999999999999999999 => EINVAL",
            "v5+flush mainline+flush": "or 2 => EINVAL",
        },
    ),
    (
        "A, staged already",
        {
            "rfc-v1 v3 mainline": "st A ; add 1 ; st A => EEXIST ; count => 1",
            "rfc-v2": "st A ; add 1 ; st A => EEXIST ; st -1 => EEXIST",
            "v4": "st A ; add 1 ; st A => EEXIST ; st 1 => EEXIST",
            "v5": "or A ; add 1 ; or A => EEXIST",
        },
    ),
    (
        "A on an empty list",
        {
            "rfc-v1 rfc-v2 v3 v4 mainline": "st A ; st D ; st A => ENOENT",
            "v5": "or A ; st D ; or A => ENOENT",
        },
    ),
    (
        "order of A's refusals",
        {
            "rfc-v1": "st A ; st 9 => EEXIST ; st D ; st 9 => ENOENT",
            "rfc-v2": "st A ; st 0 => EINVAL ; st 9 => EEXIST ; st D ; st 9 => ENOENT",
            "v3 v4": "st A ; st A => EEXIST ; st D ; st A => ENOENT",
            "v5": "or A ; or A => EEXIST ; st D ; or A => ENOENT",
            "mainline": "st A ; suspend ; st A => EEXIST ; resume ; st D ; suspend ; st A => ENOENT",
        },
    ),
    ("D, nothing staged", {STAGED: "st D => ENOENT ; count => 5"}),
    (
        "N, more than there are",
        {
            "rfc-v1 rfc-v2": "st 6 => ENOENT ; count => 5 ; read st => ENOENT",
            "v3": "st A ; st 6 => ENOENT ; read st => 5",
            "v4": "st 6 => ENOENT ; count => 5 ; read st => 0 ; st A => ok",
            "v5 mainline": "or 6 => ENOENT ; count => 5",
        },
    ),
    (
        "after the copy for kexec",
        {
            "rfc-v1 rfc-v2 v3": "st A ; hold ; st D => ok",
            "v4": "st A ; hold ; st D => ESTALE ; st 1 => EEXIST",
            "v5": "or A ; add 1 ; hold ; st D => ESTALE ; or 1 => ESTALE ; or A => EEXIST",
            "mainline": "st A ; add 1 ; hold ; st D => ESTALE ; or 1 => ESTALE",
        },
    ),
    (
        "A after the copy, nothing staged",
        {
            "v5": "hold ; or 1 => ESTALE ; or A => ok ; st D => ok",
            "v4": "hold ; st A => ok ; st D => ok",
            "mainline": "hold ; st A => EACCES",
        },
    ),
    (
        "suspended without a copy",
        {
            "rfc-v1 rfc-v2 v3": "st A ; suspend ; st D => ok",
            "v4": "st A ; suspend ; st D => ok",
            "v5": "or A ; add 1 ; suspend ; st D => ok ; or 1 => ok",
            "mainline": "st A ; add 1 ; suspend ; st D => ESTALE ; or 1 => ESTALE",
        },
    ),
    (
        "what a write returns",
        {"rfc-v1 rfc-v2 v4": "st 0002 => ok", "v3": "st A => ok", "v5 mainline": "or 0002 => ok"},
    ),
    (
        "snap",
        {
            "snap": "st 1 => ENOENT ; st 0 => ok ; read st => 5 ; st 0 => EEXIST ; st 1 => ok ; "
            "st 0 => ENOENT ; st 2 => EINVAL ; st 00 => EINVAL ; st !01 => EINVAL ; st A => EINVAL",
        },
    ),
]

_N = {"trim-v1 trim-v2": "!{0:02}", "trim-v3": "{0}", "trim-v4 trim-v5": "0:{0}"}


def _trim(form: str) -> Mapping[str, str]:
    """A script for each trim profile; ``<5>`` is its way to write 5 with nothing trimmed."""
    scripts = {}
    for where, way in _N.items():
        text = form
        for number in (0, 2, 3, 5, 6):
            text = text.replace(f"<{number}>", way.format(number))
        scripts[where] = text
    return scripts


#: ``ima_trim_log`` of the trim series.
TRIM: list[Row] = [
    ("content", _trim("tl <3> => ok ; tl x => EINVAL")),
    (
        "length",
        {
            "trim-v1 trim-v2": "tl !5 => EINVAL ; tl !00000000005 => ok ; tl !000000000005 => EINVAL",
            "trim-v3": "tl !5 => EINVAL ; tl 0000000003 => ok ; tl 00000000003 => EINVAL",
            "trim-v4 trim-v5": f"tl !{'0' * 31}:3 => EINVAL ; tl !{'0' * 30}:3 => ok ; tl !: => EINVAL",
        },
    ),
    (
        "position above 0",
        {
            "trim-v1 trim-v2": "tl@1 !05 => EINVAL",
            "trim-v3": "tl@1 5 => EINVAL",
            "trim-v4 trim-v5": "tl@1 0:5 => EINVAL ; count => 5",
        },
    ),
    (
        "parser",
        {
            "trim-v1 trim-v2": "tl 05 => EINVAL ; tl !+5 => EINVAL ; tl !05 => ok",
            "trim-v3": "tl +2 => ok ; tl !02 => ok ; tl 0x1 => EINVAL",
            "trim-v4 trim-v5": "add 20 ; tl 0:0x2 => ok ; tl 2:010 => ok ; tl 10:+1 => ok ; "
            "tl !11:1 => ok ; tl  12:1 => EINVAL ; tl 12 :1 => EINVAL ; tl 12:1:1 => EINVAL",
        },
    ),
    ("no digit", _trim("tl abc => EINVAL ; tl !ab => EINVAL")),
    ("no colon", {"trim-v4 trim-v5": "tl 3 => EINVAL ; tl 03 => EINVAL"}),
    (
        "overflow",
        {
            "trim-v1": "tl !99999999999 => ok ; count => 0",
            "trim-v2": "tl !99999999999 => ENOENT ; count => 5",
            "trim-v3": "tl 9999999999 => ENOENT",
            "trim-v4 trim-v5": "tl 9223372036854775808:1 => ERANGE ; "
            "tl !0:99999999999999999999 => ERANGE ; tl 0: => EINVAL",
        },
    ),
    ("stale T", {"trim-v4 trim-v5": "tl 1:1 => EINVAL ; tl 0:2 => ok ; tl 0:2 => EINVAL"}),
    ("empty T", {"trim-v4 trim-v5": "tl :2 => ok ; tl :2 => EINVAL"}),
    ("N = 0", _trim("tl <0> => ok ; read tl => 0 ; count => 5")),
    (
        "N, more than there are",
        {
            "trim-v1": "tl !06 => ok ; count => 0 ; read tl => 5",
            "trim-v2": "tl !06 => ENOENT ; count => 5",
            "trim-v3": "tl 6 => ENOENT ; count => 5",
            "trim-v4 trim-v5": "tl 0:6 => ENOENT ; count => 5 ; read tl => 0",
        },
    ),
    (
        "negative",
        {
            "trim-v1 trim-v2": "tl !-5 => EINVAL",
            "trim-v3": "tl -1 => EPERM ; tl -5 => EIO ; tl -22 => EINVAL ; count => 5",
            "trim-v4 trim-v5": "tl 0:-1 => EINVAL ; tl 0:18446744073709551615 => EPERM",
        },
    ),
    (
        "option off",
        {
            "trim-v3+off trim-v4+off trim-v5+off": "mode tl => absent",
            "mainline+off": "mode st => absent ; mode or => 0660 ; or 2 => ok ; count => 3",
            "v5+off": "mode st => absent ; mode or => 0660",
            "v4+off": "mode st => absent ; mode or => 0440",
        },
    ),
    (
        "value read back",
        {
            "trim-v1 trim-v2": "tl !02 ; tl !01 ; read tl => 1",
            "trim-v3": "tl 2 ; tl 1 ; read tl => 1",
            "trim-v4 trim-v5": "tl 0:2 ; tl 2:1 ; read tl => 3",
        },
    ),
    ("what a write returns", _trim("tl <3> => ok")),
]

#: Export, flush and PCR values; what needs files of its own is in test_exports.py.
EXPORT: list[Row] = [
    (
        "E0",
        {
            "export-rfc": "ln !/ => EINVAL ; ln x => EINVAL ; ln /{root}/e0 => ok ; count => 5",
        },
    ),
    ("E1", {"export-2019": "mode ln => 0200 ; ln x => EINVAL ; ln /{root}/e1 => ok ; count => 5"}),
    (
        "E2",
        {
            "export-2020": "ln !/ => EINVAL ; ln x => EINVAL ; ln /{long} => EINVAL ; "
            "ln /etc/x => EACCES ; ln /{root}/no/where => ENOENT ; count => 5 ; "
            "ln /{root}/e2 => ok ; count => 0 ; again 0 => forgotten",
        },
    ),
    (
        "E3",
        {
            "flush-2020": "fm x => EINVAL ; fm => EINVAL ; fm 0x3\\n => ok ; count => 2 ; fm 3 => EINVAL ; "
            "fm 99999999999999999999 => ERANGE ; fm -1 => EINVAL ; fm 0 => ok ; count => 2 ; fm 02 => ok",
            "flush-2020+bugs": "fm !002 => ok ; count => 2 ; fm !0001 => 2 ; count => 0",
        },
    ),
    (
        "PCRS",
        {
            "pcrs-2025": "config/ima/pcrs x => EINVAL ; config/ima/pcrs pcr24:sha1:01234567890123456789 "
            "=> EINVAL ; config/ima/pcrs !pcr10:sha1:01234567890123456789 => ok ; count => 5 ; "
            "config/ima/pcrs !pcr11:sha1:01234567890123456789 => EINVAL ; "
            "config/ima/pcrs !pcr10:nope:01234567890123456789 => EINVAL ; "
            "config/ima/pcrs !pcr10:sha1:0123456789012345678 => EINVAL",
        },
    ),
]

_ORIGINALS = {
    "mainline v5": "mode or => 0660",
    "v4 v3 rfc-v2 rfc-v1 snap": "mode or => 0440",
}

#: The staging series side by side.
STAGING: list[Row] = [
    (
        "file name form",
        {
            "mainline v5 v4 v3": "mode ascii_runtime_measurements_sha1_staged => 0660",
            "rfc-v2 rfc-v1": "mode ascii_runtime_measurements_staged_sha1 => 0660",
            "snap": "mode binary_runtime_measurements_snap_sha1 => 0660",
        },
    ),
    (
        "link target",
        {
            "mainline v5 v4 v3": "link ascii_runtime_measurements_staged => "
            "ascii_runtime_measurements_sha1_staged",
            "rfc-v2 rfc-v1": "link binary_runtime_measurements_staged => "
            "binary_runtime_measurements_staged_sha1",
            "snap": "link ascii_runtime_measurements_snap => ascii_runtime_measurements_snap_sha1",
        },
    ),
    ("staged and original mode", {k: f"mode st => 0660 ; {v}" for k, v in _ORIGINALS.items()}),
    ("Kconfig", {"mainline+off v5+off v4+off": "mode st => absent"}),
    (
        "stage all",
        {
            "snap": "st 0 => ok ; read st => 5",
            "v5": "or A => ok ; read st => 5",
            "mainline v4 v3 rfc-v2 rfc-v1": "st A => ok ; read st => 5",
        },
    ),
    (
        "delete staged",
        {
            "snap": "st 0 ; st 1 => ok ; read st => ENOENT",
            "v5": "or A ; st D => ok ; read st => 0",
            "mainline v4 v3": "st A ; st D => ok ; read st => 0",
            "rfc-v2 rfc-v1": "st A ; st D => ok ; read st => ENOENT",
        },
    ),
    (
        "N",
        {
            "rfc-v1 rfc-v2": "st 2 => ok ; read st => 2 ; read or => 3",
            "v3": "st A ; add 2 ; st 2 => ok ; read or => 5 ; read st => 0 ; st A ; read st => 5",
            "v4": "st 2 => ok ; read or => 3 ; again 0 => kept",
            "v5 mainline": "or 2 => ok ; read or => 3",
            "snap": "st 2 => EINVAL",
        },
    ),
    (
        "trim by -N",
        {"rfc-v2": "st -2 => ok ; read or => 3", "v3 v4 rfc-v1 snap": "st -2 => EINVAL"},
    ),
    (
        "base of N",
        {"rfc-v1 rfc-v2": "st 0X2 => ok", "v4": "st 0X2 => EINVAL", "v5": "or 0X2 => EINVAL"},
    ),
    (
        "ppos",
        {
            "v4 v3 rfc-v2 rfc-v1": "st@2 A => EINVAL",
            "v5": "or@2 A => EINVAL",
            "mainline": "or@2 2 => ok",
        },
    ),
    ("newline is the second byte", {"snap": "st !00 => EINVAL ; st !0 => EINVAL ; st 0 => ok"}),
    (
        "nothing is N = 0",
        {"rfc-v1": "st 0 => ENOENT", "rfc-v2 v4": "st 0 => EINVAL", "v5": "or 0 => EINVAL"},
    ),
    (
        "ULONG_MAX",
        {
            "rfc-v1": "st 18446744073709551615 => ok ; read st => 5",
            "rfc-v2": "st 18446744073709551615 => EINVAL",
            "v3": "st A ; st 18446744073709551615 => ERANGE",
            "v4": "st 18446744073709551615 => ENOENT",
        },
    ),
    (
        "all-alias",
        {
            "rfc-v1": "st 0xffffffffffffffff => ok ; read st => 5",
            "rfc-v2": "st 0x7fffffffffffffff => ok ; read st => 5",
        },
    ),
    ("flush and N", {"rfc-v2+flush rfc-v1+flush": "st 3 => ok", "v4+flush": "st 3 => EINVAL"}),
    (
        "stage twice",
        {
            "snap": "st 0 ; st 0 => EEXIST",
            "v5": "or A ; or A => EEXIST",
            "v4": "st A ; st A => EEXIST ; st 1 => EEXIST",
            "mainline v3 rfc-v2 rfc-v1": "st A ; st A => EEXIST",
        },
    ),
    (
        "stage empty",
        {
            "snap": "st 0 ; st 1 ; st 0 => ENOENT",
            "v5": "or 5 ; or A => ENOENT",
            "mainline": "or 5 ; st A => ENOENT",
            "v4": "st 5 ; st A => ENOENT ; st 1 => ENOENT",
            "v3": "st A ; st 5 ; st A => ENOENT",
            "rfc-v2 rfc-v1": "st 5 ; st D ; st A => ENOENT ; st 1 => ENOENT",
        },
    ),
    (
        "D without staged",
        {STAGED: "st D => ENOENT", "snap": "st 1 => ENOENT", "v3": "st 1 => ENOENT"},
    ),
    ("N too big", {"rfc-v2 rfc-v1 v4": "st 6 => ENOENT ; read or => 5", "v5": "or 6 => ENOENT"}),
    (
        "delete N while staged exists",
        {
            "rfc-v1 rfc-v2": "st 1 ; st 1 => EEXIST",
            "v3": "st A ; st 1 => ok ; count => 4",
            "v4": "st A ; add 2 ; st 1 => EEXIST",
            "v5": "or A ; add 2 ; or 1 => ok ; count => 1 ; read st => 5",
            "mainline": "st A ; add 2 ; or 1 => ok ; count => 1 ; read st => 5",
        },
    ),
    (
        "an original opened for writing by root",
        {
            "v4 v3 rfc-v2 rfc-v1 snap": "open or rw => ok ; other st r => EBUSY ; close ; or A => EINVAL",
            "v5 mainline": "open or rw => ok ; other st r => EBUSY ; close ; or 1 => ok",
        },
    ),
    (
        "read, nothing staged",
        {"snap rfc-v1 rfc-v2": "read st => ENOENT", "v3 v4 v5 mainline": "read st => 0"},
    ),
    (
        "writer reopens",
        {
            "snap rfc-v1 rfc-v2 v3 v4 v5": "open st w => ok ; open st w => EBUSY ; open st r => EBUSY",
            "mainline": "open st w => ok ; open or rw => ok ; open st r => EBUSY",
        },
    ),
    (
        "one writer or many readers",
        {
            f"{STAGED} snap": "open or r ; open st r ; other or r => ok ; other st w => EBUSY ; close ; "
            "close ; open st w ; other or r => EBUSY ; other runtime_measurements_count r => ok",
        },
    ),
    ("who may write", {f"{STAGED} snap": "nobody st => ok EPERM"}),
    (
        "count after stage",
        {
            "snap": "st 0 ; count => 5 ; add 2 ; count => 7",
            "rfc-v1 rfc-v2": "st 2 ; count => 3 ; add 1 ; count => 4",
            "v3 v4 mainline": "st A ; count => 0",
            "v5": "or A ; count => 0",
        },
    ),
    (
        "count after D",
        {
            "snap": "st 0 ; add 2 ; st 1 ; count => 7",
            "rfc-v1 rfc-v2 v3 v4 mainline": "st A ; add 2 ; st D ; count => 2",
            "v5": "or A ; add 2 ; st D ; count => 2",
            "v3+bugs": "st A ; add 2 ; st D ; count => 4 ; read or => 2 ; st A ; count => 0 ; "
            "add 1 ; st 1 ; count => 3 ; read or => 2",
        },
    ),
    (
        "dedup after D",
        {
            "snap": "st 0 ; again 0 => kept ; st 1 ; again 0 => kept",
            "rfc-v1 rfc-v2 v3 v4 mainline": "st A ; again 0 => kept ; st D ; again 0 => kept",
            "v5": "or A ; st D ; again 0 => kept",
        },
    ),
    (
        "flush happens at",
        {
            "snap+flush": "st 0 ; again 0 => forgotten ; again 0 => kept",
            "rfc-v1+flush rfc-v2+flush": "st 2 ; again 0 => forgotten ; again 4 => kept ; st D ; "
            "again 0 => kept",
            "v3+flush v4+flush mainline+flush": "st A ; add 1 ; again 0 => kept ; st D ; "
            "again 0 => forgotten ; again 5 => forgotten",
            "v5+flush": "or A ; add 1 ; again 0 => kept ; st D ; again 5 => forgotten",
        },
    ),
    (
        "while suspended",
        {
            "mainline": "suspend ; st A => EACCES ; or 1 => ESTALE",
            "v5": "suspend ; or 1 => ok ; or A => ok",
            "v4 rfc-v2 rfc-v1": "suspend ; st 1 => ok",
            "v3": "suspend ; st A => ok ; st 1 => ok",
        },
    ),
    ("no record of a request", {"v4": "st A ; st D ; read or => 0", "v5": "or 5 ; read or => 0"}),
]

_EVENT = {
    "trim-v2": "tl !02 ; log => time=NS; log trim this time=2; ; tl !03 ; "
    "log => time=NS; log trim this time=3;",
    "trim-v3": "tl 2 ; log => time= NS; number= 2; ; tl 3 ; log => time= NS; number= 3;",
    "trim-v4": "tl 0:2 ; log => time= NS; number= 2; ; tl 2:3 ; log => time= NS; number= 5;",
    "trim-v5": "tl 0:2 ; log => time= NS; number= 0; ; tl 2:3 ; log => time= NS; number= 2;",
}

#: The trim series side by side.
TRIMMING: list[Row] = [
    ("file", {TRIMS: "mode tl => 0660"}),
    ("syntax", _trim("tl <2> => ok ; read tl => 2")),
    (
        "newline",
        {"trim-v1 trim-v2": "tl 02 => EINVAL", "trim-v3": "tl 2", "trim-v4 trim-v5": "tl 0:2"},
    ),
    (
        "single digit",
        {"trim-v1 trim-v2": "tl !2 => EINVAL", "trim-v3": "tl 2", "trim-v4": "tl !0:2"},
    ),
    ("N > len", {"trim-v1": "tl !09 => ok ; read or => 0", "trim-v2": "tl !09 => ENOENT"}),
    ("N = 0 tells nobody", _trim("tl <0> ; read or => 5")),
    ("T that is stale", {"trim-v4 trim-v5": "tl 0:1 ; tl 0:1 => EINVAL ; tl 1:1 => ok"}),
    (
        "read",
        {"trim-v2": "tl !02 ; tl !01 ; read tl => 1", "trim-v5": "tl 0:2 ; tl 2:1 ; read tl => 3"},
    ),
    (
        "open for reading",
        {
            "trim-v1": "nobody tl => EPERM EPERM ; open or r ; other tl w => ok",
            COUNTED: "nobody tl => EPERM EPERM ; open tl w ; other tl r => ok",
        },
    ),
    (
        "open for writing",
        {
            "trim-v1": "open tl w ; other tl w => ok ; other or r => ok ; other or w => ok",
            COUNTED: "open tl w ; other tl w => EBUSY ; other or r => EBUSY ; close ; open or r ; "
            "other tl w => EBUSY ; close ; open tl r ; other tl w => ok ; open tl w ; open tl w => EBUSY",
        },
    ),
    ("mode of the originals", {TRIMS: "mode or => 0440 ; or 1 => EINVAL"}),
    ("event", _EVENT),
    ("no event", {"trim-v1": "tl !02 ; read or => 3"}),
    (
        "dedup after trim",
        {
            "trim-v1": "tl !02 ; again 0 => forgotten ; again 4 => kept",
            "trim-v2 trim-v2": "tl !02 ; again 0 => kept",
            "trim-v3": "tl 2 ; again 0 => kept",
            "trim-v3+bugs": "tl 2 ; again 0 => forgotten",
            "trim-v4 trim-v5": "tl 0:2 ; again 0 => kept",
            "trim-v2+flush": "tl !02 ; again 0 => forgotten ; again 4 => kept",
            "trim-v4+flush trim-v5+flush": "tl 0:2 ; again 0 => forgotten ; again 4 => kept",
        },
    ),
    (
        "count after trim",
        {
            "trim-v1": "tl !02 ; count => 3",
            "trim-v2": "tl !02 ; count => 4",
            "trim-v3": "tl 2 ; count => 4",
            "trim-v4 trim-v5": "tl 0:2 ; count => 4",
        },
    ),
]

#: Export, flush and PCR values side by side.
EXPORTING: list[Row] = [
    (
        "file",
        {
            "export-rfc": "mode ln => 0600",
            "export-2019 export-2020": "mode ln => 0200",
            "flush-2020": "mode fm => 0200",
            "pcrs-2025": "mode config/ima/pcrs => 0644 ; mode config/ima/pcrs_ascii => 0444",
        },
    ),
    (
        "trigger",
        {
            "export-rfc": "ln /{root}/few ; count => 5 ; add 996 ; count => 0",
            "export-2019": "ln /{root}/few ; count => 5 ; add 996 ; count => 0",
            "export-2020": "ln /{root}/few ; count => 0 ; add 3 ; count => 3 ; ln /{root}/few ; count => 0",
        },
    ),
    (
        "input",
        {
            EXPORTS: "ln !/{root}/raw => ok ; ln /{root}/with => ok",
            "flush-2020": "fm !2 ; fm 0x1 ; count => 2",
        },
    ),
    (
        "bad input",
        {
            EXPORTS: "ln !/ => EINVAL ; ln relative => EINVAL ; ln /{long} => EINVAL",
            "flush-2020": f"fm {'0' * 31} => EINVAL ; fm 6 => EINVAL ; fm 1x => EINVAL",
            "pcrs-2025": "config/ima/pcrs !pcr10:sha1:short => EINVAL",
        },
    ),
    (
        "the capability is asked at the write",
        {
            EXPORTS: "nobody ln /{root}/x => ok ok EPERM ; count => 5",
            "flush-2020": "nobody fm 2 => ok ok EPERM ; count => 5",
        },
    ),
    (
        "failure",
        {
            "export-2020": "ln /{root}/no/where => ENOENT ; ln /{root}/.. => EACCES ; count => 5",
            "export-2019": "add 996 ; ln /{root}/no/where => EPERM ; count => 1001",
            "export-rfc": "add 996 ; ln /{root}/no/where => EPERM ; count => 1001",
            "flush-2020": "fm 6 => EINVAL ; count => 5",
        },
    ),
    ("success return", {EXPORTS: "ln /{root}/some => ok", "flush-2020": "fm 002 => ok"}),
    (
        "removed",
        {"export-2020": "ln /{root}/r ; read or => 0", "flush-2020": "fm 2 ; read or => 3"},
    ),
    (
        "dedup",
        {
            "export-2020": "ln /{root}/d ; again 4 => forgotten",
            "flush-2020": "fm 2 ; again 0 => forgotten ; again 4 => kept",
        },
    ),
    (
        "no event",
        {"export-2020": "ln /{root}/e ; add 1 ; read or => 1", "flush-2020": "fm 2 ; read or => 3"},
    ),
    (
        "no release",
        {f"{EXPORTS} pcrs-2025 flush-2020": "open or r ; other or w => ok ; or A => EINVAL"},
    ),
]

TABLES = {
    "parser": PARSER,
    "requests": REQUESTS,
    "trim requests": TRIM,
    "export requests": EXPORT,
    "staging": STAGING,
    "trimming": TRIMMING,
    "exporting": EXPORTING,
}
