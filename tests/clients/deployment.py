# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Keylime 6.6.0: verifier, registrar, agent and tenant, unmodified, around one emulator.

They run in a network namespace of their own with Keylime's own ports. The agent finds the
emulator at /sys/kernel/security, in a mount namespace of its own, as in production.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.clients.service import Service
from tests.mount.daemon import Daemon
from tests.support import DeadlineError, run, wait_for

AGENT = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"

#: What the verifier logs where it has taken an agent on.
TAKEN_ON = "POST returning 200 response for adding agent id"

#: A start: migrations of an empty data base, 2048 bit keys, an endorsement key.
START_SECONDS = 60.0
TENANT_SECONDS = 120.0
#: Until the verifier has logged what it has answered.
ANSWERED_SECONDS = 5.0
#: Until new records are attested: several quotes.
STEADY_SECONDS = 60.0

_TLS = {
    "server_key": "default",
    "server_key_password": "",
    "server_cert": "default",
    "trusted_client_ca": "default",
}
_CLIENT_TLS = {
    "client_key": "default",
    "client_key_password": "",
    "client_cert": "default",
    "trusted_server_ca": "default",
    "enable_agent_mtls": "True",
}
_DATABASE = {
    "database_url": "sqlite",
    "database_pool_sz_ovfl": "5,10",
    "auto_migrate_db": "True",
}
_RETRY = {"exponential_backoff": "False", "retry_interval": "1", "max_retries": "10"}
#: An update deletes the agent first, and the verifier ends its entry with the request that is under
#: way: of an agent that was stopped that one takes 20 s. Behind the last of these tries the tenant
#: gives up, adds nothing and exits with 0.
_TENANT_RETRY = {**_RETRY, "max_retries": "60"}

SEVERITIES = ["info", "notice", "warning", "error", "critical", "alert", "emergency"]

#: Component -> section -> options. The values are Keylime's defaults, but for: one worker, short
#: intervals, no revocation messages, no certificate of the endorsement key (swtpm has none).
CONFIGURATION: dict[str, dict[str, dict[str, str]]] = {
    "verifier": {
        "verifier": {
            "version": "2.0",
            "uuid": "default",
            "ip": "127.0.0.1",
            "port": "8881",
            "registrar_ip": "127.0.0.1",
            "registrar_port": "8891",
            "tls_dir": "generate",
            **_TLS,
            **_CLIENT_TLS,
            **_DATABASE,
            **_RETRY,
            "num_workers": "1",
            "quote_interval": "0.5",
            "request_timeout": "60.0",
            "measured_boot_policy_name": "accept-all",
            "measured_boot_imports": "[]",
            "severity_labels": str(SEVERITIES),
            "severity_policy": '[{"event_id": ".*", "severity_label": "emergency"}]',
            "ignore_tomtou_errors": "False",
        },
        "revocations": {
            "enabled_revocation_notifications": "[]",
            "zmq_ip": "127.0.0.1",
            "zmq_port": "8992",
            "webhook_url": "",
        },
    },
    "registrar": {
        "registrar": {
            "version": "2.0",
            "ip": "127.0.0.1",
            "port": "8890",
            "tls_port": "8891",
            "tls_dir": "default",
            **_TLS,
            **_DATABASE,
        },
    },
    "agent": {
        "agent": {
            "version": "2.0",
            "uuid": AGENT,
            "ip": "127.0.0.1",
            "port": "9002",
            "contact_ip": "127.0.0.1",
            "contact_port": "9002",
            "registrar_ip": "127.0.0.1",
            "registrar_port": "8890",
            "enable_agent_mtls": "true",
            "tls_dir": "default",
            **_TLS,
            **_RETRY,
            "enc_keyname": "derived_tci_key",
            "dec_payload_file": "decrypted_payload",
            "secure_size": "1m",
            "tpm_ownerpassword": "keylime",
            "extract_payload_zip": "true",
            "enable_revocation_notifications": "false",
            "revocation_notification_ip": "127.0.0.1",
            "revocation_notification_port": "8992",
            "revocation_cert": "default",
            "revocation_actions": "[]",
            "payload_script": "autorun.sh",
            "enable_insecure_payload": "false",
            "measure_payload_pcr": "-1",
            "tpm_hash_alg": "sha256",
            "tpm_encryption_alg": "rsa",
            "tpm_signing_alg": "rsassa",
            "ek_handle": "generate",
            "run_as": "",
        },
    },
    "tenant": {
        "tenant": {
            "version": "2.0",
            "verifier_ip": "127.0.0.1",
            "verifier_port": "8881",
            "registrar_ip": "127.0.0.1",
            "registrar_port": "8891",
            "tls_dir": "default",
            **_CLIENT_TLS,
            **_TENANT_RETRY,
            "tpm_cert_store": "/var/lib/keylime/tpm_cert_store",
            "max_payload_size": "1048576",
            "accept_tpm_hash_algs": '["sha512", "sha384", "sha256"]',
            "accept_tpm_encryption_algs": '["ecc", "rsa"]',
            "accept_tpm_signing_algs": '["ecschnorr", "rsassa"]',
            "request_timeout": "60",
            "require_ek_cert": "False",
            "ek_check_script": "",
            "mb_refstate": "",
        },
    },
    "ca": {
        "ca": {
            "version": "2.0",
            "password": "default",
            "cert_country": "US",
            "cert_ca_name": "Keylime Certificate Authority",
            "cert_state": "MA",
            "cert_locality": "Lexington",
            "cert_organization": "MITLL",
            "cert_org_unit": "53",
            "cert_ca_lifetime": "3650",
            "cert_lifetime": "365",
            "cert_bits": "2048",
            "cert_crl_dist": "http://localhost:38080/crl",
        },
    },
    "logging": {
        "logging": {"version": "2.0"},
        "loggers": {"keys": "root"},
        "handlers": {"keys": "console"},
        "formatters": {"keys": "plain"},
        "formatter_plain": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"},
        "logger_root": {"level": "INFO", "handlers": "console"},
        "handler_console": {
            "class": "StreamHandler",
            "level": "INFO",
            "formatter": "plain",
            "args": "(sys.stdout,)",
        },
    },
}

