# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The policy file's states, pure: opens, sessions, positions, Kconfig."""

from __future__ import annotations

import errno
from contextlib import nullcontext
from typing import Any, SupportsIndex

import pytest

from imafs.errors import Refused
from imafs.kernel.policy import builtin
from imafs.kernel.policy.language import Words
from imafs.kernel.policy.match import Policy
from imafs.kernel.policy.policy_file import Closed, PolicyConfig, PolicyFile

TCB = Policy(builtin.rules(["tcb"]))
A, B, C = b"measure fowner=1\n", b"dont_measure fowner=2\n", b"audit fowner=3\n"


def refused(code: int) -> pytest.RaisesExc[Refused]:
    """Expects a refusal with this errno."""
    return pytest.RaisesExc(Refused, check=lambda error: error.errno == code)


def session(file: PolicyFile, *writes: bytes) -> Closed:
    """Open, write (b"bogus" is refused), close."""
    file.open_write()
    for data in writes:
        with refused(errno.EINVAL) if data.startswith(b"bogus") else nullcontext():
            file.write(file.accept(data, 0))
    return file.close_write()


def test_first_policy_replaces_and_later_ones_append() -> None:
    file = PolicyFile(PolicyConfig(), TCB)
    assert session(file, A, b"# comment\n", b"\n") is Closed.COMPLETED
    assert file.text() == b"measure fowner=1 \n"
    assert session(file, B) is Closed.COMPLETED
    assert session(file, C) is Closed.COMPLETED
    assert file.text() == b"measure fowner=1 \ndont_measure fowner=2 \naudit fowner=3 \n"


@pytest.mark.parametrize("writes", [(), (b"# comment\n",), (A, b"bogus\n", B), (b"bogus\n",)])
def test_a_session_without_rules_or_with_an_error_is_thrown_away(writes: tuple[bytes]) -> None:
    file = PolicyFile(PolicyConfig(), TCB)
    assert session(file, *writes) is Closed.FAILED
    assert file.active is TCB
    assert not file.custom
    # And forgotten: the next one is good again.
    assert session(file, B) is Closed.COMPLETED
    assert file.text() == b"dont_measure fowner=2 \n"


def test_one_writer() -> None:
    file = PolicyFile(PolicyConfig())
    file.open_write()
    with refused(errno.EBUSY):
        file.open_write()
    file.open_read(admin=True)
    file.close_write()
    file.open_write()


def test_readers() -> None:
    file = PolicyFile(PolicyConfig(read=False))
    for admin in (True, False):
        with refused(errno.EACCES):
            file.open_read(admin=admin)
    with refused(errno.EPERM):
        PolicyFile(PolicyConfig()).open_read(admin=False)


def test_writes_are_one_line_at_position_0() -> None:
    file = PolicyFile(PolicyConfig())
    file.open_write()
    assert file.write(file.accept(A + B, 0)) == len(A)
    assert file.write(file.accept(A[:-1], 0)) == len(A)  # one more than was given
    assert file.write(file.accept(b"\n", 0)) == 1
    with refused(errno.EINVAL):
        file.accept(A, 1)
    assert file.close_write() is Closed.FAILED


def test_a_write_is_cut_below_a_page() -> None:
    file = PolicyFile(PolicyConfig())
    file.open_write()
    data = b"measure fowner=1 #" + b"c" * 5000
    assert file.write(file.accept(data, 0)) == 4096
    assert file.close_write() is Closed.COMPLETED


def test_a_file_by_its_path() -> None:
    file = PolicyFile(PolicyConfig())
    file.open_write()
    assert file.path(b"/etc/ima/policy\nignored\n") == b"/etc/ima/policy"
    assert file.path(b" /etc/ima/policy\n") is None
    assert file.load(b"/p\nignored\n", A + b"# c\n\n" + B) == len(b"/p\nignored\n")
    assert file.close_write() is Closed.COMPLETED
    assert file.text() == b"measure fowner=1 \ndont_measure fowner=2 \n"


@pytest.mark.parametrize(
    "content", [A + B[:-1], A + b"bogus\n", A + b"\0" + B, b"measure", A + b"\0\n"]
)
def test_a_file_that_is_not_good(content: bytes) -> None:
    file = PolicyFile(PolicyConfig(), TCB)
    file.open_write()
    with refused(errno.EINVAL):
        file.load(b"/p\n", content)
    assert file.close_write() is Closed.FAILED
    assert file.active is TCB


