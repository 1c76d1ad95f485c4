# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The pytest plugin: fixtures and marker. Everything else is imported when first used."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from imafs.testing.ima import Ima
    from imafs.testing.pool import Pool

_MARKER = (
    "ima(profile, hash, template, policy, options): the kernel that the fixture ima plays "
    "for this test; options is a list of further options of `imafs mount`"
)

#: Whether the test itself has passed: what comes before its fixtures' ends.
_PASSED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--ima-require`` and the ini options of the same kind."""
    group = parser.getgroup("imafs", "attestation agents on an emulated IMA")
    group.addoption(
        "--ima-require",
        action="store_true",
        help="fail instead of skipping where the fixture ima cannot be had",
    )
    parser.addini("ima_require", "as --ima-require", type="bool", default=False)
    parser.addini("ima_options", "options of `imafs mount` for every test", type="args")


def pytest_configure(config: pytest.Config) -> None:
    """Tells pytest the marker."""
    config.addinivalue_line("markers", _MARKER)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remembers what came of the test, for the end of its fixtures."""
    report = yield
    if call.when != "teardown":
        item.stash[_PASSED] = call.when == "call" and report.passed
    return report


@pytest.fixture(scope="session")
def _imafs_pool(pytestconfig: pytest.Config) -> Iterator[Pool]:
    from imafs.testing.pool import Pool

    pool = Pool(list(pytestconfig.getini("ima_options")))
    try:
        yield pool
    finally:
        pool.close()


@pytest.fixture
def ima(request: pytest.FixtureRequest, _imafs_pool: Pool) -> Iterator[Ima]:
    """An emulated kernel with a TPM of its own, freshly booted for this test.

    Chosen by ``@pytest.mark.ima(profile="v5", hash="sha384", template="ima-sig")``. The test
    fails at its end when the emulator has ended meanwhile, or a scenario could not do
    what it was to do, or the test passed without each of its steps.
    """
    found = _take(request, _imafs_pool, _marked(request.node))
    yield found
    _give_back(found, _imafs_pool, passed=request.node.stash.get(_PASSED, False))


@pytest.fixture(scope="session")
def ima_session(request: pytest.FixtureRequest, _imafs_pool: Pool) -> Iterator[Ima]:
    """One emulated kernel for all tests that share it; nobody resets it in between."""
    found = _take(request, _imafs_pool, {}, shared=True)
    yield found
    _give_back(found, _imafs_pool, passed=not request.session.testsfailed)


def _give_back(found: Ima, pool: Pool, *, passed: bool) -> None:
    problems = pool.give_back(found, passed=passed)
    if problems:
        pytest.fail("imafs: " + "\n".join(problems), pytrace=False)


def _marked(node: pytest.Item) -> Mapping[str, object]:
    """The marker's arguments; those of the test before its class', and its module's."""
    chosen: dict[str, object] = {}
    for mark in reversed(list(node.iter_markers("ima"))):
        if mark.args:
            pytest.fail(
                "imafs: the marker ima takes keywords only: ima(profile=...)", pytrace=False
            )
        chosen |= mark.kwargs
    return chosen


def _take(
    request: pytest.FixtureRequest,
    pool: Pool,
    chosen: Mapping[str, object],
    *,
    shared: bool = False,
) -> Ima:
    from imafs.errors import ImafsError
    from imafs.testing.pool import Unavailable

    try:
        return pool.take(chosen, shared=shared)
    except Unavailable as error:
        reason = str(error)
        required = request.config.getoption("--ima-require") or request.config.getini("ima_require")
    except ImafsError as error:
        reason, required = str(error), True
    # Not in the handlers: pytest would show the exception that is handled as well.
    if required:
        pytest.fail(f"imafs: {reason}", pytrace=False)
    pytest.skip(f"imafs: {reason}")
