# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The keeper: it stages the measurement list, stores it durably, and only then deletes."""
