# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Which rule decides, against what Linux 7.2.13 measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from imafs.kernel.policy import builtin
from imafs.kernel.policy.language import parse
from imafs.kernel.policy.match import UNCONDITIONAL, Access, Policy
from imafs.kernel.policy.rules import MAY_EXEC, MAY_READ, MAY_WRITE
from tests.conformance import policy_oracle, recordings

ASKED = recordings.load(policy_oracle.NAME)
TMPFS = 0x01021994
PROC = 0x9FA0


def policy(*lines: str) -> Policy:
    """A policy of these rules."""
    rules = [parse(line.encode()) for line in lines]
    return Policy(tuple(rule for rule in rules if rule is not None))


def measured(rules: Policy, access: Access) -> bool:
    return rules.decide(access).measure


#: What a use calls: the hooks with their masks, in the kernel's order.
HOOKS = {
    "r": (("FILE_CHECK", MAY_READ),),
    "w": (("FILE_CHECK", MAY_WRITE),),
    "rw": (("FILE_CHECK", MAY_READ | MAY_WRITE),),
    "x": (("FILE_CHECK", MAY_EXEC), ("BPRM_CHECK", MAY_EXEC), ("CREDS_CHECK", MAY_EXEC)),
}


def test_160_uses_as_the_kernel_decided() -> None:
    """Name, PCR and template of every record that files on a tmpfs have brought."""
    rules = policy(*(policy_oracle.HERE / "decide.rules").read_text().splitlines())
    assert rules.text() == ASKED.files["decide.policy"]
    listed = [line.split() for line in ASKED.text("decide.ascii").splitlines()]
    kernel = [(words[4], int(words[0]), words[2]) for words in listed if "/q/" in words[4]]
    ours = []
    for case in policy_oracle.cases():
        for func, mask in HOOKS[case.how]:
            decision = rules.decide(
                Access(
                    func,
                    mask,
                    uid=case.uid,
                    euid=case.uid,
                    gid=case.gid,
                    egid=case.gid,
                    fowner=case.owner,
                    fgroup=case.group,
                    fsmagic=TMPFS,
                    fsname="tmpfs",
                )
            )
            if decision.measure:
                template = decision.template.label if decision.template else "ima-ng"
                ours.append((case.name, decision.pcr or 10, template))
    assert len(kernel) == 58
    assert ours == kernel


def test_tcb() -> None:
    tcb = Policy(builtin.rules(["tcb"]))
    read = Access("FILE_CHECK", MAY_READ)
    assert tcb.decide(read).why == "rule 17: measure func=FILE_CHECK mask=^MAY_READ euid=0"
    assert not measured(tcb, replace(read, uid=1000, euid=1000))
    assert measured(tcb, replace(read, uid=0, euid=1000))
    assert measured(tcb, replace(read, mask=MAY_READ | MAY_WRITE))
    assert not measured(tcb, replace(read, mask=MAY_WRITE))
    assert not measured(tcb, replace(read, fsmagic=TMPFS))
    executed = Access("BPRM_CHECK", MAY_EXEC, uid=1000, euid=1000)
    assert measured(tcb, executed)
    assert measured(tcb, replace(executed, fsmagic=TMPFS))
    assert tcb.decide(replace(executed, fsmagic=PROC)).number == 1
    assert measured(tcb, Access("MMAP_CHECK", MAY_EXEC, uid=1000, euid=1000))
    assert not measured(tcb, Access("MMAP_CHECK_REQPROT", MAY_EXEC))
    assert not measured(tcb, Access("CRITICAL_DATA", 0, label="kernel_info"))


def test_nothing_matches() -> None:
    decision = policy("measure func=BPRM_CHECK").decide(Access("FILE_CHECK", MAY_READ))
    assert (decision.measure, decision.number, decision.why) == (False, 0, "no rule matches")
    assert not measured(Policy(()), Access("FILE_CHECK", MAY_READ))
    assert UNCONDITIONAL.why == "no policy is active"


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        ("uid=5", {5}),
        ("uid>4", {5, 6, 4294967294}),
        ("uid<5", {0, 4}),
    ],
)
def test_comparisons(rule: str, fits: set[int]) -> None:
    rules = policy(f"measure {rule}")
    for uid in (0, 4, 5, 6, 4294967294):
        assert measured(rules, Access("FILE_CHECK", MAY_READ, uid=uid)) == (uid in fits)


