# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Namespaces for `imafs run`: entering them, building a /sys in them, watching over a command.

Knows nothing of IMA. Cleaning up is the kernel's: every mount, process and file of a session
lives in its mount and pid namespace and goes with it, whoever is killed -9.
"""
