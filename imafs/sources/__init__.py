# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""Where measurements come from: files of this machine, recorded lists, generated load."""
