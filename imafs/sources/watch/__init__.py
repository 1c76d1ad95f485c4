# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Files that are really executed or read below watched paths, measured before they are.

Two processes: the listener answers the kernel's permission events (fanotify), the watcher
in the daemon keeps it alive and measures. ``fanotify``, ``marks``, ``opener``, ``places``,
``hooks``, ``inodes`` and ``listener`` are the listener's; it imports neither trio nor an engine.
"""