#: Every file of every name is well: what is judged is the list against the quote.
POLICY = {
    "meta": {"version": 1, "generator": 0},
    "release": 0,
    "digests": {},
    "excludes": [".*"],
    "keyrings": {},
    "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": None},
    "ima-buf": {},
    "verification-keys": "",
}


class Keylime:
    """A deployment. ``binaries``: the directory of ``keylime_agent`` and the others;
    ``prefix``: what puts a command into the network namespace of ``daemon``.

    As a context: verifier and registrar run; the agent when it was started.
    """

    def __init__(self, daemon: Daemon, binaries: Path, directory: Path, prefix: list[str]) -> None:
        self.daemon = daemon
        self.directory = directory
        self._binaries = binaries
        self._prefix = prefix
        self._stack = contextlib.ExitStack()
        self._started: list[Service] = []
        self._provisioned = 0
        self._environment = {
            **daemon.environment(),
            "KEYLIME_DIR": str(directory),
            "KEYLIME_TEST": "true",
            "PYTHONUNBUFFERED": "1",
        }
        for component, sections in CONFIGURATION.items():
            file = directory / f"{component}.conf"
            file.write_text("\n".join(_section(*section) for section in sections.items()))
            self._environment[f"KEYLIME_{component.upper()}_CONFIG"] = str(file)
        self.policy = directory / "policy.json"
        self.policy.write_text(json.dumps(POLICY))
        self.payload = directory / "payload"
        self.payload.write_text("a secret for the agent\n")

    def __enter__(self) -> Keylime:
        with self._stack:
            self.verifier = self._service("verifier")
            # It makes the authority that the registrar's certificate comes from.
            self.verifier.wait_for("Starting server of process 0", START_SECONDS)
            self.registrar = self._service("registrar")
            self.registrar.wait_for("Starting Cloud Registrar Server", START_SECONDS)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _service(self, name: str, *before: str) -> Service:
        service = Service(
            name,
            [*self._prefix, *before, self._binaries / f"keylime_{name}"],
            self.directory / f"{name}-{len(self._started)}.log",
            env=self._environment,
            cwd=self.directory,
        )
        self._stack.callback(service.stop)
        self._started.append(service)
        return service

    def start_agent(self, lists: Path | None = None) -> None:
        """The agent, which has registered itself; its list is open for as long as it runs.

        ``lists``: a directory over the emulator's own IMA directory, as a keeper's view.
        One that was stopped in the middle of a quote has left its objects and sessions in the
        TPM, where a kernel's /dev/tpmrm0 flushes them when their owner goes.
        """
        for kind in ("--transient-object", "--loaded-session", "--saved-session"):
            run([*self._prefix, "tpm2_flushcontext", kind], env=self._environment)
        mounted = 'mount --rbind "$0" /sys/kernel/security && '
        if lists is not None:
            over = "/sys/kernel/security/integrity/ima"
            mounted += f"mount --bind {shlex.quote(str(lists))} {over} && "
        mounted += 'exec "$@"'
        self.agent = self._service(
            "agent", "unshare", "--mount", "sh", "-c", mounted, str(self.daemon.mountpoint)
        )
        self.agent.wait_for("Starting Cloud Agent", START_SECONDS)

    def tenant(self, command: str, *options: str) -> str:
        """Output of ``keylime_tenant -c COMMAND`` on the agent."""
        words = ["-c", command, "-t", "127.0.0.1", "-v", "127.0.0.1", "-u", AGENT, *options]
        return run(
            [*self._prefix, self._binaries / "keylime_tenant", *words],
            deadline=TENANT_SECONDS,
            env=self._environment,
            cwd=self.directory,
        ).stdout

    def provision(self, command: str) -> None:
        """``add`` or ``update`` the agent with the policy in :attr:`policy`; the verifier has
        taken it on, whatever the tenant's exit code says."""
        self._provisioned = len(self.verifier.log())
        said = self.tenant(command, "--runtime-policy", str(self.policy), "-f", str(self.payload))
        what = f"the verifier has taken the agent on: {said}"
        # It answers the tenant first, and logs behind that.
        self._wait(lambda: TAKEN_ON in self._since_provisioned(), what, ANSWERED_SECONDS)
        self._provisioned = self.verifier.log().rindex(TAKEN_ON)

    def status(self) -> dict[str, Any]:
        """What ``keylime_tenant -c cvstatus`` says of the agent."""
        text = self.tenant("cvstatus")
        answers = [line for line in text.splitlines() if line.startswith('{"' + AGENT)]
        assert len(answers) == 1, text
        found: dict[str, Any] = json.loads(answers[0])[AGENT]
        return found

    def asked_from(self) -> list[int]:
        """From which records on the verifier has asked the running agent for the list so far."""
        return [int(number) for number in re.findall(r"ima_ml_entry=(\d+)", self.agent.log())]

    def attested(self, records: int) -> dict[str, Any]:
        """The status after quotes were verified with a list of so many records.

        The verifier asks from the first record on that it has not seen in a good quote; it has
        asked twice: the first of these was verified as well.
        """
        self._wait(lambda: self.asked_from()[-2:] == [records] * 2, f"{records} records attested")
        return self._status("Get Quote")

    def refused(self) -> dict[str, Any]:
        """The status after a quote that was not good: the verifier has ended its polling.

        What it said before the last :meth:`provision` does not count: it gives up an agent
        that was away for long in the same words.
        """
        self._wait(
            lambda: "failed, stopping polling" in self._since_provisioned(), "a quote is refused"
        )
        return self._status("Invalid Quote")

    def _since_provisioned(self) -> str:
        return self.verifier.log()[self._provisioned :]

    def _wait(
        self, condition: Callable[[], bool], what: str, deadline: float = STEADY_SECONDS
    ) -> None:
        try:
            wait_for(condition, deadline, what, interval=0.05)
        except DeadlineError as error:
            raise DeadlineError(f"{error}\n{self.logs()}") from None

    def _status(self, state: str) -> dict[str, Any]:
        status = self.status()
        assert status["operational_state"] == state, f"{status}\n{self.logs()}"
        return status

    def logs(self) -> str:
        """The last lines of all logs."""
        tails = ["\n".join(service.log().splitlines()[-60:]) for service in self._started]
        names = [f"--- {service.name}" for service in self._started]
        return "\n".join(f"{name}\n{tail}" for name, tail in zip(names, tails, strict=True))


def _section(name: str, options: Mapping[str, str]) -> str:
    return f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in options.items())
