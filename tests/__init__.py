# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The tests, one room per kind: unit, property, mount, conformance, clients."""
