# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The running emulator: the queue, the TPM and everything that lives in time."""
