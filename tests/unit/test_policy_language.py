# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The policy language against what Linux 7.2.13 and 7.3.4 answered and printed."""

from __future__ import annotations

import errno
import re

import pytest

from imafs.errors import Refused, UsageError
from imafs.formats.templates import TEMPLATES, custom
from imafs.kernel.policy import builtin
from imafs.kernel.policy.language import Words, parse
from imafs.kernel.policy.match import Policy
from tests.conformance import policy_oracle, recordings

ASKED = recordings.load(policy_oracle.NAME)
#: The kernel that was asked has no LSM, modsig or keys; of hashes it had these.
BARE = Words(
    lsm=False,
    modsig=False,
    keys=False,
    algorithms=frozenset({"sha1", "sha224", "sha256", "sha384", "sha512"}),
)
_WRITE = re.compile(r'write a "(.*)" -> (.*)')
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)")
_LETTERS = {b"n": b"\n", b"t": b"\t", b"0": b"\0"}


def _text(quoted: str) -> bytes:
    def one(match: re.Match[bytes]) -> bytes:
        word = match[1]
        return bytes.fromhex(word[1:].decode()) if len(word) == 3 else _LETTERS.get(word, word)

    return _ESCAPE.sub(one, quoted.encode())


def _asked(script: str) -> list[tuple[bytes, str]]:
    """(rule, answer of the kernel's write) of a recorded script."""
    lines = ASKED.text(f"{script}.out").splitlines()
    return [(_text(m[1]), m[2]) for m in map(_WRITE.fullmatch, lines) if m]


def _answer(rule: bytes, *, custom: bool) -> str:
    try:
        parse(rule, BARE, custom=custom)
    except Refused as refused:
        return f"-1 {refused.errno_name}"
    return f"{len(rule)} 0"


@pytest.mark.parametrize(
    ("script", "custom", "rules"),
    [("1-refused", False, 121), ("3-accepted", True, 80), ("4-again", True, 121)],
)
def test_every_recorded_rule(script: str, custom: bool, rules: int) -> None:
    """Taken or refused with the kernel's errno."""
    asked = _asked(script)
    assert len(asked) == rules
    wrong = [(r, k) for r, k in asked if _answer(r, custom=custom) != k]
    assert not wrong


def test_refused_rules_are_many_and_of_two_kinds() -> None:
    """The recording does test something."""
    answers = [answer for _, answer in _asked("1-refused")]
    assert answers.count("-1 EINVAL") == 116
    assert answers.count("-1 ERANGE") == 5


def test_taken_rules_are_printed_as_the_kernel_does() -> None:
    shown = ASKED.text("3-accepted.out").rpartition("show policy -> 0\n")[2].rstrip("\n")
    ours = ""
    for rule, answer in _asked("3-accepted"):
        if not answer.startswith("-1"):
            parsed = parse(rule, BARE, custom=True)
            assert parsed is not None
            ours += parsed.text()
    assert ours.count("\n") == 72
    assert shown.endswith(ours.rstrip("\n"))


