# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""ASCII lists as mails, issues, terminals and tools leave them."""

from __future__ import annotations

import quopri
import textwrap
from collections.abc import Callable

import pytest

from imafs.errors import FormatError
from imafs.formats.algorithms import SHA256, Bank, list_bank
from imafs.formats.list_file import parse
from tests.property.reference import Rec, ascii_list, ng

BANKS = ("sha1", "sha256", "sha384", "sha512")
RECORDS = [ng(10, name) for name in (b"boot_aggregate", b"/usr/bin/ls", b"/opt/a b/c", b"/x=41")]


def _wrapped(width: int, prefix: str = "", then: str | None = None) -> Callable[[str], str]:
    """As a mail breaks lines: at blanks."""

    def of(text: str) -> str:
        return "".join(
            line + "\n"
            for whole in text.splitlines()
            for line in textwrap.wrap(
                whole,
                width,
                initial_indent=prefix,
                subsequent_indent=prefix if then is None else then,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )

    return of


def _cut(width: int, prefix: str = "") -> Callable[[str], str]:
    """As a terminal does: anywhere."""
    return lambda text: "".join(
        prefix + line[at : at + width] + "\n"
        for line in text.splitlines()
        for at in range(0, len(line), width)
    )


def _each(prefix: str) -> Callable[[str], str]:
    return lambda text: "".join(prefix + line + "\n" for line in text.splitlines())


def _counted(text: str) -> str:
    return "".join(f"{n:6}\t{line}\n" for n, line in enumerate(text.splitlines(), 1))


def _printable(text: str) -> str:
    return quopri.encodestring(text.encode()).decode()


FORMS: dict[str, Callable[[str], str]] = {
    "wrapped at 72": _wrapped(72),
    "wrapped at 76, quoted": _wrapped(76, "> "),
    "wrapped at 60, quoted twice": _wrapped(60, "> > "),
    "the first line of each quoted": _wrapped(72, "> ", ""),
    "wrapped and indented": _wrapped(72, "", "    "),
    "format=flowed": lambda text: _wrapped(72)(text).replace("\n", " \n"),
    "wrapped, CRLF": lambda text: _wrapped(72)(text).replace("\n", "\r\n"),
    "cut at 80": _cut(80),
    "cut at 76, quoted": _cut(76, "> "),
    "cut at 100": _cut(100),
    "quoted-printable": _printable,
    "quoted, then quoted-printable": lambda text: _printable(_each("> ")(text)),
    "a bar in front": _each("| "),
    "grep": _each("ascii_runtime_measurements:"),
    "dmesg": _each("[    1.234567] "),
    "cat -n": _counted,
    "prose around": lambda text: f"Hi,\n\nthe list:\n\n{text}\nRegards\n-- \nJoe\n",
    "a prompt": lambda text: (
        f"# cat /sys/kernel/security/ima/ascii_runtime_measurements\n{text}# \n"
    ),
    "head": lambda text: f"==> ascii_runtime_measurements <==\n{text}",
    "double spaced": lambda text: text.replace("\n", "\n\n"),
    "blanks of a browser": lambda text: text.replace(" ", "\u00a0"),
    "tabs": lambda text: text.replace(" ", "\t"),
    "colours": lambda text: f"\x1b[?2004l{text}\x1b[0m",
    "CR alone": lambda text: text.replace("\n", "\r"),
}


@pytest.mark.parametrize("bank", BANKS)
@pytest.mark.parametrize("form", FORMS)
def test_a_list_that_came_by_mail_or_terminal_is_made_whole(form: str, bank: str) -> None:
    records = RECORDS if form != "tabs" else [r for r in RECORDS if b" " not in r.parts[1]]
    text = ascii_list(records, bank)
    found = parse(FORMS[form](text.decode()).encode())
    whole = parse(text)
    assert (found.bank.name, found.data) == (bank, whole.data)
    assert [one.record for one in found.records()] == [one.record for one in whole.records()]


@pytest.mark.parametrize("end", ["\r", "\r\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\r>", "\r> "])
@pytest.mark.parametrize("quote", ["> ", ">", "> > "])
@pytest.mark.parametrize("bank", BANKS)
def test_a_quoting_within_a_name_is_undone(bank: str, quote: str, end: str) -> None:
    """Tools that quote what Python's splitlines calls lines: the digests say what was there."""
    names = (f"/a{end}b", f"{end}/c", end + "x")
    for records in ([ng(10, names[0].encode())], [ng(9, name.encode()) for name in names]):
        text = ascii_list(records, bank).decode()
        for lines in (text.splitlines(keepends=True), text.split("\n")[:-1]):
            quoted = "".join(quote + line + "\n" * (lines[-1][-1:] != "\n") for line in lines)
            found = parse(quoted.encode())
            names_found = [one.record.data for one in found.records()]
            assert names_found == [one.record.data for one in parse(text.encode()).records()]
            assert found.unproven == 0


def test_a_changed_record_with_a_quoting_within_its_name_is_named_with_its_line() -> None:
    text = ascii_list([*RECORDS, ng(10, b"/a\rb")], "sha256").decode()
    changed = text.replace("/a\rb", "/a\rc")
    quoted = "".join("> " + line for line in changed.splitlines(keepends=True))
    with pytest.raises(FormatError, match="line 5, record 4") as caught:
        list(parse(quoted.encode()).records())
    assert caught.value.line == 5


def test_a_changed_record_of_a_wrapped_list_is_named_with_its_line() -> None:
    text = ascii_list(RECORDS, "sha256").replace(b"/usr/bin/ls", b"/usr/bin/sl")
    wrapped = _wrapped(72)(text.decode())
    digest = text.split(b"\n")[1].split()[1].decode()
    line = next(n for n, one in enumerate(wrapped.splitlines(), 1) if digest in one)
    with pytest.raises(FormatError, match="is not that of the template data") as caught:
        list(parse(wrapped.encode()).records())
    assert (caught.value.record, caught.value.line) == (1, line)


def test_records_that_were_left_out_of_the_middle_are_told() -> None:
    lines = ascii_list(RECORDS, "sha1").splitlines(keepends=True)
    with pytest.raises(FormatError, match="this is no record"):
        list(
            parse(
                _each("| ")(b"".join([*lines[:2], b"...\n", *lines[3:]]).decode()).encode()
            ).records()
        )


def _violation(name: bytes) -> Rec:
    return Rec(10, "ima-ng", (b"sha256:\0" + bytes(32), name + b"\0"), True)


def test_a_wrapped_violation_is_made_whole_as_its_neighbours_were() -> None:
    text = ascii_list([RECORDS[0], _violation(b"/var/log/x"), RECORDS[1]], "sha1")
    found = parse(_wrapped(72)(text.decode()).encode())
    assert (found.data, found.unproven) == (parse(text).data, 1)


def test_lines_behind_a_violation_are_never_left_out() -> None:
    text = ascii_list([RECORDS[0], _violation(b"/var/log/x")], "sha1") + b"and more\n"
    with pytest.raises(FormatError, match="a violation, behind which is no record"):
        list(parse(text).records())


def test_a_digest_that_lost_a_digit_is_no_record() -> None:
    lines = ascii_list(RECORDS, "sha1").splitlines(keepends=True)
    lines[1] = lines[1][:20] + lines[1][21:]
    found = list(parse(b"".join(lines)).items())
    assert "this is no record" in str(found[1])


@pytest.mark.parametrize("left", [b"\n", b"\x0b@", b"\xc4\xc4", b"?", b"\x0a\x01\x01"])
@pytest.mark.parametrize("bank", [None, list_bank(SHA256)])
def test_the_first_bytes_of_a_record_are_no_text(left: bytes, bank: Bank | None) -> None:
    """A list that was cut within its first number."""
    with pytest.raises(FormatError) as caught:
        list(parse(left, bank).records())
    assert caught.value.record == 0
    assert "text" not in str(caught.value)


@pytest.mark.parametrize("text", [b"hello world, this is no list\n", b'{"a": 1}\n', b"# comment\n"])
def test_another_text_is_called_one(text: bytes) -> None:
    with pytest.raises(FormatError, match="this is a text, and no line of it is a record"):
        parse(text)
