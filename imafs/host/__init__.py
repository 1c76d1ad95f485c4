# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""This machine: its mount table, locks, signals, logs, service manager, raw Linux calls."""