class Copied(bytes):
    """Counts the bytes that are copied out of it."""

    total = 0

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        out = super().__getitem__(key)
        if isinstance(out, bytes):
            Copied.total += len(out)
            return Copied(out)
        return out

    def split(self, *how: Any) -> Any:
        Copied.total += len(self)
        return super().split(*how)


def test_a_file_is_walked_once() -> None:
    """Not again from every line on: the limit of a file is 64 MiB."""
    content = Copied(b"# a comment\n" * 3000 + A)
    file = PolicyFile(PolicyConfig())
    file.open_write()
    file.load(b"/p\n", content)
    assert Copied.total < 4 * len(content)
    assert file.close_write() is Closed.COMPLETED


SIGNED = b"appraise func=POLICY_CHECK appraise_type=imasig\n"


@pytest.mark.parametrize("appraise", [True, False])
def test_policies_that_must_be_signed(appraise: bool) -> None:
    file = PolicyFile(PolicyConfig(appraise=appraise))
    # In its own session the rule does nothing yet.
    assert session(file, SIGNED, A) is Closed.COMPLETED
    file.open_write()
    with refused(errno.EACCES):
        file.write(b"# comment\n")
    assert file.close_write() is Closed.FAILED
    file.open_write()
    if appraise:
        with refused(errno.EACCES):
            file.load(b"/p\n", B)
    else:
        file.load(b"/p\n", B)
    assert file.close_write() is (Closed.FAILED if appraise else Closed.COMPLETED)


#: What 7.2.13 answered to the path of such a file.
FILES = {
    b"measure func=BPRM_CHECK uid=0\0": True,
    b"measure fowner=1\nmeasure fowner=2\0": True,
    b"measure fowner=3\n\0": True,
    b"\0": True,
    b"# c\0": True,
    b"measure fowner=12\n\n\0": True,
    b"measure fowner=13\n#x\0": True,
    b"\n\0": True,
    b"measure fowner=1\0measure fowner=2\n": False,
    b"measure fowner=1\n\0\n": False,
    b"measure fowner=1\n\0\0": False,
    b"measure fowner=1\0\0": False,
    b"measure fowner=1": False,
    b"\0\n": False,
    b"\0\0": False,
    b"bad\0": False,
    b"measure fowner=1\n\0measure fowner=2": False,
    b"measure fowner=1\nbad\0": False,
    b"  \t\0": True,
    b"#x\n\n\0": True,
    b"measure fowner=1\r\0": False,
    b"measure fowner=1\0\n": False,
}


@pytest.mark.parametrize(("content", "taken"), FILES.items(), ids=map(repr, FILES))
def test_the_last_line_of_a_file_may_end_in_nul(content: bytes, taken: bool) -> None:
    file = PolicyFile(PolicyConfig())
    file.open_write()
    with nullcontext() if taken else refused(errno.EINVAL):
        assert file.load(b"/p\n", content) == 3
    rules = taken and b"measure" in content
    assert file.close_write() is (Closed.COMPLETED if rules else Closed.FAILED)


def test_a_policy_of_the_boot_that_wants_signatures_stays_so() -> None:
    file = PolicyFile(PolicyConfig(), Policy(builtin.rules(["secure_boot"])))
    file.open_write()
    with refused(errno.EACCES):
        file.write(A)


def test_dead_rules_of_a_custom_policy() -> None:
    file = PolicyFile(PolicyConfig(words=Words(lsm=False)), TCB)
    label = b"measure obj_type=x\n"
    file.open_write()
    with refused(errno.EINVAL):
        file.write(label)
    assert file.close_write() is Closed.FAILED
    assert session(file, A) is Closed.COMPLETED
    assert session(file, label) is Closed.COMPLETED
    assert file.text() == b"measure fowner=1 \n"
    assert file.active is not None
    assert len(file.active.rules) == 2


def test_kconfig_after_the_first_load() -> None:
    for read in (True, False):
        for write in (True, False):
            file = PolicyFile(PolicyConfig(read=read, write=write))
            assert file.mode == (0o600 if read else 0o200)
            assert session(file, b"bogus\n") is Closed.FAILED
            assert session(file, A) is Closed.COMPLETED
            assert file.present == (read or write)
            assert file.sealed == (read and not write)
            if write:
                file.open_write()
            else:
                with refused(errno.EBUSY):
                    file.open_write()
