# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""compose.yaml: a side-car that is killed and comes back, and what each privilege is for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.property.reference import replay
from tests.run.containers import Container, Pod, Service, services
from tests.support import require, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.swtpm]

IMA = "/sys/kernel/security/ima"
READ = f"cat {IMA}/ascii_runtime_measurements"
STAGE = f"echo A > {IMA}/ascii_runtime_measurements_staged && echo staged"
GONE = "Transport endpoint is not connected"
#: Of the request that was under way.
ABORTED = "Software caused connection abort"
NOT_YET = "No such file or directory"
#: Says what a read of the list gives, whenever that changes.
WATCH = f"""
exec 4<{IMA}/ascii_runtime_measurements
while [ ! -e /tmp/stop ]; do
    if out=$({READ} 2>&1); then now="list $(echo "$out" | wc -l) $out"; else now="error $out"; fi
    if [ "$now" != "$last" ]; then
        case "$last $now" in
            error*list*) echo "held $(cat <&4 2>&1 | head -n 1)";;
        esac
        echo "$now" | tr '\\n' ' '; echo; last=$now
    fi
    sleep 0.01
done
"""


@pytest.fixture
def pod() -> Iterator[Pod]:
    require("root", "runc", "/dev/fuse")
    one = Pod()
    try:
        one.start("pod", services()["pod"])
        yield one
    finally:
        one.close()


def start_emulator(pod: Pod) -> Container:
    emulator = pod.start("emulator", services()["emulator"])
    pod.healthy(emulator)
    return emulator


def start_agent(pod: Pod, **changes: object) -> Container:
    """The agent of compose.yaml, with keys changed (None: taken out), once its loop has begun."""
    service: Service = {
        k: v for k, v in {**services()["agent"], **changes}.items() if v is not None
    }
    agent = pod.start("agent", service)
    wait_for(agent.output, 60, "the agent runs")
    return agent


def test_the_side_car_is_killed_and_comes_back(pod: Pod) -> None:
    """The client sees the list, then ENOTCONN, then the list again; never a shorter one."""
    require("tpm2_pcrread")
    emulator, agent = start_emulator(pod), start_agent(pod)
    emulator.execute("imafs", "ctl", "generate", "5")
    watcher = agent.popen(WATCH)
    assert watcher.stdout is not None
    try:
        assert watcher.stdout.readline().startswith("list 6 10 ")
        emulator.kill()
        line = watcher.stdout.readline()
        if ABORTED in line:
            line = watcher.stdout.readline()
        assert GONE in line
        assert GONE in agent.shell(STAGE)
        start_emulator(pod)
        seen = [watcher.stdout.readline()]
        while not seen[-1].startswith("list"):
            seen.append(watcher.stdout.readline())
    finally:
        # By itself: whoever is killed out here goes on in there, as a reader.
        agent.shell("touch /tmp/stop")
        watcher.wait(20)
        watcher.stdout.close()
    # A descriptor of before is of the dead mount.
    assert seen[-2].startswith("held "), seen
    assert GONE in seen[-2]
    # A daemon that starts clears the dead mount before it makes its own.
    assert all(NOT_YET in line for line in seen[:-2]), seen
    assert seen[-1].startswith("list 1 10 "), seen
    assert seen[-1].rstrip().endswith("boot_aggregate")
    assert "staged" in agent.shell(STAGE)
    # The TPM is a new one, at the old address.
    staged = agent.shell(f"cat {IMA}/ascii_runtime_measurements_sha256_staged")
    value = replay(staged.encode(), "sha256").hex().upper()
    assert value in agent.shell("tpm2_pcrread sha256:10")


def test_the_agent_of_compose(pod: Pod) -> None:
    """What compose.yaml runs prints a record and the PCR of the TPM beside it."""
    require("tpm2_pcrread")
    start_emulator(pod)
    agent = start_agent(pod)
    agent.says("10: 0x")
    agent.says("boot_aggregate")


def test_an_agent_before_the_emulator(pod: Pod) -> None:
    agent = start_agent(pod)
    assert NOT_YET in agent.shell(READ)
    start_emulator(pod)
    assert "boot_aggregate" in agent.shell(READ)


@pytest.mark.parametrize("key", ["cap_add", "pid"])
def test_a_writer_needs_it(pod: Pod, key: str) -> None:
    """Without the capability or the common pid namespace: reading works, writing is EPERM."""
    emulator = start_emulator(pod)
    agent = start_agent(pod, **{key: None})
    assert "boot_aggregate" in agent.shell(READ)
    said = agent.shell(STAGE)
    assert "Operation not permitted" in said
    assert "staged" not in said.splitlines()
    if key == "pid":
        emulator.says("outside the daemon's pid namespace")


def test_the_tpm_needs_the_network(pod: Pod) -> None:
    require("tpm2_pcrread")
    start_emulator(pod)
    agent = start_agent(pod, network_mode=None)
    assert agent.execute("tpm2_pcrread", "sha256:10", check=False).returncode != 0
    assert "boot_aggregate" in agent.shell(READ)


def volume_of(service: Service, propagation: str) -> list[Service]:
    (volume,) = service["volumes"]
    return [{**volume, "bind": {"propagation": propagation}}]


def test_a_client_without_rslave_does_not_heal(pod: Pod) -> None:
    emulator = start_emulator(pod)
    agent = start_agent(pod, volumes=volume_of(services()["agent"], "rprivate"))
    assert "boot_aggregate" in agent.shell(READ)
    emulator.kill()
    start_emulator(pod)
    assert GONE in agent.shell(READ)


def test_an_emulator_without_rshared_is_not_seen(pod: Pod) -> None:
    service = services()["emulator"]
    emulator = pod.start("emulator", {**service, "volumes": volume_of(service, "rprivate")})
    pod.healthy(emulator)
    agent = start_agent(pod)
    assert NOT_YET in agent.shell(READ)


@pytest.mark.parametrize(
    ("key", "text"), [("devices", "/dev/fuse"), ("cap_add", "cannot be mounted")]
)
def test_an_emulator_needs_it(pod: Pod, key: str, text: str) -> None:
    """Without the device or the capability: one line and exit code 5, which a restart repeats."""
    service = services()["emulator"]
    del service[key]
    emulator = pod.start("emulator", service)
    assert emulator.wait() == 5
    emulator.says(text)
    assert "Traceback" not in emulator.output()


def test_imafs_run_in_a_container(pod: Pod) -> None:
    """With /dev/fuse and SYS_ADMIN no side-car is needed."""
    agent = start_agent(pod, devices=["/dev/fuse"])
    assert "boot_aggregate" in agent.execute("imafs", "run", "--", "sh", "-c", READ).stdout


def test_imafs_run_in_a_container_without_sys_admin(pod: Pod) -> None:
    """One line that says what to give it; which one depends on seccomp and on /proc."""
    agent = start_agent(pod, devices=["/dev/fuse"], cap_add=None)
    done = agent.execute("imafs", "run", "--", "true", check=False)
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    assert "--cap-add SYS_ADMIN" in done.stderr