#: What Documentation/ABI/testing/ima_policy shows, and how such a rule is printed. Labels,
#: keyrings and modsig could not be asked: they are printed as ima_policy_show says.
DOCUMENTED = [
    ("measure func=BPRM_CHECK", "measure func=BPRM_CHECK "),
    ("measure func=FILE_MMAP mask=MAY_EXEC", "measure func=MMAP_CHECK mask=MAY_EXEC "),
    (
        "measure func=FILE_CHECK mask=MAY_READ uid=0",
        "measure func=FILE_CHECK mask=MAY_READ uid=0 ",
    ),
    ("measure func=MODULE_CHECK", "measure func=MODULE_CHECK "),
    ("measure func=FIRMWARE_CHECK", "measure func=FIRMWARE_CHECK "),
    ("appraise fowner=0", "appraise fowner=0 "),
    ("dont_measure obj_type=var_log_t", "dont_measure obj_type=var_log_t "),
    ("dont_appraise obj_type=var_log_t", "dont_appraise obj_type=var_log_t "),
    ("dont_measure obj_type=auditd_log_t", "dont_measure obj_type=auditd_log_t "),
    ("dont_appraise obj_type=auditd_log_t", "dont_appraise obj_type=auditd_log_t "),
    (
        "measure subj_user=system_u func=FILE_CHECK mask=MAY_READ",
        "measure func=FILE_CHECK mask=MAY_READ subj_user=system_u ",
    ),
    (
        "measure subj_role=system_r func=FILE_CHECK mask=MAY_READ",
        "measure func=FILE_CHECK mask=MAY_READ subj_role=system_r ",
    ),
    (
        "measure subj_user=_ func=FILE_CHECK mask=MAY_READ",
        "measure func=FILE_CHECK mask=MAY_READ subj_user=_ ",
    ),
    ("measure func=KEXEC_KERNEL_CHECK pcr=4", "measure func=KEXEC_KERNEL_CHECK pcr=4 "),
    ("measure func=KEXEC_INITRAMFS_CHECK pcr=5", "measure func=KEXEC_INITRAMFS_CHECK pcr=5 "),
    (
        "appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig|modsig",
        "appraise func=KEXEC_KERNEL_CHECK appraise_type=imasig|modsig ",
    ),
    ("measure func=KEY_CHECK", "measure func=KEY_CHECK "),
    (
        "measure func=KEY_CHECK keyrings=.builtin_trusted_keys|.ima",
        "measure func=KEY_CHECK keyrings=.builtin_trusted_keys|.ima ",
    ),
    (
        "appraise func=SETXATTR_CHECK appraise_algos=sha256,sha384,sha512",
        "appraise func=SETXATTR_CHECK appraise_algos=sha256,sha384,sha512 ",
    ),
    (
        "measure func=FILE_CHECK digest_type=verity template=ima-ngv2",
        "measure func=FILE_CHECK template=ima-ngv2 digest_type=verity ",
    ),
    (
        "appraise func=BPRM_CHECK digest_type=verity appraise_type=sigv3",
        "appraise func=BPRM_CHECK appraise_type=sigv3 digest_type=verity ",
    ),
    (
        "appraise func=BPRM_CHECK appraise_type=sigv3",
        "appraise func=BPRM_CHECK appraise_type=sigv3 ",
    ),
    *(
        (f"{action} fsmagic=0x{magic}", f"{action} fsmagic=0x{magic.lstrip('0')} ")
        for magic in (
            *("9fa0", "62656572", "64626720", "01021994", "858458f6", "1cd1", "42494e4d"),
            *("73636673", "f97cff8c", "27e0eb", "6e736673", "62656570"),
        )
        for action in ("dont_measure", "dont_appraise")
    ),
]


@pytest.mark.parametrize(("rule", "shown"), DOCUMENTED)
def test_examples_of_the_kernels_document(rule: str, shown: str) -> None:
    parsed = parse(rule.encode() + b"\n")
    assert parsed is not None
    assert parsed.text() == shown + "\n"
    assert parse(parsed.encoded()) == parsed


def test_the_documents_template_that_no_kernel_has() -> None:
    """ima-sigv3 is in the document only (7.2.13 answered EINVAL)."""
    with pytest.raises(Refused, match="no such template"):
        parse(b"measure func=BPRM_CHECK digest_type=verity template=ima-sigv3\n")


def test_builtin_policies_of_two_kernels() -> None:
    seven_two = builtin.release("7.2")
    words = ["tcb", "critical_data", "appraise_tcb", "secure_boot", "fail_securely"]
    assert Policy(builtin.rules(words, seven_two)).text() == ASKED.files["builtin.policy"]
    for recording, moment, chosen in (
        ("7.3.4-tcb-ima-ng", "boot", ["tcb"]),
        ("7.3.4-kexec", "after-kexec", ["critical_data", "tcb"]),
    ):
        shown = recordings.load(recording).below(moment)["policy.txt"]
        assert Policy(builtin.rules(chosen)).text() == shown


@pytest.mark.parametrize("of", builtin.RELEASES)
@pytest.mark.parametrize("word", builtin.WORDS)
def test_builtin_rules_come_back(word: str, of: builtin.Release) -> None:
    for rule in builtin.rules([word], of):
        assert parse(rule.encoded()) == rule


