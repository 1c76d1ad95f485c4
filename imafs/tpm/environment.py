# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Environment variables by which other clients find the TPM of a TCTI string."""

from __future__ import annotations


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
