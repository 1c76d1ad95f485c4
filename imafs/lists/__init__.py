# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Measurement lists in memory, pure: banks, segments, packed lists, reading, replay."""
