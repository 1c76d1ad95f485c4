# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Builds the Containerfile without an image registry: its stages are root file systems.

debootstrap makes the one that both stages begin with; RUN is a shell in it.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tests.support import ROOT, run

SUITE = "bookworm"
#: Seconds for all the packages of a stage.
_STEP = 900
#: A namespace in which the file system at $0 has what a build container has; then $1 in it.
_ENTER = """set -e
mount --rbind /dev "$0/dev"
mount -t proc proc "$0/proc"
mount --bind /etc/resolv.conf "$0/etc/resolv.conf"
mkdir -p "$0/etc/ssl/certs"
mount --bind /etc/ssl/certs "$0/etc/ssl/certs"
exec chroot "$0" sh -c "$1"
"""


def debootstrap(place: Path) -> None:
    """A minimal Debian, as the slim images have it."""
    run(["debootstrap", "--variant=minbase", SUITE, place], deadline=_STEP)


def build(home: Path) -> Path:
    """The root file system of the last stage. Raises where an instruction is not known."""
    base = home / "base"
    debootstrap(base)
    stages: dict[str, Path] = {}
    root, directory = base, "/"
    text = re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text(), flags=re.M)
    for line in text.replace("\\\n", " ").splitlines():
        verb, _, rest = line.strip().partition(" ")
        match verb:
            case "":
                continue
            case "FROM":
                words = rest.split()
                assert words[0] == f"docker.io/library/debian:{SUITE}-slim"
                name = words[2] if len(words) > 1 else "last"
                root, directory = home / name, "/"
                run(["cp", "-a", base, root], deadline=_STEP)
                stages[name] = root
            case "RUN":
                _run(root, f"cd {directory} && {rest.strip()}")
            case "WORKDIR":
                directory = rest.strip()
                _below(root, directory).mkdir(parents=True, exist_ok=True)
            case "COPY":
                _copy(rest.split(), root, directory, stages)
            case "LABEL" | "ENTRYPOINT" | "HEALTHCHECK" | "STOPSIGNAL":
                continue  # of the image's configuration: tests/run/containers.py
            case "CMD" if line.startswith(" "):
                continue  # HEALTHCHECK's second line
            case _:
                raise AssertionError(f"an instruction that the tests do not know: {line}")
    return stages["last"]


def _below(root: Path, path: str) -> Path:
    return root / path.removeprefix("/")


def _run(root: Path, script: str) -> None:
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "DEBIAN_FRONTEND": "noninteractive",
        "HOME": "/root",
    }
    if "PIP_CERT" in os.environ:
        environment["PIP_CERT"] = os.environ["PIP_CERT"]
    given = [f"{name}={value}" for name, value in environment.items()]
    enter: list[str | os.PathLike[str]] = ["unshare", "--mount", "env", "-i", *given]
    enter += ["sh", "-c", _ENTER, root, script]
    run(enter, deadline=_STEP)


def _copy(words: list[str], root: Path, directory: str, stages: dict[str, Path]) -> None:
    source = ROOT
    if words[0].startswith("--from="):
        source = stages[words.pop(0).removeprefix("--from=")]
    *names, target = words
    place = _below(root, os.path.join(directory, target))
    for name in names:
        found = source / name.removeprefix("/")
        if found.is_dir():
            shutil.copytree(found, place, dirs_exist_ok=True)
        else:
            into = place / found.name if target.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, into)
