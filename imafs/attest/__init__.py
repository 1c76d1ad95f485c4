# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Replay of a measurement list and comparison with PCRs."""
