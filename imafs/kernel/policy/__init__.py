# SPDX-License-Identifier: GPL-2.0-only OR MIT
"""The IMA policy: its language, the built-in policies, matching, the policy file.

Mirrors ima_policy.c and the policy part of ima_fs.c of Linux 7.2.13 and 7.3.4; where the
two differ, a :class:`~imafs.kernel.policy.builtin.Release` says so as data.
"""
