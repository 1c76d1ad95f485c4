# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files that are really executed or read below watched paths, measured before they are.

Two processes. ``child`` is the listener: it answers the kernel's permission events (fanotify)
and decides what is measured. ``daemon`` keeps the listener alive and appends the records.
Neither imports the other; both use what stands beside them.
"""
