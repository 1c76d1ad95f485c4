# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Scenarios: bad days written down, as TOML files.

``script`` reads one, ``library`` knows those in ``ready``, which come with imafs.
"""
