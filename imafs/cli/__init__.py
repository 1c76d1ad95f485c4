# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The command line: one file per command, each with ``add_parser`` and ``run``."""
