# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The pytest plugin in runs of pytest of its own, as its users have it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imafs.host import programs
from imafs.testing import mounted
from tests.mount.fixtures import Starter
from tests.mount.fixtures import start as start
from tests.support import find_command

pytest_plugins = ("pytester",)
needs_mount = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

#: Every run of these tests has it, so that nothing passes by being skipped.
REQUIRE = "--ima-require"


def outcome(result: pytest.RunResult) -> dict[str, int]:
    return {key: value for key, value in result.parseoutcomes().items() if key != "warnings"}


def test_a_run_that_does_not_use_it_imports_next_to_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys
        def test_imports():
            ours = {name for name in sys.modules if name.split(".")[0] == "imafs"}
            assert ours == {"imafs", "imafs.testing", "imafs.testing.plugin"}
            assert not {"trio", "pyfuse3", "tpm2_pytss"} & set(sys.modules)
        """
    )
    # pytest-trio, which imafs' own tests use, imports trio.
    assert outcome(pytester.runpytest_subprocess("-p", "no:trio")) == {"passed": 1}


def test_it_tells_of_itself(pytester: pytest.Pytester) -> None:
    marks = pytester.runpytest_subprocess("--markers").stdout.str()
    assert "@pytest.mark.ima(profile, hash, template, policy, options)" in marks
    fixtures = pytester.runpytest_subprocess("--fixtures").stdout.str()
    assert "An emulated kernel with a TPM of its own" in fixtures
    assert "nobody resets it in between" in fixtures


def test_the_package_gives_its_names_late() -> None:
    import imafs.testing as package

    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Imma'"):
        _ = package.Imma


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        ('ima(profil="v5")', "the marker ima has no argument 'profil'; it has: profile, hash"),
        ('ima("v5")', "the marker ima takes keywords only"),
        ('ima(options="--banks")', "the marker ima: options is a list of strings"),
    ],
)
def test_a_wrong_marker_is_an_error(pytester: pytest.Pytester, mark: str, text: str) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.{mark}\ndef test_it(ima): pass\n")
    result = pytester.runpytest_subprocess("--strict-markers", REQUIRE)
    assert outcome(result) == {"errors": 1}
    result.stdout.fnmatch_lines([f"imafs: {text}*"])
    assert "Traceback" not in result.stdout.str()
    assert "plugin.py" not in result.stdout.str()  # no source of ours around one good line


def test_where_it_cannot_be_had_it_skips_or_fails(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("def test_it(ima): pass\n")
    monkeypatch.setenv("PATH", "/nowhere")
    result = pytester.runpytest_subprocess("-rs")
    assert outcome(result) == {"skipped": 1}
    reason = "needs root" if os.geteuid() else "fusermount3"
    result.stdout.fnmatch_lines([f"*imafs: *{reason}*"])
    assert outcome(pytester.runpytest_subprocess(REQUIRE)) == {"errors": 1}
    pytester.makeini("[pytest]\nima_require = true\n")
    assert outcome(pytester.runpytest_subprocess()) == {"errors": 1}


def test_what_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert mounted.missing(tpm=True) == "needs root, or an emulator around it: imafs run -- pytest"
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert mounted.missing(tpm=True) == "/dev/fuse: Operation not permitted"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return
    monkeypatch.setattr(programs, "find", lambda name: None if name == "swtpm" else name)
    assert mounted.missing(tpm=True) == "swtpm not installed (Debian: fuse3, swtpm-tools)"
    assert mounted.missing(tpm=False) is None


class TestMounted:
    """With emulators of the plugin's own."""

    pytestmark = needs_mount

    def test_every_test_has_a_freshly_booted_one(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import errno, os
            from imafs.testing import Ima

            seen = []
            staged = "binary_runtime_measurements_staged"

            def test_dirty(ima: Ima):
                ima.generate(5)
                ima.other_agent.stage()
                ima.other_agent.open()
                ima.fault("open", errno.EIO)
                ima.tpm(behind=2, delay=1.0)
                ima.scenario("busy-reader", must_happen=False)
                ima.suspend()
                seen.append((ima.dir, ima.quote().reset_count))

            def test_held(ima: Ima):
                ima.kexec(hold=True)

            def test_clean(ima: Ima):
                assert [record.name for record in ima.records()] == ["boot_aggregate"]
                assert ima.records(staged=True) == []
                os.close(os.open(ima.dir / staged, os.O_RDWR))
                status = ima.status()
                assert status["faults"] == []
                assert status["scenario"] is None
                assert not any(status["pace"].values())
                assert not status["suspended"]
                assert ima.verify(ima.read_list()).matched == 1
                place, resets = seen[0]
                assert ima.dir == place
                assert ima.quote().reset_count > resets
            """
        )
        assert outcome(pytester.runpytest_subprocess(REQUIRE)) == {"passed": 3}

    def test_markers_choose_the_kernel(self, pytester: pytest.Pytester) -> None:
        pytester.makeini("[pytest]\nima_options = --banks sha1,sha256\n")
        pytester.makepyfile(
            """
            import pytest

            @pytest.mark.ima(hash="sha512", template="ima-sig")
            class TestClass:
                def test_class(self, ima):
                    assert ima.status()["hash"] == "sha512"
                    assert ima.records()[0].template == "ima-sig"

                @pytest.mark.ima(hash="sha1")
                def test_nearer(self, ima):
                    assert ima.status()["hash"] == "sha1"
                    assert ima.records()[0].template == "ima-sig"

            @pytest.mark.ima(profile="legacy")
            def test_profile(ima):
                assert not list(ima.dir.glob("*_staged"))
                assert ima.status()["banks"] == ["sha1", "sha256"]

            @pytest.mark.ima(policy="tcb")
            def test_policy(ima):
                assert ima.status()["policy"]["source"] == "tcb"

            @pytest.mark.ima(options=["--layout", "securityfs", "--no-boot-aggregate"])
            def test_options(ima):
                assert ima.dir.name == "ima"
                assert ima.records() == []

            @pytest.mark.ima(hash="none")
            def test_nonsense(ima): pass

            @pytest.mark.ima(options=["--fly"])
            def test_no_option(ima): pass
            """
        )
        result = pytester.runpytest_subprocess(REQUIRE)
        assert outcome(result) == {"passed": 5, "errors": 2}
        result.stdout.fnmatch_lines(
            [
                "imafs: imafs mount did not start: unknown hash algorithm 'none'",
                "imafs: imafs mount did not start: unrecognized arguments: --fly *",
            ]
        )

    def test_one_for_the_session(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            def test_one(ima_session):
                ima_session.generate(3)

            def test_two(ima_session, ima):
                assert len(ima_session.records()) == 4
                assert len(ima.records()) == 1
            """
        )
        assert outcome(pytester.runpytest_subprocess(REQUIRE)) == {"passed": 2}

    def test_one_that_dies_fails_its_test_only(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            def test_kills(ima):
                ima.call("stop")

            def test_next(ima):
                assert len(ima.records()) == 1
            """
        )
        result = pytester.runpytest_subprocess(REQUIRE)
        assert outcome(result) == {"passed": 2, "errors": 1}
        result.stdout.fnmatch_lines(["*imafs: the emulator has ended*"])

    def test_a_bad_day_that_did_not_come_about_fails(self, pytester: pytest.Pytester) -> None:
        pytester.makefile(
            ".toml",
            mine="""
            [[step]]
            when = "start"
            do = [{ op = "agent", action = "delete" }]
            """,
        )
        pytester.makepyfile(
            """
            def test_it(ima):
                assert not ima.scenario("mine.toml").happened
            """
        )
        result = pytester.runpytest_subprocess(REQUIRE)
        assert outcome(result) == {"passed": 1, "errors": 1}
        result.stdout.fnmatch_lines(["*scenario mine: agent: ENOENT: nothing is staged*"])

    def test_a_bad_day_that_nobody_met_fails_a_test_that_passed(
        self, pytester: pytest.Pytester
    ) -> None:
        pytester.makepyfile(
            """
            import pytest

            def test_begun(ima):
                ima.scenario("reboot")

            def test_ended(ima):
                ima.scenario("reboot").end()

            def test_replaced(ima):
                ima.scenario("kexec-before-stage")
                ima.scenario("violation-in-list")

            @pytest.mark.ima(options=["--scenario", "busy-reader"])
            def test_of_the_mount(ima): pass

            def test_need_not(ima):
                ima.scenario("reboot", must_happen=False)

            def test_fails_itself(ima):
                ima.scenario("reboot")
                assert False

            def test_skips(ima):
                ima.scenario("reboot")
                pytest.skip("enough")
            """
        )
        result = pytester.runpytest_subprocess(REQUIRE)
        assert outcome(result) == {"passed": 5, "failed": 1, "skipped": 1, "errors": 4}
        never = "imafs: scenario {}; a bad day that did not come about proves nothing*"
        result.stdout.fnmatch_lines(
            [
                never.format("reboot: never done: step 1 (after delete)"),
                "*at teardown of test_ended*",
                never.format("reboot: never done: step 1 (after delete)"),
                never.format(
                    "kexec-before-stage: never done: step 1 (before stage), step 2 (refused stage)"
                ),
                never.format("busy-reader: never done: step 2 (refused open)"),
            ]
        )

    def test_what_a_mount_begins_with_each_test_has(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(
            """
            import pytest

            @pytest.mark.parametrize("time", [1, 2])
            @pytest.mark.ima(options=["--scenario=violation-in-list", "--measure", "/usr/bin/env"])
            def test_it(ima, time):
                names = [record.name for record in ima.records()]
                assert "/usr/bin/env" in names
                assert ima.status()["violations"] == 1
            """
        )
        assert outcome(pytester.runpytest_subprocess(REQUIRE)) == {"passed": 2}

    def test_nothing_stays_behind_when_pytest_is_killed(
        self, pytester: pytest.Pytester, tmp_path: Path
    ) -> None:
        """The daemon has the signal of its parent's death; it unmounts and ends its swtpm."""
        if find_command("setpriv") is None:
            pytest.skip("setpriv is not installed")
        note = tmp_path / "where"
        pytester.makepyfile(
            f"""
            import os, pathlib, signal
            def test_it(ima):
                pathlib.Path({str(note)!r}).write_text(str(ima.dir))
                os.kill(os.getpid(), signal.SIGKILL)
            """
        )
        pytester.runpytest_subprocess(REQUIRE)
        place = note.read_text()
        from tests.mount.daemon import gone

        gone(place)

    def test_inside_of_imafs_run(
        self, pytester: pytest.Pytester, start: Starter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What imafs run tells by its environment: the emulator around pytest is used."""
        daemon = start("--layout", "securityfs", "--policy", "tcb")
        monkeypatch.setenv("IMAFS_CONTROL", str(daemon.control))
        pytester.makepyfile(
            f"""
            import pytest

            def test_used(ima):
                assert str(ima.dir) == {str(daemon.dir)!r}
                ima.generate(3)

            def test_fresh(ima):
                assert len(ima.records()) == 1

            @pytest.mark.ima(profile="v5")
            def test_other_profile(ima):
                assert ima.status()["profile"] == "v5"

            def test_and_back(ima):
                assert ima.status()["profile"] == "mainline"

            @pytest.mark.ima(policy="tcb", hash="sha256")
            def test_what_it_is(ima):
                assert ima.status()["policy"]["source"] == "tcb"

            @pytest.mark.ima(policy="critical_data")
            def test_other_policy(ima): pass

            @pytest.mark.ima(hash="sha512")
            def test_other_hash(ima): pass

            @pytest.mark.ima(options=["--banks", "sha1"])
            def test_other_options(ima): pass

            def test_both(ima, ima_session): pass

            @pytest.mark.parametrize("how", [dict(hash="nonsense"), dict(profile="v99"),
                dict(template="x"), dict(options=["--fly"]), dict(options=["--st-size", "7"])])
            def test_nonsense(request, how):
                request.node.add_marker(pytest.mark.ima(**how))
                request.getfixturevalue("ima")
            """
        )
        result = pytester.runpytest_subprocess("-rs")
        assert outcome(result) == {"passed": 5, "skipped": 4, "failed": 5}
        text = result.stdout.str()
        assert "imafs: unknown hash algorithm 'nonsense'" in text
        assert "v99" in text
        assert "imafs: unknown template 'x'; there are: ima" in text
        assert "imafs: unrecognized arguments: --fly" in text
        assert "argument --st-size: invalid choice: '7'" in text
        assert "Traceback" not in text
        result.stdout.fnmatch_lines_random(
            [
                "*this test wants --hash sha512: give it to imafs run*",
                "*this test wants --policy critical_data: give it to imafs run*",
                "*this test wants *--banks*: give it to imafs run*",
                "*there is one emulator: use ima or ima_session, not both*",
            ]
        )
        assert daemon.call("hello")["imafs"]
