# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Random rules for the policy file: words that belong into rules, put together and spoilt.

Every session writes one rule or some, ends, and asks how many rules there are now; the
whole policy is shown at the end of a script.
"""

from __future__ import annotations

from random import Random

from tests.conformance.random_scripts import STRANGE, quoted

ACTIONS = (
    "measure",
    "dont_measure",
    "audit",
    "dont_audit",
    "hash",
    "dont_hash",
    "appraise",
    "dont_appraise",
)
FUNCS = (
    *("FILE_CHECK", "PATH_CHECK", "MMAP_CHECK", "FILE_MMAP", "MMAP_CHECK_REQPROT", "BPRM_CHECK"),
    *("CREDS_CHECK", "MODULE_CHECK", "FIRMWARE_CHECK", "KEXEC_KERNEL_CHECK", "KEXEC_CMDLINE"),
    *("KEXEC_INITRAMFS_CHECK", "POLICY_CHECK", "KEY_CHECK", "CRITICAL_DATA", "SETXATTR_CHECK"),
    *("POST_SETATTR", "NONE", "file_check", ""),
)
MASKS = (
    *("MAY_READ", "MAY_WRITE", "MAY_EXEC", "MAY_APPEND", "^MAY_READ", "^MAY_EXEC", "^MAY_WRITE"),
    *("^^MAY_READ", "^", "", "MAY_READ|MAY_WRITE", "MAY_OPEN", "may_read"),
)
IDS = ("0", "1", "1000", "01", "007", "+1", "-1", "4294967295", "4294967296", "0x10", "", "1 ")
NUMBERS = ("0", "1", "10", "11", "16", "23", "24", "63", "64", "-1", "+11", "0x0a", "x", "")
MAGICS = ("0x9fa0", "9fa0", "0x01021994", "0", "0x", "-1", "0xffffffffffffffff", "x", "")
UUIDS = (
    "8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6",
    "8BCBE394-4F13-4144-BE8E-5AA9EA2CE2F6",
    "00000000-0000-0000-0000-000000000000",
    "8bcbe394-4f13-4144-be8e-5aa9ea2ce2f",
    "8bcbe3944f134144be8e5aa9ea2ce2f6",
    "8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6x",
)
TEMPLATES = ("ima", "ima-ng", "ima-sig", "ima-buf", "ima-modsig", "ima-ngv2", "ima-sigv2")
WORDS = ("a", "a|b", "a||b", "|a", "a|", "", "ext4", "tmpfs", ".ima", "selinux", "a,b", "a=b", "^a")

VALUES: dict[str, tuple[str, ...]] = {
    "func": FUNCS,
    "mask": MASKS,
    "fsmagic": MAGICS,
    "fsname": WORDS,
    "fs_subtype": WORDS,
    "fsuuid": UUIDS,
    "uid": IDS,
    "euid": IDS,
    "gid": IDS,
    "egid": IDS,
    "fowner": IDS,
    "fgroup": IDS,
    "subj_user": WORDS,
    "obj_type": WORDS,
    "keyrings": WORDS,
    "label": WORDS,
    "pcr": NUMBERS,
    "template": (*TEMPLATES, "d-ng|n-ng", "d-ng", "nosuch", ""),
    "appraise_type": ("imasig", "imasig|modsig", "sigv3", "x", ""),
    "appraise_flag": ("check_blacklist", "x", ""),
    "appraise_algos": ("sha256", "sha256,sha512", "sha256,", "nosuch", ""),
    "digest_type": ("verity", "sha256", ""),
}
FLAGS = ("permit_directio", "permit_directio=1", "nosuch", "nosuch=1", "#", "# uid=0")
#: What goes together often.
KNOWN = (
    ("measure", "func=FILE_CHECK", "mask=MAY_READ"),
    ("measure", "func=FILE_CHECK", "digest_type=verity", "template=ima-ngv2"),
    ("measure", "func=KEY_CHECK", "keyrings=.ima|.evm"),
    ("measure", "func=CRITICAL_DATA", "label=selinux"),
    ("measure", "func=BPRM_CHECK", "mask=MAY_EXEC"),
    ("measure", "func=KEXEC_CMDLINE"),
    ("hash", "func=FILE_CHECK"),
    ("audit", "func=MODULE_CHECK"),
    ("dont_measure", "fsmagic=0x9fa0"),
    ("appraise", "func=SETXATTR_CHECK", "appraise_algos=sha256"),
)


def _pair(random: Random) -> str:
    key = random.choice(tuple(VALUES))
    ids = VALUES[key] is IDS
    operator = random.choice(("=", "=", "=", ">", "<", ">=", "<=")) if ids else "="
    return f"{key}{operator}{random.choice(VALUES[key])}"


def rule(random: Random) -> bytes:
    """One rule, without its end."""
    if random.randrange(3):
        words = [random.choice(ACTIONS[:6] if random.randrange(5) else ACTIONS)]
        words += [_pair(random) for _ in range(random.choice((0, 1, 1, 2, 2, 3)))]
    else:
        words = [*random.choice(KNOWN)]
        if random.randrange(2):
            words.insert(random.randrange(len(words) + 1), _pair(random))
    if not random.randrange(12):
        words.append(random.choice((*FLAGS, *words)))
    if not random.randrange(12):
        random.shuffle(words)
    text = random.choice((" ", " ", " ", " ", "  ", "\t", " \t ")).join(words).encode()
    if not random.randrange(10):
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice((*STRANGE, b"\\", b'"', b"\xff", b"#")) + text[at:]
    return text


def script(seed: int, sessions: int) -> str:
    """The script of a seed."""
    random = Random(seed)
    lines = []
    for _ in range(sessions):
        verb = random.choice(("open",) * 9 + ("thread-open",))
        lines.append(f"{verb} a policy {random.choice(('w', 'w', 'w', 'wt', 'wa', 'wc'))}")
        if not random.randrange(15):
            lines += ["open b policy w", "open c policy r", "text c 10", "close b", "close c"]
        for _ in range(random.choice((1, 1, 1, 2))):
            end = random.choice((b"\n",) * 9 + (b"\n\n", b"\n# x\n", b"\nmeasure fowner=5\n"))
            lines.append(f"write a {quoted(rule(random) + end)}")
        lines += ["close a", "lines policy"]
    return "".join(f"{line}\n" for line in [*lines, "show policy"])
