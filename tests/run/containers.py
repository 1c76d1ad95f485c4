# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The services of compose.yaml under runc; this machine's files stand for the image.

Every key of a service is translated or refused, so that what is tested is what stands there.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from tests.mount.daemon import alive
from tests.support import ROOT, run, wait_for

Service = dict[str, Any]

#: What Docker and Podman give a container; compose.yaml adds to it.
DEFAULT_CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID"),
    *("SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
)
_PATH = "/imafs-bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Seconds; a start takes one, but the machine may be busy.
_START = 60.0


def services() -> dict[str, Service]:
    """compose.yaml's, to be changed at will."""
    document = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return copy.deepcopy(document["services"])


def instruction(name: str) -> str:
    """The last such instruction of the Containerfile, its continued lines as one."""
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    found = re.findall(rf"^{name}\s+(.*)$", text, flags=re.M)
    return str(found[-1])


def json_words(text: str) -> list[str]:
    """The JSON list at the end of an instruction."""
    words = json.loads(text[text.index("[") :])
    assert all(isinstance(word, str) for word in words)
    return list(words)


class Container:
    """One that runs, or has run."""

    def __init__(self, pod: Pod, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self._pod = pod
        self.name = name
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """Its first process, as this machine numbers it."""
        return int(json.loads(self._pod.runc("state", self.name).stdout)["pid"])

    def output(self) -> str:
        """stdout and stderr so far."""
        return self._log.read_text(errors="replace")

    def says(self, text: str) -> None:
        """Waits for ``text`` in its output: runc copies that to the log, in its own time."""
        wait_for(lambda: text in self.output(), _START, f"{self.name} says: {text}")

    def wait(self) -> int:
        """Its exit code."""
        return self._process.wait(_START)

    def execute(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A further process in it, to its end."""
        return self._pod.runc("exec", self.name, *words, check=check)

    def shell(self, script: str) -> str:
        """What a shell in it prints, errors too."""
        return self.execute("sh", "-c", f"exec 2>&1; {script}", check=False).stdout

    def popen(self, script: str) -> subprocess.Popen[str]:
        """A further shell in it, with its stdout as a pipe."""
        command = [*self._pod.command, "exec", self.name, "sh", "-c", script]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def kill(self) -> None:
        """kill -9 of its first process, and away with it."""
        pid = self.pid
        os.kill(pid, 9)
        assert self.wait() == 137
        assert not alive(pid)
        self.remove()

    def remove(self) -> None:
        """As `docker rm -f`."""
        self._pod.runc("delete", "--force", self.name, check=False)
        self._process.wait(_START)


class Pod:
    """Containers that share a directory; all end with :meth:`close`.

    ``image`` is the root file system of a real image; without one this machine's files,
    read-only, have its place.
    """

    def __init__(self, image: Path | None = None) -> None:
        self._image = image
        self._stack = ExitStack()
        self.home = Path(tempfile.mkdtemp(prefix="containers-"))
        self._stack.callback(shutil.rmtree, self.home)
        self.share = self.home / "share"
        self.share.mkdir()
        # What systemd has made of / already.
        run(["mount", "--bind", self.share, self.share])
        self._stack.callback(run, ["umount", "--lazy", self.share])
        run(["mount", "--make-shared", self.share])
        self.command = ["runc", "--root", str(self.home / "state")]
        self._ids: dict[str, str] = {}
        self._first: Container | None = None

    def close(self) -> None:
        """Away with everything."""
        self._stack.close()

    def runc(self, verb: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of runc to its end."""
        return run([*self.command, verb, *words], check=check)

    def start(self, name: str, service: Service) -> Container:
        """A service as a container; its first process runs."""
        label = f"imafs-{name}-{uuid.uuid4().hex[:8]}"
        bundle = self.home / label
        bundle.mkdir()
        if self._image is None:
            self._furnish(bundle / "rootfs")
        (bundle / "config.json").write_text(json.dumps(self._config(dict(service), bundle)))
        log = bundle / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*self.command, "run", "--bundle", str(bundle), label],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        container = Container(self, label, process, log)
        self._stack.callback(container.remove)
        if name == "pod":
            self._first = container
            wait_for(
                lambda: self.runc("state", label, check=False).returncode == 0, _START, "pod is up"
            )
        return container

    def healthy(self, container: Container) -> None:
        """Waits for the image's own health check."""
        check = json_words(instruction("HEALTHCHECK"))
        wait_for(
            lambda: container.execute(*check, check=False).returncode == 0,
            _START,
            f"{container.name} is healthy: {container.output()}",
        )

    @staticmethod
    def _furnish(root: Path) -> None:
        root.mkdir()
        for name in ("bin", "lib", "lib32", "lib64", "sbin"):
            if Path("/", name).is_symlink():
                (root / name).symlink_to(f"usr/{name}")
        tools = root / "imafs-bin"
        tools.mkdir()
        (tools / "imafs").symlink_to(Path(sys.executable).parent / "imafs")
        (tools / "imafs-container").symlink_to(ROOT / "scripts" / "container")

    def _config(self, service: Service, bundle: Path) -> dict[str, Any]:
        run(["runc", "spec", "--bundle", bundle])
        config: dict[str, Any] = json.loads((bundle / "config.json").read_text())
        assert service.pop("image", "") == "imafs"
        for elsewhere in (
            "build",
            "container_name",
            "depends_on",
            "healthcheck",
            "init",
            "restart",
        ):
            service.pop(elsewhere, None)
        entry = service.pop("entrypoint", None) or json_words(instruction("ENTRYPOINT"))
        path = _PATH if self._image is None else _PATH.partition(":")[2]
        given = {"PATH": path, **service.pop("environment", {})}
        capabilities = [
            f"CAP_{name}" for name in (*DEFAULT_CAPABILITIES, *service.pop("cap_add", ()))
        ]
        kinds = ("bounding", "effective", "permitted")
        config["process"] |= {
            "terminal": False,
            "args": [*entry, *service.pop("command", ())],
            "env": [f"{name}={value}" for name, value in given.items()],
            "capabilities": dict.fromkeys(kinds, capabilities),
            "noNewPrivileges": False,
        }
        assert service.pop("security_opt", ["apparmor=unconfined"]) == ["apparmor=unconfined"]
        root = "rootfs" if self._image is None else str(self._image)
        config["root"] = {"path": root, "readonly": service.pop("read_only", False)}
        config["linux"]["namespaces"] = [{"type": kind} for kind in ("mount", "ipc", "uts")]
        for key, kind in (("pid", "pid"), ("network_mode", "network")):
            config["linux"]["namespaces"].append(self._namespace(service.pop(key, None), kind))
        devices = [self._device(path) for path in service.pop("devices", ())]
        config["linux"]["devices"] = devices
        config["linux"]["resources"]["devices"] += [
            {"allow": True, "access": "rwm", **{k: d[k] for k in ("type", "major", "minor")}}
            for d in devices
        ]
        config["mounts"] = [m for m in config["mounts"] if m["type"] != "cgroup"]
        temporary = service.pop("tmpfs", ["/tmp"])
        config["mounts"] += [
            {"destination": place, "type": "tmpfs", "source": "tmpfs"} for place in temporary
        ]
        if self._image is None:
            config["mounts"] += [_bind(place, place, "ro") for place in _this_machine()]
        config["mounts"] += [self._volume(volume) for volume in service.pop("volumes", ())]
        # As Docker and Podman set it: a volume cannot propagate more than the root does.
        wanted = {option for mount in config["mounts"] for option in mount.get("options", ())}
        spread = next((s for s in ("shared", "slave") if f"r{s}" in wanted), "private")
        config["linux"]["rootfsPropagation"] = spread
        assert not service, f"keys that the tests do not know: {service}"
        return config

    def _namespace(self, said: str | None, kind: str) -> dict[str, str]:
        if said is None:
            return {"type": kind}
        assert said == "container:imafs-pod"
        assert self._first is not None
        name = {"pid": "pid", "network": "net"}[kind]
        return {"type": kind, "path": f"/proc/{self._first.pid}/ns/{name}"}

    @staticmethod
    def _device(path: str) -> dict[str, Any]:
        number = os.stat(path).st_rdev
        major, minor = os.major(number), os.minor(number)
        return {"path": path, "type": "c", "major": major, "minor": minor, "fileMode": 0o666}

    def _volume(self, volume: dict[str, Any]) -> dict[str, Any]:
        options = dict(volume["bind"])
        options.pop("create_host_path", None)
        propagation = options.pop("propagation", "rprivate")  # Docker's default
        assert not options
        assert (volume["type"], volume["source"]) == ("bind", "/run/ima-securityfs")
        return _bind(str(self.share), volume["target"], propagation)


def _this_machine() -> Sequence[str]:
    """What stands for the image: the system, Python and imafs."""
    needed = dict.fromkeys(["/usr", "/etc", sys.base_prefix, sys.prefix, str(ROOT)])
    return [place for place in needed if place == "/usr" or not place.startswith("/usr/")]


def _bind(source: str, target: str, option: str) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": source, "options": ["rbind", option]}
