# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Environment variables by which other clients find the TPM of a TCTI string."""

from __future__ import annotations

import os

#: Where tpm2-tss has the cryptographic profiles of FAPI.
_FAPI_PROFILES = "/etc/tpm2-tss/fapi-profiles"
_FAPI_PROFILE = "P_ECCP256SHA256"


def client_environment(tcti: str) -> dict[str, str]:
    """Variables for tpm2-tools and agents, and for IBM's TSS where it can reach that TPM.

    IBM's TSS (``tsspcrread``, evmctl) speaks to swtpm as ``raw`` and to the simulator as
    ``mssim``, both by TCP with the control port one above the command port.
    """
    environment = {"TPM2TOOLS_TCTI": tcti, "TCTI": tcti}
    name, _, conf = tcti.partition(":")
    if name == "device":
        environment |= {"TPM_INTERFACE_TYPE": "dev", "TPM_DEVICE": conf or "/dev/tpm0"}
    elif name in {"swtpm", "mssim"}:
        options = dict(item.partition("=")[::2] for item in conf.split(",") if item)
        port = options.get("port", "2321")
        if "path" not in options and port.isdecimal():
            environment |= {
                "TPM_INTERFACE_TYPE": "socsim",
                "TPM_SERVER_TYPE": "raw" if name == "swtpm" else "mssim",
                "TPM_SERVER_NAME": options.get("host", "localhost"),
                "TPM_COMMAND_PORT": port,
                "TPM_PLATFORM_PORT": str(int(port) + 1),
            }
    return environment


def absolute(spec: str) -> str:
    """A TCTI string that means the same after the daemon has left its working directory."""
    name, colon, conf = spec.partition(":")
    if name == "device" and conf:
        return f"{name}:{os.path.abspath(conf)}"
    parts = [option.partition("=") for option in conf.split(",")]
    if name in ("swtpm", "mssim"):
        parts = [(k, eq, os.path.abspath(v) if k == "path" and v else v) for k, eq, v in parts]
    return name + colon + ",".join(map("".join, parts))


def fapi_config(tcti: str, home: str, security: str) -> dict[str, object] | None:
    """FAPI's configuration, for the file that $TSS2_FAPICONF names; None: FAPI is not installed.

    Keys are kept below ``home``; the lists are those of the securityfs at ``security``
    (tpm2-tss 4.0 and later; earlier ones read no IMA list).
    """
    if not os.path.isdir(_FAPI_PROFILES):
        return None
    return {
        "profile_name": _FAPI_PROFILE,
        "profile_dir": f"{_FAPI_PROFILES}/",
        "user_dir": f"{home}/fapi/user",
        "system_dir": f"{home}/fapi/system",
        "log_dir": f"{home}/fapi/log",
        "tcti": tcti,
        "system_pcrs": [],
        "ek_cert_less": "yes",  # a software TPM has no certificate of its endorsement key
        "firmware_log_file": f"{security}/tpm0/binary_bios_measurements",
        "ima_log_file": f"{security}/ima/binary_runtime_measurements",
    }
