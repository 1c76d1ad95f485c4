# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Containerfile, compose.yaml and docs/kubernetes.yaml name what there is, and agree."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml

from imafs.cli.main import build_parser
from imafs.errors import UsageError
from tests.run.containers import instruction, json_words, services
from tests.support import ROOT

CONTAINERFILE = (ROOT / "Containerfile").read_text()
SCRIPT = (ROOT / "scripts" / "container").read_text()
SHARED = "/srv/securityfs"
SECURITY = "/sys/kernel/security"


def pod() -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "docs" / "kubernetes.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("v1", "Pod")
    spec = document["spec"]
    assert isinstance(spec, dict)
    return spec


def containers() -> tuple[dict[str, Any], dict[str, Any]]:
    """The emulator's and the agent's."""
    (emulator,), (agent,) = pod()["initContainers"], pod()["containers"]
    return emulator, agent


def test_what_is_copied_is_there() -> None:
    copies = re.findall(r"^COPY (?!--from)(.*)$", CONTAINERFILE, flags=re.M)
    sources = [word for line in copies for word in line.split()[:-1]]
    assert {"pyproject.toml", "imafs", "scripts/container"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source


def test_the_image_has_what_setup_installs() -> None:
    """The packages without which nothing runs, by scripts/setup; its compilers to build with."""
    setup = (ROOT / "scripts" / "setup").read_text()
    runtime = setup.partition("find_runtime() {")[2].partition("\n}")[0]
    build = setup.partition("find_build() {")[2].partition("\n}")[0]
    stages = CONTAINERFILE.split("\nFROM ")
    for text, stage in ((build, stages[1]), (runtime, stages[2])):
        packages = {word for line in re.findall(r"lack ([\w ./-]+)", text) for word in line.split()}
        assert packages
        assert packages - {"python3"} <= set(stage.split()), packages


def test_labels() -> None:
    said = dict(word.split("=", 1) for word in shlex.split(instruction("LABEL")))
    assert {"title", "description", "licenses"} <= {
        key.removeprefix("org.opencontainers.image.") for key in said
    }
    assert "--cap-add SYS_ADMIN" in said["run"]
    assert "--device /dev/fuse" in said["run"]


def test_options_are_those_of_mount() -> None:
    """What the image, compose.yaml and the pod give to `imafs mount` is taken by its parser."""
    name, *fixed = json_words(instruction("ENTRYPOINT"))
    assert name == "imafs-container"
    mount = re.search(r"^mount=(\S+)$", SCRIPT, flags=re.M)
    assert mount is not None
    assert mount[1].startswith(f"{SHARED}/")
    for extra in (services()["emulator"]["command"], containers()[0]["args"]):
        args = build_parser().parse_args(["mount", mount[1], *fixed, *extra])
        from imafs.cli.mount import plan

        assert plan(args).tpm_port == 2321
    with pytest.raises((UsageError, SystemExit)):
        build_parser().parse_args(["mount", mount[1], *fixed, "--no-such-option"])


def test_the_health_check_is_everybodys() -> None:
    check = json_words(instruction("HEALTHCHECK"))
    assert check[-1].startswith(f"{SHARED}/ima/")
    emulator, _ = containers()
    assert emulator["startupProbe"]["exec"]["command"] == check
    assert emulator["livenessProbe"]["exec"]["command"] == check


def test_the_directory_is_shared() -> None:
    emulator, agent = services()["emulator"], services()["agent"]
    (ours,), (theirs,) = emulator["volumes"], agent["volumes"]
    assert ours["source"] == theirs["source"]
    assert (ours["target"], ours["bind"]["propagation"]) == (SHARED, "rshared")
    assert (theirs["target"], theirs["bind"]["propagation"]) == (SECURITY, "rslave")
    mounts = [container["volumeMounts"][0] for container in containers()]
    assert [(m["mountPath"], m["mountPropagation"]) for m in mounts] == [
        (SHARED, "Bidirectional"),
        (SECURITY, "HostToContainer"),
    ]
    assert {m["name"] for m in mounts} == {volume["name"] for volume in pod()["volumes"]}


def test_the_pod_is_compose() -> None:
    emulator, agent = containers()
    composed = services()["agent"]
    assert {e["name"]: e["value"] for e in agent["env"]} == composed["environment"]
    assert agent["command"] == composed["entrypoint"]
    assert agent["args"] == composed["command"]
    assert agent["securityContext"]["capabilities"]["add"] == composed["cap_add"]
    assert emulator["args"] == services()["emulator"]["command"]
    assert emulator["securityContext"]["privileged"] is True  # Bidirectional needs it
    assert emulator["restartPolicy"] == "Always"
    assert pod()["shareProcessNamespace"] is True


def test_the_tpm_is_where_the_agent_looks() -> None:
    from imafs.tpm.environment import client_environment

    environment = services()["agent"]["environment"]
    assert environment == client_environment("swtpm:host=127.0.0.1,port=2321")


def test_neither_namespace_is_the_emulators() -> None:
    """Whoever shares the namespaces of a container that is restarted loses them."""
    for name in ("emulator", "agent"):
        service = services()[name]
        # Not service:pod, which podman-compose passes on to podman as it is.
        name = services()["pod"]["container_name"]
        assert service["pid"] == service["network_mode"] == f"container:{name}"
        assert "pod" in service["depends_on"] or "emulator" in service["depends_on"]


def test_the_health_check_of_the_image_is_the_services() -> None:
    """podman build makes OCI images, which keep none (--format docker does)."""
    test = services()["emulator"]["healthcheck"]["test"]
    assert test == ["CMD", *json_words(instruction("HEALTHCHECK"))]
