# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Builds the Containerfile without an image registry: its stages are root file systems.

debootstrap makes the one that both stages begin with; RUN is a container in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import uuid
from pathlib import Path

from tests.run.containers import DEFAULT_CAPABILITIES
from tests.support import ROOT, run

SUITE = "bookworm"
#: This machine's certificate authorities for pip, while a step runs.
_AUTHORITY = "build-authorities.crt"
#: Seconds for all the packages of a stage.
_STEP = 900


class Builder:
    """Makes the stages below ``home``, each when it is asked for."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._stages: dict[str, Path] = {}
        self._done = 0

    def base(self) -> Path:
        """A minimal Debian, as the slim images have it."""
        place = self._home / "base"
        if not place.exists():
            minimal = ("debootstrap", "--variant=minbase", SUITE, str(place))
            run(["unshare", "--mount", *minimal], deadline=_STEP)
        return place

    def stage(self, name: str) -> Path:
        """The root file system of a stage: ``build``, ``last``."""
        stages = re.split(r"^(?=FROM )", _instructions(), flags=re.M)[1:]
        while name not in self._stages:
            self._make(stages[self._done].splitlines())
            self._done += 1
        return self._stages[name]

    def _make(self, lines: list[str]) -> None:
        """Raises where an instruction is not known."""
        source, _, name = lines[0].removeprefix("FROM ").partition(" AS ")
        assert source == f"docker.io/library/debian:{SUITE}-slim"
        root, directory = self._home / (name or "last"), "/"
        run(["cp", "-a", self.base(), root], deadline=_STEP)
        for line in lines[1:]:
            verb, _, rest = line.partition(" ")
            match verb:
                case "RUN":
                    _run(root, f"cd {directory} && {rest}")
                case "WORKDIR":
                    directory = rest
                    _below(root, directory).mkdir(parents=True, exist_ok=True)
                case "COPY":
                    _copy(rest.split(), root, directory, self._stages)
                case "LABEL" | "ENTRYPOINT" | "HEALTHCHECK" | "STOPSIGNAL":
                    continue  # of the image's configuration: tests/run/containers.py
                case _:
                    raise AssertionError(f"an instruction that the tests do not know: {line}")
        self._stages[name or "last"] = root


def _instructions() -> str:
    """The Containerfile, an instruction per line."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return "".join(f"{line.strip()}\n" for line in lines if line.strip())


def _below(root: Path, path: str) -> Path:
    return root / path.removeprefix("/")


def _run(root: Path, script: str) -> None:
    """In a container of its own. Nothing of this machine is bound into it: what packages do
    there (as root: certificates, settings below /proc/sys) must not reach it.
    """
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "DEBIAN_FRONTEND": "noninteractive",
        "HOME": "/root",
    }
    # Copies, not binds.
    shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
    authority = os.environ.get("PIP_CERT")
    if authority is not None:
        shutil.copyfile(authority, root / _AUTHORITY)
        environment["PIP_CERT"] = f"/{_AUTHORITY}"
    with tempfile.TemporaryDirectory(prefix="bundle-", dir=root.parent) as bundle:
        run(["runc", "spec", "--bundle", bundle])
        file = Path(bundle, "config.json")
        config = json.loads(file.read_text())
        capabilities = [f"CAP_{name}" for name in DEFAULT_CAPABILITIES]
        config["process"] |= {
            "terminal": False,
            "args": ["sh", "-c", script],
            "env": [f"{name}={value}" for name, value in environment.items()],
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        }
        config["root"] = {"path": str(root), "readonly": False}
        config["mounts"] = [m for m in config["mounts"] if m["type"] != "cgroup"]
        # The network is this machine's: packages come from there.
        config["linux"]["namespaces"] = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]
        assert all(mount["type"] != "bind" for mount in config["mounts"])
        file.write_text(json.dumps(config))
        name = f"imafs-build-{uuid.uuid4().hex[:8]}"
        runc = ["runc", "--root", str(root.parent / "state")]
        try:
            run([*runc, "run", "--bundle", bundle, name], deadline=_STEP)
        finally:
            run([*runc, "delete", "--force", name], check=False)
    (root / _AUTHORITY).unlink(missing_ok=True)


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