def test_effective_ids_of_who_may_change_them() -> None:
    rules = policy("measure euid=0", "measure egid=7")
    user = Access("FILE_CHECK", MAY_READ, uid=1000, euid=1000, gid=1, egid=1)
    assert not measured(rules, user)
    assert not measured(rules, replace(user, suid=0))
    assert measured(rules, replace(user, suid=0, cap_setuid=True))
    assert measured(rules, replace(user, uid=0, cap_setuid=True))
    assert not measured(rules, replace(user, uid=0))
    assert measured(rules, replace(user, sgid=7, cap_setgid=True))
    assert measured(rules, replace(user, gid=7, cap_setgid=True))
    assert not measured(rules, replace(user, sgid=7, cap_setuid=True))


def test_file_systems() -> None:
    uuid = "8bcbe394-4f13-4144-be8e-5aa9ea2ce2f6"
    access = Access("FILE_CHECK", MAY_READ, fsname="fuse", fs_subtype="sshfs", fsmagic=7)
    access = replace(access, fsuuid=bytes.fromhex(uuid.replace("-", "")))
    for good in ("fsname=fuse", "fs_subtype=sshfs", "fsmagic=7", f"fsuuid={uuid}"):
        assert measured(policy(f"measure {good}"), access)
    for bad in ("fsname=fus", "fs_subtype=ssh", "fsmagic=8", f"fsuuid={uuid[:-1]}7"):
        assert not measured(policy(f"measure {bad}"), access)
    # uuid_equal with the s_uuid of a file system that has none.
    null = policy("measure fsuuid=00000000-0000-0000-0000-000000000000")
    assert measured(null, replace(access, fsuuid=None))


def test_critical_data() -> None:
    rules = policy(
        "measure fowner=0",
        "dont_measure func=CRITICAL_DATA label=secret",
        "measure func=CRITICAL_DATA label=a|b pcr=12 uid=0",
        "measure func=CRITICAL_DATA label=all",
    )
    assert rules.decide(Access("CRITICAL_DATA", 0, label="b")).pcr == 12
    assert rules.decide(Access("CRITICAL_DATA", 0, label="secret")).number == 2
    assert not measured(rules, Access("CRITICAL_DATA", 0, label="c"))
    assert not measured(rules, Access("CRITICAL_DATA", 0))
    assert not measured(rules, Access("CRITICAL_DATA", 0, label="a", uid=1))
    assert measured(policy("measure func=CRITICAL_DATA"), Access("CRITICAL_DATA", 0))
    # Rules without func= are about files.
    assert not measured(policy("measure"), Access("CRITICAL_DATA", 0, label="a"))


def test_written_policy() -> None:
    """7.3 matches the buffer by func and uid alone, the file by everything."""
    written = Access("POLICY_CHECK", 0, buffer=True)
    assert measured(policy("measure func=POLICY_CHECK mask=MAY_READ fowner=5"), written)
    assert not measured(policy("measure func=POLICY_CHECK uid=5"), written)
    assert not measured(policy("measure"), written)
    file = Access("POLICY_CHECK", MAY_READ)
    assert measured(policy("measure func=POLICY_CHECK mask=MAY_READ"), file)
    assert not measured(policy("measure func=POLICY_CHECK fowner=5"), file)


def test_other_actions_decide_nothing() -> None:
    rules = policy("audit", "hash", "dont_appraise", "dont_audit", "measure template=ima-sig")
    decision = rules.decide(Access("FILE_CHECK", MAY_READ))
    assert (decision.measure, decision.number) == (True, 5)
    assert decision.template is not None
    assert decision.template.label == "ima-sig"


def test_labels_and_keys_never_match() -> None:
    rules = policy("measure obj_type=x", "measure func=KEY_CHECK")
    assert not measured(rules, Access("FILE_CHECK", MAY_READ))
    assert [rule.never is not None for rule in rules.rules] == [True, True]
    assert policy("measure").rules[0].never is None
