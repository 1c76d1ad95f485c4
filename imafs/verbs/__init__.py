# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The operations of the emulator on the control socket: their table and their handlers."""
