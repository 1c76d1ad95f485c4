# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Bytes to records and back: hash algorithms, template fields, templates, lists. Pure."""