def test_builtin_words_and_their_order() -> None:
    assert builtin.rules(["critical_data", "tcb"]) == builtin.rules(["tcb", "critical_data"])
    assert builtin.rules(["fail_securely"]) == ()
    older = Policy(builtin.rules(["ima_tcb", "tcb"])).text().decode()
    assert older.endswith(
        "measure func=FILE_CHECK mask=MAY_READ uid=0 \n"
        "measure func=MODULE_CHECK \nmeasure func=FIRMWARE_CHECK \n"
    )
    unsigned = builtin.rules(["appraise_tcb"], write=False)
    assert not any(rule.func == "POLICY_CHECK" for rule in unsigned)
    with pytest.raises(UsageError, match="tbc"):
        builtin.rules(["tbc"])
    with pytest.raises(UsageError, match=r"7\.1"):
        builtin.release("7.1")


def test_loaded_policies_of_7_3_are_printed_as_recorded() -> None:
    for name in ("7.3.4-mixed-pcr11", "7.3.4-critical"):
        files = recordings.load(name).files
        rules = [parse(line) for line in files["policy-loaded.txt"].splitlines()]
        policy = Policy(tuple(rule for rule in rules if rule is not None))
        assert policy.text() == files["work/policy.txt"]


@pytest.mark.parametrize("line", [b"", b"\n", b"  \t\n", b"# measure\n", b"\t#x", b"\0measure"])
def test_no_rule(line: bytes) -> None:
    assert parse(line) is None


def test_only_the_first_line_counts() -> None:
    rule = parse(b"measure fowner=3\0 bogus\nbogus\n")
    assert rule is not None
    assert rule.text() == "measure fowner=3 \n"


def test_labels_need_an_lsm() -> None:
    rule = b"dont_measure obj_type=var_log_t\n"
    with_lsm = parse(rule)
    assert with_lsm is not None
    assert with_lsm.never is not None
    with pytest.raises(Refused, match="no LSM"):
        parse(rule, BARE)
    dead = parse(rule, BARE, custom=True)
    assert dead is not None
    assert dead.text() == ""
    with pytest.raises(Refused, match="twice"):
        parse(b"measure obj_type=a obj_type=b\n")


def test_template_of_the_command_line() -> None:
    """lookup_template_desc finds it by its format; its name is empty when shown."""
    words = Words(template_fmt=custom("d-ng|n-ng|iuid"))
    rule = parse(b"measure template=d-ng|n-ng|iuid\n", words)
    assert rule is not None
    assert rule.text() == "measure template= \n"
    assert parse(rule.source().encode(), words) == rule
    with pytest.raises(Refused, match="no such template"):
        parse(b"measure template=d-ng|n-ng|iuid\n")
    by_format = parse(b"measure template=d|n\n", words)
    assert by_format is not None
    assert by_format.template is TEMPLATES["ima"]


def test_large_ids_are_shown_negative() -> None:
    rule = parse(b"measure uid=4294967294 fowner>2147483648\n")
    assert rule is not None
    assert rule.text() == "measure uid=-2 fowner>-2147483648 \n"
    assert rule.source() == "measure uid=4294967294 fowner>2147483648 \n"


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(Refused) as caught:
        parse(b"measure fsmagic=0x10000000000000000\n")
    assert caught.value.errno == errno.ERANGE


@pytest.mark.parametrize("func", ["CRITICAL_DATA", "KEY_CHECK", "SETXATTR_CHECK"])
def test_a_magic_of_zero_is_given_too(func: str) -> None:
    """Asked of 7.2.13: ``fsmagic=0 measure func=CRITICAL_DATA`` is EINVAL."""
    action = "appraise" if func == "SETXATTR_CHECK" else "measure"
    rest = " appraise_algos=sha256" if func == "SETXATTR_CHECK" else ""
    parse(f"{action} func={func}{rest}\n".encode())
    with pytest.raises(Refused) as caught:
        parse(f"{action} func={func} fsmagic=0{rest}\n".encode())
    assert caught.value.errno == errno.EINVAL
