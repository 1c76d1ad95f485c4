# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The side of watched files that runs in the daemon."""
