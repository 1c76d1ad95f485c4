# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Bad days: calls that fail on demand, and scenarios, which are TOML files.

``faults`` are rules by which calls fail, ``events`` says when steps of a scenario are due,
``gate`` stands around each call with both. ``script`` reads a scenario, ``library`` knows those
in ``ready``, which come with imafs, and ``runner`` carries them out in a daemon.
"""
